"""What is said to other controllers is said under a permit, bears our mark, and is taken back; theirs is left alone."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.removal import release
from agent.config.neighbour_settings import Webhook
from agent.config.settings import Config, Mode
from agent.model.errors import RefusedError
from agent.model.fault import Status, Verdict
from agent.model.names import MANAGED_LABEL
from agent.model.neighbours import ACCELERATED, ASKED, AUTOSCALER_TAINT, CORDON_REASON, NOT_ASKED, Preset
from agent.model.remedy import Remedy
from agent.model.steps import Retaint, Wait
from agent.model.world import Local
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy, node, taints
from tests.actions.test_permits import Clock
from tests.life import CONFIG, Life
from tests.loopback import Loopback, head
from tests.observe import GPU, silent
from tests.waiting import until

STRATEGIC = "application/strategic-merge-patch+json"
REPLACE = 64
AUTOSCALED = Config(mode=Mode.EVICT, presets=(Preset.CLUSTER_AUTOSCALER,))
BOTH = ["gpu-health-agent/unhealthy", AUTOSCALER_TAINT.key]
OURS = {"key": AUTOSCALER_TAINT.key, "value": "gpu-health-agent", "effect": "NoSchedule"}


def asking(presets: tuple[str, ...] = ("eks",)) -> Config:
    only = {"reset_gpu": None, "reboot_node": None, "replace_node": None, "request_replacement": True}
    return CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update=only), "presets": presets})


def condition(life: Life, kind: str = ACCELERATED) -> tuple[str, str]:
    found: list[dict[str, Any]] = [c for c in life.node()["status"]["conditions"] if c["type"] == kind]
    return (found[0]["status"], found[0]["reason"]) if found else ("absent", "")


def asked() -> Life:
    """A node for which a replacement is asked."""
    life = Life(REPLACE, asking())
    life.run(50)
    assert condition(life) == ("False", ASKED)
    return life


def say(life: Life, status: str, reason: str) -> None:
    """Another's controller says something by the same condition."""
    told = {"type": ACCELERATED, "status": status, "reason": reason, "message": "theirs"}
    life.cluster("PATCH", "/api/v1/nodes/n1/status", {"status": {"conditions": [told]}}, STRATEGIC)


