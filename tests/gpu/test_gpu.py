"""On a real GPU: readings agree with nvidia-smi, a program's fault is seen and withdraws nothing, and what it costs."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.config.limits import Limits
from agent.diagnosis.judge import Memory, judge
from agent.model.fault import Severity
from agent.model.observation import Observation, Signal, parse_line
from agent.model.text import normalise_pci
from agent.sources.nvml.session import Nvml

SMI = {
    "uuid": "uuid",
    "name": "name",
    "pcie_max_width": "pcie.link.width.max",
    "ecc_uncorrected_volatile": "ecc.errors.uncorrected.volatile.total",
    "ecc_uncorrected_aggregate": "ecc.errors.uncorrected.aggregate.total",
}


@pytest.fixture
def session() -> Iterator[Nvml]:
    made = Nvml()
    yield made
    made.close()


def smi() -> dict[str, dict[str, str]]:
    command = [
        "nvidia-smi",
        f"--query-gpu=pci.bus_id,temperature.gpu,{','.join(SMI.values())}",
        "--format=csv,noheader,nounits",
    ]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [[cell.strip() for cell in line.split(",")] for line in out.splitlines()]
    return {normalise_pci(row[0]): dict(zip(("temperature_c", *SMI), row[1:], strict=True)) for row in rows}


def test_readings_agree_with_nvidia_smi(session: Nvml) -> None:
    readings = {o.pci: o.values for o in session.poll() if o.signal is Signal.READING}
    told = smi()
    assert readings.keys() == told.keys()
    for pci, values in told.items():
        print(pci, dict(readings[pci]))
        for name in SMI:
            if not values[name].startswith("[N/A"):
                assert str(readings[pci][name]) == values[name], name
        heat = readings[pci]["temperature_c"]
        assert isinstance(heat, int | float)
        assert abs(heat - float(values["temperature_c"])) <= 3


def test_a_programs_illegal_address_is_seen_at_once_and_withdraws_nothing(session: Nvml) -> None:
    seen: list[Observation] = list(session.poll())
    program = subprocess.Popen([sys.executable, str(Path(__file__).with_name("illegal_address.py"))])
    end = time.monotonic() + 60
    while not any(o.signal is Signal.XID for o in seen) and time.monotonic() < end:
        seen += session.events(1.0, time.sleep)
    assert program.wait(60) == 0
    seen += session.poll()
    codes = {o.value for o in seen if o.signal is Signal.XID}
    assert codes <= {13, 31, 43, 45}
    assert codes, "the event set delivered no Xid"
    lines = [parse_line(o.to_json(), time.monotonic()) for o in seen]
    _, verdict = judge(Memory(), lines, time.monotonic(), time.time(), Limits(), ("nvml",))
    assert not verdict.withdraw
    assert {f.finding.severity for f in verdict.faults} == {Severity.NOTICE}


def test_what_a_poll_costs(session: Nvml) -> None:
    list(session.poll())
    usage, began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    polls = 50
    for _ in range(polls):
        list(session.poll())
    took, now = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF)
    cpu = now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime
    print(f"\na poll: {1000 * took / polls:.1f} ms, {1000 * cpu / polls:.1f} ms of CPU")
    assert took > 0
