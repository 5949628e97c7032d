"""The check before a node returns: passed, failed, dismissed, and through any crash."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from agent.commands.explain import stored
from agent.config.config_file import load
from agent.config.settings import Config, Recurrence
from agent.model.cluster_client import ClusterClient
from agent.model.errors import ConfigError
from agent.model.fault import Status, Verdict
from agent.model.ownership import OPERAND_PAUSED
from agent.model.remedy import Remedy
from agent.model.steps import Diagnose, Step
from agent.model.world import Diagnosed as Ended
from agent.model.world import World
from agent.remediation.records import Kind, Records, Stage, Validation
from agent.remediation.stored import dump
from agent.remediation.stored import load as annotation
from tests.life import CHECK, CONFIG, Killed, Life, lives
from tests.observe import GPU, OTHER
from tests.remediation.test_repair import MERGE, REBOOT, RESET, job_of, returned

FIRST = {"recurrence": Recurrence(enabled=False)}  # each incident counts as the first: nothing is held for hours
CHECKED = CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update={"check": CHECK})})


def dismiss(life: Life, word: str) -> None:
    body = {"metadata": {"annotations": {"gpu-health-agent/dismiss": word}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, MERGE)


def state(life: Life) -> str:
    return str(life.node()["metadata"]["labels"]["gpu-health-agent/state"])


def test_a_cured_node_is_checked_before_it_returns() -> None:
    life = Life(RESET, CHECKED)
    while "check" not in life.repairs:
        life.tick()
    assert (life.tainted(), state(life)) == (True, "validating")
    life.run(100)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"], True)


def test_a_node_that_is_well_before_its_repair_has_ended_stays_as_it_is_and_then_is_checked() -> None:
    life = Life(REBOOT, CHECKED)
    name, uid = job_of(life)
    life.began[uid] = float("inf")  # it hangs: somebody else reboots the node
    life.reboots()
    life.run(300)
    waits = (
        f"Job {name} has not begun (no pod of it was seen): the node stays withdrawn until it has ended",
        "the node is checked before it returns",
    )
    assert (life.tainted(), life.repairs, life.waits) == (True, [], waits)
    life.over[uid], life.began[uid] = life._wall(), life.now
    life.run(300)
    assert (life.repairs, returned(life)) == (["check"], True)


def test_a_check_whose_job_somebody_removed_is_not_passed() -> None:
    life = Life(RESET, CHECKED)
    while "check" not in life.repairs:
        life.tick()
    life.tick()
    (check,) = [key[2] for key in life.cluster._objects if key[0] == "jobs" and "-check-" in key[2]]
    life.removed(check)
    life.run(300)
    assert (life.tainted(), life.repairs) == (True, ["reset_gpu", "check"])
    assert "its Job was removed before it was seen to end" in life.waits[0]


def test_what_a_reset_paused_stays_so_until_it_has_ended_though_its_fault_is_dismissed() -> None:
    """By an agent, too, that died before it wrote down that the Job runs, and reads the GPUs first."""
    life = Life(RESET, CHECKED)

    def dies(_: int) -> None:
        if any(kind == "jobs" for kind, *_ in life.cluster._objects):
            life.after = lambda _: None
            dismiss(life, "xid-95@0000:1b:00.0,recovery-action@0000:1b:00.0")
            raise Killed

    life.after = dies
    name, uid = job_of(life)
    life.began[uid] = float("inf")
    life.run(50)
    assert (
        f"Job {name} has not begun (no pod of it was seen): the node stays withdrawn until it has ended" in life.waits
    )
    assert life.node()["metadata"]["labels"]["nvidia.com/gpu.deploy.device-plugin"] == OPERAND_PAUSED
    life.over[uid], life.began[uid] = life._wall(), life.now
    life.run(50)
    assert (life.repairs, returned(life)) == ([], True)


def test_a_node_that_fails_its_check_never_returns_until_a_person_dismisses_that() -> None:
    life = Life(RESET, CHECKED, passes=False)
    life.run(3000)
    assert (life.repairs, life.tainted(), state(life)) == (["reset_gpu", "check"], True, "unhealthy")
    said = "the check before the return failed (exit 1): a person must decide; check@node dismisses it"
    assert life.waits == (said,)
    life._begin()
    life.run(100)
    assert (life.tainted(), life.waits) == (True, (said,))
    assert life.world
    assert "check, attempt 1 (Job gpu-health-check-" in stored(life.world, CHECKED)["waits"][0]
    dismiss(life, "check@node")
    life.run(20)
    assert returned(life)


def test_a_node_whose_fault_a_person_dismissed_is_not_checked() -> None:
    life = Life(RESET, CHECKED, clients={"GPU-0000:1b:00.0": {"1": ""}})
    life.run(50)
    assert life.tainted()
    dismiss(life, "xid-95@0000:1b:00.0,recovery-action@0000:1b:00.0")
    life.run(50)
    assert (life.repairs, returned(life)) == ([], True)


def test_a_fault_during_the_check_is_repaired_first_and_the_check_comes_again() -> None:
    life = Life(RESET, CHECKED.model_copy(update=FIRST))
    while "check" not in life.repairs:
        life.tick()
    life.breaks(OTHER)
    life.run(400)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"] * 2, True)


@pytest.mark.parametrize("passes", [True, False])
def test_killed_after_any_write_of_the_check_it_is_made_once(passes: bool) -> None:
    for life in lives(Life(RESET, CHECKED, passes=passes), 600, killed=lambda writes: len(writes) == 1):
        assert (life.repairs, returned(life)) == (["reset_gpu", "check"], passes), (life.kills, life.waits)


class Diagnosing:
    """Hands whose diagnosis takes two looks, and ends as ``ends`` says."""

    def __init__(self, life: Diagnosed, client: ClusterClient) -> None:
        self._life, self._client = life, client
        self._run: tuple[str, float] | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._client, name)

    def look(self, closely: bool, counts: bool = True) -> World:
        world, life = self._client.look(closely, counts), self._life
        if self._run is None:
            return world
        name, began = self._run
        over = life.now - began >= 10
        told = Ended(name, life.ends, life.said, int(life.now - began - 10)) if over else Ended(name, "active")
        return replace(world, diagnosed=told)

    def do(self, step: Step) -> bool:
        if not isinstance(step, Diagnose):
            return self._client.do(step)
        life, check = self._life, self._life.records().validation
        assert check, "a diagnosis that was not reserved"
        assert check.stage.live, "a diagnosis that was not reserved"
        assert life.kept_off(), "a diagnosis where pods may come"
        assert step.name.startswith(check.name)
        life.diagnoses.append((step.level, *step.uuids))
        self._run = step.name, life.now
        if len(life.diagnoses) in life.dies:
            raise Killed
        return True


@dataclass
class Diagnosed(Life):
    """A life with DCGM beside it. ``dies``: after the begin of which diagnoses the agent is killed."""

    ends: str = "passed"
    said: str = ""
    dies: Collection[int] = ()
    diagnoses: list[tuple[object, ...]] = field(default_factory=list)

    def kept_off(self) -> bool:
        """Whether no new pod comes."""
        return self.tainted()

    def _begin(self) -> None:
        super()._begin()
        self.client = Diagnosing(self, self.client)  # type: ignore[assignment]  # a Hands, as KubeHands is one


IDLE: dict[str, dict[str, str]] = {f"GPU-{GPU}": {}, f"GPU-{OTHER}": {}}


def demanding(level: int = 2, **more: object) -> Config:
    """The configuration that asks for a diagnosis of this level."""
    return CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update={"diagnose": level, **more})})


def settles(life: Life) -> None:
    """Until it is back in service or a person's matter, and a little longer."""
    for _ in range(70):
        life.tick()
        if (returned(life) and life.repairs) or any(a.stage == "failed" for a in life.records().begun):
            break
    life.run(20)