def test_the_autoscalers_taint_comes_and_goes_with_ours_in_the_same_write() -> None:
    made = cluster()
    seen: list[list[str]] = []

    def watched(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = made(method, path, *rest, **more)
        seen.append(taints(made))
        return answer

    client = KubeClient(watched, "n1", AUTOSCALED)
    drive(client, fatal(), AUTOSCALED)
    assert node(made)["spec"]["taints"][1] == OURS
    drive(client, healthy(), AUTOSCALED)
    assert [now for now, before in zip(seen[1:], seen, strict=False) if now != before] == [BOTH, []]


def test_without_a_permit_the_autoscaler_is_told_nothing() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", AUTOSCALED), fatal(), AUTOSCALED)
    drive(KubeClient(made, "n2", AUTOSCALED), fatal(), AUTOSCALED)
    assert (taints(made), taints(made, "n2")) == (BOTH, [])


@pytest.mark.parametrize("theirs", [{"value": "another", "effect": "NoSchedule"}, {"effect": "NoExecute"}])
def test_a_taint_that_another_wrote_for_the_autoscaler_stays(theirs: dict[str, str]) -> None:
    made = cluster()
    before = [{"key": AUTOSCALER_TAINT.key, **theirs}]
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": before}}, MERGE)
    client = KubeClient(made, "n1", AUTOSCALED)
    drive(client, fatal(), AUTOSCALED)
    assert taints(made) == [*reversed(BOTH)]
    drive(client, healthy(), AUTOSCALED)
    assert node(made)["spec"]["taints"] == before
    list(release(made, "gpu-health-agent", "n1"))
    assert node(made)["spec"]["taints"] == before


def test_a_preset_that_is_switched_off_takes_its_taint_along() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", AUTOSCALED), fatal(), AUTOSCALED)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert taints(made) == BOTH[:1]


def test_a_blind_agent_holds_the_autoscalers_taint_as_it_is() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", AUTOSCALED), fatal(), AUTOSCALED)
    drive(KubeClient(made, "n1", AUTOSCALED), Verdict(0, Status.UNKNOWN, Remedy.NONE, blind=silent()), AUTOSCALED)
    assert taints(made) == BOTH


def test_karpenter_is_asked_only_under_a_permit_for_a_drained_node() -> None:
    life = Life(REPLACE, asking())
    for _ in range(20):
        life.tick()
        if condition(life)[0] == "False":
            assert (life.tainted(), life.cluster.evicted) == (True, ["research/train"])
            assert any(h.startswith("n1/") for h in life.holders())
            break
    else:
        pytest.fail("it was never asked")


def test_wherever_it_is_killed_karpenter_is_asked_for_no_node_that_is_not_drained() -> None:
    for kill in range(1, 16):
        life = Life(REPLACE, asking(), kills=(kill,))
        for _ in range(15):
            life.tick()
            assert condition(life)[0] == "absent" or life.cluster.evicted == ["research/train"]
        assert condition(life) == ("False", ASKED), kill


def test_the_request_is_taken_back_once_the_fault_is_over() -> None:
    life = asked()
    word = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-{REPLACE}@{GPU}"}}}
    life.cluster("PATCH", "/api/v1/nodes/n1", word, MERGE)
    life.run(100)
    assert (life.tainted(), condition(life)) == (False, ("True", NOT_ASKED))
    list(release(life.cluster, "gpu-health-agent", "n1"))
    assert condition(life) == ("absent", "")


def test_a_pause_takes_the_request_back_and_its_end_asks_again() -> None:
    life = asked()
    life.cluster._store(
        "configmaps", "gpu-health-agent", {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    )
    life.run(10)
    assert condition(life) == ("True", NOT_ASKED)
    assert condition(life, "GpuReplacementRequested")[0] == "False"
    assert life.tainted()
    life.cluster._store(
        "configmaps", "gpu-health-agent", {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "false"}}
    )
    life.run(10)
    assert condition(life) == ("False", ASKED)


def test_another_mode_takes_the_request_back() -> None:
    life = asked()
    life.config = life.config.model_copy(update={"mode": Mode.TAINT})
    life.run(10)
    assert condition(life) == ("True", NOT_ASKED)


def test_a_preset_that_is_switched_off_takes_its_request_back() -> None:
    life = asked()
    life.config = asking(())
    life.run(10)
    assert (condition(life), condition(life, "GpuReplacementRequested")[0]) == (("True", NOT_ASKED), "True")


@pytest.mark.parametrize(("status", "reason"), [("True", "NvidiaAcceleratedHardwareIsReady"), ("False", "DCGMError")])
def test_a_condition_that_another_writes_is_left_and_said(status: str, reason: str) -> None:
    life = Life(REPLACE, asking())
    say(life, status, reason)
    life.run(50)
    assert (condition(life), condition(life, "GpuReplacementRequested")[0]) == ((status, reason), "True")
    assert any(f"AcceleratedHardwareReady is another's ({reason})" in why for why in life.waits)
    list(release(life.cluster, "gpu-health-agent", "n1"))
    assert condition(life) == (status, reason)


def test_a_condition_that_another_took_over_is_no_longer_ours() -> None:
    life = asked()
    say(life, "False", "DCGMError")
    life.run(10)
    assert condition(life) == ("False", "DCGMError")


def test_a_node_that_is_repaired_otherwise_never_gets_the_condition() -> None:
    life = Life(95, CONFIG.model_copy(update={"presets": ("eks",)}))
    life.run(200)
    assert (life.repairs, condition(life)) == (["reset_gpu"], ("absent", ""))


class Told:
    """A webhook's receiver, and what it was told: word, subject, id."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str]] = []
        self.status = 200
        self.server = Loopback(self.take)

    def take(self, line: socket.socket) -> None:
        length = next(
            int(row.partition(":")[2]) for row in head(line).splitlines() if row.lower().startswith("content-l")
        )
        event = json.loads(line.recv(length, socket.MSG_WAITALL))
        self.heard.append((event["type"].rpartition(".")[2], event["subject"], event["id"]))
        line.sendall(f"HTTP/1.1 {self.status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())

    def config(self, folder: Path) -> Config:
        (folder / "secret").write_text("s3cret")
        webhook = Webhook(url=self.server.url, secret_file=folder / "secret")
        return asking((Preset.WEBHOOK,)).model_copy(update={"webhook": webhook})

    def run(self, life: Life, seconds: float, words: list[str]) -> None:
        """Life and receiver each have their time, until this is all that was said."""
        life.run(seconds)
        until(lambda: [word for word, _, _ in self.heard] == words)
        life.run(20)


def test_a_receiver_is_told_under_a_permit_what_is_asked_and_what_no_longer_is(tmp_path: Path) -> None:
    told = Told()
    with told.server:
        life = Life(REPLACE, told.config(tmp_path))
        while not told.heard and life.now < 1300:
            life.tick()
            if condition(life, "GpuReplacementRequested")[0] == "absent":
                assert told.heard == []
        told.run(life, 50, ["requested"])
        assert told.heard[0][1] == f"xid-{REPLACE}@{GPU}"
        assert (life.tainted(), life.cluster.evicted) == (True, ["research/train"])
        life._begin()  # another life, which knows of no answer
        told.run(life, 50, ["requested", "requested"])
        assert told.heard[0] == told.heard[1], "a receiver knows it by its id"
        pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
        life.cluster._store("configmaps", "gpu-health-agent", pause)
        told.run(life, 50, ["requested", "requested", "withdrawn"])
        life.cluster._store("configmaps", "gpu-health-agent", {**pause, "data": {"paused": "false"}})
        told.run(life, 50, ["requested", "requested", "withdrawn", "requested"])
        assert told.heard[3][2] != told.heard[0][2], "it is asked anew"


def test_a_request_stands_through_an_opt_out_until_a_release_of_which_no_receiver_is_told(tmp_path: Path) -> None:
    told = Told()
    with told.server:
        life = Life(REPLACE, told.config(tmp_path).model_copy(update={"presets": ("eks", "webhook")}))
        told.run(life, 50, ["requested"])
        opted_out = {"metadata": {"labels": {MANAGED_LABEL: "false"}}}
        life.cluster("PATCH", "/api/v1/nodes/n1", opted_out, MERGE)
        life.run(100)
        assert (condition(life), condition(life, "GpuReplacementRequested")[0]) == (("False", ASKED), "True")
        list(release(life.cluster, "gpu-health-agent", "n1"))
        life.run(100)
        assert {condition(life)[0], condition(life, "GpuReplacementRequested")[0]} == {"absent"}
        until(lambda: not life.client._receiver._calls)
        assert [word for word, _, _ in told.heard] == ["requested"]


def test_a_receiver_that_takes_nothing_is_told_again_and_named_and_holds_nobody_up(tmp_path: Path) -> None:
    told = Told()
    told.status = 503
    with told.server:
        life = Life(REPLACE, told.config(tmp_path))
        life.run(50)
        until(lambda: life.client._receiver.trouble)
        life.run(10)
        assert any(
            "the webhook could not be told yet that a replacement is requested: it answered 503" in w
            for w in life.waits
        )
        assert condition(life, "GpuReplacementRequested")[0] == "True"
        told.status = 200
        known = len(told.heard)
        life.run(400)
        until(lambda: len(told.heard) > known)
        until(lambda: life.client._receiver.taken)
        life.run(10)
        assert not any("webhook" in why for why in life.waits)
        assert {*told.heard} == {told.heard[0]}


@pytest.mark.parametrize("restarts", [False, True])
def test_what_was_perhaps_taken_back_is_asked_anew_only_after_that_was_taken(tmp_path: Path, restarts: bool) -> None:
    """Else a receiver whose answer was lost has taken it back, does nothing more, and nobody knows."""
    told, pause = Told(), {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}

    def hears(word: str, more: int = 1) -> None:
        due = len(told.heard) + more
        for _ in range(200):
            if len(told.heard) >= due and told.heard[-1][0] == word:
                return
            life.run(10)
            time.sleep(0.005)
        pytest.fail(f"it never heard {word}: {told.heard}")

    with told.server:
        life = Life(REPLACE, told.config(tmp_path))
        hears("requested")
        until(lambda: life.client._receiver.taken)
        told.status = 500
        life.cluster._store("configmaps", "gpu-health-agent", pause)
        hears("withdrawn")
        life.cluster._store("configmaps", "gpu-health-agent", {**pause, "data": {"paused": "false"}})
        if restarts:
            life._begin()
        hears("withdrawn", 2)
        assert {word for word, _, _ in told.heard[1:]} == {"withdrawn"}, "in this order"
        assert any("could not be told yet that a replacement is withdrawn" in why for why in life.waits)
        told.status = 200
        hears("requested")
        assert told.heard[-1][2] != told.heard[0][2], "a receiver knows the first one already"


GKE, HYPERPOD = "cloud.google.com/fault-behavior", "sagemaker.amazonaws.com/node-health-status"
LABELS = [
    pytest.param(Preset.GKE, GKE, None, "XID", id="gke"),
    pytest.param(Preset.HYPERPOD, HYPERPOD, "Schedulable", "UnschedulablePendingReplacement", id="hyperpod"),
]


def put(life: Life, **labels: str | None) -> None:
    """By another's hand."""
    life.cluster("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": labels}}, MERGE)


