"""What a drain promises to pods and their owners, on a cluster in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from agent.actions.checkpoint import declared, post
from agent.actions.kube import KubeClient
from agent.config.settings import Config, Mode
from agent.model.errors import RefusedError
from agent.model.fault import Verdict
from agent.model.steps import TakePermit, Wait
from agent.model.world import Local, PermitKind
from agent.remediation.plan import plan
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import MERGE, cluster, drive, fatal, node
from tests.actions.test_permits import Clock
from tests.observe import Judge, alive, reading, xid
from tests.waiting import until

DO_NOT_EVICT = {"gpu-health-agent/do-not-evict": "true"}


def reset(later_s: float = 0) -> Verdict:
    """A GPU's own remedy, on a GPU that still works."""
    judge = Judge()
    judge.after(0, alive(), reading(uuid="GPU-a"))
    verdict = judge.after(1, xid(95))
    return replace(verdict, at=verdict.at + later_s)


def config(**drain: Any) -> Config:
    return Config.model_validate({"mode": "evict", "drain": drain})


def change(made: InMemoryCluster, name: str, body: dict[str, Any], namespace: str = "research") -> None:
    assert made("PATCH", f"/api/v1/namespaces/{namespace}/pods/{name}", body, MERGE)[0] == 200


def annotate(made: InMemoryCluster, name: str, **annotations: str | None) -> None:
    change(
        made,
        name,
        {"metadata": {"annotations": {f"gpu-health-agent/{k.replace('_', '-')}": v for k, v in annotations.items()}}},
    )


def said(client: KubeClient, verdict: Verdict, settings: Config) -> list[str]:
    steps = plan(verdict, client.look(closely=True), settings, Local()).steps
    return [step.why for step in steps if isinstance(step, Wait)]


@pytest.mark.parametrize("annotations", [DO_NOT_EVICT, {"karpenter.sh/do-not-disrupt": "true"}])
def test_a_protected_pod_is_left_alone_until_the_deadline(annotations: dict[str, str]) -> None:
    made, clock, settings = cluster(), Clock(), config()
    change(made, "train", {"metadata": {"annotations": annotations}})
    client = KubeClient(made, "n1", settings, clock)
    drive(client, reset(), settings)
    assert made.evicted == []
    assert said(client, reset(), settings) == [
        "pod research/train asks by annotation to be left alone; it is, for 3600 s"
    ]
    clock.now += 3601
    drive(client, reset(3601), settings)
    assert made.evicted == ["research/train"]


