"""One connection to a DCGM engine: its GPUs' values, Xids and SXids since the last look, and health incidents.

Everything goes through the bindings' functions with a group and field groups of our own, never through their group
objects: those call into dead connections when they are collected. No policy is ever set or registered: a GPU has one
slot for it that all of the engine's clients share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agent.model.errors import AgentError
from agent.model.observation import Failure, Missing, Observation, Signal, Value
from agent.model.text import normalise_pci
from agent.sources.dcgm import switches as dcgm_switches
from agent.sources.dcgm.bindings import Bindings, versions
from agent.sources.dcgm.fields import FIELDS, XID, decoded, text
from agent.sources.dcgm.health import Health
from agent.sources.dcgm.switches import OVERLAP_US, SWITCH, SXIDS
from agent.sources.process.progress import CurrentCall

_GPU, _LINK = 1, 6  # DCGM_FE_*
_EMPTY_GROUP, _UNSUPPORTED = 1, -6
_KEEP_S, _XIDS_KEPT_S, _XIDS_KEPT = 300.0, 3600.0, 1000  # so that two Xids of one interval both show
_STALE_POLLS = 6  # the engine no longer reads a watched value that is older
_A_DAY_S = 86400.0
_FIRST_POLLS = 2  # of the engine, until it has looked at what it was asked to watch
# As a real one was seen to do: with status 0, live values too, and never with -57, NVML_DRIVER_TIMEOUT.
_BLANK = (
    "the DCGM engine answers, and every value of every GPU is blank: after an Xid 119 in the kernel log it asks the "
    "driver nothing until it is restarted"
)
_SESSIONS: list[Any] = []  # kept to the end: their destructors call into dead connections


class EngineError(AgentError):
    """The engine as a whole can't be used: why, in a word and in a sentence."""

    def __init__(self, failure: Failure, sentence: str) -> None:
        super().__init__(sentence)
        self.failure = failure


class ChangedError(AgentError):
    """Other GPUs, MIG instances or switches than those that are watched: a new connection watches them."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entity of DCGM's is."""

    pci: str
    instance: int | None = None
    uuid: str = ""  # by which the judge knows the engine of another node