def test_a_cured_gpu_is_diagnosed_before_its_node_returns() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE)
    while not life.diagnoses:
        life.tick()
    assert (life.tainted(), state(life)) == (True, "validating")
    life.run(60)
    assert (life.repairs, life.diagnoses, returned(life)) == (["reset_gpu"], [(2, f"GPU-{GPU}")], True)


def test_gpus_that_were_reset_together_are_diagnosed_together() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE, linked=True)
    settles(life)
    assert (life.repairs, life.diagnoses, returned(life)) == (["reset_gpu"], [(2, *sorted(IDLE))], True)


def test_a_gpu_that_fails_its_diagnosis_never_returns_and_the_test_is_named_everywhere() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE, ends="failed", said="memory failed on 0000:1b:00.0")
    life.run(200)
    said = "DCGM's diagnosis, level 2: memory failed on 0000:1b:00.0"
    waits = (f"the check before the return failed ({said}): a person must decide; check@node dismisses it",)
    assert (life.diagnoses, life.tainted(), state(life), life.waits) == ([(2, f"GPU-{GPU}")], True, "unhealthy", waits)
    assert life.world
    assert stored(life.world, demanding())["waits"] == [f"check, attempt 1 (DCGM): failed, {said}"]
    events = [
        event
        for event in life.cluster("GET", "/api/v1/namespaces/default/events")[1]["items"]
        if event["reason"] == "CheckFailed"
    ]
    assert [said in event["message"] for event in events] == [True]
    life._begin()
    life.run(30)
    assert (life.tainted(), len(life.diagnoses)) == (True, 1), "another life of the agent doesn't try again"
    dismiss(life, "check@node")
    life.run(20)
    assert returned(life)


