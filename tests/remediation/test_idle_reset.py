"""A degraded GPU is reset once nobody uses it: nobody leaves for it, and an incident gets one reset, whoever dies."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict, Unpack

import pytest

from agent.actions.kube import KubeClient
from agent.commands.explain import stored
from agent.config.settings import Budget, Config, Mode, Recurrence, Repair
from agent.model.errors import MalformedError, RefusedError
from agent.model.fault import Status, Verdict
from agent.model.names import HARD_TAINT
from agent.model.remedy import Remedy
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.remediation.records import Idle, Stage
from agent.remediation.stored import load
from tests.actions.test_kube import cluster, holders, node
from tests.actions.test_permits import Clock
from tests.life import CONFIG, REMAPPED, UUID, Life, lives
from tests.observe import GPU, OTHER, Judge, alive, reading, silent, xid
from tests.remediation.test_repair import CONTACT_SUPPORT, MERGE, RESET, returned

ELSEWHERE = f"GPU-{OTHER}"
IDLE = Config.model_validate(
    {
        **CONFIG.model_dump(),
        "budget": {"max_withdrawn": 2},
        "repair": {**CONFIG.repair.model_dump(), "reset_when_idle": True},
    }
)
ENDED_WELL = {"type": "Complete", "status": "True"}
FAULT = f"xid-63@{GPU}"


class More(TypedDict, total=False):
    """What else a test says of such a life."""

    cures: Callable[[str], bool]
    exit_code: int
    clients: dict[str, dict[str, str]]
    resources: dict[str, tuple[str, ...] | None]
    pending: set[str]
    linked: bool


def idle(config: Config = IDLE, fault: int = REMAPPED, **more: Unpack[More]) -> Life:
    """A pod trains on the other GPU of the node."""
    whole: More = {"resources": {"research/train": (ELSEWHERE,)}, "clients": {UUID: {}, ELSEWHERE: {}}, **more}
    return Life(fault, config, **whole)


def state(life: Life) -> str:
    return str(life.node()["metadata"]["labels"]["gpu-health-agent/state"])


def left_alone(life: Life) -> bool:
    return not life.tainted() and set(life.holders()) <= {""} and life.repairs == [] and life.cluster.evicted == []


def waits_for_a_person(life: Life) -> bool:
    """Degraded, in service, and the attempt in view."""
    (condition,) = (c for c in life.node()["status"]["conditions"] if c["type"] == "GpuDegraded")
    return (
        not life.tainted()
        and set(life.holders()) <= {""}
        and state(life) == "degraded"
        and any(
            "the reset of its idle GPU failed: " in why and why.endswith("a person must decide") for why in life.waits
        )
        and "the reset of its idle GPU failed" in condition["message"]
        and life.records().idle.failed_resets != {}
    )


def test_a_degraded_gpu_that_nobody_uses_is_reset_proved_and_returned_and_no_pod_moves() -> None:
    life = idle()
    done: list[str] = []
    life.after = lambda _: done.append(seen(life))
    life.run(200)
    assert "fatal" not in "".join(done)
    assert (life.repairs, life.reset, returned(life)) == (["reset_gpu"], [UUID], True)
    assert (life.cluster.evicted, life.cluster.pods_on("n1").count("train")) == ([], 1)
    order = [step for step, _ in itertools.groupby(done)]
    assert order[:4] == ["nothing", "permit", "permit, taint", "permit, taint, attempt"]
    assert not any(condition["status"] == "True" for condition in life.node()["status"]["conditions"])


def seen(life: Life) -> str:
    """How far it is, by what stands on the cluster."""
    node = life.node()
    fatal = "node.kubernetes.io/gpu-error" in node["metadata"]["labels"] or any(
        c["type"] == "GpuUnhealthy" and c["status"] == "True" for c in node["status"]["conditions"]
    )
    there = {
        "fatal": fatal,
        "permit": "n1/" in "".join(life.holders()),
        "taint": life.tainted(),
        "attempt": life.records().attempts,
    }
    return ", ".join(name for name, stands in there.items() if stands) or "nothing"


def test_a_pending_remap_is_proved_by_its_flag() -> None:
    life = idle(fault=0, pending={GPU})
    life.run(200)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)
    life = idle(fault=0, pending={GPU}, cures=lambda _: False)
    life.run(900)
    assert (life.repairs, life.tainted(), state(life)) == (["reset_gpu"], False, "degraded")
    assert any(f"row-remap-pending@{GPU} came again after it" in why for why in life.waits)


USERS: dict[str, tuple[Callable[[Life], object], str]] = {
    "a pod": (lambda life: (life.resources or {}).update({"web/a": (UUID,)}), "pod web/a holds it"),
    "a pod that the API forgot": (lambda life: (life.resources or {}).update({"web/a": None}), "pod web/a holds it"),
    "a pod that has no GPU yet": (lambda life: life.cluster.add_pod("web", "a", "n1"), "pod web/a holds it"),
    "a process": (lambda life: life.clients.update({UUID: {"4711": ""}}), "a process is on it"),
    "nobody knows": (lambda life: setattr(life, "resources", None), "PodResources can't be asked which pod holds it"),
    "unread": (lambda life: life.clients.clear(), "NVML did not read lately which processes are on it"),
}


@pytest.mark.parametrize("user", USERS)
def test_a_gpu_in_use_is_left_alone_and_who_uses_it_is_said(user: str) -> None:
    uses, why = USERS[user]
    life = idle()
    uses(life)
    life.run(300)
    assert left_alone(life)
    assert f"{FAULT}: its GPU is not reset yet: {why}" in life.waits


def test_a_pod_that_has_ended_uses_nothing_though_the_kubelet_lists_it_still() -> None:
    life = idle()
    life.cluster.add_pod("web", "a", "n1")
    life.cluster("PATCH", "/api/v1/namespaces/web/pods/a", {"status": {"phase": "Succeeded"}}, MERGE)
    assert life.resources is not None
    life.resources["web/a"] = (UUID,)
    life.run(200)
    assert returned(life)


NOT_ASKED: dict[str, dict[str, Any]] = {
    "by default": {"repair": {"reset_when_idle": False}},
    "without a template": {"repair": {"reset_gpu": None}},
    "in mode taint": {"mode": "taint"},
    "of the last permit": {"budget": {"max_withdrawn": 1}},
}


@pytest.mark.parametrize("case", NOT_ASKED)
def test_nothing_is_reset(case: str) -> None:
    told = IDLE.model_dump()
    for section, changed in NOT_ASKED[case].items():
        told[section] = {**told[section], **changed} if isinstance(changed, dict) else changed
    life = idle(Config.model_validate(told))
    life.run(300)
    assert left_alone(life)
    assert state(life) == "degraded"


STOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "a pause": ("configmaps", {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}),
    "an opt-out": ("nodes", {"metadata": {"labels": {"gpu-health-agent/managed": "false"}}}),
    "another remediator": ("nodes", {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": "draining"}}}),
    "an upgrade": ("nodes", {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "cordon-required"}}}),
}


@pytest.mark.parametrize("stop", STOPS)
def test_nothing_is_reset_during(stop: str) -> None:
    life = idle()
    kind, body = STOPS[stop]
    if kind == "nodes":
        life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)
    else:
        life.cluster._store(kind, "gpu-health-agent", body)
    life.run(300)
    assert left_alone(life)


def alone() -> Verdict:
    judge = Judge()
    judge.after(0, alive(), reading())
    return judge.after(1, xid(REMAPPED))


def as_drill(verdict: Verdict) -> Verdict:
    fault = verdict.faults[0]
    played = replace(fault, finding=replace(fault.finding, drill="nonce"))
    return replace(verdict, faults=(played,), standing=(played,))


def pre_start(verdict: Verdict) -> Verdict:
    return replace(verdict, faults=(replace(verdict.faults[0], pre_start=True),))


QUIET = Local(released=True, clients={UUID: {}}, holders={})
SEEN: dict[str, tuple[Verdict, Local, bool]] = {
    "well": (alone(), QUIET, True),
    "in a drill": (as_drill(alone()), QUIET, False),
    "by a blind agent": (replace(alone(), status=Status.UNKNOWN, blind=silent("kmsg")), QUIET, False),
    "that may be over by a reset before the agent's start": (pre_start(alone()), QUIET, False),
    "before a reboot that may have cured it": (replace(alone(), boot_id="boot-2"), replace(QUIET, up_s=5), False),
}


@pytest.mark.parametrize("how", SEEN)
def test_only_a_fault_that_is_seen_well_and_stands_today_withdraws_a_node(how: str) -> None:
    verdict, local, withdrawn = SEEN[how]
    made = cluster("n1", "n2")
    made._objects = {key: body for key, body in made._objects.items() if key[0] == "nodes"}
    client = KubeClient(made, "n1", IDLE)
    for _ in range(3):
        for step in plan(verdict, client.look(True), IDLE, local).steps:
            client.do(step)
    assert (HARD_TAINT in [taint["key"] for taint in node(made)["spec"]["taints"]]) is withdrawn


def test_a_pod_that_was_bound_before_the_taint_gets_the_gpu_and_each_next_try_waits_twice_as_long() -> None:
    life = idle()
    began: list[float] = []

    def bound(_: int) -> None:
        """Each time that the permit is there, just before the taint."""
        if life.tainted():
            return
        if any(holder.startswith("n1/") for holder in life.holders()) and "late" not in life.cluster.pods_on("n1"):
            life.cluster.add_pod("web", "late", "n1", owner="Job")
            began.append(life.now)

    life.after = bound
    for _ in range(40):
        life.tick()
        if not life.tainted() and "late" in life.cluster.pods_on("n1"):
            assert any("pod web/late holds it" in why for why in life.waits)
            assert set(life.holders()) == {""}
            del life.cluster._objects["pods", "web", "late"]  # it was a short one
    assert (life.repairs, life.cluster.evicted) == ([], [])
    gaps = [after - before for before, after in itertools.pairwise(began)]
    assert len(gaps) >= 4
    assert all(gap >= 10 * 2**i for i, gap in enumerate(gaps)), gaps
    life.after = lambda _: None
    life.run(400)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_a_pod_that_tolerates_the_taint_stops_a_reset_that_is_only_reserved() -> None:
    life = idle()
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.run(50)
    assert life.records().live
    life.cluster.add_pod("web", "late", "n1", owner="Job")
    life.run(50)
    assert left_alone(life)
    assert life.records().attempts == ()
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    del life.cluster._objects["pods", "web", "late"]
    life.run(200)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


@pytest.mark.parametrize("what", ["a template", "an operand"])
def test_what_keeps_the_job_from_being_made_keeps_no_pod_from_the_node_for_long(what: str) -> None:
    life = idle()
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    if what == "an operand":
        life.cluster._store("cronjobs", "gpu-health-agent", template)
        life.cluster.add_pod("gpu-operator", "plugin", "n1", gpus=0, owner="DaemonSet")
        body = {"spec": {"nodeSelector": {"nvidia.com/gpu.deploy.device-plugin": "true"}}}
        life.cluster("PATCH", "/api/v1/namespaces/gpu-operator/pods/plugin", body, MERGE)
    tainted: list[bool] = []
    for _ in range(240):
        life.tick()
        tainted.append(life.tainted())
    runs = [len(list(run)) for stands, run in itertools.groupby(tainted) if stands]
    rests = [len(list(run)) for stands, run in itertools.groupby(tainted) if not stands]
    assert len(runs) >= 5
    assert max(runs) * 5 <= IDLE.repair.prove_s + 15
    assert all(after > 1.7 * before for before, after in itertools.pairwise(rests[2:-1])), rests
    life.cluster._objects.pop(("pods", "gpu-operator", "plugin"), None)
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(2000)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_records_that_are_lost_lead_to_no_second_reset_for_its_job_is_found() -> None:
    life = idle(exit_code=255)
    life.run(300)
    text = life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    without = {key: value for key, value in json.loads(text).items() if key != "idle"}
    body = {"metadata": {"annotations": {"gpu-health-agent/faults": json.dumps(without)}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)
    life.run(300)
    assert (life.repairs, waits_for_a_person(life)) == (["reset_gpu"], True)


def test_where_a_degraded_node_gets_no_pod_the_permit_that_it_has_serves_and_goes_back() -> None:
    told = {**IDLE.model_dump(), "policy": {"soak_s": 20, "degraded_effect": "NoSchedule"}}
    life = idle(Config.model_validate(told))
    life.run(200)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)
    life = idle(Config.model_validate(told), exit_code=255)
    life.run(300)
    assert (life.repairs, life.tainted(), life.node()["spec"]["taints"][0]["effect"]) == (
        ["reset_gpu"],
        False,
        "NoSchedule",
    )
    assert [holder for holder in life.holders() if holder.startswith("n1/")]


@pytest.mark.parametrize("how", ["the Job fails", "the fault comes again"])
def test_what_one_reset_does_not_cure_goes_back_into_service_and_waits_for_a_person(how: str) -> None:
    fails: More = {"exit_code": 255} if how == "the Job fails" else {"cures": lambda _: False}
    life = idle(**fails)
    life.run(900)
    assert life.repairs == ["reset_gpu"]
    assert waits_for_a_person(life)
    assert life.world
    assert any("the reset of its idle GPU failed" in why for why in stored(life.world, IDLE)["waits"])
    life._begin()  # and remembers it
    life.run(900)
    assert (life.repairs, waits_for_a_person(life), life.cluster.evicted) == (["reset_gpu"], True, [])
    life.exit_code, life.cures = 0, lambda _: True
    word = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"{FAULT} row-remap-pending@{GPU}"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", word, MERGE)
    life.run(50)
    assert (returned(life), life.records().idle.failed_resets) == (True, {})
    life.breaks()  # another incident
    life.run(400)
    assert (life.repairs, returned(life)) == (["reset_gpu"] * 2, True)


def test_a_pod_that_comes_while_the_reset_runs_is_not_moved() -> None:
    life = idle()
    while not life.repairs:
        life.tick()
    life.cluster.add_pod("research", "late", "n1", owner="Job")
    life.run(200)
    assert (life.repairs, life.cluster.evicted, returned(life)) == (["reset_gpu"], [], True)


def test_a_job_that_somebody_removed_was_the_one_reset() -> None:
    life = idle()
    while not life.repairs or life.records().attempts[-1].stage is not Stage.STARTED:
        life.tick()
    (name,) = [key[2] for key in life.cluster._objects if key[0] == "jobs"]
    life.removed(name)
    life.run(400)
    assert (life.repairs, waits_for_a_person(life)) == (["reset_gpu"], True)


def test_a_reserved_reset_of_two_gpus_does_not_follow_a_fatal_fault_of_one_while_the_other_is_used() -> None:
    life = idle(resources={})
    del life.cluster._objects["pods", "research", "train"]
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.breaks(OTHER)
    life.run(50)
    assert (live := life.records().live)
    assert live.uuids == (UUID, ELSEWHERE)
    life.breaks(GPU, RESET)
    life.cluster.add_pod("research", "late", "n1", owner="Job")
    assert life.resources is not None
    life.resources["research/late"] = (ELSEWHERE,)
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(300)
    assert (life.reset, life.cluster.evicted, life.tainted()) == ([UUID], [], False)


def test_of_gpus_that_can_only_be_reset_together_none_may_be_in_use() -> None:
    life = idle(linked=True)
    life.run(200)
    assert left_alone(life)
    assert f"{FAULT}: its GPU is not reset yet: pod research/train holds it" in life.waits
    del life.cluster._objects["pods", "research", "train"]
    life.resources = {}
    life.clients[ELSEWHERE] = {"4711": ""}
    life.run(100)
    assert left_alone(life)
    life.clients[ELSEWHERE] = {}
    life.run(200)
    assert (sorted(life.reset[0].split(",")), len(life.reset), returned(life)) == ([UUID, ELSEWHERE], 1, True)


def test_a_taint_that_a_person_took_off_is_not_set_again_on_the_last_permit() -> None:
    life = idle()
    while not life.repairs:
        life.tick()
    life.cluster("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, MERGE)
    for (kind, _, name), lease in life.cluster._objects.items():
        if kind == "leases" and "withdrawn" in name:
            lease["spec"]["holderIdentity"] = f"n2/{life.cluster.read('nodes', 'n2')['metadata']['uid']}"
    life.tick()
    assert not life.tainted()


def test_a_fault_that_ends_by_its_absence_has_the_time_for_that() -> None:
    told = {**IDLE.model_dump(), "policy": {"soak_s": 20, "overrides": [{"rule": "xid-63", "clear_s": 100}]}}
    life = idle(Config.model_validate(told))
    while not (life.repairs and returned(life)):
        life.tick()
        assert life.records().idle.failed_resets == {}
    assert life.repairs == ["reset_gpu"]


def test_a_reset_that_a_fatal_fault_overtook_was_the_one_that_the_degraded_fault_gets() -> None:
    """The fatal fault explains the flag: one incident by now, and by the time that it is cured two again."""
    life = idle(fault=0, pending={GPU}, cures=lambda _: False)
    while not life.repairs:
        life.tick()
    life.breaks(GPU, RESET)
    life.tick()
    assert f"row-remap-pending@{GPU}" in life.records().idle.failed_resets
    life.run(900)
    assert (life.tainted(), state(life)) == (False, "degraded"), life.waits
    made = len(life.repairs)
    life.run(900)
    assert len(life.repairs) == made


@pytest.mark.parametrize(("code", "pci"), [(RESET, GPU), (RESET, OTHER), (CONTACT_SUPPORT, OTHER)])
def test_a_fatal_fault_at_any_time_goes_its_ordinary_way(code: int, pci: str) -> None:
    def breaks(life: Life, at: int, write: int) -> None:
        if write == at:
            life.breaks(pci, code)

    once = IDLE.model_copy(update={"recurrence": Recurrence(enabled=False)})  # it breaks after its return as well
    plain = idle(once)
    plain.run(200)
    for write in range(1, plain.writes + 1, 1 if pci == GPU else 2):
        life = idle(once)
        life.after = partial(breaks, life, write)
        held = code == CONTACT_SUPPORT
        life.run(150 if held else 250)
        assert life.tainted() is held, (write, life.waits)
        assert held or returned(life), (write, life.waits)
        assert life.cluster.evicted == (["research/train"] if pci == OTHER else []), write
        assert life.reset.count(UUID) <= 1 + (pci == GPU), (write, life.reset)
        error = life.node()["metadata"]["labels"].get("node.kubernetes.io/gpu-error")
        assert error == ("true" if held else None)


def test_killed_after_any_two_writes_it_ends_returned_after_exactly_one_reset() -> None:
    for life in lives(idle(), 500, killed=lambda writes: len(writes) <= 2):
        assert life.repairs == ["reset_gpu"], f"killed after writes {life.kills}: {life.repairs}, {life.waits}"
        assert returned(life), f"killed after writes {life.kills}: {life.waits}"


def test_killed_after_every_subset_of_the_writes_around_a_reset() -> None:
    plain = idle()
    while not plain.repairs:
        plain.tick()
    around = range(plain.writes - 3, plain.writes + 3)
    for life in lives(idle(), 500, killed=lambda writes: writes[-1] in around):
        assert (life.repairs, returned(life)) == (["reset_gpu"], True), f"killed after {life.kills}: {life.waits}"


@pytest.mark.parametrize("more", [{"exit_code": 3}, {"cures": lambda _: False}], ids=["fails", "does not cure"])
def test_killed_after_any_writes_of_a_reset_that_fails_and_the_next_a_person_decides(more: More) -> None:
    for life in lives(idle(**more), 500, killed=lambda writes: writes[-1] < writes[0] + len(writes) <= writes[0] + 2):
        life.run(30)
        assert life.repairs == ["reset_gpu"], f"killed after writes {life.kills}: {life.repairs}"
        assert waits_for_a_person(life), f"killed after writes {life.kills}: {life.waits}"


def test_a_pod_that_comes_at_any_time_before_the_job_is_never_moved_and_never_reset_under() -> None:
    """It tolerates the taint. Once the Job is made nvidia-smi itself refuses a GPU that is in use."""
    plain = idle()
    while not plain.repairs:
        plain.tick()
    for write in range(1, plain.writes):
        life = idle()

        def comes(n: int, life: Life = life, write: int = write) -> None:
            if n == write and not any(kind == "jobs" for kind, *_ in life.cluster._objects):
                life.cluster.add_pod("research", "late", "n1", owner="Job")

        life.after = comes
        life.run(60)
        assert "late" not in life.cluster.pods_on("n1") or left_alone(life), (write, life.waits)
        life.cluster._objects.pop(("pods", "research", "late"), None)
        life.run(200, rests=True)
        assert (life.repairs, life.cluster.evicted, returned(life)) == (["reset_gpu"], [], True), write


def test_a_gpu_that_a_reboot_cured_is_not_reset() -> None:
    life = idle()
    assert life.resources is not None
    life.resources["web/a"] = (UUID,)
    life.run(50)
    life.reboots()
    life.resources.pop("web/a")
    life.run(200)
    assert (life.repairs, returned(life)) == ([], True)


def test_a_mode_that_evicts_nobody_any_more_ends_it_and_the_attempt_is_not_forgotten() -> None:
    life = idle()
    while not life.repairs:
        life.tick()
    life.config = life.config.model_copy(update={"mode": Mode.TAINT})
    life._begin()
    life.exit_code = 255
    life.run(100)
    assert (life.tainted(), FAULT in life.records().idle.failed_resets) == (False, True)
    life.config = IDLE
    life._begin()
    life.run(500)
    assert life.repairs == ["reset_gpu"]


def test_twelve_nodes_degraded_alike_keep_the_budget_and_each_is_reset_once() -> None:
    names = [f"n{index}" for index in range(12)]
    repair = Repair(reset_gpu="reset", reset_when_idle=True)
    config = Config(mode=Mode.EVICT, budget=Budget(max_withdrawn=3), repair=repair)
    bad, well = alone(), Judge().after(0, alive(), reading())
    most = 0
    for seed in range(2):
        chance, made = random.Random(seed), cluster(*names)
        made._store(
            "cronjobs",
            "gpu-health-agent",
            {
                "metadata": {"name": "reset"},
                "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}},
            },
        )
        clock = Clock()
        client = {name: KubeClient(made, name, config, clock) for name in names}
        cured: set[str] = set()
        for _ in range(700):
            name = chance.choice(names)
            clock.now += 10
            if chance.random() < 0.1:
                client[name] = KubeClient(made, name, config, clock)  # killed, and started anew
            steps = plan(well if name in cured else bad, client[name].look(closely=True), config, QUIET).steps
            for step in steps[: chance.randint(0, 8)]:
                try:
                    client[name].do(step)
                except RefusedError:
                    break
            jobs = [job for (kind, *_), job in made._objects.items() if kind == "jobs"]
            for job in jobs:
                if "status" not in job and chance.random() < 0.1:
                    job["status"] = {"conditions": [{**ENDED_WELL, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
                    cured.add(job["spec"]["template"]["spec"]["nodeName"])
            away = {n for n in names for t in node(made, n)["spec"].get("taints") or () if t["key"] == HARD_TAINT}
            assert away <= {*holders(made).values()}, seed
            most = max(most, len(away))
        on = [job["spec"]["template"]["spec"]["nodeName"] for job in jobs]
        assert len(on) == len({*on}) > 6, seed
    assert most == 2  # the third is left to a fatal fault


def test_killed_before_its_job_was_seen_the_node_waits_for_it_as_it_is_and_goes_on_as_soon_as_it_may() -> None:
    """The life before may have asked for the Job: it must meet no pod."""
    life = idle()
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.run(30)
    assert life.records().live
    life._begin()
    known, life.resources = life.resources, None  # the kubelet can't be asked yet
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(20)
    assert (life.tainted(), life.repairs) == (True, [])
    life.resources = known
    life.run(40)
    assert life.repairs == ["reset_gpu"]
    life.run(200)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_an_annotation_of_before_is_read_and_one_that_makes_no_sense_stops_the_agent() -> None:
    life = idle()
    life.run(100)
    text = life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    data = json.loads(text)
    assert load(text, 0.0).records.idle.times
    older = {key: value for key, value in data.items() if key != "idle"}
    assert load(json.dumps(older), 0.0).records.idle == Idle()
    wrongs: tuple[object, ...] = ([], {"tried": {"x": {}}}, {"times": ["never"]})
    for wrong in wrongs:
        with pytest.raises(MalformedError):
            load(json.dumps({**data, "idle": wrong}), 0.0)


def test_the_attempt_that_failed_is_kept_whole() -> None:
    life = idle(exit_code=4)
    life.run(300)
    failed_resets = life.records().idle.failed_resets[FAULT]
    assert (failed_resets.remedy, failed_resets.stage, failed_resets.uuids, failed_resets.said) == (
        Remedy.RESET_GPU,
        Stage.FAILED,
        (UUID,),
        "no permission to reset",
    )