@pytest.mark.parametrize(("on_deadline", "gone"), [("wait", False), ("delete", True)])
def test_what_a_budget_protects_is_deleted_only_after_the_deadline_and_only_where_it_was_chosen(
    on_deadline: str, gone: bool
) -> None:
    made, clock, settings = cluster(), Clock(), config(on_deadline=on_deadline)

    def protected(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            cause = {"reason": "DisruptionBudget", "message": "budget web needs 3"}
            return 429, {"message": "Cannot evict pod", "details": {"causes": [cause]}}
        return made(method, path, *rest, **more)

    client = KubeClient(protected, "n1", settings, clock)
    drive(client, reset(), settings)
    assert said(client, reset(), settings) == [
        "pod research/train may not be evicted yet: Cannot evict pod budget web needs 3"
    ]
    assert "train" in made.pods_on("n1")
    clock.now += 3601
    drive(client, reset(3601), settings, rounds=5)
    assert ("train" not in made.pods_on("n1")) is gone


@pytest.mark.parametrize(
    "answer",
    [
        (429, {"message": "Too many requests, please try again later."}),
        (500, {"message": "Internal error occurred: failed calling webhook"}),
    ],
)
def test_a_busy_or_broken_server_has_asked_no_budget_and_leads_to_no_deletion(answer: tuple[int, Any]) -> None:
    made, settings = cluster(), config(on_deadline="delete", deadline_s={"reset_gpu": 0})

    def troubled(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return answer if path.endswith("/eviction") else made(method, path, *rest, **more)

    client = KubeClient(troubled, "n1", settings)
    with pytest.raises(RefusedError):
        drive(client, reset(), settings, rounds=5)
    drive(client, reset(), settings, rounds=5)
    assert "train" in made.pods_on("n1")


WEBHOOK = 'admission webhook "hours.example.com" denied the request: not before six'


@pytest.mark.parametrize("status", [403, 422, 400, 429, 500, 401, 404, 409])  # a webhook chooses its own
def test_a_pod_whose_eviction_a_webhook_or_a_policy_denies_is_named_keeps_no_other_and_is_asked_for_again(
    status: int,
) -> None:
    made, settings, clock = cluster(), config(on_deadline="delete", deadline_s={"reset_gpu": 0}), Clock()
    made.add_pod("research", "behind", "n1", owner="Job")
    denies = True

    def denied(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if denies and path.endswith("/pods/behind/eviction"):  # the first of the two
            return status, {"message": WEBHOOK}
        return made(method, path, *rest, **more)

    client = KubeClient(denied, "n1", settings, clock)
    drive(client, reset(), settings)
    assert said(client, reset(), settings) == [f"pod research/behind may not be evicted yet: {WEBHOOK}"]
    assert made.evicted == ["research/train"], "and nothing is deleted that no budget was asked about"
    assert "behind" in made.pods_on("n1")
    denies, clock.now = False, clock.now + 301  # nobody else wanted the permit meanwhile
    drive(client, reset(), settings)
    assert made.evicted == ["research/train", "research/behind"]


def test_a_deletion_past_the_deadline_that_a_policy_denies_is_named_and_keeps_no_other() -> None:
    made, settings, clock = cluster(), config(on_deadline="delete", deadline_s={"reset_gpu": 60}), Clock()
    made.add_pod("research", "behind", "n1", owner="Job")

    def protected(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            return 429, {"message": "no", "details": {"causes": [{"reason": "DisruptionBudget", "message": "budget"}]}}
        return (
            (403, {"message": WEBHOOK})
            if (method, path.endswith("/behind")) == ("DELETE", True)
            else made(method, path, *rest, **more)
        )

    client = KubeClient(protected, "n1", settings, clock)
    drive(client, reset(), settings)
    clock.now += 61
    drive(client, reset(61), settings, rounds=5)
    assert made.pods_on("n1").count("train") == 0
    assert f"pod research/behind may not be evicted yet: {WEBHOOK}" in said(client, reset(61), settings)


def test_two_budgets_on_one_pod_are_named() -> None:
    made, settings = cluster(), config()
    change(made, "train", {"metadata": {"labels": {"app": "train", "team": "a"}}})
    budgets = [
        {"metadata": {"name": "one"}, "spec": {"selector": {"matchLabels": {"app": "train"}}}},
        {
            "metadata": {"name": "two"},
            "spec": {"selector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}},
        },
        {"metadata": {"name": "other"}, "spec": {"selector": {"matchLabels": {"app": "web"}}}},
    ]

    def twice(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction"):
            return 500, {"message": "This pod has more than one PodDisruptionBudget."}
        if path.endswith("/poddisruptionbudgets"):
            return 200, {"items": budgets}
        return made(method, path, *rest, **more)

    client = KubeClient(twice, "n1", settings)
    drive(client, reset(), settings)
    assert said(client, reset(), settings) == [
        "pod research/train may not be evicted yet: This pod has more than one PodDisruptionBudget. (one, two)"
    ]


@pytest.mark.parametrize(("unmanaged", "evicted"), [("wait", []), ("delete", ["research/notebook"])])
def test_a_pod_that_nobody_would_start_again_leaves_only_where_it_was_chosen(
    unmanaged: str, evicted: list[str]
) -> None:
    made, settings = InMemoryCluster(), config(unmanaged=unmanaged)
    made.add_node("n1")
    made.add_pod("research", "notebook", "n1", owner="")
    drive(KubeClient(made, "n1", settings), reset(), settings)
    assert made.evicted == evicted


def csi(*terms: dict[str, Any]) -> dict[str, Any]:
    return {"csi": {"driver": "x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [*terms]}}}


def on(key: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": "In", "values": [*values]}]}


HERE, ZONE = on("kubernetes.io/hostname", "host-1"), on("topology.ebs.csi.aws.com/zone", "eu-1a")


@pytest.mark.parametrize(
    ("volume", "stays"),
    [
        ({"local": {"path": "/d"}}, True),
        ({"nfs": {}}, False),
        (None, True),
        (csi(HERE), True),
        (csi(on("topology.topolvm.io/node", "n1")), True),
        (csi({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), True),
        (csi({"matchExpressions": [*ZONE["matchExpressions"], *HERE["matchExpressions"]]}), True),
        (csi(ZONE), False),
        (csi(on("topology.example.com/node", "n1", "n2")), False),
        (csi(HERE, on("kubernetes.io/hostname", "host-2")), False),
        (csi({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["n1"]}]}), False),
        (csi(), False),
    ],
)
def test_a_pod_with_its_data_on_this_nodes_disk_waits_for_a_person(volume: dict[str, Any] | None, stays: bool) -> None:
    made, settings = cluster(), config()
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"kubernetes.io/hostname": "host-1"}}}, MERGE)
    change(made, "train", {"spec": {"volumes": [{"persistentVolumeClaim": {"claimName": "data"}}]}})

    def storage(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/persistentvolumeclaims/data"):
            return 200, {"spec": {"volumeName": "pv-1"}}
        if path.endswith("/persistentvolumes/pv-1"):
            return (200, {"spec": volume}) if volume else (403, {"message": "no"})
        return made(method, path, *rest, **more)

    client = KubeClient(storage, "n1", settings)
    drive(client, reset(), settings)
    assert (made.evicted == []) is stays
    assert any("own disk" in why for why in said(client, reset(), settings)) is stays


@pytest.mark.parametrize("whole_node", [False, True])
def test_pods_that_tolerate_the_taint_leave_for_a_reboot_and_not_for_a_gpus_reset(whole_node: bool) -> None:
    made, settings = cluster(), config()
    change(made, "train", {"spec": {"tolerations": [{"operator": "Exists"}]}})
    drive(KubeClient(made, "n1", settings), fatal() if whole_node else reset(), settings)
    assert bool(made.evicted) is whole_node


def test_after_three_returns_of_one_a_person_decides() -> None:
    made, settings = InMemoryCluster(), config()
    made.add_node("n1")
    client = KubeClient(made, "n1", settings)
    for number in range(6):
        made.add_pod("a", f"daemon-{number}", "n1", gpus=0)
        change(
            made,
            f"daemon-{number}",
            {"metadata": {"ownerReferences": [{"kind": "StatefulSet", "name": "daemon", "controller": True}]}},
            "a",
        )
        drive(client, fatal(), settings)
    assert made.evicted == ["a/daemon-0", "a/daemon-1", "a/daemon-2"]
    assert "came back 3 times" in " ".join(said(client, fatal(), settings))


def test_the_lowest_priority_leaves_first() -> None:
    made, settings = cluster(), config()
    for name, priority in (("high", 1000), ("low", -5)):
        made.add_pod("research", name, "n1")
        change(made, name, {"spec": {"priority": priority}})
    drive(KubeClient(made, "n1", settings), reset(), settings)
    assert made.evicted == ["research/low", "research/train", "research/high"]


def test_a_pod_that_should_have_ended_long_ago_is_named_and_never_forced() -> None:
    made, settings, clock = cluster(), config(on_deadline="delete"), Clock()
    change(made, "train", {"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}})
    client = KubeClient(made, "n1", settings, clock)
    drive(client, reset(), settings, rounds=3)
    clock.now += 91  # thirty of its own, and a minute
    drive(client, reset(), settings, rounds=3)
    assert said(client, reset(), settings) == [
        "pod research/train should have ended and did not: see the node's kubelet"
    ]
    assert "DELETE" not in {method for method, _ in made.requests}


class Trainer(BaseHTTPRequestHandler):
    """Saves at the third POST."""

    asked = 0

    def do_POST(self) -> None:
        Trainer.asked += 1
        self.send_response(200 if Trainer.asked >= 3 else 202)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def trainer() -> Iterator[int]:
    Trainer.asked = 0
    server = HTTPServer(("127.0.0.1", 0), Trainer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_pod_that_saves_over_http_is_evicted_once_it_has_and_not_before(trainer: int) -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint=f"http:{trainer}/save")
    change(made, "train", {"status": {"podIP": "127.0.0.1"}})
    client = KubeClient(made, "n1", settings)
    for asked in (1, 2, 3):
        drive(client, reset(), settings, rounds=2 if asked == 1 else 1)
        until(lambda: not client.asking)
        assert (made.evicted, Trainer.asked) == ([], asked)
    drive(client, reset(), settings)
    assert (made.evicted, client.checkpoints[0], Trainer.asked) == (["research/train"], {"saved": 1}, 3)


def test_a_pod_that_saves_by_annotation_is_evicted_once_it_says_so() -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint="annotation", checkpoint_saved_at="2020-01-01T00:00:00Z")
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings, rounds=5)
    asked = made.read("pods", "train", "research")["metadata"]["annotations"]
    assert made.evicted == [], "what it saved before it was asked is not what it was asked for"
    annotate(made, "train", checkpoint_saved_at=asked["gpu-health-agent/checkpoint-requested-at"])
    drive(client, reset(), settings)
    assert (made.evicted, client.checkpoints[0]) == (["research/train"], {"saved": 1})


def test_a_pod_that_never_saves_is_evicted_when_its_time_is_over() -> None:
    made, clock, settings = cluster(), Clock(), config()
    annotate(made, "train", checkpoint="annotation", checkpoint_timeout_s="120")
    client = KubeClient(made, "n1", settings, clock)
    drive(client, reset(), settings, rounds=5)
    clock.now += 119
    drive(client, reset(), settings, rounds=2)
    assert made.evicted == []
    clock.now += 2
    drive(client, reset(), settings)
    assert (made.evicted, client.checkpoints) == (["research/train"], ({"expired": 1}, 121))


def test_the_wait_for_a_checkpoint_outlives_the_agent() -> None:
    made, clock, settings = cluster(), Clock(), config()
    annotate(made, "train", checkpoint="annotation", checkpoint_timeout_s="120")
    drive(KubeClient(made, "n1", settings, clock), reset(), settings, rounds=5)
    clock.now += 121
    drive(KubeClient(made, "n1", settings, clock), reset(), settings)
    assert made.evicted == ["research/train"]


def test_nobody_waits_on_a_lost_gpu() -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint="annotation")
    drive(KubeClient(made, "n1", settings), fatal(), settings)
    assert made.evicted == ["research/train"]


def test_a_pod_that_saves_on_sigterm_is_evicted_at_once_and_reported_as_unconfirmed() -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint="sigterm")
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings)
    assert (made.evicted, client.checkpoints[0]) == (["research/train"], {"unconfirmed": 1})


@pytest.mark.parametrize(
    "text",
    [
        "http:0/x",
        "http:99999/x",
        "http:80",
        "http://1.2.3.4/x",
        "http:80/a b",
        "exec:rm",
        "http:80/x\r\nHost: y",
        "HTTP:80/x",
    ],
)
def test_a_malformed_declaration_asks_for_nothing_and_is_said(text: str) -> None:
    wish = declared({"gpu-health-agent/checkpoint": text})
    why = "gpu-health-agent/checkpoint must be http:<port>/<path>, annotation or sigterm"
    assert (wish.way, wish.said) == ("", why)
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint=text)
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings, rounds=1)
    assert said(client, reset(), settings) == [f"pod research/train is asked for no checkpoint: {why}"]


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "1e9", "soon"])
def test_a_malformed_time_limit_asks_for_nothing_and_is_said(text: str) -> None:
    wish = declared({"gpu-health-agent/checkpoint": "sigterm", "gpu-health-agent/checkpoint-timeout-s": text})
    assert (wish.way, wish.said) == ("", "gpu-health-agent/checkpoint-timeout-s must be seconds from 0 to 86400")


