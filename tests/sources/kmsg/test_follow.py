"""The kernel log's promises: no replay, no loss, nothing believed that the kernel did not say."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.model.observation import Failure, Observation, Signal, Words, parse_line
from agent.sources.kmsg.follow import Log, Reader
from tests.waiting import LATEST_S

XID = "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus."


def record(seq: int, text: str = XID, priority: int = 3) -> bytes:
    return f"{priority},{seq},1000,-;{text}".encode()


def take(reader: Reader, *records: bytes) -> list[Observation]:
    return [o for raw in records for o in reader.take(raw, at=1.0)]


def reader(after: tuple[str, int] | None = None, userspace: bool = False, fifo: bool = False) -> Reader:
    boot, seq = after or ("", None)
    return Reader("boot-1", boot, seq, userspace, fifo)


def test_at_a_first_start_what_was_there_is_past_and_what_comes_is_not() -> None:
    one = reader()
    assert [o.past for o in take(one, record(1), record(2))] == [True, True]
    one.caught_up()
    assert [(o.past, o.seq, o.boot_id) for o in take(one, record(3))] == [(False, 3, "boot-1")]


def test_resumed_in_the_same_boot_nothing_is_replayed_and_nothing_lost() -> None:
    assert [(o.seq, o.past) for o in take(reader(("boot-1", 2)), *map(record, (1, 2, 3)))] == [(3, False)]


def test_after_a_reboot_every_record_is_this_boots_and_real() -> None:
    assert [(o.seq, o.past) for o in take(reader(("boot-0", 900)), record(1), record(2))] == [(1, False), (2, False)]


def test_a_position_that_no_kernel_could_have_reached_is_forgotten() -> None:
    one = reader(("boot-1", 5000))
    assert take(one, record(1)) == []
    one.caught_up()
    assert [o.seq for o in take(one, record(2))] == [2]


def test_nothing_in_a_fifo_is_old() -> None:
    assert [o.past for o in take(reader(fifo=True), record(1))] == [False]


def test_user_space_records_are_not_believed_unless_asked_for() -> None:
    careful, drill_marks = reader(), reader(userspace=True)
    assert take(careful, record(1, priority=11)) == []
    assert careful.discarded == 1
    assert len(take(drill_marks, record(1, priority=11))) == 1


def test_a_driver_that_user_space_says_was_loaded_is_not_believed_even_in_a_drill() -> None:
    one, text = reader(), "NVRM: loading NVIDIA UNIX x86_64 Kernel Module  550.54.15"
    assert take(one, record(1, text, priority=12), drill(2, text)) == []
    assert [(o.signal, o.value) for o in take(one, record(3, text, priority=5))] == [(Signal.DRIVER, Words.LOADED)]


def drill(seq: int, text: str = "", priority: int = 12, nonce: str = "0123456789abcdef" * 2) -> bytes:
    return record(seq, f"{text or 'NVRM: Xid (PCI:0000:3b:00): 74'}, gpu-health-agent/drill={nonce}", priority)


def test_user_space_records_that_quote_a_drill_are_passed_on_marked() -> None:
    one = reader()
    (seen,) = take(one, drill(1))
    assert (seen.value, seen.pci, seen.drill, one.discarded) == (74, "0000:3b:00.0", "0123456789abcdef" * 2, 0)
    assert parse_line(seen.to_json(), 0.0).drill == seen.drill


@pytest.mark.parametrize(
    "raw",
    [
        drill(1, nonce="0123"),
        drill(1, nonce="0" * 33),
        drill(1, nonce="z" * 32),
        drill(1, "a line of no driver"),
        drill(1, "NVRM: GPU 0000:3b:00.0: GPU has fallen off the bus"),
        drill(1, "NVRM: nvGpuOpsReportFatalError: uvm encountered global fatal error"),
    ],
)
def test_user_space_says_nothing_else_by_quoting_a_drill(raw: bytes) -> None:
    assert take(reader(), raw) == []


def test_the_kernels_own_record_is_real_whatever_it_quotes() -> None:
    (seen,) = take(reader(), drill(1, "NVRM: Xid (PCI:0000:3b:00): 31, pid=7, name=x", priority=3))
    assert (seen.value, seen.drill) == (31, "")


def test_a_drill_changes_nothing_in_what_the_kernel_began_to_say() -> None:
    lost = ("NVRM: The NVIDIA GPU 0000:b3:00.0", "NVRM: fallen off the bus and is not responding to commands.")
    seen = take(reader(), record(1, lost[0]), drill(2, "NVRM: The NVIDIA GPU 0000:3b:00.0"), record(3, lost[1]))
    assert [(o.signal, o.pci) for o in seen] == [(Signal.LOST, "0000:b3:00.0")]


def test_a_flood_of_marked_records_is_cut_short_until_the_next_heartbeat() -> None:
    one = reader(userspace=True)
    assert len(take(one, *(drill(n) for n in range(1, 100)))) == 8
    assert one.heartbeat().values["discarded_userspace"] == 91
    assert len(take(one, drill(100))) == 1


def test_a_jump_in_the_sequence_says_how_many_records_were_lost() -> None:
    one = reader()
    seen = take(one, record(1, "x"), record(5, "y"))
    assert [(o.signal, o.value) for o in seen] == [(Signal.GAP, 3)]
    assert one.heartbeat().values["lost_records"] == 3


def test_rubbish_is_counted_and_skipped() -> None:
    one = reader()
    assert len(take(one, b"\xff\xfe\x00", b"no record", record(4))) == 1
    assert one.heartbeat().values["malformed"] == 2


def lines(path: Path, *more: str) -> tuple[subprocess.Popen[bytes], Iterator[Observation]]:
    command = [sys.executable, "-m", "agent.sources.kmsg", "--path", str(path), "--heartbeat-s", "0.2", *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, (parse_line(line, 0.0) for line in process.stdout)


def until(stream: Iterator[Observation], signal: Signal) -> Observation:
    return next(o for o in stream if o.signal is signal)


@pytest.fixture
def ended() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.terminate()
        process.wait(LATEST_S)
        assert process.stdout is not None
        process.stdout.close()


def test_a_file_is_followed_as_it_grows_and_when_it_is_replaced(
    tmp_path: Path, ended: list[subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "log"
    path.write_bytes(record(1) + b"\n")
    process, stream = lines(path)
    ended.append(process)
    first = until(stream, Signal.XID)
    assert (first.past, first.seq) == (True, 1)
    assert until(stream, Signal.ALIVE).seq == 1
    with path.open("ab") as log:
        log.write(record(2)[:20])
        log.flush()
        time.sleep(0.05)
        log.write(record(2)[20:] + b"\n")
    grown = until(stream, Signal.XID)
    assert (grown.past, grown.seq, grown.pci) == (False, 2, "0000:3b:00.0")
    other = tmp_path / "other"
    other.write_bytes(record(3) + b"\n")
    other.rename(path)
    assert until(stream, Signal.XID).seq == 3


def test_a_fifo_outlives_its_writers(tmp_path: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    process, stream = lines(path)
    ended.append(process)
    until(stream, Signal.ALIVE)
    for seq in (1, 2):
        path.write_bytes(record(seq) + b"\n")
        seen = until(stream, Signal.XID)
        assert (seen.seq, seen.past) == (seq, False)


def test_heartbeats_come_in_a_storm_that_never_pauses(tmp_path: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    path, stop = tmp_path / "log", threading.Event()
    os.mkfifo(path)
    process, stream = lines(path)
    ended.append(process)
    until(stream, Signal.ALIVE)

    def storm() -> None:
        numbers = itertools.count(1)
        with contextlib.suppress(BrokenPipeError), path.open("wb", buffering=0) as log:
            while not stop.is_set():
                log.write(b"".join(record(next(numbers)) + b"\n" for _ in range(100)))

    writer = threading.Thread(target=storm)
    writer.start()
    try:
        until(stream, Signal.XID)
        assert [until(stream, Signal.ALIVE).source for _ in range(3)] == ["kmsg"] * 3
    finally:
        stop.set()
        writer.join(LATEST_S)


def test_a_log_that_is_not_there_is_said_in_one_sentence(tmp_path: Path, ended: list[subprocess.Popen[bytes]]) -> None:
    process, stream = lines(tmp_path / "none")
    ended.append(process)
    failed = next(stream)
    assert (failed.signal, failed.value) == (Signal.FAILED, Failure.UNREADABLE)
    assert "sources.kmsg.path" in failed.raw


@pytest.mark.parametrize("place", [(), ("--after-boot-id", "boot-1", "--after-seq", "1")], ids=["anew", "resumed"])
def test_a_log_that_fails_and_is_opened_again_is_told_on_and_not_twice(
    tmp_path: Path, ended: list[subprocess.Popen[bytes]], place: tuple[str, ...]
) -> None:
    path, aside, boot = tmp_path / "log", tmp_path / "aside", tmp_path / "boot_id"
    boot.write_text("boot-1")
    path.write_bytes(record(1) + b"\n")
    process, stream = lines(path, "--boot-id-file", str(boot), *place)
    ended.append(process)
    until(stream, Signal.ALIVE)
    with path.open("ab") as log:
        log.write(record(2) + b"\n")
    assert until(stream, Signal.XID).seq == 2
    path.rename(aside)
    path.mkdir()  # reading it is an error as reading a broken device is
    until(stream, Signal.FAILED)
    with aside.open("ab") as log:
        log.write(record(3) + b"\n")
    path.rmdir()
    aside.rename(path)
    again = until(stream, Signal.XID)
    assert (again.seq, again.past) == (3, False)
    until(stream, Signal.ALIVE)


def test_what_was_there_before_the_first_start_stays_past_though_the_log_fails_meanwhile() -> None:
    one = reader()
    take(one, record(1))
    assert one.position is None
    one.caught_up()
    assert one.position == 1
    other = reader(("boot-1", 5))
    take(other, record(1))
    assert other.position == 5


def test_it_ends_once_nobody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    process, stream = lines(path)
    next(stream)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(LATEST_S) == 0


def test_an_overwritten_record_is_no_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"")
    log = Log(path)
    answers: list[bytes | OSError] = [OSError(32, "EPIPE"), OSError(22, "EINVAL"), b"3,9,1,-;x\n", BlockingIOError()]

    def read(_fd: int, _size: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    log.read_bytes, log.device = read, True
    assert [log.read() for _ in range(4)] == [[b""], [b""], [b"3,9,1,-;x\n"], []]


def discarded(beat: Observation) -> int:
    count = beat.values["discarded_userspace"]
    assert isinstance(count, int)
    return count


@pytest.mark.parametrize("believe", [False, True])
def test_the_machines_own_kernel_log_is_followed_and_its_user_space_records_only_when_told(
    believe: bool, ended: list[subprocess.Popen[bytes]]
) -> None:
    """Where the kernel log may not be read or written, the source says so instead."""
    process, stream = lines(Path("/dev/kmsg"), *(["--accept-userspace"] if believe else []))
    ended.append(process)
    first = next(stream)
    if first.signal is Signal.FAILED:
        assert first.value in (Failure.NO_PERMISSION, Failure.UNREADABLE)
        return
    beat = first if first.signal is Signal.ALIVE else until(stream, Signal.ALIVE)
    before = discarded(beat)
    text = f"NVRM: Xid (PCI:0000:3b:00): 31, pid={os.getpid()}, name=rehearsal, of gpu-health-agent's tests\n"
    try:
        Path("/dev/kmsg").write_text(text)
    except OSError:
        assert os.getuid() != 0
        return
    if believe:
        seen = until(stream, Signal.XID)
        assert (seen.value, seen.values["pid"], seen.past) == (31, os.getpid(), False)
    else:
        beats = (o for o in stream if o.signal is Signal.ALIVE)
        assert any(discarded(o) > before for o in itertools.islice(beats, 25))


def test_in_the_machines_own_kernel_log_a_drills_record_is_marked(ended: list[subprocess.Popen[bytes]]) -> None:
    """Where the kernel log may not be read or written, the source says so instead."""
    process, stream = lines(Path("/dev/kmsg"))
    ended.append(process)
    first = next(stream)
    if first.signal is Signal.FAILED:
        assert first.value in (Failure.NO_PERMISSION, Failure.UNREADABLE)
        return
    if first.signal is not Signal.ALIVE:
        until(stream, Signal.ALIVE)
    nonce = os.urandom(16).hex()
    time.sleep(1)  # the kernel takes few records of user space in a second
    try:
        Path("/dev/kmsg").write_text(f"NVRM: Xid (PCI:0000:3b:00): 74, gpu-health-agent/drill={nonce}\n")
    except OSError:
        assert os.getuid() != 0
        return
    seen = next(o for o in stream if o.drill == nonce)
    assert (seen.value, seen.pci, seen.past) == (74, "0000:3b:00.0", False)
