"""The promise that both libraries are swept for: one GPU's answers change nothing of another, and end nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from agent.model.observation import Observation, Signal, Value
from agent.sources.nvml.session import Nvml

CODES = (
    999,
    3,
    4,
    8,
    15,
    16,
    17,
)  # unknown, unsupported, no permission, no power, lost, reset required, no device file
_LONGEST_LINE = 16 * 1024

Readings = dict[str, dict[str, Value]]


def opened(*known: str) -> Nvml:
    """A session where nobody can ask the bus, of a process that knows these addresses."""
    return Nvml(set(known), Path("/nonexistent"))


def seen(session: Nvml) -> tuple[Readings, list[Observation]]:
    """What a whole poll read of each GPU, but for what time moves."""
    told = list(session.poll())
    assert told[-1].signal is Signal.ALIVE
    read = {o.pci: dict(o.values) for o in told if o.signal is Signal.READING}
    for values in read.values():
        values.pop("energy_j")
    return read, told


def others_are_read_as_ever(session: Nvml, right: Mapping[str, dict[str, Value]], case: str) -> Readings:
    """``right`` is what the GPUs give that answer as they should, what comes back is said of all at the second poll.

    AssertionError names the case.
    """
    for _ in range(2):
        read, told = seen(session)
        assert {pci: values for pci, values in read.items() if pci in right} == right, case
        assert not [o for o in told if o.pci in right and o.signal is not Signal.READING], case
        assert all(len(o.to_json()) < _LONGEST_LINE for o in told), case
    list(session.events(0.0, lambda _: None))
    return read


def counts(library: str, calls: int, cases: int) -> str:
    """One line for whoever runs the tests."""
    return f"a library {library}: {calls} calls answered oddly in turn, {cases} cases"