def test_a_pod_on_the_nodes_network_can_not_make_the_agent_call_the_node() -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint="http:1/x")
    change(made, "train", {"spec": {"hostNetwork": True}, "status": {"podIP": "127.0.0.1"}})
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings, rounds=5)
    assert "it uses the node's network" in " ".join(said(client, reset(), settings))


@pytest.mark.parametrize("ip", ["", "evil.example.com", "127.0.0.1"])
def test_a_pod_that_does_not_answer_is_said(ip: str) -> None:
    saved, why = post(ip, 1, "/save")
    assert not saved
    assert why


def test_degraded_asks_nobody_for_a_checkpoint() -> None:
    made, settings = cluster(), config()
    annotate(made, "train", checkpoint="annotation")
    verdict = Judge().each_poll(10, alive(), reading(remapped_rows_pending=1))
    drive(KubeClient(made, "n1", settings), verdict, settings)
    assert list(made.read("pods", "train", "research")["metadata"]["annotations"]) == ["gpu-health-agent/checkpoint"]
    assert "gpu-health-agent/degraded" in json.dumps(node(made)["spec"]["taints"])
    assert settings.mode is Mode.EVICT


@pytest.mark.parametrize(
    ("holders", "evicted"),
    [
        ({"train": {"GPU-a"}, "other": {"GPU-b"}}, ["research/train"]),
        ({"train": {"GPU-a", "GPU-b"}, "other": {"GPU-a"}}, ["research/other", "research/train"]),
        ({"train": {"GPU-b"}, "other": {"GPU-c"}}, []),
        ({"train": {"GPU-b"}, "other": None}, ["research/other"]),
        ({"train": None, "other": None}, ["research/other", "research/train"]),
    ],
)
@pytest.mark.parametrize("whole_node", [False, True])
def test_a_gpus_remedy_moves_only_the_pods_that_hold_it_and_a_nodes_remedy_all(
    holders: dict[str, set[str] | None], evicted: list[str], whole_node: bool
) -> None:
    made, settings = cluster(), config()
    made.add_pod("research", "other", "n1")
    client = KubeClient(made, "n1", settings)
    for _ in range(8):
        world = client.look(closely=True)
        pods = tuple(
            replace(pod, gpus=None if (held := holders[pod.name]) is None else frozenset(held)) if pod.gpu else pod
            for pod in world.pods or ()
        )
        world = replace(world, pods=pods if world.pods is not None else None)
        for step in plan(fatal() if whole_node else reset(), world, settings, Local()).steps:
            client.do(step)
    assert made.evicted == (["research/other", "research/train"] if whole_node else evicted)
    assert node(made)["metadata"]["labels"]["gpu-health-agent/state"] == "drained"


