"""A degraded node that is to get no new pod costs a permit, evicts nobody, and never takes the last one."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace
from itertools import groupby
from typing import Any

from agent.actions.kube import KubeClient
from agent.config.limits import Limits
from agent.config.settings import Budget, Config, Mode
from agent.model.errors import RefusedError
from agent.model.fault import Status, Verdict
from agent.model.names import HARD_TAINT, SOFT_TAINT
from agent.model.remedy import Remedy
from agent.model.steps import TakePermit, Wait
from agent.model.world import Local, Taint
from agent.remediation.case import Case
from agent.remediation.plan import plan
from agent.remediation.records import Records
from agent.remediation.taints import aimed_taints, effect_on
from tests.actions.test_kube import MERGE, cluster, drive, fatal, healthy, holders, node, taints
from tests.actions.test_permits import Clock
from tests.observe import Judge, alive, reading, silent, xid

NODES = ("n1", "n2", "n3")
SOFT = {"key": "gpu-health-agent/degraded", "effect": "PreferNoSchedule"}
FIRM = {"key": "gpu-health-agent/degraded", "effect": "NoSchedule"}
SLOTS = [f"gpu-health-agent-withdrawn-gpu-{index}" for index in range(3)]
BLIND = Verdict(0, Status.UNKNOWN, Remedy.NONE, blind=silent())


def config(max_withdrawn: int = 2, per_hour: int = 0) -> Config:
    limits = Limits(degraded_effect="NoSchedule")
    return Config(mode=Mode.EVICT, policy=limits, budget=Budget(max_withdrawn=max_withdrawn, per_hour=per_hour))


def degraded() -> Verdict:
    judge = Judge()
    judge.after(0, alive(), reading())
    verdict = judge.after(1, xid(63))
    assert verdict.status is Status.DEGRADED
    return verdict


def borne(made: Any, name: str = "n1") -> list[dict[str, str]]:
    return list(node(made, name)["spec"].get("taints") or ())


def pause(made: Any, said: str) -> None:
    body = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": said}}
    made._store("configmaps", "gpu-health-agent", body)


def test_by_default_a_degraded_node_takes_no_permit() -> None:
    made, plain = cluster(*NODES), Config(mode=Mode.EVICT)
    drive(KubeClient(made, "n1", plain), degraded(), plain)
    assert (borne(made), holders(made)) == ([SOFT], {})


def test_no_new_pod_costs_a_permit_and_evicts_nobody_and_the_cure_gives_it_back() -> None:
    made = cluster(*NODES)
    client = KubeClient(made, "n1", config())
    assert [type(step).__name__ for step in drive(client, degraded(), config())[:2]] == ["TakePermit", "Retaint"]
    assert (borne(made), holders(made), made.evicted) == ([FIRM], {SLOTS[0]: "n1"}, [])
    assert node(made)["metadata"]["labels"]["gpu-health-agent/state"] == "degraded"
    drive(client, healthy(), config())
    assert (borne(made), holders(made)) == ([], {SLOTS[0]: ""})


def test_the_last_permit_is_left_to_a_fatal_fault_and_the_taint_stays_soft() -> None:
    made = cluster(*NODES)
    drive(KubeClient(made, "n1", config()), degraded(), config())
    second = KubeClient(made, "n2", config())
    drive(second, degraded(), config())
    assert borne(made, "n2") == [SOFT]
    (wait,) = (s for s in plan(degraded(), second.look(closely=True), config(), Local()).steps if isinstance(s, Wait))
    assert wait.why.startswith("the degraded node's taint stays soft")
    drive(KubeClient(made, "n3", config()), fatal(), config())
    assert (taints(made, "n3"), holders(made)) == (["gpu-health-agent/unhealthy"], {SLOTS[0]: "n1", SLOTS[1]: "n3"})


def test_a_fatal_fault_on_it_needs_no_second_permit_and_no_second_of_the_hour() -> None:
    made, hourly = cluster(*NODES), config(per_hour=2)
    client = KubeClient(made, "n1", hourly)
    drive(client, degraded(), hourly)
    drive(client, fatal(), hourly)
    assert taints(made) == ["gpu-health-agent/unhealthy"]
    assert [name for name in sorted(holders(made)) if "draining" not in name] == [
        "gpu-health-agent-hourly-gpu-0",
        SLOTS[0],
    ]


def test_what_is_left_degraded_after_the_cure_gives_the_last_permit_back() -> None:
    made = cluster(*NODES)
    drive(KubeClient(made, "n2", config()), fatal(), config())
    client = KubeClient(made, "n1", config())
    drive(client, fatal(), config())
    assert holders(made)[SLOTS[1]] == "n1"
    drive(client, degraded(), config())
    assert (borne(made), holders(made)[SLOTS[1]]) == ([SOFT], "")


def test_a_blind_agent_keeps_the_taint_and_confirms_its_permit() -> None:
    made, clock = cluster(*NODES), Clock()
    client = KubeClient(made, "n1", config(), clock)
    drive(client, degraded(), config())
    clock.now += 125
    assert isinstance(plan(BLIND, client.look(closely=True), config(), Local()).steps[0], TakePermit)
    drive(client, BLIND, config())
    assert (borne(made), holders(made)) == ([FIRM], {SLOTS[0]: "n1"})


def test_a_silent_holder_that_bears_it_keeps_its_permit() -> None:
    made, clock = cluster(*NODES), Clock()
    drive(KubeClient(made, "n1", config()), degraded(), config())
    client = KubeClient(made, "n2", config(1), clock)
    for _ in range(20):
        clock.now += 600
        drive(client, fatal(), config(1), rounds=1)
    assert (borne(made, "n2"), holders(made)[SLOTS[0]]) == ([], "n1")


def test_a_pause_hardens_no_taint_and_takes_none_off() -> None:
    made = cluster(*NODES)
    drive(KubeClient(made, "n1", config(3)), degraded(), config(3))
    pause(made, "true")
    drive(KubeClient(made, "n1", config(3)), degraded(), config(3))
    drive(KubeClient(made, "n2", config(3)), degraded(), config(3))
    assert (borne(made), borne(made, "n2")) == ([FIRM], [SOFT])


def test_another_setting_softens_the_taint_and_gives_the_permit_back() -> None:
    made, plain = cluster(*NODES), Config(mode=Mode.EVICT)
    drive(KubeClient(made, "n1", config()), degraded(), config())
    drive(KubeClient(made, "n1", plain), degraded(), plain)
    assert (borne(made), holders(made)) == ([SOFT], {SLOTS[0]: ""})


def test_whatever_comes_no_node_keeps_pods_away_without_a_permit_or_beyond_the_budget() -> None:
    names = tuple(f"n{index}" for index in range(6))
    verdicts = [healthy(), degraded(), fatal(), BLIND]
    for seed in range(30):
        chance, made = random.Random(seed), cluster(*names)
        client = {name: KubeClient(made, name, config(3)) for name in names}
        for _ in range(40):
            name = chance.choice(names)
            if chance.random() < 0.2:
                client[name] = KubeClient(made, name, config(3))  # killed, and started anew
            steps = plan(
                chance.choice(verdicts), client[name].look(closely=True), config(3), Local(gathered=False)
            ).steps
            for step in steps[: chance.randint(0, 8)]:
                try:
                    client[name].do(step)
                except RefusedError:
                    break
            away = {n for n in names for taint in borne(made, n) if taint["effect"] == "NoSchedule"}
            assert away <= {*holders(made).values()}, seed
            assert len(away) <= 3, seed


def test_what_is_told_of_a_degraded_nodes_taint_is_the_harder_of_the_two() -> None:
    soft, hard = Taint(SOFT_TAINT, "", "PreferNoSchedule"), Taint(HARD_TAINT, "reset_gpu", "NoSchedule")
    assert [effect_on(ours) for ours in ((), (soft,), (hard,))] == ["", "PreferNoSchedule", "NoSchedule"]


def test_a_node_that_is_cordoned_by_a_person_counts_for_it_too() -> None:
    made = cluster(*NODES)
    made("PATCH", "/api/v1/nodes/n3", {"spec": {"unschedulable": True}}, MERGE)
    drive(KubeClient(made, "n1", config()), degraded(), config())
    assert borne(made) == [SOFT]


def test_a_blind_agent_aims_at_no_weaker_taint_than_the_hard_one_that_stands() -> None:
    made = cluster(*NODES)
    client = KubeClient(made, "n1", config())
    drive(client, fatal(), config())
    world, blind = client.look(closely=True), silent()
    assert (
        aimed_taints(Case(replace(degraded(), blind=blind), world, config(), Local()), None, Records()) == world.taints
    )
    assert aimed_taints(Case(degraded(), world, config(), Local()), None, Records()) == (
        Taint(SOFT_TAINT, "", "NoSchedule"),
    )


def test_a_degraded_node_whose_taint_is_refused_gives_its_permit_back_to_others_and_asks_again() -> None:
    made, clock, had = cluster(*NODES), Clock(), list[bool]()

    def refuses(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", "/api/v1/nodes/n1"):
            return 403, {"message": "a policy says no"}
        return made(method, path, *rest, **more)

    client = KubeClient(refuses, "n1", config(), clock)
    for _ in range(240):
        clock.now += 30
        with suppress(RefusedError):
            drive(client, degraded(), config())
        had.append(holders(made)[SLOTS[0]] == "n1")
    spells = ["".join(group) for _, group in groupby("+" if one else "-" for one in had)]
    assert len(spells) > 10, "it goes back, and is asked for again"
    assert max(map(len, spells)) * 30 <= 700
