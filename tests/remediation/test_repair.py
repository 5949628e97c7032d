"""What a repair promises, through every crash: one repair for one incident, or a person with the attempt in view."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Config, Recurrence
from agent.diagnosis.gpu_processes import clients
from agent.model.errors import RefusedError
from agent.model.observation import Missing, Observation, Signal
from agent.model.ownership import OPERAND_PAUSED
from agent.model.steps import Report, Retaint
from agent.remediation.records import Stage
from tests.actions.test_kube import EVICT, FOREIGN, cluster, node
from tests.life import CONFIG, OPERANDS, TEMPLATES, UUID, Life, lives
from tests.observe import GPU, OTHER, Judge, alive, reading

RESET, REBOOT, REPLACE, CONTACT_SUPPORT = 95, 79, 64, 74
MERGE = "application/merge-patch+json"
QUICK = CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update={"pause_s": 0.5, "prove_s": 10})})


def returned(life: Life) -> bool:
    labels = life.node()["metadata"]["labels"]
    return (
        not life.tainted()
        and set(life.holders()) <= {""}
        and labels["gpu-health-agent/state"] == "healthy"
        and labels.items() >= OPERANDS.items()
        and not life.records().begun
    )


def only(remedy: str) -> Config:
    """Its template is the only one."""
    others = {name: None for name in TEMPLATES if name != remedy}
    return CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update=others)})


FAULTS = {"reset_gpu": RESET, "reboot_node": REBOOT, "replace_node": REPLACE}


@pytest.mark.parametrize("remedy", FAULTS)
def test_a_node_is_drained_repaired_once_proved_and_returned(remedy: str) -> None:
    life = Life(FAULTS[remedy], only(remedy))
    life.run(200)
    assert (life.repairs, returned(life)) == ([remedy], True)


def test_killed_after_any_two_writes_it_ends_returned_after_exactly_one_repair() -> None:
    for life in lives(Life(RESET), 600, killed=lambda writes: len(writes) <= 2):
        assert len(life.repairs) == 1, f"killed after writes {life.kills}: {life.repairs}"
        assert returned(life), f"killed after writes {life.kills}: {life.waits}"


@pytest.mark.parametrize("remedy", FAULTS)
def test_killed_after_every_subset_of_the_writes_around_a_repair(remedy: str) -> None:
    """From just before its Job is made: each of six writes is followed by a kill, or isn't."""
    plain = Life(FAULTS[remedy], only(remedy))
    job_of(plain)
    around = range(plain.writes - 2, plain.writes + 4)
    for life in lives(Life(FAULTS[remedy], only(remedy)), 600, killed=lambda writes: writes[-1] in around):
        assert (len(life.repairs), returned(life)) == (1, True), f"killed after writes {life.kills}: {life.waits}"


def test_killed_after_every_single_write_a_fault_without_a_template_waits_for_a_person() -> None:
    config = CONFIG.model_copy(update={"repair": type(CONFIG.repair)()})
    for kill in range(1, 10):
        life = Life(RESET, config, kills=[kill])
        life.run(100)
        assert (life.tainted(), life.repairs, life.cluster.evicted) == (True, [], ["research/train"])


def test_what_does_not_help_is_tried_twice_then_the_next_harder_then_a_person_decides() -> None:
    life = Life(RESET, QUICK, cures=lambda _: False)
    life.run(600)
    assert life.repairs == ["reset_gpu"] * 2 + ["reboot_node"] * 2 + ["replace_node"] * 2
    assert life.tainted()
    assert any(why.startswith("a person must decide: replace_node failed, attempt 2") for why in life.waits)
    assert [a.stage for a in life.records().attempts] == [Stage.FAILED] * 6
    assert life.node()["metadata"]["labels"].items() >= OPERANDS.items()


def test_a_person_decides_through_any_crash_and_no_remedy_is_tried_more_often() -> None:
    """Killed after any two writes in a row, once the first attempt is reserved."""
    plain = Life(RESET, QUICK, cures=lambda _: False)

    def killed(writes: tuple[int, ...]) -> bool:
        return writes[0] >= 8 and writes[0] % 2 == 0 and writes in ((writes[0],), (writes[0], writes[0] + 1))

    for life in lives(plain, 300, killed):
        assert life.repairs == ["reset_gpu"] * 2 + ["reboot_node"] * 2 + ["replace_node"] * 2
        assert life.tainted()


