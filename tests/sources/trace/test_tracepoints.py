"""The driver's tracepoints: each form of the kernel's, none lost, nothing that a process could forge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from agent.model.observation import Failure, Observation, Signal, parse_line
from agent.sources.trace.tracepoints import INSTANCE, Reader, Trace

HEAD = "         python3-4711    [003] .....  4342.324896: "
XID = "nvidia_dev_xid: Xid (PCI:0000:1b:00.0): 79, pid=4711, name=python3, GPU has fallen off the bus."


def take(*lines: str) -> list[Observation]:
    reader = Reader()
    return [o for line in lines for o in reader.take(line)]


@pytest.mark.parametrize(
    "head",
    [
        HEAD,
        "          <idle>-0       [011] d.h1.  4399.000001: ",
        "          <idle>-0       [127] d.h1  4399.000001: ",  # kernels before 5.17 have four flags
        "    kworker/0:2-4194303 [000] .....     0.000001: ",
        "     irq/91-nvidia-1234    [003] 98765.123456: ",  # without the flags, by the option noirq-info
        "         python3-4711    (   4711) [003] .....  4342.324896: ",  # with the option record-tgid
        "         my prog-4711    [003] .....  4342.324896: ",  # a name with a blank
    ],
)
def test_an_event_is_an_xid_whatever_was_running_and_however_the_kernel_prints_it(head: str) -> None:
    (one,) = take(head + XID)
    assert (one.source, one.signal, one.pci, one.value) == ("trace", Signal.XID, "0000:1b:00.0", 79)
    assert (one.values["pid"], one.values["name"]) == (4711, "python3")


def test_the_details_are_those_that_the_kernel_log_gives() -> None:
    action = (
        "nvidia_dev_xid: Xid (PCI:0000:43:00.0): 154, GPU recovery action changed from 0x0 (None) to 0x2 (OS Reboot)"
    )
    switch = "nvswitch_dev_sxid: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 62 LTSSM Fault Up"
    detail = "nvswitch_dev_sxid: SXid (PCI:0000:05:00.0): 20034, Severity 1 Engine instance 60 Sub-engine instance 00"
    asked, failed = take(*(HEAD + event for event in (action, switch, detail)))
    assert (asked.values, failed.signal, failed.value) == ({"recovery_action": 2}, Signal.SXID, 20034)
    assert (failed.pci, failed.values) == ("0000:05:00.0", {"fatal": 1, "link": 62})


def test_events_that_were_lost_are_a_gap() -> None:
    (gap,) = take("CPU:3 [LOST 4711 EVENTS]")
    assert (gap.signal, gap.value) == (Signal.GAP, 4711)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "# tracer: nop",
        XID,  # the end of a message that went over two lines
        HEAD + "sched_switch: prev_comm=x nvidia_dev_xid: Xid (PCI:0000:1b:00.0): 79, GPU has fallen off the bus.",
        HEAD + "tracing_mark_write: nvidia_dev_xid: Xid (PCI:0000:1b:00.0): 79, GPU has fallen off the bus.",
        HEAD + "my_nvidia_dev_xid: Xid (PCI:0000:1b:00.0): 79, GPU has fallen off the bus.",
        HEAD + "nvidia_dev_xid: Xid (PCI:nonsense): 79, GPU has fallen off the bus.",
        HEAD + "nvidia_dev_xid: GPU 0000:1b:00.0: GPU has fallen off the bus",
        HEAD + "nvswitch_dev_sxid: Xid (PCI:0000:1b:00.0): 79, GPU has fallen off the bus.",
        HEAD + "nvidia_dev_xid: SXid (PCI:0000:05:00.0): 20034, Fatal, Link 62 LTSSM Fault Up",
        " a-1 [000] ..... 1.000001: nvidia_dev_xid-4711 [003] ..... 2.000002: " + XID,
    ],
)
def test_nothing_else_is_an_error_of_a_gpu(line: str) -> None:
    reader = Reader()
    assert list(reader.take(line)) == []
    assert reader.malformed == (not line.startswith(HEAD + "nvswitch"))


def tracefs(root: Path) -> Path:
    """As the kernel shows an instance of tracing with NVIDIA's driver loaded; its events are off."""
    ours = root / "instances" / INSTANCE
    for event in ("nvidia/nvidia_dev_xid", "nvswitch/nvswitch_dev_sxid"):
        (ours / "events" / event).mkdir(parents=True)
        (ours / "events" / event / "enable").write_text("0\n")
    (ours / "trace").write_text("what was before\n")
    os.mkfifo(ours / "trace_pipe")
    return ours


