"""``run --record``: what the agent saw, when it judged and what it decided, so that ``replay`` decides the same.

JSON lines. The first names the version, node, sources and configuration. A round has ``t`` (monotonic seconds),
``wall`` (Unix seconds) and what came in it; a reading holds only what changed since that GPU's last. Rounds in which
nothing came and nothing changed are left out: they decide nothing. ``world`` is a cluster as the plan saw it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from agent import __version__
from agent.config.settings import Config
from agent.diagnosis.judge import Orders
from agent.model.errors import ConfigError, UsageError
from agent.model.fault import Reset, Verdict
from agent.model.observation import Missing, Observation, Signal, Value, parse_line
from agent.model.steps import Step
from agent.model.text import printable, read_json
from agent.model.world import Local, World
from agent.recording.decisions import Decisions

VERSION = 1
_RESET = ("job", "over", "known")
T = TypeVar("T")


class Sink(Protocol):
    def write(self, text: str, /) -> object: ...
    def close(self) -> None: ...


class Recorder:
    """Writes a recording. A disk that is full ends it with a word, never the agent."""

    def __init__(self, to: Path | Sink, config: Config, node: str, sources: tuple[str, ...]) -> None:
        self._file = to.open("w", encoding="utf-8", buffering=1) if isinstance(to, Path) else to
        self._lock = threading.Lock()  # the judge's rounds and the act thread's plans
        self._readings: dict[tuple[str, str], Mapping[str, Value]] = {}
        self._orders: Orders | None = Orders()  # None: to be told again
        self._untold: tuple[object, ...] = ({}, [])  # of the last verdict: what no decision need tell
        self._world = ""
        self._judged, self._planned = Decisions(), Decisions()  # each thread has its own
        self.trouble = ""
        self._write(
            {
                "recording": VERSION,
                "version": __version__,
                "node": node,
                "sources": sources,
                "config": config.model_dump(mode="json"),
            },
            None,
        )

    def judged(self, now: float, wall: float, seen: list[Observation], orders: Orders, verdict: Verdict) -> None:
        """One round of the judge."""
        decision = self._judged.judged(verdict)
        before, self._untold = self._untold, (verdict.blind, [(f.finding.id, f.proved) for f in verdict.standing])
        if not seen and decision is None and orders == self._orders and before == self._untold:
            return
        self._write({"t": now, "wall": wall, **self._new(orders)}, decision, seen)

    def restored(self, stored: str | None, at: float, orders: Orders) -> None:
        """What the Node held when it was first read, and when that was taken in (monotonic seconds)."""
        self._write({"restored": stored, "t": at, **self._new(orders)}, None)

    def planned(self, verdict: Verdict, world: World, local: Local, steps: tuple[Step, ...]) -> None:
        """What a plan was made from; called by the act thread. The same plan of the same is left out."""
        decision = self._planned.planned(verdict, steps)
        if decision is None:
            return
        text = as_json(plain_world(world))
        new = {} if text == self._world else {"world": json.loads(text)}
        self._world = text
        self._write({"plan": verdict.at, "local": asdict(local), **new}, decision)

    def begins_anew(self) -> None:
        """What follows can be read without what came before."""
        self._readings, self._orders, self._world = {}, None, ""

    def _new(self, orders: Orders) -> dict[str, Any]:
        if orders == self._orders:
            return {}
        self._orders = orders
        return {
            "orders": {
                "labels": dict(orders.labels),
                "workloads": dict(orders.workloads),
                "dismissed": sorted(orders.dismissed),
                "resets": {},
                "our_resets": {uuid: [one.job, one.over, one.known] for uuid, one in orders.resets.items()},
                "drill": orders.drill,
                "aside": orders.aside,
                "offer": asdict(orders.offer),
            }
        }

    def close(self) -> None:
        self._file.close()

    def _observation(self, one: Observation) -> Any:
        if one.signal is not Signal.READING:
            return json.loads(one.to_json()) | {"at": one.at}
        before = self._readings.get((one.source, one.pci), {})
        changed = {k: _plain(v) for k, v in one.values.items() if before.get(k, self) != v}
        gone = [k for k in before if k not in one.values]
        self._readings[one.source, one.pci] = one.values
        return [one.source, one.pci, one.at, changed, *([gone] if gone else [])]

    def _write(self, line: dict[str, Any], decision: str | None, seen: Collection[Observation] = ()) -> None:
        """A line, and right after it what was decided from it. Of a storm only a piece at a time is held as text."""
        if self.trouble:
            return
        try:
            with self._lock:
                self._file.write(as_json(line)[:-1])
                for number, one in enumerate(seen):
                    self._file.write(("," if number else ',"seen":[') + as_json(self._observation(one)))
                ends = "]}\n" if seen else "}\n"
                self._file.write(ends if decision is None else f'{ends}{{"decision":{decision}}}\n')
        except OSError as error:
            self.trouble = f"the recording ended: {error.strerror}"


def recorder(path: Path, config: Config, node: str, sources: tuple[str, ...]) -> Recorder:
    """ConfigError if the file can't be written."""
    try:
        return Recorder(path, config, node, sources)
    except OSError as error:
        raise ConfigError(f"--record: {path} can't be written ({error.strerror}): name another file") from error


