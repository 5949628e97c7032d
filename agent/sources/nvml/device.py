"""One GPU's values: every signal of the table, each unsupported, unreadable, or read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pynvml as nv

from agent.model.observation import Missing, Value
from agent.sources.nvml.readings import CALLS, FIELDS, LINK_FIELDS, STATIC, UNION, Handle, Read
from agent.sources.nvml.return_codes import SICK, UNSUPPORTED
from agent.sources.process.progress import CurrentCall

_AGAIN = Missing.UNREADABLE  # also for what was never read
_ALL_LINKS = 0xFFFFFFFF  # NVLink 5's totals over the links of a GPU


@dataclass(slots=True, eq=False)  # a GPU that was enumerated anew is another one
class Gpu:
    """A GPU as it was enumerated; what was learnt of it lasts until it is enumerated anew."""

    pci: str
    handle: Handle
    call: CurrentCall = field(default_factory=CurrentCall)
    static: dict[str, Value] = field(default_factory=dict)
    unsupported: set[str] = field(default_factory=set)  # not asked again until MIG is switched
    mig_mode: Value = None

    def read(self) -> dict[str, Value]:
        """All values; NVMLError for a GPU that is lost or needs a reset."""
        unread = [((name,), read) for name, read in STATIC if self.static.get(name, _AGAIN) is _AGAIN]
        self.static.update(self._values(unread))
        values = {**self.static, **dict(self._values(CALLS)), **self._fields(), **self._links()}
        before, self.mig_mode = self.mig_mode, values.get("mig_mode")
        if before not in (None, self.mig_mode):  # which values there are depends on it
            self.unsupported.clear()
        return values

    def _values(self, rows: Iterable[tuple[tuple[str, ...], Read]]) -> Iterator[tuple[str, Value]]:
        for names, read in rows:
            result: Any = Missing.UNSUPPORTED
            if names[0] not in self.unsupported:
                result = self._value(names[0], partial(read, self.handle))
            several = result if isinstance(result, tuple | list) else [result] * len(names)
            yield from zip(names, several, strict=False)

    def _value(self, name: str, read: Callable[[], Any]) -> Any:
        self.call.begins(f"reading {name} of GPU {self.pci}")
        try:
            return read()
        except nv.NVMLError as error:
            if error.value in SICK:
                raise
            if error.value in UNSUPPORTED:
                self.unsupported.add(name)
                return Missing.UNSUPPORTED
            return Missing.UNREADABLE

    def _fields(self) -> dict[str, Value]:
        wanted = [number for number, name in FIELDS.items() if name not in self.unsupported]
        values: dict[str, Value] = dict.fromkeys(self.unsupported & set(FIELDS.values()), Missing.UNSUPPORTED)
        answer = self._value("fields", lambda: nv.nvmlDeviceGetFieldValues(self.handle, wanted))
        if isinstance(answer, Missing):
            return {**values, **{FIELDS[number]: answer for number in wanted}}
        for entry in answer:  # the call succeeds while single entries fail
            values[FIELDS[entry.fieldId]] = self._entry(FIELDS[entry.fieldId], entry)
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
            entries = [entry for entry in answer if entry.fieldId == row.field]
            read = [e for e in entries if e.nvmlReturn == nv.NVML_SUCCESS and e.valueType < len(UNION)]
            if read:  # a link that this board does not use has no value, and the others do
                values[row.name] = row.folded([int(getattr(e.value, UNION[e.valueType])) for e in read])
            else:
                values[row.name] = self._entry(row.name, entries[0]) if entries else Missing.UNSUPPORTED
        return values