def test_it_reads_an_instance_of_its_own_and_touches_nothing_of_others(tmp_path: Path) -> None:
    ours = tracefs(tmp_path)
    theirs = ("trace_pipe", "tracing_on", "trace", "events/nvidia/nvidia_dev_xid/enable")
    for name in theirs:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("theirs")
    writer = os.open(ours / "trace_pipe", os.O_RDWR)
    trace = Trace(tmp_path)
    assert (ours / "trace").read_text() == "", "what was before is told already"
    enables = [ours / "events" / event / "enable" for event in ("nvidia/nvidia_dev_xid", "nvswitch/nvswitch_dev_sxid")]
    assert [enable.read_text() for enable in enables] == ["1", "1"]
    enables[0].write_text("0\n")  # the driver was loaded anew
    enables[1].unlink()  # and its switches' was not
    trace.keep_on()
    assert enables[0].read_text() == "1"
    os.write(writer, f"{HEAD}{XID}\n{HEAD}nvidia_dev".encode())
    assert trace.read() == [HEAD + XID]
    os.write(writer, b"_xid: rest\n")
    assert trace.read() == [f"{HEAD}nvidia_dev_xid: rest"]
    trace.close()
    os.close(writer)
    assert {(tmp_path / name).read_text() for name in theirs} == {"theirs"}


@contextmanager
def running(path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "agent.sources.trace", "--path", str(path), "--heartbeat-s", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def said(process: subprocess.Popen[str]) -> Iterator[Observation]:
    assert process.stdout is not None
    return (parse_line(line, 0.0) for line in process.stdout)


@pytest.mark.parametrize("there", ["nothing", "no driver"])
def test_a_driver_without_the_tracepoint_is_told_with_the_fix(tmp_path: Path, there: str) -> None:
    if there == "no driver":
        ours = tracefs(tmp_path)
        (ours / "events" / "nvidia" / "nvidia_dev_xid" / "enable").unlink()
    with running(tmp_path / "none" if there == "nothing" else tmp_path) as process:
        failed = next(said(process))
    assert (failed.signal, failed.value) == (Signal.FAILED, Failure.UNREADABLE)
    assert [fix for fix in ("from release 575 on", "sources.trace.enabled: false") if fix not in failed.raw] == []


def test_twenty_thousand_events_are_told_to_the_last_for_less_than_a_second_of_a_processor(tmp_path: Path) -> None:
    events, fifo = 20_000, tmp_path / "trace_pipe"
    os.mkfifo(fifo)

    def write() -> None:
        with fifo.open("w") as out:
            out.writelines(f"{HEAD}{XID.replace('79', str(13 + number % 4))}\n" for number in range(events))

    with running(fifo) as process:
        first = next(said(process))
        before = cpu_s(process.pid)
        writer = Thread(target=write)
        writer.start()
        count = 0
        for one in said(process):
            count += int(str(one.values.get("repeats", 1))) if one.signal is Signal.XID else 0
            if count >= events:
                break
        used_s = cpu_s(process.pid) - before
        writer.join()
    assert (first.signal, count) == (Signal.ALIVE, events)
    assert used_s < 1.0


def cpu_s(pid: int) -> float:
    """Of the processor, that the process has used."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
