"""Fences where the API server answers badly: a moment's trouble changes nothing, and what stands is never forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from agent.actions.fences import RULES
from agent.model.errors import RefusedError
from agent.model.names import NODE_UID_LABEL
from agent.model.steps import On, Wait
from tests.life import Life
from tests.remediation.test_fence import MERGE, RULE, Fenced, dismissed

STANDS = ("PreferNoSchedule", {RULE: "NoSchedule"})  # our taint's effect, and the rules


def refuses(life: Life, what: str, status: int) -> None:
    """From now on every list of these is answered so."""

    def refusing(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if method == "GET" and what in path:
            return status, {"message": "forbidden"}
        return life.cluster(method, path, *rest, **more)

    life.api = refusing


@pytest.mark.parametrize("what", ["devicetaintrules", "resourceslices"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_for_a_moment_makes_no_whole_nodes_taint_of_a_fence(what: str, status: int) -> None:
    life = Fenced(95)
    life._begin()
    refuses(life, what, status)
    life.run(80)
    assert (life.effect(), life.rules()) == ("", {})
    life.api = None
    life.run(30)
    assert (life.effect(), life.rules()) == STANDS
    life._begin()
    refuses(life, what, status)
    life.run(80)
    assert (life.effect(), life.rules()) == STANDS


@pytest.mark.parametrize("what", ["devicetaintrules", "resourceslices"])
def test_a_server_that_is_busy_is_left_alone_for_as_long_as_it_wants(what: str) -> None:
    life = Fenced(95)
    life._begin()

    def busy(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if what in path:
            return 429, {"message": "too many requests", "details": {"retryAfterSeconds": 7}}
        return life.cluster(method, path, *rest, **more)

    life.api = busy
    with pytest.raises(RefusedError, match="too many requests") as refused:
        life.client.look(closely=True)
    assert refused.value.wait_s == 7


def test_devices_that_were_once_seen_can_be_fenced_though_their_slices_can_not_be_read_any_more() -> None:
    life = Fenced(0)
    refuses(life, "resourceslices", 403)
    life.run(700)
    life.breaks(code=95)
    life.run(20)
    assert (life.effect(), life.rules()) == STANDS


def test_a_fence_that_keeps_pods_off_stays_though_the_agent_may_not_list_it_any_more() -> None:
    life = Fenced(95)
    life.run(20)
    refuses(life, "devicetaintrules", 403)
    life.run(30)
    assert (life.effect(), life.rules(), life.cluster.evicted) == (*STANDS, ["research/bad"])


@pytest.mark.parametrize("cured", [False, True])
def test_where_fences_may_stand_and_can_not_be_listed_taint_and_permit_stay_and_that_is_told(cured: bool) -> None:
    life = Fenced(95)
    life.run(20)
    life._begin()
    refuses(life, "devicetaintrules", 403)
    if cured:
        life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"annotations": dismissed()}}, MERGE)
    life.run(300)
    assert (life.effect(), life.rules(), any(life.holders())) == (*STANDS, True)
    (wait,) = [step for step in life.planned.steps if isinstance(step, Wait) and "can't be listed" in step.why]
    assert wait.on is On.REFUSED
    life.api = None
    life.run(300, rests=True)
    assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False)


def test_where_rules_are_not_served_any_more_no_fence_stands() -> None:
    life = Fenced(95)
    life.run(20)
    refuses(life, "devicetaintrules", 404)
    life.run(20)
    assert (life.effect(), life.world.fences) == ("NoSchedule", ())


def test_only_the_nodes_own_rules_are_listed_after_the_first_time_and_one_without_its_label_is_found() -> None:
    life, lists = Fenced(95), list[str]()

    def listing(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        lists.extend([path] if method == "GET" and path.startswith(RULES) else [])
        return life.cluster(method, path, *rest, **more)

    life.api = listing
    life.run(20)
    uid = life.node()["metadata"]["uid"]
    assert {*lists} == {f"{RULES}?labelSelector=gpu-health-agent%2Fnode-uid%3D{uid}"}
    life._begin()
    life.cluster("PATCH", f"{RULES}/{RULE}", {"metadata": {"labels": {NODE_UID_LABEL: None}}}, MERGE)
    life.run(200, rests=True)
    assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False)


@pytest.mark.parametrize("spec", [None, {"containers": 8}])
def test_a_pod_that_can_not_be_read_keeps_no_other_from_leaving_its_gpu(spec: Any) -> None:
    life = Fenced(95)
    life.cluster.add_pod("research", "odd", "n1", gpus=0)

    def odd(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        status, answer = life.cluster(method, path, *rest, **more)
        for item in answer.get("items") or ():
            if item["metadata"]["name"] == "odd":
                item["spec"] = spec
        return status, answer

    life.api = odd
    life.run(30)
    assert life.cluster.evicted == ["research/bad"]