def test_a_tolerating_pod_leaves_for_a_reset_only_if_it_holds_the_bad_gpu() -> None:
    made, settings = cluster(), config()
    change(made, "train", {"spec": {"tolerations": [{"operator": "Exists"}]}})
    client = KubeClient(made, "n1", settings)
    for _ in range(8):
        world = client.look(closely=True)
        pods = tuple(replace(pod, gpus=frozenset({"GPU-a"})) for pod in world.pods or ())
        world = replace(world, pods=pods if world.pods is not None else None)
        for step in plan(reset(), world, settings, Local()).steps:
            client.do(step)
    assert made.evicted == ["research/train"]


def aged(made: InMemoryCluster) -> None:
    """Every permit was taken long ago, by the wall clock."""
    for (kind, _, _), lease in made._objects.items():
        if kind == "leases":
            lease["spec"]["acquireTime"] = "2020-01-01T00:00:00Z"


def test_a_wall_clock_that_jumps_brings_no_deadline_nearer() -> None:
    made, settings = cluster(), config(on_deadline="delete")
    change(made, "train", {"metadata": {"annotations": DO_NOT_EVICT}})
    client = KubeClient(made, "n1", settings, Clock())
    drive(client, reset(), settings)
    aged(made)
    drive(client, reset(10**7), settings)
    assert made.evicted == []