def test_one_that_can_not_be_run_is_tried_again_and_then_a_person_decides() -> None:
    life = Diagnosed(RESET, demanding(deadline_s=120), clients=IDLE, ends="undone", said="no DCGM engine answers")
    while not life.diagnoses:
        life.tick()
    life.run(30)
    assert life.waits == ("DCGM's diagnosis, level 2, can't be run yet: no DCGM engine answers",)
    life.run(150)
    assert 2 <= len(life.diagnoses) <= 4
    why = "DCGM's diagnosis, level 2, could not be run for 120 s: no DCGM engine answers"
    assert (life.tainted(), state(life), why in life.waits[0]) == (True, "unhealthy", True)


def test_an_engine_that_comes_in_time_is_asked_again() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE, ends="undone", said="no DCGM engine answers")
    while len(life.diagnoses) < 2:
        life.tick()
    life.ends = "passed"
    life.run(60)
    assert returned(life)


@pytest.mark.parametrize("clients", [{}, {f"GPU-{GPU}": {"4711": ""}}])
def test_no_gpu_is_taken_up_that_is_in_use_or_not_read(clients: dict[str, dict[str, str]]) -> None:
    life = Diagnosed(RESET, demanding(deadline_s=120), clients=clients)
    if clients:  # it was idle for the reset, and is not any more
        life.clients = IDLE
        while not any(a.stage == "done" for a in life.records().attempts):
            life.tick()
        life.clients = clients
    life.run(260)
    assert (life.diagnoses, life.tainted()) == ([], True)
    assert ("pids 4711" if clients else "is not read") in life.waits[0]
    light = Diagnosed(RESET, demanding(level=1))
    light.run(120)
    assert (light.diagnoses, returned(light)) == ([(1, f"GPU-{GPU}")], True), "level 1 takes no GPU for itself"


@pytest.mark.parametrize(("ends", "back"), [("passed", True), ("failed", False)])
def test_an_agent_killed_in_the_middle_runs_it_once_more_and_never_returns_the_node_without(
    ends: str, back: bool
) -> None:
    plain = Diagnosed(RESET, demanding(), clients=IDLE, ends=ends)
    settles(plain)
    assert returned(plain) is back
    schedules: list[tuple[list[int], list[int]]] = [([1], []), ([1, 2], []), ([1], [plain.writes - 1])]
    schedules += [([], [kill]) for kill in range(plain.writes - 9, plain.writes + 1)]
    for dies, kills in schedules:
        life = Diagnosed(RESET, demanding(), clients=IDLE, ends=ends, dies=dies, kills=kills)
        settles(life)
        assert (life.repairs, returned(life)) == (["reset_gpu"], back), (dies, kills, life.waits)
        assert 1 <= len(life.diagnoses) <= 3, (dies, kills)


