"""Kernel records from before the log was opened: past until the stored position is known, then news or told already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.model.fault import Remembered
from agent.model.observation import Observation, Signal, Value

_MOST = 8192  # the kernel's ring holds fewer; of what is beyond, the oldest go first

Key = tuple[int | None, Signal, str, Value]


class Backlog:
    """The kernel log is read from the first second, whether or not the Node can be; here the stored position comes in.

    Each record that a source calls past is judged as past and kept until ``join``. Then what the agent's last life had
    not taken in yet is judged anew, as news.
    """

    def __init__(self) -> None:
        self._kept: dict[Key, Observation] = {}
        self._stored: Remembered | None = None
        self._joined = False

    def admitted(self, seen: Iterable[Observation], now: float) -> list[Observation]:
        """What is to be judged of this; ``now`` is monotonic seconds."""
        if self._joined:
            return [one for o in seen for one in (self._placed(o, now) if o.past else (o,))]
        judged = []
        for o in seen:
            if o.past:
                self._kept[o.seq, o.signal, o.pci, o.value] = o
                if len(self._kept) > _MOST:
                    del self._kept[next(iter(self._kept))]
            if not (o.past and o.drill):  # whether it is past decides whether it is believed at all
                judged.append(o)
        return judged

    def join(self, stored: Remembered | None, now: float) -> list[Observation]:
        """What turns out to be news, once it is known what the last life left; None: nothing."""
        kept, self._kept = self._kept, {}
        self._stored, self._joined = stored, True
        placed = [one for o in kept.values() for one in self._placed(o, now)]
        return [one for one in placed if not one.past or one.drill]

    def _placed(self, o: Observation, now: float) -> Iterator[Observation]:
        """News, or nothing where by the stored position the last life had it. Without a position it stays past."""
        stored = self._stored
        if stored is None or stored.kernel_seq is None or not (stored.boot_id and o.boot_id) or o.seq is None:
            yield o
        elif o.boot_id != stored.boot_id or o.seq > stored.kernel_seq:
            yield replace(o, past=False, arrived=now)