def _plain(value: Value) -> Any:
    """Absent values are told apart from text by being in a list."""
    return [value] if isinstance(value, Missing) else value


@dataclass(frozen=True, slots=True)
class Round:
    t: float
    wall: float
    seen: tuple[Observation, ...] = ()
    orders: Orders | None = None  # None: as before


@dataclass(frozen=True, slots=True)
class Planned:
    at: float  # the verdict's
    world: World
    local: Local


@dataclass(frozen=True, slots=True)
class Restored:
    t: float
    stored: str | None
    orders: Orders | None


Entry = Round | Planned | Restored


@dataclass
class Recording:
    """A recording being read; UsageError names the line that is none."""

    config: Config
    sources: tuple[str, ...]
    _lines: Iterator[str]
    _readings: dict[tuple[str, str], dict[str, Value]] = field(default_factory=dict)
    _world: World | None = None

    @classmethod
    def open(cls, lines: Iterator[str]) -> Recording:
        try:
            head = read_json(next(lines, ""))
            if head["recording"] != VERSION:
                raise ValueError(f"another version ({head['recording']!r})")
            return cls(Config.model_validate(head["config"]), _read(tuple[str, ...], head["sources"]), lines)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"line 1: not the head of a recording ({_words(error)})") from error

    def __iter__(self) -> Iterator[Entry]:
        for number, text in enumerate(self._lines, 2):
            try:
                line = read_json(text)
                if "decision" not in line:
                    yield self._entry(line)
            except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
                raise UsageError(f"line {number}: not a line of a recording ({_words(error)})") from error

    def _entry(self, line: dict[str, Any]) -> Entry:
        if not all(isinstance(line.get(name, 0.0), int | float) for name in ("t", "wall", "plan")):
            raise ValueError("a time must be a number")  # and no text of one
        if "restored" in line:
            return _read(Restored, {"t": line["t"], "stored": line["restored"], "orders": _orders(line)})
        if "plan" in line:
            if "world" in line:
                self._world = _world(line["world"])
            if self._world is None:
                raise ValueError("a plan without a world")
            local = {"stage_s": line["local"]["up_s"], **line["local"]}  # of before: by the node's clock
            return _read(Planned, {"at": line["plan"], "world": self._world, "local": local})
        seen = tuple(self._observation(one, line["t"]) for one in line.get("seen", ()))
        return _read(Round, {**line, "seen": seen, "orders": _orders(line)})

    def _observation(self, one: Any, arrived: float) -> Observation:
        if isinstance(one, dict):
            at = _read(float, one.pop("at"))
            return replace(parse_line(json.dumps(one | {"at": "1970-01-01T00:00:00Z"}), arrived), at=at)
        (source, pci), at, (changed, *gone) = _read(tuple[str, str], one[:2]), _read(float, one[2]), one[3:]
        values = self._readings.get((source, pci), {})
        if changed or gone:
            new = {k: Missing(v[0]) if isinstance(v, list) else v for k, v in changed.items()}
            if not all(isinstance(v, int | float | str) for v in new.values()):
                raise ValueError("values must be plain")
            dropped = set(gone[0]) if gone else ()
            values = {k: v for k, v in {**values, **new}.items() if k not in dropped}
            self._readings[source, pci] = values
        return Observation(at, source, Signal.READING, pci, values=values, arrived=arrived)


def _orders(line: dict[str, Any]) -> dict[str, Any] | None:
    """None: as before."""
    if not (new := line.get("orders")):
        return None
    # Of before: by the node's clock, which is no longer looked at.
    before = {uuid: Reset("", float("inf"), 0.0) for uuid in new["resets"]}
    ours = {uuid: dict(zip(_RESET, one, strict=True)) for uuid, one in new.get("our_resets", {}).items()}
    return {**new, "resets": {**before, **ours}}


def as_json(value: Any) -> str:
    return json.dumps(value, default=_plain_set, separators=(",", ":"))


def _plain_set(value: frozenset[Any]) -> list[Any]:
    """A set, into which ``asdict`` does not look."""
    return [asdict(one) if is_dataclass(one) and not isinstance(one, type) else one for one in sorted(value)]


def plain_world(world: World) -> dict[str, Any]:
    """As a recording has it: its permits are called slots, for agents of all versions."""
    data = asdict(world)
    data["slots"] = data.pop("permits")
    return data


def _world(data: dict[str, Any]) -> World:
    return _read(World, {**data, "permits": data["slots"]})


def _words(error: Exception) -> str:
    return printable(" ".join(str(error).split()))[:300]


def _read(kind: type[T], data: Any) -> T:
    """Values of their types, whoever wrote the file; pydantic's ValidationError is a ValueError."""
    read: T = _FORMS(kind).validate_python(data)
    return read


_FORMS: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