@pytest.mark.parametrize("step_s", [-10_800, -600, 0, 600, 10_800, 10**7])
def test_the_deadline_outlives_the_agent_whatever_the_wall_clock_does(step_s: int) -> None:
    made, settings, clock = cluster(), config(), Clock()
    change(made, "train", {"metadata": {"annotations": DO_NOT_EVICT}})
    drive(KubeClient(made, "n1", settings, clock), reset(), settings)
    aged(made)
    for passed_s, evicted in ((60, []), (3500, []), (41, ["research/train"])):
        clock.now += passed_s  # of the boot, which a new process goes on with
        drive(KubeClient(made, "n1", settings, clock), reset(step_s), settings)
        assert made.evicted == evicted


def test_a_deadline_begins_anew_after_a_reboot_for_no_clock_tells_how_long_that_took() -> None:
    made, settings, clock = cluster(), config(), Clock()
    change(made, "train", {"metadata": {"annotations": DO_NOT_EVICT}})
    drive(KubeClient(made, "n1", settings, clock), reset(), settings)
    booted = replace(reset(10**6), boot_id="boot-2")
    for now_s, evicted in ((5000.0, []), (8500.0, []), (8601.0, ["research/train"])):
        clock.now = now_s
        drive(KubeClient(made, "n1", settings, clock), booted, settings)
        assert made.evicted == evicted


