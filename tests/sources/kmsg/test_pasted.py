"""A kernel log in every form in which people paste it, and text that is none."""

from __future__ import annotations

import json
import random

import pytest

from agent.sources.kmsg.pasted import Paste, Pasted, exported

XID = "NVRM: Xid (PCI:0000:1b:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
USB = "usb 1-1: new high-speed USB device number 7"
UNIX = 1789361325.0  # 2026-09-14T04:48:45Z
NO_YEAR = 85294125.0  # the same in 1972
# What stands before the kernel's words, and the time that it says.
HEADS: tuple[tuple[str, float], ...] = (
    ("[  123.456789] ", 123.456789),
    ("[12345678.000001] ", 12345678.000001),
    ("    [  123.456789] ", 123.456789),  # indented by a person
    ("[  123.456789 <    0.000004>] ", 123.456789),  # dmesg -d
    ("[Mon Sep 14 04:48:45 2026] ", UNIX),  # dmesg -T
    ("[Mon Sep 14 04:48:45 2026 <    0.000004>] ", UNIX),
    ("[Mon Sep  4 04:48:45 2026] ", UNIX - 10 * 86400),
    ("[Mo Sep 14 04:48:45 2026] ", UNIX),
    ("[lun. sept. 14 04:48:45 2026] ", 0.0),  # a language that is not known
    ("[一 9月 14 04:48:45 2026] ", 0.0),
    ("[Sep14 04:48] ", NO_YEAR - 45),  # dmesg -H
    ("[  +0.000004] ", 0.000004),
    ("[<    0.000004>] ", 0.000004),  # dmesg --time-format delta
    ("2026-09-14T04:48:45,123456+00:00 ", UNIX + 0.123456),
    ("2026-09-14T06:48:45,123456+02:00 ", UNIX + 0.123456),
    ("[2026-09-14T04:48:45,123456+00:00] ", UNIX + 0.123456),
    ("[  123.456789] [   T4321] ", 123.456789),
    ("[  123.456789][    C0] ", 123.456789),
    ("[  123.456789][ T4321] ", 123.456789),
    ("kern  :warn  : [  123.456789] ", 123.456789),  # dmesg -x
    ("kern  :err   : 2026-09-14T04:48:45,859532+00:00 ", UNIX + 0.859532),
    ("kern  :err   : [Mon Sep 14 04:48:45 2026] ", UNIX),
    ("kern  :warn  : ", 0.0),
    ("<4>[  123.456789] ", 123.456789),  # /proc/kmsg
    ("<4>", 0.0),
    ("192.168.0.10: kern: warning: [2026-09-14T04:48:45.291660856Z]: ", UNIX + 0.29166),  # Talos
    ("node-7.example.org: kern:     err: [2026-09-14T04:48:45Z]: ", UNIX),
    ("Sep 14 04:48:45 node1 kernel: ", NO_YEAR),
    ("Sep 14 04:48:45 node1 kernel: [  123.456789] ", NO_YEAR),  # syslog keeps the kernel's own time
    ("Sep 14 04:48:45 node1 kernel: [  123.456789] [ T4321] ", NO_YEAR),
    ("Sep 14 04:48:45 node1 kernel[1]: ", NO_YEAR),
    ("Sep 14 04:48:45.123456 node1 kernel: ", NO_YEAR + 0.123456),
    ("2026-09-14T04:48:45+0000 node1 kernel: ", UNIX),
    ("2026-09-14T04:48:45.123456+00:00 node1 kernel: [  123.456789] ", UNIX + 0.123456),
    ("<4>1 2026-09-14T04:48:45.123456+00:00 node1 kernel - - - ", UNIX + 0.123456),  # RFC 5424
    ("2026-09-14 04:48:45 node1 kernel: ", UNIX),
    ("Mon 2026-09-14 04:48:45 UTC node1 kernel: ", UNIX),  # journalctl -o short-full
    ("[ 123.456789] node1 kernel: ", 123.456789),
    ("1789361325.123456 node1 kernel: ", UNIX + 0.123456),
    ("3,12,123456789,-;", 123.456789),  # /dev/kmsg
    ("3,12,123456789,-,caller=T1;", 123.456789),
    ("\x1b[32m[  123.456789] \x1b[0m", 123.456789),  # dmesg --color=always
    ("\ufeff[  123.456789] ", 123.456789),
    ("> [  123.456789] ", 123.456789),  # a mail's quotation
    (">> Sep 14 04:48:45 node1 kernel: ", NO_YEAR),
    ("  - [  123.456789] ", 123.456789),  # lists, and code in them
    ("* `[  123.456789] ", 123.456789),
    ("1234:[  123.456789] ", 123.456789),  # grep -n
    ("/var/log/kern.log:Sep 14 04:48:45 node1 kernel: ", NO_YEAR),
    ("syslog.1:17:2026-09-14T04:48:45.123456+00:00 node1 kernel: ", UNIX + 0.123456),
    ("node-7.example.org: [  123.456789] ", 123.456789),  # pdsh
    ("kmsg-1  | [  123.456789] ", 123.456789),  # docker compose logs
    ("**[  123.456789] ", 123.456789),  # bold
    ("Sep 14 2026 04:48:45 node1 kernel: ", UNIX),
)
# Where only the driver's words themselves tell that they are the kernel's.
BY_ITS_WORDS: tuple[tuple[str, float], ...] = (
    ("", 0.0),
    ("    ", 0.0),
    ("kernel: ", 0.0),
    ("> ", 0.0),
    ("kern.log:", 0.0),
    ("Sep 14 04:48:45 ", NO_YEAR),
    ("Sep 14 04:48:45 node1 ", NO_YEAR),
    ("2026-09-14T04:48:45.123456+00:00 ", UNIX + 0.123456),
)


