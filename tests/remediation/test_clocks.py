"""A clock that steps, or is another's, begins, ends and proves no repair: a table of steps and moments."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.remediation.records import Stage
from tests.life import CONFIG, Life
from tests.observe import GPU, Judge, alive, reading, xid
from tests.remediation.test_repair import MERGE, RESET, returned
from tests.remediation.test_validation import IDLE, Diagnosed, demanding

STEPS = (-10800, -600, 660, 10800)
SILENT = 119  # a fault after which the driver asks for nothing: only a proof ends it
WRITES = 14  # of one repair
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"


@dataclass
class Stepped(Life):
    """Its node's clock is set ahead right after this write."""

    at_write: int = 0
    by_s: float = 0.0

    def __post_init__(self) -> None:
        self.after = self._steps
        super().__post_init__()

    def _steps(self, writes: int) -> None:
        if writes == self.at_write:
            self.stepped_s = self.by_s


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("by_s", STEPS)
@pytest.mark.parametrize("fault", [RESET, SILENT])
def test_whenever_the_clock_steps_one_incident_is_repaired_once_and_the_node_returns(
    fault: int, by_s: float, restarts: bool
) -> None:
    # Of a fault that nobody wrote down before the restart, on a GPU that asks for nothing, a person decides.
    first = 2 if restarts and fault == SILENT else 1
    for write in range(first, WRITES + 1):
        life = Stepped(fault, at_write=write, by_s=by_s, kills=(write,) if restarts else ())
        life.run(400, rests=True)
        assert (life.repairs, returned(life)) == (["reset_gpu"], True), f"after write {write}: {life.waits}"


@dataclass
class Saving(Stepped):
    """Its pod saves, and says nothing of it."""

    def _settles(self) -> None:
        super()._settles()
        asks = {"gpu-health-agent/checkpoint": "annotation", "gpu-health-agent/checkpoint-timeout-s": "120"}
        path = "/api/v1/namespaces/research/pods/train"
        self.cluster("PATCH", path, {"metadata": {"annotations": asks}}, "application/merge-patch+json")


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("by_s", STEPS)
def test_whenever_the_clock_steps_a_pod_has_its_time_to_save_and_the_agent_reads_what_it_wrote(
    by_s: float, restarts: bool
) -> None:
    for write in range(1, WRITES + 1):
        life = Saving(RESET, at_write=write, by_s=by_s, kills=(write,) if restarts else ())
        life.run(100)
        assert life.cluster.evicted == [], f"after write {write}"
        life.run(300)
        assert (life.repairs, life.cluster.evicted) == (["reset_gpu"], ["research/train"]), life.waits


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("by_s", STEPS)
def test_whenever_the_clock_steps_what_comes_again_after_a_reset_is_not_cured_by_that_one(
    by_s: float, restarts: bool
) -> None:
    for later_s in (0, 10, 20):
        life = Life(SILENT)
        while not any(one.stage is Stage.DONE for one in life.records().attempts):
            life.tick()
        life.run(later_s)
        life.stepped_s = by_s
        life.breaks()
        life.tick()
        if restarts:
            life._begin()
        life.run(400, rests=True)
        assert (life.repairs, returned(life)) == (["reset_gpu"] * 2, True), f"{later_s} s after it: {life.waits}"


