"""One GPU's values: every signal of the table, each unsupported, unreadable, or read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any

import pynvml as nv

from agent.model.observation import Missing, Value
from agent.sources.nvml.plausible import RANGES, implausible
from agent.sources.nvml.readings import CALLS, FIELDS, IDENTITY, LINK_FIELDS, STATIC, UNION, Handle, Read, nvlink_peers
from agent.sources.nvml.return_codes import SICK, UNSUPPORTED
from agent.sources.process.progress import CurrentCall

_AGAIN = Missing.UNREADABLE  # also for what was never read
_ASKED_ANEW_S = 600.0  # what was unsupported may have been so for a while only: the driver's, not the board's
_PROMPT_S = 1.0  # a reading that takes longer is told without what can wait: of that one call is made at each poll
_AMPERE = 7  # from which on no GPU is bound to its NVLink peers in a reset
_ALL_LINKS = 0xFFFFFFFF  # NVLink 5's totals over the links of a GPU


@dataclass(slots=True, eq=False)  # a GPU that was enumerated anew is another one
class Gpu:
    """A GPU as it was enumerated; what was learnt of it lasts until it is enumerated anew."""

    pci: str
    handle: Handle
    call: CurrentCall = field(default_factory=CurrentCall)
    static: dict[str, Value] = field(default_factory=dict)
    unsupported: set[str] = field(default_factory=set)  # not asked again until a mode is switched, or for a while
    asked_anew: float = field(default_factory=time.monotonic)
    modes: tuple[Value, ...] = ()
    taken: dict[str, Value] = field(default_factory=dict)  # counts as they were last believed
    refused: dict[str, Value] = field(default_factory=dict)  # what the last poll did not believe
    errors: Counter[str] = field(default_factory=Counter)  # of this poll, by NVML's words
    asked: int = 0  # calls of this poll

    def read(self) -> dict[str, Value]:
        """All values, none of a GPU that opens and answers nothing; NVMLError for one that is lost or needs a reset."""
        prompt = time.monotonic() + _PROMPT_S
        self.errors.clear()
        self.asked = 0
        self._read_once(IDENTITY, inf)
        answers = {**dict(self._values(CALLS)), **self._fields()}
        if all(isinstance(value, Missing) for value in answers.values()) and self.errors:
            return {}
        peers = ("nvlink_peers", partial(nvlink_peers, goes_on=self.call.goes_on))
        self._read_once(sorted([*STATIC, peers], key=lambda row: row[0] in self.static), prompt)
        answers |= self._links()
        values = {**self.static, **self._believed(answers)}
        modes = tuple(values.get(name) for name in ("mig_mode", "ecc_mode"))
        if self.modes not in ((), modes) or time.monotonic() - self.asked_anew > _ASKED_ANEW_S:
            self.unsupported.clear()  # which values there are depends on the modes
            self.static = {name: value for name, value in self.static.items() if value is not Missing.UNSUPPORTED}
            self.asked_anew = time.monotonic()
        self.modes = modes
        return values

    @property
    def silence(self) -> str:
        """Why the last ``read`` was empty, in NVML's words."""
        words, times = self.errors.most_common(1)[0]
        return f"{words} to {times} of {self.asked} calls"

    def _read_once(self, rows: Iterable[tuple[str, Read]], until: float) -> None:
        """What stays and was not read yet; past ``until`` (monotonic seconds) the rest waits for the next polls."""
        for name, read in rows:
            if self._wanted(name):
                self.static.update(self._believed(dict(self._values([((name,), read)]))))
                if time.monotonic() > until:
                    return

    def _wanted(self, name: str) -> bool:
        """Whether what stays is still to be read; peers only where they decide something."""
        architecture = self.static.get("architecture")
        if name == "nvlink_peers" and not (isinstance(architecture, int) and architecture < _AMPERE):
            return False
        return self.static.get(name, _AGAIN) is _AGAIN

    def _believed(self, values: dict[str, Value]) -> dict[str, Value]:
        """The values that a GPU can have; the others become unreadable."""
        odd = implausible(values, self.taken, self.refused)
        for name in values:
            self.refused.pop(name, None)
        self.refused.update({name: values[name] for name in odd})
        self.taken.update({name: value for name, value in values.items() if name in RANGES and name not in odd})
        return {**values, **dict.fromkeys(odd, Missing.UNREADABLE)} if odd else values

    def _values(self, rows: Iterable[tuple[tuple[str, ...], Read]]) -> Iterator[tuple[str, Value]]:
        for names, read in rows:
            result: Any = Missing.UNSUPPORTED
            if names[0] not in self.unsupported:
                result = self._value(names[0], partial(read, self.handle))
            several = result if isinstance(result, tuple | list) else [result] * len(names)
            yield from zip(names, several, strict=False)

    def _value(self, name: str, read: Callable[[], Any]) -> Any:
        self.call.begins(f"reading {name} of GPU {self.pci}", self.pci)
        self.asked += 1
        try:
            return read()
        except nv.NVMLError as error:
            if error.value in SICK:
                raise
            if error.value in UNSUPPORTED:
                self.unsupported.add(name)
                return Missing.UNSUPPORTED
            self.errors[f"{error} (NVML error {error.value})"] += 1
        except Exception as error:  # noqa: BLE001 - what the binding makes of an odd answer is this call's failure
            self.errors[f"{type(error).__name__} in NVML's binding"] += 1
        return Missing.UNREADABLE

    def _fields(self) -> dict[str, Value]:
        wanted = [number for number, name in FIELDS.items() if name not in self.unsupported]
        values: dict[str, Value] = dict.fromkeys(self.unsupported & set(FIELDS.values()), Missing.UNSUPPORTED)
        answer = self._value("fields", lambda: nv.nvmlDeviceGetFieldValues(self.handle, wanted))
        if isinstance(answer, Missing):
            return {**values, **{FIELDS[number]: answer for number in wanted}}
        for number, entry in zip(wanted, answer, strict=False):  # the call succeeds while single entries fail
            values[FIELDS[number]] = self._entry(FIELDS[number], entry)
        return values

    def _entry(self, name: str, entry: Any) -> Value:
        if entry.nvmlReturn == nv.NVML_SUCCESS and entry.valueType < len(UNION):
            value: Value = getattr(entry.value, UNION[entry.valueType])
            return value
        if entry.nvmlReturn in UNSUPPORTED:
            self.unsupported.add(name)
            return Missing.UNSUPPORTED
        if entry.nvmlReturn in SICK:
            raise nv.NVMLError(entry.nvmlReturn)
        return Missing.UNREADABLE

    def _links(self) -> dict[str, Value]:
        """Over all NVLinks of this GPU: counters summed, the worst bit error rate, how many links are up."""
        count = self.static.get("nvlink_count")
        if not isinstance(count, int) or not count:
            return {}
        values: dict[str, Value] = {}
        wanted = [row for row in LINK_FIELDS if row.name not in self.unsupported]
        asked = [(row.field, scope) for row in wanted for scope in ([_ALL_LINKS] if row.total else range(count))]
        answer = self._value("links", lambda: nv.nvmlDeviceGetFieldValues(self.handle, asked)) if asked else ()
        if isinstance(answer, Missing):
            return {row.name: answer for row in LINK_FIELDS}
        for row in LINK_FIELDS:
            entries = [entry for (number, _), entry in zip(asked, answer, strict=False) if number == row.field]
            read = [e for e in entries if e.nvmlReturn == nv.NVML_SUCCESS and e.valueType < len(UNION)]
            if read:  # a link that this board does not use has no value, and the others do
                values[row.name] = row.folded([int(getattr(e.value, UNION[e.valueType])) for e in read])
            else:
                values[row.name] = self._entry(row.name, entries[0]) if entries else Missing.UNSUPPORTED
        return values
