"""A cure that is known ends a withdrawal's reasons at once: nobody makes way any more for what is over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.config.settings import Budget, Deadlines, Drain, Repair
from agent.model.errors import UnreachableError
from agent.model.names import DISMISS_ANNOTATION, MANAGED_LABEL, PAUSE_CONFIGMAP, PERMIT_KIND_LABEL, POOL_LABEL
from agent.model.steps import GivePermit, TakePermit
from agent.model.text import rfc3339
from agent.model.world import PermitKind
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_pods import budget
from tests.life import CONFIG, UUID, Killed, Life
from tests.observe import GPU, OTHER, START
from tests.remediation.test_repair import CONTACT_SUPPORT, MERGE, REBOOT, RESET, returned

NAMESPACE = "gpu-health-agent"


def test_no_pod_leaves_a_node_whose_cure_is_proved() -> None:
    life = Life(REBOOT)
    life.gathered = False
    life.run(30)
    assert life.tainted()
    life.reboots()  # by a person, before the first pod was asked
    life.gathered = True
    life.run(10)
    assert (life.tainted(), life.waits) == (
        True,
        ("the GPUs were cured by somebody else: they must stay well for a while first",),
    )
    assert life.node()["metadata"]["labels"]["gpu-health-agent/state"] == "validating"
    life.run(100)
    assert (life.cluster.evicted, life.repairs, returned(life)) == ([], [], True)


def test_a_cured_node_whose_drain_was_over_when_its_agent_was_started_anew_does_not_wait() -> None:
    life = Life(REBOOT, CONFIG.model_copy(update={"repair": Repair()}))
    life.run(60)
    assert (life.cluster.evicted, sorted(life.holders())) == (["research/train"], ["", "n1/uid-1"])
    life.reboots()  # a new life of the agent, which knows nothing of what the last one asked for
    life.run(120)
    assert (returned(life), any(life.holders())) == (True, False)


def _hidden(life: Life) -> None:
    lease = life.cluster._objects["leases", NAMESPACE, "gpu-health-agent-draining-gpu-0"]
    del lease["metadata"]["labels"][PERMIT_KIND_LABEL]


def _deleted(life: Life) -> None:
    del life.cluster._objects["leases", NAMESPACE, "gpu-health-agent-draining-gpu-0"]


def _installed_anew(life: Life) -> None:
    for key in [key for key in life.cluster._objects if key[0] == "leases"]:
        del life.cluster._objects[key]


def _reselected(life: Life) -> None:
    budget = life.config.budget.model_copy(update={"pool_selector": "nvidia.com/gpu.present"})
    life.config = life.config.model_copy(update={"budget": budget})


def _deleted_beside_another(life: Life) -> None:
    free = copy.deepcopy(life.cluster._objects["leases", NAMESPACE, "gpu-health-agent-draining-gpu-0"])
    free["metadata"]["name"], free["spec"]["holderIdentity"] = "gpu-health-agent-draining-gpu-1", ""
    life.cluster._store("leases", NAMESPACE, free)
    _deleted(life)


def _deleted_and_used_by_another(life: Life) -> None:
    _deleted(life)
    other = KubeClient(life.cluster, "n2", life.config, lambda: life.now)
    for step in (TakePermit(PermitKind.DRAINING, 0), GivePermit(PermitKind.DRAINING, 0)):
        other.renew()
        other.look(closely=True)
        other.do(step)


def _deleted_before_a_pause(life: Life) -> None:
    _deleted(life)
    life.cluster._store("configmaps", NAMESPACE, {"metadata": {"name": PAUSE_CONFIGMAP}, "data": {"paused": "true"}})
    life.run(20)
    del life.cluster._objects["configmaps", NAMESPACE, PAUSE_CONFIGMAP]


@pytest.mark.parametrize(
    "lost",
    [
        _hidden,
        _deleted,
        _installed_anew,
        _reselected,
        _deleted_beside_another,
        _deleted_and_used_by_another,
        _deleted_before_a_pause,
    ],
)
def test_what_an_earlier_life_asked_for_is_waited_for_whatever_became_of_its_permits(
    lost: Callable[[Life], None],
) -> None:
    life = Life(REBOOT, CONFIG.model_copy(update={"repair": Repair()}))

    def dies_as_it_evicts(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            raise Killed
        return life.cluster(method, path, *rest, **more)

    life.api = dies_as_it_evicts
    while not any("draining" in name for *_, name in life.cluster._objects):
        life.tick()
    life.api = None
    lost(life)
    life.reboots()
    began = life.now
    while life.tainted():
        life.tick()
    assert (life.cluster.evicted, life.verdict.fatal) == ([], ())
    assert 300 <= life.now - began <= 330


def test_the_permit_of_a_taint_that_an_earlier_life_asked_for_last_stays_for_five_minutes() -> None:
    """The taint may still come to a node that is well by then."""
    life = Life(REBOOT)

    def dies_as_it_taints(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path) == ("PATCH", "/api/v1/nodes/n1"):
            raise Killed
        return life.cluster(method, path, *rest, **more)

    life.api = dies_as_it_taints
    while not any(life.holders()):
        life.tick()
    life.api = None
    life.reboots()
    began = life.now
    while any(life.holders()):
        life.tick()
    assert (life.tainted(), life.verdict.fatal) == (False, ())
    assert 290 <= life.now - began <= 330


@pytest.mark.parametrize("how", ["dismissed", "rebooted"])
def test_a_job_that_was_asked_for_in_vain_is_awaited_by_the_next_life_though_its_fault_is_over(how: str) -> None:
    life = Life(REBOOT)

    def answers_no_job(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if (method, path.endswith("/jobs")) == ("POST", True):
            raise UnreachableError("timed out")
        return life.cluster(method, path, *rest, **more)

    life.api = answers_no_job
    while not life.records().begun:
        life.tick()
    life.tick()
    life.api = None
    if how == "rebooted":
        life.reboots()
    else:
        word = {"metadata": {"annotations": {DISMISS_ANNOTATION: f"xid-{REBOOT}@{GPU}"}}}
        life.cluster("PATCH", "/api/v1/nodes/n1", word, MERGE)
    life.run(20)
    life._begin()
    began = life.now
    while life.tainted():
        life.tick()
    assert (life.ended, life.verdict.fatal) == ([], ())
    assert 290 <= life.now - began <= 330


def test_what_this_life_asked_for_in_vain_is_waited_for_whatever_became_of_its_permits() -> None:
    life = Life(RESET, CONFIG.model_copy(update={"repair": Repair()}))

    def answers_no_eviction(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            raise UnreachableError("timed out")
        return life.cluster(method, path, *rest, **more)

    life.api = answers_no_eviction
    life.run(30)
    began = life.now
    life.new[GPU] = life.now  # a person resets the GPU
    life.run(40)
    assert life.verdict.fatal == ()
    _installed_anew(life)
    not_ours = {"metadata": {"name": "not-ours"}, "spec": {"holderIdentity": "n1/uid-1"}}
    life.cluster._store("leases", NAMESPACE, not_ours)  # a life without a permit bears no taint, says tests/life.py
    words = set[str]()
    while life.tainted():
        life.tick()
        words |= {why.partition(":")[0] for why in life.waits if why.startswith("for five minutes ")}
    assert words == {"for five minutes the node stays as it is"}, "it has no permit"
    assert 280 <= life.now - began <= 310


@pytest.mark.parametrize(
    ("kind", "label", "anew"),
    [
        ("withdrawn", PERMIT_KIND_LABEL, False),
        ("withdrawn", PERMIT_KIND_LABEL, True),
        ("withdrawn", POOL_LABEL, False),
        ("draining", PERMIT_KIND_LABEL, True),
        ("draining", POOL_LABEL, False),
        ("hourly", PERMIT_KIND_LABEL, False),
    ],
)
def test_a_permit_that_was_out_of_sight_goes_back_once_it_is_seen_though_its_node_is_well_by_then(
    kind: str, label: str, anew: bool
) -> None:
    """It costs that node a request every two minutes: with what it reads of itself it stays within one a minute."""
    budget = Budget(max_withdrawn=1, per_hour=8)
    life = Life(RESET, CONFIG.model_copy(update={"budget": budget, "repair": Repair()}))
    life.api = lambda method, path, *rest, **more: (
        (429, {"message": "not now"}) if path.endswith("/eviction") else life.cluster(method, path, *rest, **more)
    )
    life.run(30)
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/gpu-health-agent-{kind}-gpu-0"
    labels = life.cluster("GET", lease)[1]["metadata"]["labels"]
    hidden = {"metadata": {"labels": {label: None}}, "spec": {"holderIdentity": "n1/uid-1"}}
    life.cluster("PATCH", lease, hidden, MERGE)
    life.run(30)
    life.new[GPU] = life.now  # a person resets the GPU
    if anew:
        life._begin()
    life.run(400)
    assert (life.tainted(), life.cycle.standing, sorted(life.holders())) == (False, False, ["", "", "n1/uid-1"])
    life.cluster.requests.clear()
    life.run(600)
    lists = [path for _, path in life.cluster.requests if path.endswith("/leases")]
    assert len(lists) == 5 + 60, "the life itself looks at each of its polls"
    life.cluster("PATCH", lease, {"metadata": {"labels": labels}}, MERGE)
    life.run(130)
    assert life.holders() == ["", "", ""]


@pytest.mark.parametrize("anew", [False, True])
def test_the_deadline_does_not_run_while_a_person_keeps_the_agent_off_the_node(anew: bool) -> None:
    drain = Drain(on_deadline="delete", deadline_s=Deadlines(reset_gpu=600))
    life = Life(RESET, CONFIG.model_copy(update={"drain": drain, "repair": Repair()}))
    life.api = budget(life.cluster, "train")
    life.run(300)
    managed = {"metadata": {"labels": {MANAGED_LABEL: "false"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", managed, MERGE)
    life.run(60)
    if anew:
        life._begin()
    life.run(1000)
    managed["metadata"]["labels"][MANAGED_LABEL] = "true"
    life.cluster("PATCH", "/api/v1/nodes/n1", managed, MERGE)
    life.run(590)
    assert "train" in life.cluster.pods_on("n1")
    life.run(60)
    assert "train" not in life.cluster.pods_on("n1")


class Stamped(InMemoryCluster):
    """It tells when something was written, as an API server does."""

    now = 0.0

    def _store(self, kind: str, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
        body["metadata"]["managedFields"] = [{"time": rfc3339(START + self.now, "seconds")}]
        return super()._store(kind, namespace, body)


@pytest.mark.parametrize(("away_s", "left_s"), [(240, 60), (900, 890)])
def test_the_deadline_begins_anew_where_nobody_was_there_to_see_an_opt_out(away_s: int, left_s: int) -> None:
    drain = Drain(on_deadline="delete", deadline_s=Deadlines(reset_gpu=600))
    cluster = Stamped()
    life = Life(RESET, CONFIG.model_copy(update={"drain": drain, "repair": Repair()}), cluster=cluster)

    def api(*asked: Any, **more: Any) -> tuple[int, Any]:
        cluster.now = life.now
        answer: tuple[int, Any] = protected(*asked, **more)
        return answer

    protected = budget(cluster, "train")
    life.api = api
    life.run(300)
    cluster.now = life.now = life.now + away_s
    cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"a-person": "was-here"}}}, MERGE)  # so it is told
    life._begin()
    life.run(left_s - 20)
    assert "train" in cluster.pods_on("n1")
    life.run(60)
    assert "train" not in cluster.pods_on("n1")


def test_a_node_that_is_cured_before_it_was_withdrawn_is_not_withdrawn_and_says_what_it_waits_for() -> None:
    life = Life(REBOOT)
    body = {"metadata": {"name": PAUSE_CONFIGMAP}, "data": {"paused": "true"}}
    life.cluster._store("configmaps", "gpu-health-agent", body)
    life.run(30)
    life.reboots()
    del life.cluster._objects["configmaps", "gpu-health-agent", PAUSE_CONFIGMAP]
    soaked = []
    while life.cycle.world is None or life.verdict.fatal:
        life.tick()
        assert not life.tainted()
        soaked += [life.waits] if life.last and life.verdict.fatal else []
    assert set(soaked) == {("the GPUs were cured by somebody else: they must stay well for a while first",)}
    life.run(20)
    assert (life.cluster.evicted, life.repairs, returned(life)) == ([], [], True)


def test_once_a_repair_is_done_no_pod_makes_way_for_it_any_more() -> None:
    life = Life(RESET, resources={"research/train": (f"GPU-{OTHER}",)})
    while not life.ended:
        life.tick()
    life.resources = None  # an agent that can't ask the kubelet now takes every pod for one that may hold the GPU
    life._begin()
    life.run(100)
    assert (life.reset, life.cluster.evicted, returned(life)) == ([UUID], [], True)


def test_no_pod_leaves_in_the_first_moments_after_a_reboot_that_may_have_cured_all() -> None:
    """The driver asked for a reset, and whether it still does is not known before it was read twice."""
    life = Life(RESET)
    life.gathered = False
    life.run(30)
    assert life.tainted()
    life.reboots()
    life.gathered = True
    life.run(10)
    assert (life.verdict.fatal[0].proved, life.cluster.evicted) == (False, [])
    life.run(100)
    assert (life.cluster.evicted, life.repairs, returned(life)) == ([], [], True)


def test_what_a_late_write_says_of_a_repair_that_is_done_moves_no_pod() -> None:
    """A report may arrive minutes after it was sent, and the Node then bears what was true before."""
    life = Life(RESET)
    late = ""
    while not life.ended:
        life.tick()
        if life.records().live:
            late = late or life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    life.tick()
    body = {"metadata": {"annotations": {"gpu-health-agent/faults": late}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, "application/merge-patch+json")
    life.cluster.add_pod("research", "tolerant", "n1")
    life._begin()
    life.run(200)
    assert (life.cluster.evicted, life.repairs, returned(life)) == (["research/train"], ["reset_gpu"], True)


def test_the_draining_permit_stays_until_whoever_was_asked_has_gone_though_the_remedy_is_another_by_then() -> None:
    life = Life(REBOOT)
    life.cluster.add_pod("web", "api", "n1", gpus=0)  # it makes way for the node's remedies alone

    def ends_slowly(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if not path.endswith("/pods/api/eviction"):
            return life.cluster(method, path, *rest, **more)
        going = {"metadata": {"deletionTimestamp": rfc3339(life._wall() + 30)}}
        return life.cluster("PATCH", path.removesuffix("/eviction"), going, MERGE)

    life.api = ends_slowly
    life.run(20)
    life.breaks(code=CONTACT_SUPPORT)
    life.run(20)
    assert life.waits == (
        "the draining permit goes back once these have gone: web/api",
        f"a person must decide about xid-74@{GPU}",
    )
    assert len([one for one in life.holders() if one]) == 2
    del life.cluster._objects["pods", "web", "api"]
    life.run(10)
    assert len([one for one in life.holders() if one]) == 1