@pytest.mark.parametrize(
    ("code", "tries", "words"),
    [(3, 1, "can't be reset in this way"), (4, 1, "no permission"), (15, 1, "fallen off the bus"), (255, 2, "255")],
)
def test_nvidia_smis_exit_code_decides_whether_a_second_try_makes_sense(code: int, tries: int, words: str) -> None:
    only_reset = CONFIG.repair.model_copy(update={"reboot_node": None, "replace_node": None})
    life = Life(RESET, CONFIG.model_copy(update={"repair": only_reset}), exit_code=code)
    life.run(300)
    assert life.repairs == ["reset_gpu"] * tries
    assert words in " ".join(life.waits)


def test_no_reset_while_a_process_holds_the_gpu_and_it_is_named_with_its_pod() -> None:
    life = Life(RESET)
    life.cluster.add_pod("research", "notebook", "n1", gpus=0, owner="StatefulSet")
    path = "/api/v1/namespaces/research/pods/notebook"  # it has ended, and a process of it has not
    life.cluster("PATCH", path, {"status": {"phase": "Failed"}}, "application/merge-patch+json")
    uid = life.cluster.read("pods", "notebook", "research")["metadata"]["uid"]
    life.clients = {UUID: {"4711": uid, "4712": ""}, "GPU-other": {"1": ""}}
    life.run(200)
    assert life.repairs == []
    pod = "pod research/notebook of research/StatefulSet/notebook"
    assert f"no reset while processes hold the GPU: pids 4711 ({pod}), 4712 on {UUID}" in life.waits
    life.clients = {}
    life.run(200)
    assert returned(life)


@pytest.mark.parametrize("answer", [Signal.RESET_REQUIRED, Signal.LOST, None])
def test_a_gpu_that_answers_nothing_more_holds_no_process_for_ever(answer: Signal | None) -> None:
    """So that one that asks for a reset can be reset."""
    judge = Judge()
    judge.after(0, alive(), reading(processes="4711", pods="4711=uid"))
    history = judge.memory.history
    assert clients(history, judge.now, 60) == {UUID: {"4711": "uid"}}
    if answer:
        judge.after(5, alive(), Observation(0, "nvml", answer, GPU, raw="NVML error"))
    else:
        judge.now += 61
    assert clients(judge.memory.history, judge.now, 60) == {}


@pytest.mark.parametrize("missing", [*Missing, None, ""])
def test_a_driver_that_can_not_tell_who_holds_a_gpu_names_nobody(missing: Missing | str | None) -> None:
    judge = Judge()
    judge.after(0, alive(), reading(processes=missing, pods=missing))
    assert clients(judge.memory.history, judge.now, 60) == {UUID: {}}


def test_no_reset_while_an_operand_of_gpu_operator_still_runs() -> None:
    life = Life(RESET)
    deployed(life, "plugin", "nvidia.com/gpu.deploy.device-plugin")
    life.run(200)
    assert "these must leave before the reset: gpu-operator/plugin" in life.waits
    assert life.repairs == []


def deployed(life: Life, name: str, label: str) -> None:
    """One of gpu-operator's pods, or another client of the GPUs, with its label on the Node."""
    life.cluster.add_pod("gpu-operator", name, "n1", gpus=0, owner="DaemonSet")
    body = {"spec": {"nodeSelector": {label: "true"}}}
    life.cluster("PATCH", f"/api/v1/namespaces/gpu-operator/pods/{name}", body, MERGE)
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {label: "true"}}}, MERGE)


def test_the_dra_driver_leaves_after_the_pods_whose_claims_it_takes_back_and_all_come_again() -> None:
    """They can't end without it."""
    life = Life(RESET)
    deploy = "nvidia.com/gpu.deploy."
    others = ("dcgm-dra", "dcgm-exporter-dra", "dra-validator", "client")
    for name in (*others, "dra-driver"):
        deployed(life, name, deploy + name)

    def labels() -> dict[str, str]:
        return {name: life.node()["metadata"]["labels"][deploy + name] for name in (*others, "dra-driver")}

    life.run(100)
    assert labels() == dict.fromkeys(others, OPERAND_PAUSED) | {"dra-driver": "true"}
    named = ", ".join(f"gpu-operator/{name}" for name in sorted(others))
    assert f"these must leave before the reset: {named}" in life.waits
    for name in others:
        life.cluster("DELETE", f"/api/v1/namespaces/gpu-operator/pods/{name}")
    life.run(100)
    assert labels()["dra-driver"] == OPERAND_PAUSED
    assert "these must leave before the reset: gpu-operator/dra-driver" in life.waits
    assert life.repairs == []
    life.cluster("DELETE", "/api/v1/namespaces/gpu-operator/pods/dra-driver")
    life.run(300)
    assert returned(life), life.waits
    assert {*labels().values()} == {"true"}


