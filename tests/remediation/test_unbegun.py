"""A repair whose Job's pod doesn't begin: it is said, and no harder remedy follows from what was never tried."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.actions.job_pods import job_pods
from agent.config.settings import Config
from agent.model.steps import On
from agent.model.text import rfc3339
from tests.life import REMAPPED, UUID, Life
from tests.remediation.test_idle_reset import ELSEWHERE, IDLE
from tests.remediation.test_repair import QUICK, RESET, returned
from tests.remediation.test_validation import CHECKED

TAKEN_UP = {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}
REFUSED = {"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected"}
_LATE_S = 60.0  # after which the Job controller ends a Job, in this test


class Standing(Life):
    """A node on which no container of a Job begins for a while, and whose Jobs end as the Job controller ends them."""

    status: dict[str, Any] | None  # of each Job's pod; None: there is none
    stands = True
    only = ""  # with this in their names

    def __post_init__(self) -> None:
        self.made: dict[str, float] = {}
        super().__post_init__()

    def _goes_on(self, name: str, uid: str, job: dict[str, Any]) -> None:
        if not self.stands or self.only not in name:
            return super()._goes_on(name, uid, job)
        since = self.made.setdefault(uid, self.now)
        if self.status is not None:
            self._tells(name, "Pending", {})
            pod = self.cluster._objects["pods", "gpu-health-agent", f"{name}-pod"]
            pod["status"] = self.status
        if self.status is REFUSED or self.now - since >= _LATE_S:
            why = {"type": "Failed", "status": "True", "message": "Job was active longer than specified deadline"}
            self.cluster._store("jobs", "gpu-health-agent", {**job, "status": {"conditions": [why]}})
            if self.status is not REFUSED:
                self.cluster._objects.pop(("pods", "gpu-health-agent", f"{name}-pod"), None)
        return None


def standing(status: dict[str, Any] | None, only: str = "", config: Config = QUICK) -> Standing:
    life = Standing(RESET, config)
    life.status, life.only = status, only
    return life


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (None, "no pod of it was seen"),
        ({"phase": "Pending"}, "its kubelet has not taken up its pod"),
        (TAKEN_UP, "its pod waits: ImagePullBackOff"),
    ],
)
def test_a_job_that_has_not_begun_is_not_said_to_run(status: dict[str, Any] | None, why: str) -> None:
    life = standing(status)
    life.run(50)
    assert [wait for wait in life.waits if " has not begun " in wait] == [
        f"Job {life.records().attempts[-1].job} has not begun ({why}): reset_gpu, attempt 1"
    ]


@pytest.mark.parametrize("status", [None, {"phase": "Pending"}, TAKEN_UP, REFUSED])
def test_no_harder_remedy_follows_from_jobs_that_never_began(status: dict[str, Any] | None) -> None:
    """As where the registry does not answer, or the kubelet stands: a node is not replaced for that."""
    life = standing(status)
    life.run(300)
    attempts = life.records().attempts
    assert len(attempts) > life.config.repair.max_attempts
    assert {(one.remedy, one.unbegun) for one in attempts[:-1]} == {("reset_gpu", True)}
    assert [one.number for one in attempts] == [*range(1, len(attempts) + 1)]
    assert life.last
    assert any(wait.on is On.REPAIR for wait in life.last.waits), "nobody is called"
    life.stands = False
    life.run(400, rests=True)
    assert (life.repairs[-1], {*life.repairs}, returned(life)) == ("reset_gpu", {"reset_gpu"}, True)


@pytest.mark.parametrize("status", [None, {"phase": "Pending"}, TAKEN_UP, REFUSED])
def test_no_check_fails_by_jobs_that_never_began(status: dict[str, Any] | None) -> None:
    """A person is called who sees to the kubelet or the registry; once a Job begins the node returns by itself."""
    life = standing(status, "-check-", CHECKED)
    life.run(600)
    check = life.records().validation
    assert check
    assert (check.stage.live, check.number > 2, life.tainted()) == (True, True, True)
    assert life.last
    assert any(wait.on is On.REPAIR for wait in life.last.waits), "nobody is called"
    life._begin()
    life.run(50)
    assert (life.tainted(), "check" in life.repairs) == (True, False)
    life.stands = False
    life.run(4000, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"], True)


@pytest.mark.parametrize("only", ["", "-check-"])
def test_without_a_pause_jobs_that_never_begin_are_few_all_the_same(only: str) -> None:
    """They count for no limit, and what is written of each would fill the Node."""
    repair = CHECKED.repair.model_copy(update={"pause_s": 0.0})
    life = standing(REFUSED, only, CHECKED.model_copy(update={"repair": repair}))
    life.run(3000)
    assert 2 < len(life._jobs()) < 40
    assert life.records().begun[-1].number >= 8


def test_however_many_attempts_failed_their_pause_is_a_number() -> None:
    life = standing(REFUSED)
    life.run(50)
    path, text = f"/api/v1/nodes/{life.name}", life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    stored = json.loads(text)
    stored["attempts"] = [{**stored["attempts"][0], "stage": "failed", "unbegun": True, "ended_at": 1}] * 1100
    body = {"metadata": {"annotations": {"gpu-health-agent/faults": json.dumps(stored)}}}
    life.cluster("PATCH", path, body, "application/merge-patch+json")
    life._begin()
    life.run(50)
    assert any("follows after a pause of" in why for why in life.waits)


def test_a_job_that_was_given_up_before_this_life_saw_a_pod_of_it_was_not_tried() -> None:
    """As where the machine slept since it was asked for."""
    life = Life(RESET, QUICK)

    def given_up(_: int) -> None:
        for job in life._jobs():
            if not job.get("status"):
                why = {"type": "Failed", "status": "True", "message": "Job was active longer than specified deadline"}
                life.cluster._store("jobs", "gpu-health-agent", {**job, "status": {"conditions": [why]}})

    life.after = given_up
    life.run(200)
    attempts = life.records().attempts
    assert len(attempts) > life.config.repair.max_attempts
    assert {(one.remedy, one.said) for one in attempts} == {("reset_gpu", "it never began: no pod of it was seen")}


def test_a_container_that_ran_once_has_begun_whatever_its_pod_says_later() -> None:
    running: dict[str, Any] = {"running": {}}
    ended = {"terminated": {"exitCode": 1}}
    for state in (
        {"phase": "Running"},
        {"phase": "Pending", "initContainerStatuses": [{"state": running}]},
        {"phase": "Pending", "containerStatuses": [{"state": {"waiting": {}}, "lastState": ended}]},
        {"phase": "Failed", "reason": "Evicted", "containerStatuses": [{"state": ended}]},
    ):
        raw = {"metadata": {"labels": {"batch.kubernetes.io/job-name": "a"}}, "status": state}
        assert job_pods([raw])["a"].unbegun == "", state


def test_a_pod_that_was_refused_without_a_reason_is_told_in_words() -> None:
    for status, why in (
        ({"phase": "Failed"}, "its kubelet refused its pod"),
        ({"phase": "Failed", "reason": "OutOfcpu"}, "OutOfcpu"),
        (REFUSED, "OutOfcpu: Pod was rejected"),
    ):
        raw = {"metadata": {"labels": {"batch.kubernetes.io/job-name": "a"}}, "status": status}
        assert job_pods([raw])["a"].unbegun == why


def test_a_job_that_began_and_whose_pod_is_gone_was_tried() -> None:
    life = Life(RESET, QUICK)
    while not life.repairs:
        life.tick()
    ((job, uid),) = [(one["metadata"]["name"], one["metadata"]["uid"]) for one in life._jobs()]
    life.began[uid] = float("inf")
    life.tick()
    del life.cluster._objects["pods", "gpu-health-agent", f"{job}-pod"]
    life.run(30)
    assert f"Job {job} runs: reset_gpu, attempt 1" in life.waits


@pytest.mark.parametrize("status", [None, {"phase": "Pending"}, TAKEN_UP, REFUSED])
def test_a_reset_of_an_idle_gpu_whose_jobs_never_began_is_tried_again(status: dict[str, Any] | None) -> None:
    """A person is called meanwhile, and the node is in service between two tries."""
    life = Standing(REMAPPED, IDLE, resources={"research/train": (ELSEWHERE,)}, clients={UUID: {}, ELSEWHERE: {}})
    life.status = status
    life.run(600)
    tried = life.records().idle.failed_resets.values()
    assert {one.unbegun for one in tried} == {True}
    assert min(one.number for one in tried) > 1
    assert len({job["metadata"]["name"] for job in life._jobs()}) > 1
    while life.tainted():
        life.tick()
    assert life.last
    assert any("is tried again" in wait.why and wait.on is On.REPAIR for wait in life.last.waits), "nobody is called"
    assert not any("a person must decide" in why for why in life.waits)
    life._begin()
    life.run(20)
    assert (life.tainted(), life.repairs) == (False, [])
    life.stands = False
    life.run(2000)
    assert (life.repairs, returned(life), life.records().idle.failed_resets) == (["reset_gpu"], True, {})


class Stuck(Standing):
    """As with a kubelet that stands still: the Job controller waits for the pod to end, and until then the Job is
    active."""

    def _goes_on(self, name: str, uid: str, job: dict[str, Any]) -> None:
        if not self.stands or self.only not in name:
            return super()._goes_on(name, uid, job)
        if self.now - self.made.setdefault(uid, self.now) >= _LATE_S:
            ends = {"deletionTimestamp": rfc3339(self._wall() + 30), "deletionGracePeriodSeconds": 30}
            pod = self.cluster._objects["pods", "gpu-health-agent", f"{name}-pod"]
            pod["metadata"] = {**ends, **pod["metadata"]}
            return None
        self._tells(name, "Pending", {})
        self.cluster._objects["pods", "gpu-health-agent", f"{name}-pod"]["status"] = self.status or {}
        return None

    def ends(self) -> None:
        """Its kubelet does again what it should."""
        self.stands = False
        for job in self._jobs():
            if not job.get("status"):
                why = {"type": "Failed", "status": "True", "message": "Job was active longer than specified deadline"}
                self.cluster._store("jobs", "gpu-health-agent", {**job, "status": {"conditions": [why]}})
                self.cluster._objects.pop(("pods", "gpu-health-agent", f"{job['metadata']['name']}-pod"), None)


RUNS = {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]}


@pytest.mark.parametrize("status", [{"phase": "Pending"}, TAKEN_UP, RUNS])
@pytest.mark.parametrize("what", ["repair", "check", "cured"])
def test_somebody_is_called_to_a_job_whose_pod_does_not_end(what: str, status: dict[str, Any]) -> None:
    life = Stuck(RESET, CHECKED if what == "check" else QUICK)
    life.status, life.only = status, "-check-" if what == "check" else ""
    life.run(150)
    if what == "cured":
        life.reboots()
    life.run(150)
    assert life.last
    said = "and its pod should have ended and did not: see the node's kubelet"
    assert {wait.on for wait in life.last.waits if said in wait.why} == {On.REPAIR}, life.waits
    assert (life.tainted(), len([job for job in life._jobs() if not job.get("status")])) == (True, 1)
    life.ends()
    life.run(4000, rests=True)
    assert not any(said in why for why in life.waits)


@pytest.mark.parametrize("what", ["repair", "check"])
def test_a_job_that_somebody_removed_before_it_began_was_not_tried(what: str) -> None:
    """As whoever mends the image and deletes the Job that waited for it."""
    life = standing(TAKEN_UP, "-check-" if what == "check" else "", CHECKED if what == "check" else QUICK)

    def waits() -> list[dict[str, Any]]:
        there = (job for job in life._jobs() if life.only in job["metadata"]["name"])
        return [job for job in there if not job.get("status")]

    removed = set[str]()
    for _ in range(3):
        while not (there := waits()) or not any(" has not begun " in why for why in life.waits):
            life.tick()
        for name in (job["metadata"]["name"] for job in there):
            removed.add(name)
            life.removed(name)
        life.tick()
    assert (len(removed), life.repairs) == (3, ["reset_gpu"] if what == "check" else [])
    life.stands = False
    life.run(4000, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu", "check"] if what == "check" else ["reset_gpu"], True)


def test_beside_the_pod_of_a_job_that_somebody_removed_no_other_one_begins() -> None:
    """As after a deletion that leaves it, or where it hangs in the kernel."""
    life = standing(TAKEN_UP)
    life.run(50)
    (name,) = [job["metadata"]["name"] for job in life._jobs()]
    del life.cluster._objects["jobs", "gpu-health-agent", name]
    life.run(100)
    why = "its pod waits: ImagePullBackOff; it was removed"
    assert f"Job {name} has not begun ({why}): reset_gpu, attempt 1" in life.waits
    pod = life.cluster._objects["pods", "gpu-health-agent", f"{name}-pod"]
    pod["status"] = RUNS
    life.run(100)
    assert (f"Job {name} runs: reset_gpu, attempt 1" in life.waits, life._jobs()) == (True, [])
    pod["status"] = {"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 137}}}]}
    life.tick()
    last = life.records().attempts[-1]
    assert (last.said, last.unbegun) == ("its Job was removed before it was seen to end", False)