def test_one_that_the_agents_end_cuts_off_again_and_again_is_a_persons_matter() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE)
    for _ in range(50):
        life.tick()
        if life.waits and "runs before the return" in life.waits[0]:
            life._begin()  # kill -9, and nothing was written
    assert (len(life.diagnoses), life.tainted(), state(life)) == (3, True, "unhealthy")
    assert "was cut off 3 times by the agent's end" in life.waits[0]


def test_a_fault_during_a_diagnosis_is_repaired_first_and_what_was_found_before_proves_nothing() -> None:
    life = Diagnosed(RESET, demanding().model_copy(update=FIRST), clients=IDLE)
    while not life.diagnoses:
        life.tick()
    life.breaks()
    life.run(200)
    assert (life.repairs, len(life.diagnoses), returned(life)) == (["reset_gpu"] * 2, 2, True)


def test_nothing_is_diagnosed_in_a_pause() -> None:
    life = Diagnosed(RESET, demanding(), clients=IDLE)
    while not any(a.stage == "done" for a in life.records().attempts):
        life.tick()
    pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    life.cluster._store("configmaps", "gpu-health-agent", pause)
    life.run(200)
    assert (life.diagnoses, life.tainted()) == ([], True)
    life.cluster._store("configmaps", "gpu-health-agent", {**pause, "data": {"paused": "false"}})
    life.run(60)
    assert returned(life)


def test_a_check_that_becomes_another_in_the_middle_is_still_demanded() -> None:
    life = Diagnosed(RESET, CHECKED, clients=IDLE)
    while "check" not in life.repairs:
        life.tick()
    life.config = demanding()
    life.run(60)
    assert (life.diagnoses, returned(life)) == ([(2, f"GPU-{GPU}")], True)


def test_a_check_and_a_diagnosis_are_one_too_many_and_a_diagnosis_needs_dcgm(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text, said in (
        ("repair: {check: node-check, diagnose: 2}", r"repair\.diagnose: .*leave one of the two out"),
        ("repair: {diagnose: 5}", r"repair\.diagnose: "),
        ("sources: {dcgm: {enabled: false}}\nrepair: {diagnose: 1}", r"repair: .*repair\.diagnose needs DCGM"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load(path)


# As agents write it that know the check as an attempt of remedy "none": a fleet has both during a roll-out.
CHECKS = {
    Validation(Kind.JOB, "gpu-health-check-0e0bc557dd", ("GPU-a",), "boot-1", stage=Stage.STARTED): (
        '{"boot_id":"boot-1","job":"gpu-health-check-0e0bc557dd","number":1,"remedy":"none","stage":"started",'
        '"uuids":["GPU-a"]}'
    ),
    Validation(Kind.DIAGNOSIS, "gpu-health-diagnosis-0e0bc557dd", (), "boot-1", 2, blocked_at=1760001210.5): (
        '{"acted_at":1760001210.5,"boot_id":"boot-1","job":"gpu-health-diagnosis-0e0bc557dd","number":2,'
        '"remedy":"none","stage":"reserved"}'
    ),
    Validation(
        Kind.DIAGNOSIS,
        "gpu-health-diagnosis-0e0bc557dd",
        ("GPU-a", "GPU-b"),
        "boot-1",
        3,
        Stage.FAILED,
        0.0,
        1760001330,
        "no engine",
    ): (
        '{"boot_id":"boot-1","ended_at":1760001330,"job":"gpu-health-diagnosis-0e0bc557dd","number":3,"remedy":"none",'
        '"said":"no engine","stage":"failed","uuids":["GPU-a","GPU-b"]}'
    ),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.run)
def test_a_check_is_stored_to_the_byte_as_agents_of_before_read_it_and_read_as_they_wrote_it(check: Validation) -> None:
    text = f'"attempts":[{CHECKS[check]}],"boot_id":"boot-1","faults":[],"kernel_seq":7,"paused":true,"version":1}}'
    text = '{"at":1760001300,' + text
    verdict, records = Verdict(0, Status.HEALTHY, Remedy.NONE, boot_id="boot-1"), Records((), True, validation=check)
    assert dump(verdict, 7, 1760001300.0, records) == text
    assert annotation(text, 0.0).records == records