def test_a_label_in_mid_upgrade_outlives_a_write_that_was_planned_before_it() -> None:
    for part in ("labels", "taints"):
        made = cluster()
        label, paused = "nvidia.com/gpu.deploy.dcgm", "paused-for-driver-upgrade"
        before = {"metadata": {"labels": {label: "true"}}, "spec": {"taints": [FOREIGN]}}
        made("PATCH", "/api/v1/nodes/n1", before, MERGE)
        client = KubeClient(made, "n1", EVICT)
        client.look(closely=True)
        made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {label: paused}}}, MERGE)
        step = Report(labels={label: OPERAND_PAUSED}) if part == "labels" else Retaint((), {label: OPERAND_PAUSED})
        with pytest.raises(RefusedError) as refused:
            client.do(step)
        assert (refused.value.status, node(made)["metadata"]["labels"][label]) == (409, paused)


def test_an_operands_label_that_somebody_else_set_meanwhile_is_left_alone() -> None:
    life = Life(RESET)
    while not life.repairs:
        life.tick()
    theirs = {"metadata": {"labels": {"nvidia.com/gpu.deploy.device-plugin": "paused-for-driver-upgrade"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", theirs, MERGE)
    life.run(200)
    assert life.tainted(), "the GPUs are not ours to judge"
    assert life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"] == "paused-for-driver-upgrade"
    theirs["metadata"]["labels"] = {"nvidia.com/gpu.deploy.device-plugin": "false"}
    life.cluster("PATCH", "/api/v1/nodes/n1", theirs, MERGE)
    life.run(200)
    assert not life.tainted()
    assert life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"] == "false"


def test_operands_that_the_agent_paused_come_back_though_its_annotation_was_removed() -> None:
    life = Life(RESET)
    while not life.repairs:
        life.tick()
    assert life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"] == "paused-for-gpu-reset"
    gone = {"metadata": {"annotations": {"gpu-health-agent/faults": None}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", gone, MERGE)
    life.run(300)
    assert returned(life), life.waits


def test_an_operand_that_a_person_switched_off_stays_off() -> None:
    life = Life(RESET)
    off = {"metadata": {"labels": {"nvidia.com/gpu.deploy.dcgm": "false"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", off, MERGE)
    life.run(200)
    assert (returned(life), life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.dcgm"]) == (True, "false")


def test_whoever_makes_no_resets_writes_no_operands_label() -> None:
    """It has no right to: every other word of such a write would be refused with it."""
    life = Life(REBOOT, only("reboot_node"))
    paused = {"metadata": {"labels": {"nvidia.com/gpu.deploy.dcgm": "paused-for-gpu-reset"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", paused, MERGE)
    life.run(200)
    assert life.repairs == ["reboot_node"]
    assert life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.dcgm"] == "paused-for-gpu-reset"


def test_a_harder_remedy_serves_where_the_milder_one_is_not_configured_and_moves_every_pod() -> None:
    only_reboot = CONFIG.repair.model_copy(update={"reset_gpu": None})
    life = Life(RESET, CONFIG.model_copy(update={"repair": only_reboot}))
    life.cluster.add_pod("web", "front", "n1", gpus=0)
    life.run(200)
    assert (life.repairs, life.cluster.evicted) == (["reboot_node"], ["research/train", "web/front"])
    assert returned(life)


def test_a_template_that_is_not_there_is_said_and_repairs_once_it_is() -> None:
    life = Life(RESET)
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.run(100)
    assert 'cronjobs "reset" not found' in " ".join(life.waits)
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(200)
    assert (life.repairs, returned(life)) == (["reset_gpu"], True)


def test_a_reserved_remedy_whose_template_was_taken_out_of_the_configuration_leaves_the_gpus_alone() -> None:
    life = Life(RESET)
    life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.run(100)
    assert life.released
    life.config = CONFIG.model_copy(update={"repair": type(CONFIG.repair)()})
    life._begin()
    life.run(20)
    assert (life.released, life.repairs, life.tainted()) == (False, [], True)
    assert life.node()["metadata"]["labels"].items() >= OPERANDS.items()


@pytest.mark.parametrize("fault", [RESET, REBOOT])
def test_what_a_power_cut_cured_before_its_job_was_made_is_not_repaired_again(fault: int) -> None:
    life = Life(fault)
    missing = "reset" if fault == RESET else "reboot"
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", missing))
    life.run(60)
    assert life.records().live
    life.reboots()
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(500)  # for five minutes the Job of the life before may still come
    assert (life.repairs, returned(life)) == ([], True)


def test_what_somebody_elses_reset_cured_before_its_job_was_made_is_not_rebooted() -> None:
    life = Life(RESET, only("reboot_node"))
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reboot"))
    life.run(60)
    assert [attempt.stage for attempt in life.records().attempts] == [Stage.RESERVED]
    life.new = {**life.new, GPU: life.now}
    life.run(15)
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(400)
    assert (life.repairs, returned(life)) == ([], True)


def test_an_attempt_that_was_overtaken_before_its_job_was_made_counts_as_no_try() -> None:
    """Else a node that somebody rebooted meanwhile, in vain, would be given up after one try."""
    only_reset = CONFIG.repair.model_copy(update={"reboot_node": None, "replace_node": None})
    life = Life(RESET, CONFIG.model_copy(update={"repair": only_reset}), cures=lambda _: False)
    template = life.cluster._objects.pop(("cronjobs", "gpu-health-agent", "reset"))
    life.run(60)
    assert [attempt.stage for attempt in life.records().attempts] == [Stage.RESERVED]
    for _ in range(2):
        life.reboots()
        life.breaks()  # and it comes again
        life.run(100)
    assert life.repairs == []
    life.cluster._store("cronjobs", "gpu-health-agent", template)
    life.run(400)
    assert life.repairs == ["reset_gpu"] * 2
    assert any("a person must decide: reset_gpu failed, attempt 2" in why for why in life.waits)


def job_of(life: Life) -> tuple[str, str]:
    """Its name and UID, once there is one."""
    while not (found := [job["metadata"] for (kind, _, _), job in life.cluster._objects.items() if kind == "jobs"]):
        life.tick()
    return found[0]["name"], found[0]["uid"]


@pytest.mark.parametrize("when", ["reserved", "runs", "soaks"])
def test_a_gpu_that_fails_while_another_is_repaired_gets_a_reset_of_its_own_and_the_cured_one_none(when: str) -> None:
    life = Life(RESET)
    job_of(life)
    while when != "reserved" and not life.repairs:
        life.tick()
    while when == "soaks" and not any("proved:" in why for why in life.waits):
        life.tick()
    life.breaks(OTHER)
    life.run(400)
    assert (life.reset, returned(life)) == ([UUID, f"GPU-{OTHER}"], True)


def test_a_gpus_reset_is_not_answered_for_by_what_another_gpu_needed_before() -> None:
    """The first GPU took two resets and a reboot; the second one begins with a reset, in the boot after."""
    life = Life(RESET, cures=lambda remedy: remedy != "reset_gpu")
    while life.repairs != ["reset_gpu"] * 2 + ["reboot_node"]:
        life.tick()
    while not any("proved:" in why for why in life.waits):
        life.tick()
    life.cures = lambda _: True
    life.breaks(OTHER)
    life.run(400)
    assert (life.repairs[3:], life.reset[-1], returned(life)) == (["reset_gpu"], f"GPU-{OTHER}", True)


def test_no_pod_makes_way_for_a_reboot_that_does_not_come_because_a_person_must_decide_first() -> None:
    life = Life(REBOOT)
    life.cluster.add_pod("web", "front", "n1", gpus=0)
    life.breaks(OTHER, CONTACT_SUPPORT)
    life.run(200)
    assert (life.repairs, life.cluster.evicted) == ([], ["research/train"])
    assert life.node()["spec"]["taints"][0]["value"] == "contact_support"


def test_a_reboot_is_not_done_while_its_job_may_still_reboot_the_node_again() -> None:
    life = Life(REBOOT)
    life.began[job_of(life)[1]] = float("inf")  # it hangs: somebody else reboots the node
    life.reboots()
    life.run(300)
    assert (life.tainted(), life.records().attempts[-1].stage) == (True, Stage.STARTED)


def test_a_node_whose_fault_was_dismissed_returns_once_its_job_has_ended_and_not_before() -> None:
    life = Life(REBOOT)
    name, uid = job_of(life)
    life.began[uid] = float("inf")
    word = {"metadata": {"annotations": {"gpu-health-agent/dismiss": "xid-79@0000:1b:00.0"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", word, MERGE)
    life.run(100)
    assert life.tainted()
    assert (
        f"Job {name} has not begun (no pod of it was seen): the node stays withdrawn until it has ended" in life.waits
    )
    life.began[uid] = life.now
    life.run(30)
    assert not life.tainted()


def test_nothing_is_begun_while_a_job_of_lost_records_runs() -> None:
    life = Life(RESET)
    name, uid = job_of(life)
    life.began[uid] = float("inf")
    text = life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    without = {key: value for key, value in json.loads(text).items() if key != "attempts"}
    body = {"metadata": {"annotations": {"gpu-health-agent/faults": json.dumps(without)}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)
    life.run(100)
    assert (life.repairs, life.waits) == (
        [],
        (f"Job {name} has not begun (no pod of it was seen): nothing else is begun",),
    )


def test_a_job_that_somebody_removed_is_a_failed_attempt_and_never_counts_as_a_repair() -> None:
    life = Life(RESET)
    while not life.repairs or life.records().attempts[-1].stage is not Stage.STARTED:
        life.tick()
    (name,) = [name for kind, _, name in life.cluster._objects if kind == "jobs"]
    life.removed(name)
    life.tick()
    assert life.records().attempts[-1].said == "its Job was removed before it was seen to end"
    life.run(300)
    assert (life.repairs, returned(life)) == (["reset_gpu"] * 2, True)


def test_a_relapsing_gpu_is_held_for_a_person_and_not_repaired_for_ever() -> None:
    life = Life(RESET, CONFIG.model_copy(update={"recurrence": Recurrence(enabled=False)}))
    for _ in range(6):
        life.run(300)
        life.breaks()
    assert life.repairs == ["reset_gpu"] * 2
    assert life.tainted()
    assert any("a person must decide about gpu-relapsing" in why for why in life.waits)


def test_paused_nothing_is_repaired() -> None:
    life = Life(RESET, clients={UUID: {"4711": ""}})
    life.run(50)
    body = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    life.cluster._store("configmaps", "gpu-health-agent", body)
    life.clients = {}
    life.run(200)
    assert (life.repairs, life.records().attempts) == ([], ())


@pytest.mark.parametrize("who", ["nvsentinel", "disrupted", "rebooting"])
def test_where_somebody_else_already_repairs_the_node_it_is_only_reported_on(who: str) -> None:
    life = Life(RESET)
    body: dict[str, Any] = {"metadata": {"labels": {"dgxc.nvidia.com/nvsentinel-state": "draining"}}}
    if who != "nvsentinel":
        body = {"spec": {"taints": [{"key": f"karpenter.sh/{who}", "effect": "NoSchedule"}]}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)
    life.run(100)
    assert (life.tainted(), life.holders(), life.cluster.evicted) == (False, [], [])
    assert life.node()["metadata"]["labels"]["gpu-health-agent/state"] == "unhealthy"


def test_a_replacement_is_asked_for_only_under_a_permit_on_a_drained_node() -> None:
    asks = CONFIG.repair.model_copy(
        update={"reset_gpu": None, "reboot_node": None, "replace_node": None, "request_replacement": True}
    )
    life = Life(REPLACE, CONFIG.model_copy(update={"repair": asks}))
    seen = []
    for _ in range(20):
        life.tick()
        conditions = {c["type"]: c["status"] for c in life.node()["status"]["conditions"]}
        if conditions.get("GpuReplacementRequested") == "True":
            seen.append((life.tainted(), life.cluster.evicted))
    assert seen[0] == (True, ["research/train"])


def test_a_nodes_faults_are_gathered_before_a_repair_even_where_no_pod_has_to_leave() -> None:
    life = Life(RESET)
    del life.cluster._objects["pods", "research", "train"]
    life.gathered = False
    life.run(50)
    assert (life.tainted(), life.records().attempts) == (True, ())
    life.gathered = True
    life.run(200)
    assert life.repairs == ["reset_gpu"]