def labelled(life: Life, key: str) -> str | None:
    value: str | None = life.node()["metadata"]["labels"].get(key)
    return value


def of(preset: Preset, key: str, before: str | None, kills: tuple[int, ...] = ()) -> Life:
    """A node of such a provider, whose GPU is broken for good."""
    life = Life(REPLACE, asking((preset,)), kills=kills)
    put(life, **{key: before})
    return life


@pytest.mark.parametrize(("preset", "key", "before", "value"), LABELS)
def test_a_provider_is_asked_by_its_label_only_under_a_permit_for_a_drained_node(
    preset: Preset, key: str, before: str | None, value: str
) -> None:
    for kills in ((), *((kill,) for kill in range(1, 16))):
        life = of(preset, key, before, kills)
        for _ in range(15):
            life.tick()
            if labelled(life, key) != before:
                assert (life.tainted(), life.cluster.evicted) == (True, ["research/train"])
                assert any(holder.startswith("n1/") for holder in life.holders())
        assert labelled(life, key) == value, kills


@pytest.mark.parametrize(("preset", "key", "before", "value"), LABELS)
def test_a_providers_label_is_again_what_it_was_once_nothing_is_asked_for(
    preset: Preset, key: str, before: str | None, value: str
) -> None:
    ends = {
        "cured": {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-{REPLACE}@{GPU}"}}},
        "upgraded": {"metadata": {"labels": {"nvidia.com/gpu-driver-upgrade-state": "drain-required"}}},
    }
    for how, patch in ends.items():
        life = of(preset, key, before)
        life.run(50)
        assert labelled(life, key) == value
        life.cluster("PATCH", "/api/v1/nodes/n1", patch, MERGE)
        life.run(100)
        assert labelled(life, key) == before, how
    life = of(preset, key, before)
    life.run(50)
    life.config = asking(())
    life.run(10)
    assert labelled(life, key) == before, "switched off"
    life = of(preset, key, before)
    life.run(50)
    list(release(life.cluster, "gpu-health-agent", "n1"))
    assert labelled(life, key) == before, "released"


@pytest.mark.parametrize(
    ("preset", "key", "theirs"),
    [
        (Preset.GKE, GKE, "PERFORMANCE"),
        (Preset.GKE, GKE, "XID"),
        (Preset.HYPERPOD, HYPERPOD, "UnschedulablePendingReboot"),
        (Preset.HYPERPOD, HYPERPOD, "UnschedulablePendingReplacement"),
        (Preset.HYPERPOD, HYPERPOD, None),
    ],
)
def test_a_label_that_another_wrote_is_left_and_said(preset: Preset, key: str, theirs: str | None) -> None:
    life = of(preset, key, theirs)
    life.run(50)
    assert condition(life, "GpuReplacementRequested")[0] == "True"
    assert any(f"label {key} is" in why and "asks for no other node" in why for why in life.waits)
    list(release(life.cluster, "gpu-health-agent", "n1"))
    assert labelled(life, key) == theirs


def test_a_label_that_another_changed_is_no_longer_ours() -> None:
    life = of(Preset.HYPERPOD, HYPERPOD, "Schedulable")
    life.run(50)
    put(life, **{HYPERPOD: "Unschedulable"})
    life.run(50)
    life.config = asking(())
    life.run(10)
    assert labelled(life, HYPERPOD) == "Unschedulable"


@pytest.mark.parametrize(("preset", "key", "before", "value"), LABELS)
@pytest.mark.parametrize("restarts", [False, True])
def test_a_request_that_another_took_back_is_not_made_again_for_the_same_fault(
    preset: Preset, key: str, before: str | None, value: str, restarts: bool
) -> None:
    life = of(preset, key, before)
    life.run(50)
    put(life, **{key: before})
    if restarts:
        life._begin()
    for _ in range(50):
        life.tick()
        assert labelled(life, key) == before
    assert any(f"label {key} was taken back by another" in why for why in life.waits)
    life.config = asking(())
    life.run(10)
    life.config = asking((preset,))
    life.run(10)
    assert labelled(life, key) == value, "whoever chooses the preset anew asks anew"


def test_what_the_provider_answers_is_told_and_its_refusal_is_a_persons() -> None:
    life = of(Preset.GKE, GKE, None)
    life.run(50)
    put(life, **{"cloud.google.com/report-and-replace-status": "OperationRUNNING"})
    life.run(10)
    assert any("(cloud.google.com/report-and-replace-status=OperationRUNNING)" in why for why in life.waits)
    put(life, **{"cloud.google.com/report-and-replace-status": "Error"})
    life.run(10)
    assert any(why.startswith("gke can't replace the node") for why in life.waits)


SLINKY = Config(mode=Mode.EVICT, presets=(Preset.SLINKY,))
OF_A_CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}  # by Kubernetes
SLURM_STATES = ("Allocated", "Completing", "Drain", "Idle", "Mixed", "Undrain")
OF_A_NODE_SET = {"apiVersion": "slinky.slurm.net/v1beta1", "kind": "NodeSet", "name": "gpu", "uid": "u"}


