"""Every form in which the kernel names an Xid or a lost GPU, and text that is none."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agent.model.observation import Signal, Words
from agent.sources.kmsg.lines import Facts, parse_record

G, NINE = "0000:3b:00.0", "0009:01:00.0"
FORMS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    (
        "NVRM: Xid (PCI:0000:3b:00): 120, pid='<unknown>', name=<unknown>, GSP Error: Task 1 raised error code 0x5 for "
        "reason 0x0 at 0x63f01ac (0 more errors skipped)",
        G,
        120,
        {},
    ),
    (
        "NVRM: Xid (PCI:0000:3b:00): 119, pid=1346198, name=nvidia-smi, Timeout waiting for RPC from GSP! Expected "
        "function 76 (GSP_RM_CONTROL) (0x20800110 0x84).",
        G,
        119,
        {"pid": 1346198, "name": "nvidia-smi"},
    ),
    (
        "NVRM: Xid (PCI:0000:3b:00): 45, pid=1496200, name=distprovers-gpu, Ch 0000000a",
        G,
        45,
        {"pid": 1496200, "name": "distprovers-gpu"},
    ),
    (
        "NVRM: Xid (PCI:0009:01:00): 149, NETIR_LINK_EVT  Fatal   XC0 i0 Link 01 (0x021425c6 0x00000000)",
        NINE,
        149,
        {
            "fatal": 1,
            "severity": "Fatal",
            "unit": "NETIR_LINK_EVT",
            "link": 1,
            "intrinfo": 0x021425C6,
            "error_status": 0,
        },
    ),
    (
        "NVRM: Xid (PCI:0009:01:00): 145, pid=876767, name=ray::WorkerDict, RLW_RXPIPE Nonfatal XC0 i0",
        NINE,
        145,
        {"pid": 876767, "name": "ray::WorkerDict", "fatal": 0, "severity": "Nonfatal", "unit": "RLW_RXPIPE"},
    ),
    (
        "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)",
        NINE,
        154,
        {"recovery_action": 4},
    ),
    (
        "NVRM: Xid (PCI:0009:01:00): 154, GPU recovery action changed from 0x0 (None) to 0x1 (PF FLR)",
        NINE,
        154,
        {"recovery_action": 1},
    ),
    ("NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.", G, 79, {}),
    (
        "NVRM: Xid (PCI:0000:3b:00): 63, pid='<unknown>', name=<unknown>, Row Remapper: New row (0x18f31d80) marked "
        "for remapping, reset gpu to activate.",
        G,
        63,
        {},
    ),
    (
        "NVRM: Xid (PCI:0000:3b:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel (0x9). RST: No, D-RST: No",
        G,
        94,
        {"gpu_instance": 5, "pid": 7194},
    ),
    (
        "NVRM: Xid (PCI:0000:3b:00 GPU-I:07 GPU-CI:00): 13, pid=7, name=a b, Graphics",
        G,
        13,
        {"gpu_instance": 7, "compute_instance": 0, "pid": 7, "name": "a b"},
    ),
    ("NVRM: Xid (PCI:0000:10:1c): 63, pid=1896, Row Remapper: New row marked", "0000:10:1c.0", 63, {"pid": 1896}),
    ("NVRM: Xid (PCI:0000:3b:00): 62, 0096(1c54) 00000000 00000000", G, 62, {}),
    ("NVRM: Xid (0000:3b:00): 13, 0005 00000000 0000502d", G, 13, {}),
    ("[  123.456] NVRM: Xid (PCI:0000:3B:00): 31, pid=1, name=x, MMU Fault", G, 31, {"pid": 1, "name": "x"}),
)


@pytest.mark.parametrize(("text", "pci", "code", "values"), FORMS, ids=[f"{f[2]}-{i}" for i, f in enumerate(FORMS)])
def test_every_known_form_of_an_xid_is_understood(text: str, pci: str, code: int, values: dict[str, Any]) -> None:
    assert list(Facts().of(text)) == [(Signal.XID, pci, code, values)]


@pytest.mark.parametrize(
    "text", ["", "Xid 79", "NVRM: Xid", "NVRM: Xid (PCI:): 79", "NVRM: Xid (PCI:0000:3b:00): seven"]
)
def test_what_is_no_xid_states_nothing(text: str) -> None:
    assert list(Facts().of(text)) == []


def test_escapes_and_continuation_lines_are_read_as_the_kernel_writes_them() -> None:
    record = parse_record(b"3,7,99,-,caller=T1;a\\x0ab \\xc3\\xa9\n SUBSYSTEM=pci\n")
    assert (record.facility, record.seq, record.usec, record.text) == (0, 7, 99, "a\nb é")


def test_a_user_space_record_shows_its_facility() -> None:
    assert parse_record(b"12,7,99,-;x").facility == 1


def test_no_bytes_crash_the_parser() -> None:
    dice = random.Random(7)
    facts = Facts()
    for _ in range(3000):
        raw = dice.randbytes(dice.randrange(200))
        if dice.random() < 0.5:
            raw = b"3,1,1,-;NVRM: Xid (PCI:0000:3b:00" + raw
        try:
            list(facts.of(parse_record(raw).text))
        except ValueError:
            continue


SXID = "nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 20034, "


def test_of_a_switch_errors_three_records_one_counts() -> None:
    told = ("Fatal, Link 62 LTSSM Fault Up", "Severity 1 Engine instance 60 Sub-engine instance 00", "Data {0x1, 0x0}")
    facts = [fact for text in told for fact in Facts().of(SXID + text)]
    assert facts == [(Signal.SXID, "0000:05:00.0", 20034, {"fatal": 1, "link": 62})]
    one = "nvidia-nvswitch3: SXid (PCI:0000:05:00.0): 12028, Non-fatal, Link 32 egress non-posted PRIV error (First)"
    assert list(Facts().of(one)) == [(Signal.SXID, "0000:05:00.0", 12028, {"fatal": 0, "link": 32})]


DRIVER = (
    (
        "NVRM: API mismatch: the client has the version 580.95.05, but this kernel module has 570.1.",
        "",
        Words.API_MISMATCH,
    ),
    ("NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024", "", Words.LOADED),
    (
        "[  297.680] NVRM: loading NVIDIA UNIX Open Kernel Module for x86_64  525.60.11  Release Build "
        " (dvs-builder@U16)",
        "",
        Words.LOADED,
    ),
)


@pytest.mark.parametrize(("text", "pci", "words"), DRIVER)
def test_the_drivers_other_words_are_understood(text: str, pci: str, words: Words) -> None:
    assert list(Facts().of(text)) == [(Signal.DRIVER, pci, words, {})]


FORGED = (
    "audit: NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15",
    "NVRM: API NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15",
    'audit: type=1400 audit(1.2:3): apparmor="DENIED" name="/NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off"',
    "x\nNVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus.",
    "python[7]: NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus.",
    "audit: exe=uvm encountered global fatal error",
    "audit: nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 22003, Fatal, Link 1 x",
)


@pytest.mark.parametrize("text", FORGED)
def test_what_another_record_quotes_is_not_the_drivers_word(text: str) -> None:
    assert list(Facts().of(text)) == []


def test_an_xid_counts_in_whichever_line_of_a_joined_record_it_stands() -> None:
    xids = [f"NVRM: Xid (PCI:0000:3b:00): {code}, pid=7, name=a, x" for code in (31, 79)]
    for join in ("\n", "#012", "\\x0a", "\n    "):
        for before in ("NVRM: GPU at PCI:0000:3b:00: GPU-aa", "NVRM: GPU Board Serial Number: 1652322034567"):
            assert [fact[2] for fact in Facts().of(join.join((before, *xids)))] == [31, 79]
        assert [fact[2] for fact in Facts().of(join.join(xids))] == [31, 79]
        broken = f"NVRM: Xid (PCI:0000:3b:00): 13, pid=7, name=a{join}NVRM: Xid, Graphics SM (GPC 1, TPC 3, SM 0): x"
        (fact,) = Facts().of(broken)
        assert (fact[2], fact[3]["sm"]) == (13, 0)


def test_a_process_can_not_name_itself_into_a_worse_error() -> None:
    named = "NVRM: Xid (PCI:0000:3b:00): 145, pid=8, name=Fatal XC0, RLW_RXPIPE Nonfatal XC0 i0 Link 13 (0x0)"
    assert next(Facts().of(named))[3]["fatal"] == 0
    named = "NVRM: Xid (PCI:0000:3b:00): 13, pid=8, name=to 0x2): 79, Graphics"
    assert (next(Facts().of(named))[2], "recovery_action" in next(Facts().of(named))[3]) == (13, False)
    named = (
        "NVRM: Xid (PCI:0000:3b:00): 154, pid=8, name=to 0x2, GPU recovery action changed from 0x0 (None) to 0x4 (D)"
    )
    assert next(Facts().of(named))[3]["recovery_action"] == 4