class Engine:
    """Raises what ends the connection: the bindings' DCGMError, EngineError or ChangedError."""

    def __init__(self, bindings: Bindings, address: str, poll_s: float, health_s: float, call: CurrentCall) -> None:
        self._b, self._call = bindings, call
        self._poll_s = poll_s
        self._call.begins("connecting")
        self._session = bindings.pydcgm.DcgmHandle(**where(address))
        _SESSIONS.append(self._session)
        self._handle = self._session.handle
        self._versions: dict[str, Value] = dict(versions(bindings, self._handle))
        self._call.begins("listing the GPUs")
        self._known = {number: self._place(number) for number in self._listed()}
        self._instances = self._hierarchy()
        self._call.begins("watching fields and health")
        self._fields = [number for number in FIELDS if bindings.fields.DcgmFieldGetById(number)]  # 3.x knows fewer
        group = self._group("gpus", [(_GPU, number) for number in self._known])
        self._watch(group, "fields", self._fields, _KEEP_S, 0)
        self._histories: dict[str, tuple[Any, Any, int]] = {}
        self._follow("xids", [*((_GPU, number) for number in self._known), *self._instances], [XID])
        numbers = dcgm_switches.listed(bindings, self._handle)
        self._switches = {number: dcgm_switches.address(bindings, self._handle, number) for number in numbers}
        if self._switches:
            self._follow("sxids", [(SWITCH, number) for number in self._switches], list(SXIDS))
        self._news = dcgm_switches.News(time.monotonic() + _FIRST_POLLS * poll_s)
        self._health = Health(bindings, self._handle, group, health_s, _KEEP_S)
        self._call.begins("reading fields")
        bindings.agent.dcgmUpdateAllFields(self._handle, 1)  # else the first poll would find nothing read yet

    def close(self) -> None:
        """Only for a connection that lives: the engine drops the groups and watches of a client that leaves."""
        self._call.begins("disconnecting")
        self._session.Shutdown()

    def poll(self) -> Iterator[Observation]:
        """Each GPU's values, the Xids since the last poll, the health incidents when due, and the heartbeat.

        A GPU that the engine no longer lists has no values here, though it answers fresh blanks.
        """
        began = time.monotonic()
        self._call.begins("listing the GPUs")
        listed = self._listed()
        switches = dcgm_switches.listed(self._b, self._handle)
        if listed - self._known.keys() or self._hierarchy() != self._instances or switches - self._switches.keys():
            raise ChangedError
        yield from self._xids()
        yield from self._sxids()
        yield from self._readings(sorted(listed))
        values: dict[str, Value] = {"gpu_count": len(listed), **self._versions}
        if self._health.due(began):
            check = time.time()
            yield from self._incidents(check)
            if self._health.counts(began):
                values["check"] = check
        if self._health.lacks:
            values["no_health"] = self._health.lacks
        values["poll_ms"] = round(1000 * (time.monotonic() - began), 3)
        yield observe(Signal.ALIVE, values=values)

    def _listed(self) -> set[int]:
        return set(self._b.agent.dcgmGetAllSupportedDevices(self._handle))

    def _readings(self, listed: list[int]) -> Iterator[Observation]:
        if not listed:
            return
        self._call.begins("reading fields")
        pairs = []
        for number in listed:
            pair = self._b.structs.c_dcgmGroupEntityPair_t()
            pair.entityGroupId, pair.entityId = _GPU, number
            pairs.append(pair)
        entries = self._b.agent.dcgmEntitiesGetLatestValues(self._handle, pairs, self._fields, 0)
        now, stale_s = time.time(), max(_STALE_POLLS * self._poll_s, 60.0)
        read: dict[int, dict[str, Value]] = {number: {} for number in listed}
        for entry in entries:
            value = decoded(entry, now, stale_s)
            if value is not None:
                read[entry.entityId][FIELDS[entry.fieldId]] = value
        every = [value for values in read.values() for value in values.values()]
        if Missing.UNREADABLE in every and all(isinstance(value, Missing) for value in every):
            raise EngineError(Failure.UNREADABLE, _BLANK)
        for number in listed:
            place = self._known[number]
            yield observe(Signal.READING, place.pci, values={"uuid": place.uuid, **read[number]})

    def _xids(self) -> Iterator[Observation]:
        self._call.begins("reading Xids")
        for group, entity, _, code, at_us in self._since("xids"):
            place = self._at(group, entity)
            if place.pci:
                raw = f"DCGM field {XID}: Xid {code}"
                yield observe(Signal.XID, place.pci, at=_when(at_us), value=code, values=_instance(place), raw=raw)

    def _sxids(self) -> Iterator[Observation]:
        if not self._switches:
            return
        self._call.begins("reading SXids")
        for _, switch, field, code, at_us in self._since("sxids", OVERLAP_US):
            if switch in self._switches and self._news.new(switch, field, code, at_us, time.monotonic()):
                raw = f"DCGM field {field}: SXid {code} of its NVSwitch {switch}"
                where, fatal = self._switches[switch], {"fatal": SXIDS[field]}
                yield observe(Signal.SXID, where, at=_when(at_us), value=code, values=fatal, raw=raw)

    def _since(self, name: str, overlap_us: int = 0) -> list[tuple[int, int, int, int, int]]:
        """Every code since the last look, not the last one: the fields are gauges that keep their value.

        Entity group, entity, field, code, and its time in microseconds.
        """
        seen: list[tuple[int, int, int, int, int]] = []

        def take(group: int, entity: int, values: Any, count: int, _: Any) -> int:
            for value in values[:count]:
                code = decoded(value, 0.0, float("inf"))
                if isinstance(code, int) and code > 0:
                    seen.append((group, entity, int(value.fieldId), code, int(value.ts)))
            return 0

        callback = self._b.agent.dcgmFieldValueEntityEnumeration_f(take)  # kept alive by this name while it is called
        group, fields, since = self._histories[name]
        since -= overlap_us
        since = self._b.agent.dcgmGetValuesSince_v2(self._handle, group, fields, since, callback, None)
        self._histories[name] = group, fields, since
        return seen

    def _incidents(self, check: float) -> Iterator[Observation]:
        self._call.begins("checking health")
        for group, entity, code, found, raw in self._health.check():
            place = self._at(group, entity)
            values: dict[str, Value] = {"check": check, **found, **_instance(place)}
            if not place.pci:
                values["entity"] = f"{group}:{entity}"
            yield observe(Signal.HEALTH, place.pci, value=code, values=values, raw=raw)

    def _at(self, group: int, entity: int) -> Place:
        """By the entity, never by an incident's text: some texts name a GPU that was never filled in."""
        if group == _LINK:  # packed: the kind of its end in 8 bits, the link in 16, the GPU's or switch's number in 8
            group, entity = entity & 0xFF, entity >> 24
        if group == _GPU:
            return self._known.get(entity, Place(""))
        return self._instances.get((group, entity), Place(""))

    def _place(self, number: int) -> Place:
        attributes = self._b.agent.dcgmGetDeviceAttributes(self._handle, number)
        try:
            pci = normalise_pci(text(attributes.identifiers, "pciBusId"))
            return Place(pci, uuid=text(attributes.identifiers, "uuid"))
        except ValueError:
            raise EngineError(Failure.UNREADABLE, f"DCGM gives no PCI address for its GPU {number}") from None

    def _hierarchy(self) -> dict[tuple[int, int], Place]:
        """MIG: each GPU instance and compute instance, on its GPU and with NVML's number of the GPU instance."""
        try:
            listed = self._b.agent.dcgmGetGpuInstanceHierarchy(self._handle)
        except self._b.structs.DCGMError as error:
            if error.value == _UNSUPPORTED:
                return {}
            raise
        found: dict[tuple[int, int], Place] = {}
        for entry in listed.entityList[: listed.count]:
            key = (int(entry.entity.entityGroupId), int(entry.entity.entityId))
            parent = self._known.get(int(entry.parent.entityId)) if entry.parent.entityGroupId == _GPU else None
            above = found.get((int(entry.parent.entityGroupId), int(entry.parent.entityId)))
            if parent:
                found[key] = Place(parent.pci, int(entry.info.nvmlInstanceId))
            elif above:
                found[key] = above
        return found

    def _group(self, name: str, entities: list[tuple[int, int]]) -> Any:
        group = self._b.agent.dcgmGroupCreate(self._handle, _EMPTY_GROUP, _named(name))
        for kind, number in entities:
            self._b.agent.dcgmGroupAddEntity(self._handle, group, kind, number)
        return group

    def _watch(self, group: Any, name: str, fields: list[int], keep_s: float, samples: int) -> Any:
        made = self._b.agent.dcgmFieldGroupCreate(self._handle, fields, _named(name))
        self._b.agent.dcgmWatchFields(self._handle, group, made, int(self._poll_s * 1e6), keep_s, samples)
        return made

    def _follow(self, name: str, entities: list[tuple[int, int]], fields: list[int]) -> None:
        group = self._group(name, entities)
        watched = self._watch(group, name, fields, _XIDS_KEPT_S, _XIDS_KEPT)
        began = int(time.time() * 1e6)  # what was there before is the kernel log's to tell
        self._histories[name] = group, watched, began


def where(address: str) -> dict[str, Any]:
    """For the bindings' handle; an embedded engine is one without an address."""
    if address == "embedded":
        return {}
    return {"unixSocketPath": address} if address.startswith("/") else {"ipAddress": address}


def _when(at_us: int) -> float:
    """A stamp as Unix seconds; the present for one that is no time of these days, by another library's clock."""
    at, now = at_us / 1e6, time.time()
    return at if abs(at - now) < _A_DAY_S else now


def _named(name: str) -> str:
    """Unique in an engine that other clients use: two agents in containers of their own may have one process id."""
    return f"gpu-health-agent-{name}-{os.urandom(4).hex()}"


def _instance(place: Place) -> dict[str, Value]:
    return {} if place.instance is None else {"gpu_instance": place.instance}


def observe(signal: Signal, pci: str = "", at: float | None = None, **fields: Any) -> Observation:
    return Observation(time.time() if at is None else at, "dcgm", signal, pci, **fields)