@pytest.mark.parametrize("by_s", STEPS)
def test_an_agent_that_was_away_when_it_came_again_does_not_believe_the_reset_before(by_s: float) -> None:
    life = Life(SILENT)
    while not any(one.stage is Stage.DONE for one in life.records().attempts):
        life.tick()
    life.stepped_s = by_s
    life.breaks()
    life._begin()
    life.run(400, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu"] * 2, True), life.waits


@pytest.mark.parametrize("by_s", STEPS)
def test_a_paused_agent_remembers_over_a_restart_that_it_came_again(by_s: float) -> None:
    life = Life(SILENT)
    while not any(one.stage is Stage.DONE for one in life.records().attempts):
        life.tick()
    pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    life.cluster._store("configmaps", "gpu-health-agent", pause)
    life.stepped_s = by_s
    life.breaks()
    life.run(120)
    life._begin()
    life.run(20)
    del life.cluster._objects["configmaps", "gpu-health-agent", "gpu-health-agent-pause"]
    life.run(400, rests=True)
    assert (life.repairs, returned(life)) == (["reset_gpu"] * 2, True), life.waits


@dataclass
class Asleep(Life):
    """Its machine sleeps for three hours right after this request: its monotonic clock stands still, and others go on.

    They take over what it holds, but for the withdrawn permit of a Node that bears our taint, and give it back later.
    """

    after_request: int = 0
    asked: int = 0

    def _request(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        held = {kind for kind in ("withdrawn", "draining") if self._holds(kind)}
        if path.endswith("/eviction"):
            assert held == {"withdrawn", "draining"}, "an eviction under a permit of another's"
        if method == "PATCH" and path == "/api/v1/nodes/n1" and not self.tainted():
            assert "withdrawn" in held, "a taint under a permit of another's"
        answer = super()._request(method, path, *rest, **more)
        self.asked += 1
        if self.asked == self.after_request:
            self.stepped_s = 10_800
            self._hand("n1", "n2")
        return answer

    def _holds(self, kind: str) -> bool:
        leases = self.cluster("GET", LEASES)[1]["items"]
        return any(
            kind in lease["metadata"]["name"] and lease["spec"]["holderIdentity"].startswith("n1/") for lease in leases
        )

    def _hand(self, old: str, new: str) -> None:
        for (kind, _, name), lease in [*self.cluster._objects.items()]:
            holder = str(lease["spec"]["holderIdentity"]) if kind == "leases" else ""
            if holder.startswith(f"{old}/") and not ("withdrawn" in name and self.tainted()):
                uid = self.cluster.read("nodes", new)["metadata"]["uid"] if new else ""
                spec = {**lease["spec"], "holderIdentity": f"{new}/{uid}" if new else ""}
                self.cluster._store("leases", "gpu-health-agent", {**lease, "spec": spec})


@pytest.mark.parametrize("first", range(2, 6))
def test_after_a_sleep_no_permit_is_used_on_a_word_from_before(first: int) -> None:
    awake = Asleep(SILENT)
    awake.run(60)
    assert awake.cluster.evicted
    for request in range(first, awake.asked, 4):
        life = Asleep(SILENT, after_request=request)
        life.run(60)
        life._hand("n2", "")
        life.run(100)
        assert (life.repairs, life.cluster.evicted) == (["reset_gpu"], ["research/train"]), f"{request}: {life.waits}"


@pytest.mark.parametrize("restarts", [False, True])
def test_after_a_sleep_no_protected_pod_leaves_early(restarts: bool) -> None:
    drain = {"deadline_s": {"reset_gpu": 300}}
    life = Life(SILENT, CONFIG.model_copy(update={"drain": type(CONFIG.drain).model_validate(drain)}))
    body = {"metadata": {"annotations": {"gpu-health-agent/do-not-evict": "true"}}}
    life.cluster("PATCH", "/api/v1/namespaces/research/pods/train", body, MERGE)
    life.run(100)
    life.stepped_s = 10_800  # its monotonic clock stood still
    if restarts:
        life._begin()
    life.run(150)
    assert (life.cluster.evicted, life.tainted()) == ([], True)
    life.run(150)
    assert life.cluster.evicted == ["research/train"]


def test_after_a_sleep_nothing_that_was_read_before_counts_as_fresh() -> None:
    """A fault that ends by its absence, and one whose cure must be proved, end by readings of after it alone."""
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading(remapped_rows_pending=1))
    life.after(5, alive(), alive("kmsg"), reading(remapped_rows_pending=1), xid(SILENT, source="kmsg"))
    before = life.after(5, alive(), alive("kmsg"), reading(remapped_rows_pending=0)).standing
    life.wall += 10_800
    for _ in range(10):
        assert {fault.finding.id for fault in life.after(0.1).standing} == {fault.finding.id for fault in before}


@dataclass
class Slow(Life):
    """Its node reboots two minutes after the reboot's Job has ended, by a clock that is not the cluster's."""

    due: float = float("inf")

    def _acts(self, remedy: str, good: bool) -> None:
        self.ended.append(remedy)
        self.due = self.now + 120

    def _machine(self) -> None:
        super()._machine()
        if self.now >= self.due:
            self.due = float("inf")
            self.reboots()


def test_a_node_that_takes_its_time_is_rebooted_once_whatever_the_clocks_of_the_cluster_say() -> None:
    """The Job ended, as the cluster tells it, months ago or in a minute."""
    settings = CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update={"prove_s": 300})})
    life = Slow(79, settings)
    life.run(900, rests=True)
    assert (life.repairs, returned(life)) == (["reboot_node"], True), life.waits


@pytest.mark.parametrize("ahead", ["2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z"])
def test_since_when_a_job_has_ended_is_told_by_our_own_clock(ahead: str) -> None:
    life = Life(RESET)
    while not life.ended:
        life.tick()
    [job] = life.cluster("GET", "/apis/batch/v1/namespaces/gpu-health-agent/jobs")[1]["items"]
    job["status"]["conditions"][0]["lastTransitionTime"] = ahead
    life.cluster._store("jobs", "gpu-health-agent", job)
    client = KubeClient(life.cluster, "n1", CONFIG, lambda: life.now)
    for later_s in (0, 30, 60):
        life.now += 30 if later_s else 0
        [found] = client.look(closely=True).jobs or ()
        assert found.ended_s == later_s


@pytest.mark.parametrize("by_s", STEPS)
def test_a_step_makes_no_diagnosis_fail_that_could_not_be_run_for_a_minute(by_s: float) -> None:
    life = Diagnosed(RESET, demanding(deadline_s=120), clients=IDLE, ends="undone", said="no DCGM engine answers")
    while not life.diagnoses:
        life.tick()
    life.run(30)
    life.stepped_s = by_s
    life.run(30)
    assert not any(one.stage is Stage.FAILED for one in life.records().begun), life.waits
    life.ends = "passed"
    life.run(60)
    assert returned(life)


@pytest.mark.parametrize("by_s", STEPS)
def test_a_record_from_before_the_agents_start_stays_one_when_the_clock_steps(by_s: float) -> None:
    life = Judge(expected=("nvml", "kmsg"))
    life.after(0, alive(), alive("kmsg"), reading())
    life.now += 1
    life.hears(replace(xid(95, source="kmsg"), arrived=life.now, at=life.wall + life.now - 30))
    life.wall += by_s
    for _ in range(5):
        [fault] = life.after(5, alive(), alive("kmsg"), reading()).standing
        assert (fault.finding.pci, fault.pre_start) == (GPU, True)