def read(text: str) -> tuple[Paste, list[Pasted]]:
    paste = Paste()
    return paste, list(paste.records(line + "\n" for line in text.split("\n")))


@pytest.mark.parametrize(("head", "at"), [*HEADS, *BY_ITS_WORDS])
def test_every_form_is_read_with_its_time(head: str, at: float) -> None:
    for end in ("", "\n", "\r\n"):
        paste, (record,) = read(f"{head}{XID}{end}")
        assert (record.text, record.kernel, paste.taken, paste.unclear) == (XID, True, 1, 0)
        assert record.at == pytest.approx(at, abs=1e-5)


def test_every_form_is_read_among_others() -> None:
    dice = random.Random(5)
    for _ in range(200):
        heads = [dice.choice(HEADS)[0] for _ in range(4)]
        paste, records = read("".join(f"{head}{USB if n % 2 else XID}\n" for n, head in enumerate(heads)))
        assert [record.text for record in records if record.text != USB] == [XID, XID], heads
        assert paste.taken == paste.lines == 4
        assert [record.at for record in records] == sorted(record.at for record in records)


@pytest.mark.parametrize(
    "line",
    [
        f"Sep 14 04:48:45 node1 python[7]: {XID}",
        f"Sep 14 04:48:45 node1 python[7]: kernel: {XID}",
        f"Sep 14 04:48:45 python[7]: kernel: {XID}",
        f"Sep 14 04:48:45 python[7]: {XID}",
        f"Sep 14 04:48:45 python: {XID}",
        f"2026-09-14T04:48:45+0000 node1 audit[7]: {XID}",
        f"user  :notice: [  123.456789] {XID}",
        f"192.168.0.10: user: warning: [2026-09-14T04:48:45Z]: {XID}",
        f"<12>[  123.456789] {XID}",
        f"<12>2026-09-14T04:48:45+00:00 {XID}",
        f"user  :notice: 2026-09-14T04:48:45,123456+00:00 {XID}",
        f"12,1,1,-;{XID}",
        json.dumps(
            {"__REALTIME_TIMESTAMP": "1", "_TRANSPORT": "syslog", "SYSLOG_IDENTIFIER": "kernel", "MESSAGE": XID}
        ),
    ],
)
def test_what_another_program_wrote_is_a_record_and_not_the_kernels(line: str) -> None:
    paste, (record,) = read(line)
    assert (record.kernel, paste.taken) == (False, 1)


def test_a_journals_json_is_read_in_either_form_of_its_message() -> None:
    entry: dict[str, object] = {"__REALTIME_TIMESTAMP": "1789361325123456", "_TRANSPORT": "kernel", "MESSAGE": XID}
    for either, before in ((XID, ""), (list(XID.encode()), ""), (XID, "\x1e")):  # journalctl -o json-seq
        paste, (record,) = read(before + json.dumps({**entry, "MESSAGE": either}))
        assert (record.text, record.kernel, paste.taken) == (XID, True, 1)
        assert record.at == pytest.approx(UNIX + 0.123456)
    unsaid = {key: value for key, value in entry.items() if key != "_TRANSPORT"}
    for who, kernel in (("kernel", True), ("python", False)):  # an entry of a collector that drops what it trusts
        assert read(json.dumps({**unsaid, "SYSLOG_IDENTIFIER": who}))[1][0].kernel is kernel
    assert read(json.dumps(entry).replace("1789361325123456", "9" * 400))[1:] == ([],)
    for message in ("null", "7", "{}", "[256]", "[[]]", "true"):
        assert read(json.dumps(entry).replace(json.dumps(XID), message))[1:] == ([],)
    assert read('{"MESSAGE":')[0].taken == 0


def test_a_journals_export_is_read_entry_by_entry_with_messages_of_several_lines() -> None:
    before = "__CURSOR=s=1\n__REALTIME_TIMESTAMP=1789361325123456\n_TRANSPORT=kernel\n"
    several = f"{XID}\nname=x\n  more"  # whose length and bytes come below the field's name
    binary = f"MESSAGE\n{len(several).to_bytes(8, 'little').decode()}{several}\n"
    text = f"{before}MESSAGE={XID}\n\n{before}{binary}_PID=1\n\n{before}\n__CURSOR=cut"
    paste = Paste()
    records = [*paste.records(exported(text.splitlines(keepends=True)))]
    assert [one.text for one in records] == [XID, several]
    assert all(one.kernel and one.at == pytest.approx(UNIX + 0.123456) for one in records)


