"""What the agent's mode needs is tried after its start: nothing is changed, and what is refused is said."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.rights import RIGHTS, Right, needed, of_mode
from agent.config.settings import Config, Drain, Mode, Repair
from agent.model.errors import UnreachableError
from agent.model.neighbours import Preset
from agent.model.steps import On
from agent.runtime.actor import Actor
from agent.runtime.actor_view import view
from agent.runtime.daemon import Daemon
from tests.actions.test_kube import cluster
from tests.observe import Judge, alive, reading, xid
from tests.runtime.test_actor import tell
from tests.runtime.test_daemon import Script

ALL = Config(
    mode=Mode.EVICT,
    drain=Drain(eviction="ask_then_delete"),
    repair=Repair(reset_gpu="gpu-reset"),
    presets=(Preset.DRA,),
)
NAMESPACE = ALL.budget.namespace


class Server:
    """A cluster in memory that answers some rights' requests in another way."""

    def __init__(self, says: Callable[[str, str], tuple[int, Any] | None] = lambda *_: None) -> None:
        self.made, self.says = cluster(), says
        self.asked: list[tuple[Right, str]] = []
        self.writes: list[str] = []

    def __call__(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        right = needed(method, path, NAMESPACE)
        assert right
        self.asked.append(right)
        if method != "GET":
            self.writes.append(path)
        return self.says(right[0].resource, right[1]) or self.made(method, path, *rest, **more)


def lacks(server: Server, config: Config = ALL) -> list[str]:
    found = KubeClient(server, "n1", config).lacks(lambda: True)
    assert found is not None
    assert all(wait.on is On.REFUSED for wait in found)
    return [wait.why for wait in found]


def forbidden(resource: str, verb: str) -> tuple[int, Any]:
    return 403, {"message": f'{resource} is forbidden: User "agent" cannot {verb} resource "{resource}"'}


@pytest.mark.parametrize(
    ("right", "verb"),
    [(right, verb) for right in RIGHTS if not right.optional for verb in right.verbs],
    ids=lambda one: str(one)[:60],
)
def test_each_right_that_is_refused_is_said_with_the_servers_sentence_and_who_grants_it(
    right: Right, verb: str
) -> None:
    def says(resource: str, tried: str) -> tuple[int, Any] | None:
        return forbidden(resource, tried) if (resource, tried) == (right.resource, verb) else None

    (said,) = lacks(Server(says))
    folder = f"components/{right.overlay}" if right.overlay else "base"
    assert said == (
        f"the agent may not {verb} {right.resource}, as its mode needs (daemonset/{folder} grants it): "
        f'{right.resource} is forbidden: User "agent" cannot {verb} resource "{right.resource}"'
    )


@pytest.mark.parametrize("config", [Config(mode=mode) for mode in Mode] + [ALL], ids=[*Mode, "repair"])
def test_every_right_of_the_mode_is_tried_once_no_other_and_nothing_is_written(config: Config) -> None:
    server = Server()
    before = server.made.read("nodes", "n1")
    assert lacks(server, config) == []
    assert server.asked == [(right, verb) for right in of_mode(config) for verb in right.verbs]
    assert server.writes
    assert all(path.endswith("?dryRun=All") for path in server.writes)
    assert server.made.read("nodes", "n1") == before


def test_to_observe_needs_less_than_to_evict() -> None:
    resources = [{right.resource for right in of_mode(Config(mode=mode))} for mode in Mode]
    assert resources[0] == {"nodes", "nodes/status", "events"}
    assert resources[1] - resources[0] == {"pods", "leases", "configmaps"}
    assert not {"jobs", "cronjobs", "pods/status"} & resources[2]


@pytest.mark.parametrize(
    ("status", "told"), [(500, True), (422, True), (403, True), (400, False), (404, False), (409, False)]
)
def test_a_webhook_that_refuses_our_node_is_told_and_one_that_knows_no_dry_run_is_not(status: int, told: bool) -> None:
    def says(resource: str, verb: str) -> tuple[int, Any] | None:
        return (status, {"message": "the webhook says no"}) if (resource, verb) == ("nodes/status", "patch") else None

    assert [said.rpartition(": ")[2] for said in lacks(Server(says))] == ["the webhook says no"] * told


def test_a_right_that_passed_has_no_second_trial() -> None:
    refuses = True

    def says(resource: str, verb: str) -> tuple[int, Any] | None:
        return forbidden(resource, verb) if refuses and resource == "events" else None

    server = Server(says)
    client = KubeClient(server, "n1", ALL)
    assert client.lacks(lambda: True)
    server.asked.clear()
    refuses = False
    assert client.lacks(lambda: True) == ()
    assert [(right.resource, verb) for right, verb in server.asked] == [("events", "create")]


def gone(*_: str) -> tuple[int, Any]:
    raise UnreachableError("no answer")


@pytest.mark.parametrize("says", [gone, lambda *_: (429, {"message": "later"}), lambda *_: (503, {"message": "later"})])
def test_what_a_webhook_that_hangs_keeps_unknown_is_said_and_tried_again_in_a_while(says: Any) -> None:
    server = Server(lambda resource, verb: says() if (resource, verb) == ("leases", "create") else None)
    made = actor(server)
    assert made.round() <= 30
    (said,) = view(made.exchange.acted, ALL, restored=True, boot_id="")["waits"]
    assert said.why.startswith("whether the agent may create leases, as its mode needs, is not known yet: ")
    assert not made.able
    asked = len(server.asked)
    made.round()
    assert len(server.asked) == asked + 1, "it looks, and does not wait ten seconds in each round"


def test_without_an_answer_the_rest_is_tried_later_and_with_more_urgent_work_nothing_is_known_yet() -> None:
    for says in (gone, lambda *_: (429, {"message": "later"}), lambda *_: (503, {"message": "later"})):
        server = Server(says)
        assert len(lacks(server)) == 1
        assert len(server.asked) == 1
    server, left = Server(), [True] * 3
    client = KubeClient(server, "n1", ALL)
    assert client.lacks(lambda: bool(left and left.pop())) is None
    assert len(server.asked) == 3
    assert client.lacks(lambda: True) == ()
    assert len(server.asked) == sum(len(right.verbs) for right in of_mode(ALL)), "it goes on where it was"


def actor(server: Server, dry_run: bool = False) -> Actor:
    made = Actor(ALL, lambda: KubeClient(server, "n1", ALL), dry_run, lambda *_, **__: None)
    judge = Judge()
    tell(made, judge.after(0, alive(), reading()))
    return made


def test_an_agent_without_a_right_is_not_able_says_so_and_acts_as_far_as_it_can() -> None:
    server = Server(lambda resource, verb: forbidden(resource, verb) if resource == "poddisruptionbudgets" else None)
    made = actor(server)
    assert not made.able
    assert 15 <= made.round() <= 60
    assert not made.able
    shown = view(made.exchange.acted, ALL, restored=True, boot_id="")
    assert ["may not list poddisruptionbudgets" in wait.why for wait in shown["waits"]] == [True]
    assert (shown["waits"][0].on, shown["api_failures"]) == (On.REFUSED, 0)
    asked = len(server.asked)
    made.round()
    assert len(server.asked) == asked + 1, "it looks, and does not try again at once"
    judge = Judge()
    judge.now -= 60
    judge.after(0, alive(), reading())
    tell(made, judge.after(1, xid(79)))
    made.round()
    assert server.made.read("nodes", "n1")["spec"]["taints"]


@pytest.mark.parametrize("able", [True, False])
def test_an_agent_that_lacks_a_right_of_its_mode_is_alive_and_not_ready(able: bool) -> None:
    made = actor(
        Server(lambda resource, verb: None if able or "disruption" not in resource else forbidden(resource, verb))
    )
    made.round()
    stop, seen = threading.Event(), [replace(one, arrived=time.monotonic()) for one in (alive(), reading())]
    daemon = Daemon(ALL, "n1", made, lambda *_, **__: None, Script(stop, seen, seen))
    daemon.run(stop)
    assert (daemon.alive(), daemon.ready()) == (True, able)


def test_once_all_rights_were_there_a_later_refusal_is_told_and_makes_nothing_unready() -> None:
    refuses = False
    server = Server(lambda resource, verb: forbidden(resource, verb) if refuses and "nodes" in resource else None)
    made = actor(server)
    made.round()
    assert made.able
    asked = len(server.asked)
    made.round()
    assert len(server.asked) == asked + 1, "a healthy node looks, and no more"
    refuses = True
    made.round()
    assert made.able
    assert "nodes is forbidden" in made.exchange.acted.waits[0].why


@pytest.mark.parametrize(("status", "on"), [(403, On.REFUSED), (422, On.REFUSED), (404, On.OTHER)])
def test_a_refused_write_is_a_wait_of_its_own_kind_and_what_is_missing_may_yet_come(status: int, on: On) -> None:
    answer = status, {"message": "the server says no"}
    made = actor(Server(lambda resource, verb: answer if resource == "nodes/status" else None))
    made.exchange.acted = replace(made.exchange.acted, lacks=())
    made.round()
    (wait,) = made.exchange.acted.waits
    assert (wait.on, "the server says no" in wait.why) == (on, True)


def test_a_dry_run_needs_no_right_to_write() -> None:
    server = Server()
    made = actor(server, dry_run=True)
    made.round()
    assert (made.able, server.writes) == (True, [])
