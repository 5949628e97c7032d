"""Objects with a field of another form than anybody writes: told with object and field, and no bug."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agent.actions.answers import sensible, whole_node
from agent.actions.kube import KubeClient
from agent.config.settings import Config, Mode
from agent.model.errors import RefusedError, UnreachableError
from agent.model.names import HARD_TAINT
from agent.model.steps import StartJob
from agent.runtime.actor import Actor
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.life import CONFIG
from tests.remediation.test_fence import DRA, Fenced
from tests.runtime.test_actor import broken, tell

ODD: tuple[Any, ...] = (7, True, "x", [], ["x"], [None], {"a": 1})
PAUSE = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "false"}}
WRITES = [{"manager": "kubelet", "time": "2026-01-01T00:00:00Z"}]


def fields(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each field is, in lists the first."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inner:
        yield from fields(one, (*at, key))


def put(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """The same with another value there; ``...`` takes it out."""
    if not at:
        return odd
    last = odd is ... and len(at) == 1
    if isinstance(value, list):
        return value[1:] if last else [put(value[0], at[1:], odd), *value[1:]]
    rest = {key: one for key, one in value.items() if key != at[0]}
    return rest if last else {**rest, at[0]: put(value[at[0]], at[1:], odd)}


@pytest.fixture(scope="module")
def repaired() -> InMemoryCluster:
    """A node with a fence, whose GPU is being reset: it has objects of every kind."""
    life = Fenced(95, config=DRA)
    while not life.ended:
        life.tick()
    for (kind, *_), one in life.cluster._objects.items():
        if kind in ("nodes", "leases", "jobs"):
            one["metadata"]["managedFields"] = WRITES
    return life.cluster


class Bent:
    """An API server one of whose answers has an odd value at one place."""

    def __init__(self, cluster: InMemoryCluster, asked: str) -> None:
        self._cluster, self._asked = cluster, asked
        self.answer: Any = None  # as it was, at the last look
        self.at: tuple[Any, ...] = ()
        self.odd: Any = None

    def __call__(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, found = (200, PAUSE) if path.endswith("-pause") else self._cluster(method, path, *rest, **more)
        if self._asked not in path:
            return status, found
        self.answer = found
        return status, put(found, self.at, self.odd) if self.at else found

    def looked(self) -> str:
        """What is told of a look."""
        try:
            world = KubeClient(self, "n1", DRA).look(closely=True)
        except (RefusedError, UnreachableError) as error:
            return str(error)
        return world.paused


@pytest.mark.parametrize(
    "asked", ["/nodes/n1", "/nodes?", "/leases?", "/jobs?", "taintrules", "/resourceslices?", "-pause"]
)
def test_a_field_of_another_form_is_told_with_its_object_and_is_no_bug(repaired: InMemoryCluster, asked: str) -> None:
    bent, told = Bent(repaired, asked), list[str]()
    bent.looked()
    for at in [one for one in fields(bent.answer) if one]:
        for odd in (..., None, *ODD):
            bent.at, bent.odd = at, odd
            told.append(bent.looked())
    assert len(told) > 20
    assert any("makes no sense: " in one for one in told)


def test_a_template_of_another_form_is_told_and_is_no_bug(repaired: InMemoryCluster) -> None:
    bent, told = Bent(repaired, "/cronjobs/"), set[str]()
    jobs, step = KubeClient(bent, "n1", DRA)._jobs, StartJob("gpu-health-reset-gpu-x", "reset_gpu", ("GPU-a",))
    jobs.start(step, "u")
    for at in [*fields(bent.answer)][1:]:
        for odd in (..., None, {"kind": "Status"}, *ODD):
            bent.at, bent.odd = at, odd
            try:
                jobs.start(step, "u")
            except UnreachableError as error:
                told.add(str(error).partition(" makes no sense: ")[2])
    assert {"spec.jobTemplate.spec.template is missing", "metadata.name is no text"} <= told


def test_the_sentence_names_the_object_and_the_field() -> None:
    node: dict[str, Any] = {"metadata": {"name": "n1", "uid": "u", "resourceVersion": "1"}}
    for part, why in (
        ({"spec": {"taints": [{"key": "x"}]}}, "spec.taints[0].effect is missing"),
        ({"status": {"capacity": [8]}}, "status.capacity is no object"),
        ({"metadata": {**node["metadata"], "labels": {"a": 1}}}, "metadata.labels.a is no text"),
        ({"metadata": {**node["metadata"], "managedFields": [7]}}, "metadata.managedFields[0] is no object"),
    ):
        with pytest.raises(UnreachableError, match="answer to GET node makes no sense: ") as told:
            whole_node(node | part, "GET node")
        assert str(told.value).endswith(f": {why}")
    lease = {"metadata": {"name": "permit-0", "uid": "u", "resourceVersion": "1"}, "spec": []}
    with pytest.raises(UnreachableError, match="makes no sense: permit-0: spec is no object"):
        sensible({"items": [lease]}, "GET leases", "leases", listed=True)


@pytest.mark.parametrize("odd", [..., None, {}])
@pytest.mark.parametrize("part", ["spec", "status"])
def test_a_node_without_a_spec_or_a_status_is_one_with_nothing_in_it(part: str, odd: Any) -> None:
    made = InMemoryCluster()
    made.add_node("n1")
    made.add_node("n2")

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, found = made(method, path, *rest, **more)
        return status, put(found, (part,), odd) if path == "/api/v1/nodes/n1" and method == "GET" else found

    config = Config(mode=Mode.TAINT, budget=CONFIG.budget)
    actor = Actor(config, lambda: KubeClient(api, "n1", config), False, lambda *_, **__: None)
    tell(actor, broken())
    actor.round()
    assert "bug" not in actor.exchange.acted.failed
    assert [taint["key"] for taint in made.read("nodes", "n1")["spec"].get("taints") or ()] == [HARD_TAINT]
