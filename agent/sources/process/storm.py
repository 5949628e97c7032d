"""The same error over and over, said once a second with how often it came."""

from __future__ import annotations

from dataclasses import replace

from agent.model.observation import DECISIVE, Observation, Signal, Value

_WINDOW_S = 1.0
_MOST_PIDS = 64  # processes told apart at a time; the errors of all others on a GPU are one kind
_MOST = 1024  # different errors at a time; what is beyond is said as it comes, and no driver has so many codes

Key = tuple[str, Value, Value, tuple[Value, ...]]


class Storm:
    """Lets the first of each kind of Xid or other word pass and gathers its repeats. ``now`` is monotonic seconds."""

    def __init__(self) -> None:
        self._said: dict[Key, float] = {}
        self._gathered: dict[Key, tuple[int, Observation]] = {}

    @property
    def gathers(self) -> bool:
        return bool(self._gathered)

    def passes(self, observation: Observation, now: float) -> bool:
        """Whether to say it now; otherwise it is gathered. Old records are told one by one."""
        # An error of a drill must swallow no real one.
        if observation.signal not in (Signal.XID, Signal.DRIVER) or observation.past or observation.drill:
            return True
        values = observation.values
        pid, words = values.get("pid"), tuple(values.get(name) for name in ("gpu_instance", *DECISIVE))
        if pid is not None and (observation.pci, observation.value, pid, words) not in self._said:
            pid = pid if len(self._said) < _MOST_PIDS else None
        key = (observation.pci, observation.value, pid, words)
        before = self._said.get(key)
        if before is None or now - before >= _WINDOW_S:
            if before is None and len(self._said) >= _MOST:
                return True
            self._said[key] = now
            return True
        count, _ = self._gathered.get(key, (0, observation))
        self._gathered[key] = (count + 1, observation)
        return False

    def gathered(self, now: float, all_of_them: bool = False) -> list[Observation]:
        """The last of each kind whose second is over, with how often it came."""
        due = [key for key in self._gathered if all_of_them or now - self._said.get(key, 0.0) >= _WINDOW_S]
        observations = []
        for key in due:
            count, last = self._gathered.pop(key)
            self._said[key] = now
            observations.append(replace(last, values={**last.values, "repeats": count}))
        self._said = {key: at for key, at in self._said.items() if key in self._gathered or now - at < _WINDOW_S}
        return observations