def test_indented_lines_belong_to_the_record_above_them() -> None:
    probe = "NVRM: The NVIDIA GPU 0000:1b:00.0\n          NVRM: (PCI ID: 10de:26b5) installed\n          has fallen"
    paste, records = read(f"[ 1.0] {USB}\n[ 2.0] {probe}\n[ 3.0] {USB}\n")
    joined = "NVRM: The NVIDIA GPU 0000:1b:00.0\nNVRM: (PCI ID: 10de:26b5) installed\nhas fallen"
    assert [record.text for record in records] == [USB, joined, USB]
    assert paste.taken == paste.lines == 5
    assert [r.text for r in read(f"    NVRM: a\n    {XID}\n    {XID}\n")[1]] == ["NVRM: a", XID, XID], "by a person"
    assert [r.text for r in read(f"[ 1.0] {USB}\n    {XID}\n")[1]] == [USB, XID]
    assert read(f"3,1,1,-;{XID}\n SUBSYSTEM=pci\n")[0].taken == 2


def test_times_add_up_and_a_year_that_is_not_named_ends() -> None:
    deltas = "".join(
        f"{head}{USB}\n" for head in ("[Sep14 04:48] ", "[  +1.500000] ", "[  +2.000000] ", "[Sep14 04:49] ")
    )
    assert [r.at - NO_YEAR for r in read(deltas)[1]] == [-45, -43.5, -41.5, 15]
    days = ("Dec 31 23:59:59", "Jan  1 00:00:01", "Feb 29 00:00:00", "Feb 28 00:00:00")
    at = [r.at for r in read("".join(f"{day} node1 kernel: {USB}\n" for day in days))[1]]
    assert at[1] - at[0] == 2
    assert at == sorted(at)
    back = [r.at for r in read("".join(f"Sep 14 04:48:{s} node1 kernel: {USB}\n" for s in (46, 45, 47)))[1]]
    assert [at - back[0] for at in back] == [0, 0, 1], "no year passes between two lines that changed places"
    far = read(f"9999-12-31T23:59:59Z node1 kernel: {USB}\nJan  1 00:00:00 node1 kernel: {USB}\n")[1]
    assert far[0].at == far[1].at


def test_records_of_dmesg_that_were_pasted_into_one_line_are_read_each() -> None:
    texts = (USB, XID, "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 12028, Non-fatal", XID)
    _, records = read("".join(f"[  {at}.456789] {text} " for at, text in enumerate(texts)))
    assert [(int(r.at), r.text) for r in records] == list(enumerate(texts))
    (quoted,) = read(f"Sep 14 04:48:45 node1 python[7]: dmesg says [  1.456789] {XID}")[1]
    assert not quoted.kernel


def test_a_switchs_words_need_no_name_of_the_kernel_before_them() -> None:
    said = "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error"
    assert [(r.text, r.kernel) for r in read(f"Sep 14 04:48:45 node1 {said}")[1]] == [(said, True)]


def test_no_record_is_longer_than_the_kernels_own() -> None:
    for long in (f"[ 1.0] {'x' * 50_000}", "[ 1.0] NVRM: a\n" + f" {'b' * 1000}\n" * 50):
        assert [len(record.text) > 16 * 1024 for record in read(long)[1]] == [False]


def test_what_is_no_log_is_not_read_as_one() -> None:
    for text in (
        "",
        "hello",
        "Xid 79",
        "{}",
        "{",
        "[",
        "[]",
        "12:30",
        "-- No entries --",
        "the nvidia driver is old",
        "<>",
    ):
        paste, records = read(text)
        assert (records, paste.taken) == ([], 0), text
    assert [read(text)[0].unclear for text in ("the Xid came", "my NVRM line", "hello")] == [1, 1, 0]


def test_no_text_crashes_the_reader_or_takes_it_long() -> None:
    dice = random.Random(3)
    pieces = [head for head, _ in HEADS] + [
        XID,
        USB,
        "[",
        "]",
        " ",
        "\t",
        "<4>",
        "{",
        '"MESSAGE"',
        "kernel: ",
        "9" * 400,
    ]
    for _ in range(2000):
        line = "".join(dice.choice(pieces) for _ in range(dice.randrange(6)))
        if dice.random() < 0.3:
            line = line[: dice.randrange(len(line) + 1)] + chr(dice.randrange(0x110000 - 0x800) % 0xD800)
        read(line)
    many = ("[ " * 100_000, "kern:" * 100_000, " " * 200_000 + "x", "[" + "9" * 200_000, "Sep 14 " * 50_000)
    for long in (*many, "NVRM: a\n" + " b\n" * 50_000):
        read(long)