def cordoned(made: InMemoryCluster) -> tuple[bool, str | None]:
    now = node(made)
    return now["spec"].get("unschedulable", False), now["metadata"].get("annotations", {}).get(CORDON_REASON)


def by_hand(made: InMemoryCluster, on: bool | None, reason: str | None = None) -> None:
    body = {"spec": {"unschedulable": on}, "metadata": {"annotations": {CORDON_REASON: reason}}}
    made("PATCH", "/api/v1/nodes/n1", body, MERGE)


def test_the_cordon_comes_and_goes_with_the_hard_taint_in_the_same_write() -> None:
    made = cluster()
    seen: list[tuple[bool, bool]] = []

    def watched(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        answer = made(method, path, *rest, **more)
        seen.append((BOTH[0] in taints(made), cordoned(made)[0]))
        return answer

    client = KubeClient(watched, "n1", SLINKY)
    drive(client, fatal(), SLINKY)
    assert cordoned(made) == (True, "gpu-health-agent: reboot_node")
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [*node(made)["spec"]["taints"], OF_A_CORDON]}}, MERGE)
    drive(client, fatal(), SLINKY)
    assert "gpu-health-agent/withdrawn-by-others" not in node(made)["metadata"]["labels"], "it is our own"
    drive(client, healthy(), SLINKY)
    assert cordoned(made) == (False, None)
    assert {*seen} == {(True, True), (False, False)}


