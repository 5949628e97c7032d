"""The hardest effect of a fence, by choice: at a drain's deadline Kubernetes deletes what a budget still protects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent.config.config_file import load
from agent.config.settings import Config, Mode
from agent.model.errors import ConfigError
from agent.model.names import MANAGED_LABEL, PAUSE_CONFIGMAP
from tests.actions.test_kube import holders
from tests.life import lives
from tests.remediation.test_fence import DRA, MERGE, RULE, Fenced, claimed

DEADLINE_S = 120


def config(on_deadline: str, **more: Any) -> Config:
    deadlines = DRA.drain.deadline_s.model_copy(update={"reset_gpu": DEADLINE_S})
    drain = DRA.drain.model_copy(update={"on_deadline": on_deadline, "deadline_s": deadlines, **more})
    return DRA.model_copy(update={"drain": drain})


CHOSEN = config("no_execute")


@dataclass
class Protected(Fenced):
    """A fenced life whose pods a budget protects, beside the controller that obeys NoExecute, two polls late.

    Checked: the effect comes after NoSchedule, and only under a draining permit, which stays until the pod is gone.
    """

    config: Config = CHOSEN
    refuses: int = 0  # what the server answers to NoExecute
    deletes: bool = True  # whether the controller does
    fenced_at: float = 0.0
    expelled_at: float = 0.0

    def _begin(self) -> None:
        self.api = self._served
        super()._begin()

    def _served(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            cause = {"reason": "DisruptionBudget", "message": "budget web needs 1"}
            return 429, {"message": "Cannot evict pod", "details": {"causes": [cause]}}
        effect = (
            (((rest[0] or {}).get("spec") or {}).get("taint") or {}).get("effect") if rest and "rules" in path else ""
        )
        if effect == "NoExecute":
            assert {*self.rules().values()} <= {"NoSchedule", "NoExecute"}
            if self.refuses:
                return self.refuses, {"message": "a fence of the agent has one of NoSchedule"}
        return self.cluster(method, path, *rest, **more)

    def _machine(self) -> None:
        super()._machine()
        closed = self.rules().get(RULE, "")
        self.fenced_at = self.fenced_at or (self.now if closed == "NoSchedule" else 0.0)
        if closed != "NoExecute":
            return
        self.expelled_at = self.expelled_at or self.now
        if self.deletes and self.now - self.expelled_at >= 20 and ("pods", "research", "bad") in self.cluster._objects:
            drains = "/leases/gpu-health-agent-draining-gpu-0"
            lease = self.cluster("GET", f"/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent{drains}")[1]
            assert lease["spec"]["holderIdentity"].startswith("n1/"), "pods are deleted without a draining permit"
            del self.cluster._objects["pods", "research", "bad"]

    def pods(self) -> set[str]:
        return {*self.cluster.pods_on("n1")} & {"bad", "good"}


def test_kubernetes_deletes_it_once_the_deadline_is_over_and_the_other_gpus_pod_stays() -> None:
    life = Protected(95)
    life.run(DEADLINE_S)
    assert (life.rules(), life.pods()) == ({RULE: "NoSchedule"}, {"bad", "good"})
    life.run(60)
    assert (life.rules(), life.pods()) == ({RULE: "NoExecute"}, {"good"})
    assert life.expelled_at - life.fenced_at >= DEADLINE_S
    life.run(300, rests=True)
    assert (life.repairs, life.effect(), life.rules(), any(life.holders())) == (["reset_gpu"], "", {}, False)
    told = [
        e for (kind, *_), e in life.cluster._objects.items() if kind == "events" if e["reason"] == "MovedForGpuFault"
    ]
    assert [event["involvedObject"]["name"] for event in told if event["involvedObject"]["kind"] == "Pod"] == ["bad"]


@pytest.mark.parametrize("on_deadline", ["wait", "delete"])
def test_nobody_who_did_not_choose_it_gets_it(on_deadline: str) -> None:
    life = Protected(95, config(on_deadline))
    life.run(400)
    assert life.rules().get(RULE) != "NoExecute"
    assert life.pods() == ({"bad", "good"} if on_deadline == "wait" else {"good"})


def test_wherever_it_is_killed_it_is_deleted_once_under_a_permit_and_no_fence_is_left() -> None:
    plain = Protected(95)
    while not plain.expelled_at:
        plain.tick()
    near = range(plain.writes - 4, plain.writes + 4)
    for life in lives(Protected(95), 900, killed=lambda writes: len(writes) == 1 and writes[0] in near):
        assert isinstance(life, Protected)
        assert (life.repairs, life.pods()) == (["reset_gpu"], {"good"}), life.kills
        assert (life.effect(), life.rules(), any(life.holders())) == ("", {}, False), life.kills


def test_it_is_not_set_while_a_pod_on_the_gpu_is_for_a_person_to_move() -> None:
    life = Protected(95)
    claimed(life.cluster, "beside", "gpu-0")  # which only a budget protects
    orphan = {"metadata": {"ownerReferences": None}}
    life.cluster("PATCH", "/api/v1/namespaces/research/pods/bad", orphan, MERGE)
    life.run(600)
    assert (life.rules(), life.pods()) == ({RULE: "NoSchedule"}, {"bad", "good"})
    assert "pod research/bad has no controller to start it again: a person must move it" in life.waits


def test_it_is_not_set_while_a_pod_has_time_to_save() -> None:
    life = Protected(95, config("no_execute", checkpoint_s=600))
    claimed(life.cluster, "beside", "gpu-0")
    saves = {"gpu-health-agent/checkpoint": "annotation", "gpu-health-agent/checkpoint-timeout-s": "600"}
    life.cluster("PATCH", "/api/v1/namespaces/research/pods/bad", {"metadata": {"annotations": saves}}, MERGE)
    life.run(500)
    assert (life.rules(), life.pods()) == ({RULE: "NoSchedule"}, {"bad", "good"})
    life.run(300)
    assert life.pods() == {"good"}


def test_where_it_is_refused_the_fence_stays_as_it_is_and_that_is_told() -> None:
    life = Protected(95, refuses=422)
    life.run(600)
    assert (life.rules(), life.pods()) == ({RULE: "NoSchedule"}, {"bad", "good"})
    assert any(
        why.startswith("could not have Kubernetes delete research/bad, past their budgets") for why in life.waits
    )


def test_it_needs_the_preset(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("drain: {on_deadline: no_execute}")
    with pytest.raises(ConfigError, match="choose the preset dra as well"):
        load(path)


def _paused(life: Protected) -> None:
    life.cluster._store(
        "configmaps", "gpu-health-agent", {"metadata": {"name": PAUSE_CONFIGMAP}, "data": {"paused": "true"}}
    )


def _opted_out(life: Protected) -> None:
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {MANAGED_LABEL: "false"}}}, MERGE)


def _milder(life: Protected) -> None:
    life.config = life.config.model_copy(update={"mode": Mode.TAINT})
    life._begin()


def _smaller(life: Protected) -> None:
    life.config = life.config.model_copy(update={"budget": life.config.budget.model_copy(update={"max_draining": 0})})
    life._begin()


def _unselected(life: Protected) -> None:
    life.config = life.config.model_copy(update={"drain": config("wait").drain})
    life._begin()


@pytest.mark.parametrize("stops", [_paused, _opted_out, _milder, _smaller, _unselected])
def test_whatever_stops_the_agent_its_draining_permit_stays_while_kubernetes_deletes_pods_at_its_word(
    stops: Callable[[Protected], None],
) -> None:
    """Nobody takes the effect back. But pods that it never deletes keep others waiting for eleven minutes at most."""
    life = Protected(95)
    while not life.expelled_at:
        life.tick()
    assert life.pods() == {"bad", "good"}
    stops(life)
    life.run(60)
    assert life.pods() == {"good"}
    endless = Protected(95, deletes=False)
    while not endless.expelled_at:
        endless.tick()
    stops(endless)
    until = endless.now + 1200
    while any("draining" in name and held for name, held in holders(endless.cluster).items()):
        endless.tick()
        assert endless.now < until
    assert endless.pods() == {"bad", "good"}
