"""What a drill measured, each figure beside its target."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from agent.model.text import rfc3339


@dataclass(frozen=True, slots=True)
class Moment:
    at: float  # Unix seconds, by the clock of the machine that runs the drill
    what: str
    pods: tuple[str, ...] = ()  # whom it happened to, by name

    @property
    def text(self) -> str:
        return f"{self.what}: {', '.join(self.pods)}" if self.pods else self.what


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; None where it never came to be."""

    name: str
    value: float | None
    target: float  # at most
    unit: str

    @property
    def text(self) -> str:
        if self.value is None:
            return "not seen"
        return f"{self.value:.2f} s" if self.unit == "s" else f"{self.value:g} {self.unit}".strip()

    @property
    def most(self) -> str:
        return f"{self.target:g} s" if self.unit == "s" else f"{self.target:g}"

    @property
    def met(self) -> bool:
        return self.value is not None and self.value <= self.target


@dataclass
class Part:
    """One exercise of the drill."""

    name: str
    title: str
    began: float
    ended: float = 0.0
    moments: list[Moment] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    requests: dict[str, Any] = field(default_factory=dict)  # as the client's window told, by our own clock

    def note(self, what: str, at: float, pods: Iterable[str] = ()) -> None:
        """A moment, and whom it happened to; the first of its kind counts."""
        if self.at(what) is None:
            self.moments.append(Moment(at, what, tuple(sorted(pods))))

    def at(self, what: str) -> float | None:
        return next((moment.at for moment in self.moments if moment.what == what), None)

    def between(self, first: str, then: str) -> float | None:
        began, ended = self.at(first), self.at(then)
        return None if began is None or ended is None else max(0.0, ended - began)

    def measure(self, name: str, value: float | None, target: float, unit: str) -> None:
        self.figures.append(Figure(name, value, target, unit))

    def served(self, window: dict[str, Any], ahead_s: float) -> None:
        """The client's window; its clock is ``ahead_s`` before ours."""
        self.requests = {**window, **{key: window[key] - ahead_s for key in ("began", "ended", "gap_ended")}}


@dataclass
class Outcome:
    """The whole drill."""

    cluster: str
    version: str
    namespace: str
    began: float
    drilled: tuple[str, ...] = ()  # the nodes that were withdrawn, or were about to be
    nodes: int = 0
    simulated_gpus: bool | None = None
    simulated_nodes: bool = False
    process_pods: bool = False  # no containers: the nodes' runtime runs them as processes of one machine
    client: str = "a pod in the cluster, through the gateway's Service; every other request on a kept connection"
    planned: tuple[str, ...] = ()  # the exercises
    left_out: tuple[str, ...] = ()  # and why
    parts: list[Part] = field(default_factory=list)
    trouble: str = ""  # why it ended early
    cleaning: float = 0.0  # when that began
    cleaned: list[str] = field(default_factory=list)
    ended: float = 0.0

    @property
    def passed(self) -> bool:
        whole = self.planned == tuple(part.name for part in self.parts)
        return whole and not self.trouble and all(figure.met for part in self.parts for figure in part.figures)

    @property
    def verdict(self) -> list[str]:
        """In a line how many targets were met, and each that was not, with its exercise."""
        all_of_them = [(part, one) for part in self.parts for one in part.figures]
        missed = [
            f"{part.name}: {one.name}: {one.text} (at most {one.most})" for part, one in all_of_them if not one.met
        ]
        return [f"{len(all_of_them) - len(missed)} of {len(all_of_them)} targets met", *missed]

    @property
    def phases(self) -> list[tuple[str, float]]:
        """What took how many seconds, in order."""
        marks = [
            ("start", self.began),
            *((part.name, part.began) for part in self.parts),
            ("cleaning", self.cleaning),
            ("", self.ended),
        ]
        return [(name, then - at) for (name, at), (_, then) in pairwise(marks) if at and then]

    @property
    def played(self) -> str:
        """Plainly, what of it was real."""
        gpus = {True: "simulated", False: "real", None: "of unknown kind (the agent's configuration can't be read)"}
        nodes = "simulated" if self.simulated_nodes else "real kubelets"
        pods = " Pods: processes on one machine." if self.process_pods else ""
        return f"GPUs: {gpus[self.simulated_gpus]}. Nodes: {nodes}.{pods}"


def as_json(outcome: Outcome) -> dict[str, Any]:
    data = asdict(outcome)
    data["phases"] = {name: round(seconds, 1) for name, seconds in outcome.phases}
    data["cleaning"] = rfc3339(outcome.cleaning)
    for one in (data, *data["parts"]):
        one.update(began=rfc3339(one["began"]), ended=rfc3339(one["ended"]))
    for part, raw in zip(data["parts"], outcome.parts, strict=True):
        part["moments"] = [
            {"at": rfc3339(m.at), "after_s": round(m.at - raw.began, 3), "what": m.what, "pods": list(m.pods)}
            for m in raw.moments
        ]
        part["figures"] = [{**asdict(f), "met": f.met} for f in raw.figures]
        part["requests"] = {
            k: rfc3339(v) if k in ("began", "ended", "gap_ended") else v for k, v in raw.requests.items()
        }
    return {"passed": outcome.passed, "played": outcome.played, **data}