def test_without_a_permit_no_node_is_cordoned() -> None:
    made = cluster()
    drive(KubeClient(made, "n2", SLINKY), fatal(), SLINKY)
    drive(KubeClient(made, "n1", SLINKY), fatal(), SLINKY)
    assert cordoned(made) == (False, None)


@pytest.mark.parametrize("reason", [None, "theirs"])
def test_anothers_cordon_stays_whatever_comes(reason: str | None) -> None:
    made = cluster()
    by_hand(made, True, reason)
    client = KubeClient(made, "n1", SLINKY)
    drive(client, fatal(), SLINKY)
    drive(client, healthy(), SLINKY)
    list(release(made, "gpu-health-agent", "n1"))
    assert cordoned(made) == (True, reason)


def test_a_cordon_that_comes_between_look_and_write_is_not_taken_for_ours() -> None:
    made = cluster()
    client = KubeClient(made, "n1", SLINKY)
    steps = plan(fatal(), client.look(closely=True), SLINKY, Local()).steps
    client.do(steps[0])
    by_hand(made, True)
    with pytest.raises(RefusedError):
        client.do(next(step for step in steps if isinstance(step, Retaint)))
    drive(client, fatal(), SLINKY)
    assert cordoned(made) == (True, None)


def waited(client: KubeClient) -> list[str]:
    steps = plan(fatal(), client.look(closely=True), SLINKY, Local(gathered=True)).steps
    return [step.why for step in steps if isinstance(step, Wait)]