def budget(made: InMemoryCluster, *protected: str) -> Any:
    """An Api with a PodDisruptionBudget that allows nothing."""

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction") and path.split("/")[-2] in protected:
            return 429, {"message": "Cannot evict pod", "details": {"causes": [{"reason": "DisruptionBudget"}]}}
        return made(method, path, *rest, **more)

    return api


OTHERS = ("nvidia.com/mig.config.state", "dgxc.nvidia.com/nvsentinel-state")


@pytest.mark.parametrize("what", ["queue", "pause", "mode", *OTHERS])
def test_the_deadline_runs_only_while_pods_may_be_asked_to_leave(what: str) -> None:
    made, clock = cluster(), Clock()

    def says(value: str | None) -> None:
        """Somebody else, of whose work on the node this label tells."""
        body = {"metadata": {"labels": {what: value}}}
        assert made("PATCH", "/api/v1/nodes/n1", body, MERGE)[0] == 200

    budget_of_two = {"max_withdrawn": 2}
    settings = Config.model_validate({"mode": "evict", "drain": {"on_deadline": "delete"}, "budget": budget_of_two})
    taint_only = settings.model_copy(update={"mode": Mode.TAINT})
    other, client = KubeClient(made, "n2", settings, clock), KubeClient(budget(made, "train"), "n1", settings, clock)
    if what == "queue":
        made.add_pod("research", "slow", "n2")
        change(made, "slow", {"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}})
        drive(other, reset(), settings, rounds=2)
        other.do(TakePermit(PermitKind.DRAINING, 0))
        drive(client, reset(), settings)
    else:
        drive(client, reset(), taint_only if what == "mode" else settings)
    if what == "pause":
        pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
        made._store("configmaps", "gpu-health-agent", pause)
        drive(client, reset(10), settings)
    if what in OTHERS:
        says("pending")
        drive(client, reset(10), settings)
    clock.now += 3601
    if what in OTHERS:
        says(None)
    if what == "queue":
        del made._objects["pods", "research", "slow"]
        drive(other, reset(3601), settings)
    if what == "pause":
        del made._objects["configmaps", "gpu-health-agent", "gpu-health-agent-pause"]
    drive(client, reset(3602), settings, rounds=5)
    drive(client, reset(3700), settings, rounds=5)
    assert "train" in made.pods_on("n1"), "it was asked for the first time just now"
    clock.now += 3601
    drive(client, reset(7300), settings, rounds=5)
    assert "train" not in made.pods_on("n1")


def test_a_drain_that_budgets_block_for_ever_lets_others_drain_and_goes_on_when_nobody_wants_to() -> None:
    made, clock = cluster(), Clock()
    settings = Config.model_validate({"mode": "evict", "budget": {"max_withdrawn": 2}})
    made.add_pod("research", "other", "n2")
    protected = {"train"}
    one = KubeClient(lambda *a, **k: budget(made, *protected)(*a, **k), "n1", settings, clock)
    two = KubeClient(made, "n2", settings, clock)
    drive(one, reset(), settings)
    drive(two, reset(), settings)
    assert "other" in made.pods_on("n2")
    clock.now += 3601
    for _ in range(3):
        drive(one, reset(3601), settings, rounds=3)
    drive(two, reset(3601), settings)
    assert "other" not in made.pods_on("n2")
    protected.clear()
    for later_s in range(3605, 4305, 100):
        clock.now += 100
        drive(one, reset(later_s), settings, rounds=3)
    assert "train" not in made.pods_on("n1")


def test_asked_by_a_dry_run_a_pod_is_marked_as_disrupted_and_then_deleted() -> None:
    made, settings = cluster(), config(eviction="ask_then_delete")
    drive(KubeClient(made, "n1", settings), reset(), settings)
    pod = "/api/v1/namespaces/research/pods/train"
    assert [(m, p) for m, p in made.requests if p.startswith(pod)] == [
        ("POST", f"{pod}/eviction"),
        ("PATCH", f"{pod}/status"),
        ("DELETE", pod),
    ]
    assert (made.evicted, "train" in made.pods_on("n1")) == ([], False)


def test_what_the_dry_run_refuses_is_neither_marked_nor_deleted() -> None:
    made, settings = cluster(), config(eviction="ask_then_delete")

    def protected(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.endswith("/eviction?dryRun=All"):
            cause = {"reason": "DisruptionBudget", "message": "budget web needs 3"}
            return 429, {"message": "Cannot evict pod", "details": {"causes": [cause]}}
        return made(method, path, *rest, **more)

    client = KubeClient(protected, "n1", settings)
    drive(client, reset(), settings)
    assert said(client, reset(), settings) == [
        "pod research/train may not be evicted yet: Cannot evict pod budget web needs 3"
    ]
    assert not [path for method, path in made.requests if method != "GET" and "/pods/train" in path]


def test_what_the_kubelet_says_of_a_pods_devices_is_told_while_it_is_there() -> None:
    made, settings = cluster(), config(eviction="api")
    change(made, "train", {"metadata": {"annotations": DO_NOT_EVICT}})
    resources = [
        {"resourceID": "GPU-1", "health": "Unhealthy", "message": "uncorrectable\x1b[31m error"},
        {"resourceID": "GPU-2", "health": "Healthy"},
        {"resourceID": "GPU-3", "health": "Unknown"},
    ]
    status = [{"name": "main", "allocatedResourcesStatus": [{"name": "nvidia.com/gpu", "resources": resources}]}]
    change(made, "train", {"status": {"containerStatuses": status}})
    client = KubeClient(made, "n1", settings)
    drive(client, reset(), settings)
    devices = "nvidia.com/gpu GPU-1 Unhealthy (uncorrectable?[31m error); nvidia.com/gpu GPU-3 Unknown"
    why = f"pod research/train has devices that its kubelet doesn't find healthy: {devices}"
    assert why in said(client, reset(), settings)
    change(made, "train", {"status": {"phase": "Succeeded"}})
    assert not [one for one in said(client, reset(), settings) if "its kubelet" in one]