def test_a_cordon_that_another_undid_is_not_set_again_in_this_withdrawal_and_a_later_one_is_theirs() -> None:
    made = cluster()
    client = KubeClient(made, "n1", SLINKY)
    drive(client, fatal(), SLINKY)
    said = "another uncordoned the node: it is left so, and busy pods of Slurm leave at the drain's deadline"
    assert said not in waited(client)
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"unschedulable": None}}, MERGE)
    drive(client, fatal(), SLINKY)
    assert (cordoned(made), BOTH[0] in taints(made)) == ((False, None), True)
    drive(client := KubeClient(made, "n1", SLINKY), fatal(), SLINKY)
    assert cordoned(made) == (False, None), "nor by another life of the agent"
    assert said in waited(client)
    by_hand(made, True)
    drive(client, healthy(), SLINKY)
    assert (cordoned(made), taints(made)) == ((True, None), [])
    by_hand(made, None)
    drive(client, fatal(), SLINKY)
    assert cordoned(made) == (True, "gpu-health-agent: reboot_node"), "it is another withdrawal"


def test_a_cordon_that_another_undid_just_before_the_cure_leaves_no_mark() -> None:
    made = cluster()
    client = KubeClient(made, "n1", SLINKY)
    drive(client, fatal(), SLINKY)
    made("PATCH", "/api/v1/nodes/n1", {"spec": {"unschedulable": None}}, MERGE)
    drive(client, healthy(), SLINKY)
    assert cordoned(made) == (False, None)


def test_a_person_keeps_our_cordon_by_taking_its_annotation_off() -> None:
    made = cluster()
    client = KubeClient(made, "n1", SLINKY)
    drive(client, fatal(), SLINKY)
    by_hand(made, True)
    drive(client, fatal(), SLINKY)
    drive(client, healthy(), SLINKY)
    assert (cordoned(made), taints(made)) == ((True, None), [])


def test_a_preset_that_is_switched_off_undoes_its_cordon_and_so_does_release() -> None:
    made = cluster()
    drive(KubeClient(made, "n1", SLINKY), fatal(), SLINKY)
    drive(KubeClient(made, "n1", EVICT), fatal())
    assert (cordoned(made), taints(made)) == ((False, None), BOTH[:1])
    drive(KubeClient(made, "n1", SLINKY), fatal(), SLINKY)
    assert cordoned(made)[0]
    list(release(made, "gpu-health-agent", "n1"))
    assert cordoned(made) == (False, None)


def test_slurms_pod_leaves_once_slurm_has_drained_it_or_at_the_deadline() -> None:
    for ends in ("drained", "late"):
        made, clock = cluster(), Clock()
        path = "/api/v1/namespaces/research/pods/train"
        made("PATCH", path, {"metadata": {"ownerReferences": [{**OF_A_NODE_SET, "controller": True}]}}, MERGE)

        def state(*true: str) -> None:
            conditions = [{"type": f"SlurmNodeState{one}", "status": str(one in true)} for one in SLURM_STATES]
            made("PATCH", path, {"status": {"conditions": conditions}}, MERGE)  # noqa: B023

        client = KubeClient(made, "n1", SLINKY, clock)
        for busy in (("Allocated",), ("Drain", "Mixed"), ("Drain", "Completing"), ("Drain", "Undrain"), ()):
            state(*busy)
            drive(client, fatal(), SLINKY, rounds=3)
            assert made.evicted == [], busy
        made("PATCH", "/api/v1/nodes/n1", {"spec": {"unschedulable": None}}, MERGE)
        drive(client, fatal(), SLINKY, rounds=3)
        assert made.evicted == [], "whoever uncordons the node ends no job"
        waits = [s.why for s in plan(fatal(), client.look(closely=True), SLINKY, Local()).steps if isinstance(s, Wait)]
        assert "pod research/train is Slurm's, which has not drained it yet" in waits
        if ends == "drained":
            state("Drain", "Idle")
        else:
            clock.now += 3601
        drive(client, fatal(), SLINKY)
        assert made.evicted == ["research/train"], ends
