"""The drill's promises that need no cluster: refusals, a node's choice, what is cleaned up, an honest report."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from agent.actions.api import JSON, PATCH_FAILED
from agent.cli import main
from agent.drill.choice import UnfitError, choose, choose_rank
from agent.drill.cluster import Cluster, MissedError
from agent.drill.course import EXERCISES, fits
from agent.drill.kit import RANKS, Settings, objects, ranks
from agent.drill.load import Window
from agent.drill.on_node import addresses, record, simulate, write
from agent.drill.outcome import Outcome, Part, as_json
from agent.drill.privileged_pod import finished, privileged_pod
from agent.drill.report import page, text
from agent.drill.scene import STAGE_S, Scene
from agent.drill.withdrawn_node import Withdrawal, await_on
from agent.model.errors import UsageError
from agent.model.names import DRILL_ANNOTATION, DRILL_LABEL
from agent.model.observation import parse_line
from agent.runtime.drill_marks import valid
from agent.simulation.scenario import Scenario
from agent.simulation.simulated import Simulation
from agent.sources.kmsg.follow import Reader

NS, NONCE = "gpu-health-drill", "0123456789abcdef" * 2
UUIDS = {"GPU-a": "0000:1b:00.0", "GPU-b": "0000:43:00.0"}


def node(name: str, gpus: int = 2, **changes: Any) -> dict[str, Any]:
    stored = {"cards": {pci: [uuid, 0] for uuid, pci in UUIDS.items()}}
    made: dict[str, Any] = {
        "metadata": {
            "name": name,
            "labels": {"gpu-health-agent/state": "healthy"},
            "annotations": {"gpu-health-agent/faults": json.dumps(stored)},
        },
        "spec": {},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "allocatable": {"nvidia.com/gpu": str(gpus)}},
    }
    for part, values in changes.items():
        made[part] |= values
    return made


def pod(name: str, where: str | None, app: str = "", namespace: str = NS, gpus: int = 1) -> dict[str, Any]:
    required: dict[str, list[object]] = {"requiredDuringSchedulingIgnoredDuringExecution": [{}]}
    apart = {"podAntiAffinity": required} if app == "inference" else {}
    limits = {"resources": {"limits": {"nvidia.com/gpu": str(gpus)}}} if gpus else {}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}", "labels": {"app": app}},
        "spec": {"nodeName": where, "containers": [{"name": "main", **limits}], "affinity": apart},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


NODES = [node(f"n{i}") for i in range(1, 5)]
KIT = [
    pod("training", "n1", "training"),
    *(pod(f"inference-{i}", f"n{i}", "inference") for i in (1, 2, 3)),
    pod("gateway", "n1", "gateway", gpus=0),
]
AGENTS = {f"n{i}": pod(f"agent-{i}", f"n{i}", namespace="gpu-health-agent", gpus=0) for i in range(1, 5)}


def test_the_node_of_the_training_is_chosen_with_the_kits_gpu_pods_on_it() -> None:
    chosen = choose(NODES, KIT, AGENTS, NS, None)
    assert (chosen.node, chosen.cards) == ("n1", UUIDS)
    assert [one["metadata"]["name"] for one in chosen.pods] == ["training", "inference-1"]
    assert choose(NODES, KIT, AGENTS, NS, "n1").node == "n1"


def rank(index: int, where: str) -> dict[str, Any]:
    made = pod(f"training-ranks-{index}", where, RANKS)
    made["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = str(index)
    return made


def test_of_many_ranks_one_leaves_with_as_little_else_as_can_be_and_not_the_first() -> None:
    ranks = [rank(0, "n4"), rank(1, "n1"), rank(2, "n3"), rank(3, "n2")]
    nodes = [node(f"n{i}", gpus=8) for i in range(1, 5)]
    chosen = choose_rank(nodes, [*KIT, *ranks], AGENTS, NS, None)
    assert chosen.node == "n2", "there is the training on n1, and n3 is as good"
    assert [one["metadata"]["name"] for one in chosen.pods] == ["inference-2", "training-ranks-3"]
    assert choose_rank(nodes, [*KIT, *ranks], AGENTS, NS, "n3").node == "n3"
    cordoned = [*nodes[:1], node("n2", gpus=8, spec={"unschedulable": True}), *nodes[2:]]
    fewer = [one for one in [*KIT, *ranks] if one["metadata"]["name"] != "inference-2"]
    assert choose_rank(cordoned, fewer, AGENTS, NS, None).node == "n3", "the next, where one may not be drilled"
    assert choose_rank(NODES, [*KIT, rank(0, "n4")], AGENTS, NS, None).node == "n4", "the first, where it is alone"
    with pytest.raises(UnfitError, match="no rank of the kit's training of many runs on n1"):
        choose_rank(NODES, [*KIT, rank(0, "n4")], AGENTS, NS, "n1")


def tainted(name: str) -> dict[str, Any]:
    return node(name, spec={"taints": [{"key": "gpu-health-agent/unhealthy", "effect": "NoSchedule"}]})


@pytest.mark.parametrize(
    ("nodes", "more", "agents", "named", "why"),
    [
        (NODES, [pod("theirs", "n1", namespace="team")], AGENTS, None, "GPU pods of others (team/theirs)"),
        ([*NODES[:3], tainted("n4")], [], AGENTS, None, "node n4 is withdrawn already: a drill takes no second one"),
        (NODES, [], AGENTS, "n2", "runs on n1, and not on n2"),
        (NODES, [], {k: v for k, v in AGENTS.items() if k != "n1"}, None, "has no agent that is ready"),
        ([node("n1", spec={"unschedulable": True}), *NODES[1:]], [], AGENTS, None, "is cordoned"),
        ([node("n1", status={"conditions": []}), *NODES[1:]], [], AGENTS, None, "is not Ready"),
        (
            [node("n1", metadata={"labels": {"gpu-health-agent/managed": "false"}}), *NODES[1:]],
            [],
            AGENTS,
            None,
            "managed=false",
        ),
        (
            [node("n1", metadata={"labels": {"gpu-health-agent/state": "degraded"}}), *NODES[1:]],
            [],
            AGENTS,
            None,
            "is degraded",
        ),
        (NODES[:3], [], AGENTS, None, "no other healthy node has a free GPU for gpu-health-drill/inference-1"),
        ([*NODES[:3], node("n4", gpus=0)], [], AGENTS, None, "no other healthy node has a free GPU"),
        (
            [node("n1", metadata={"annotations": {"gpu-health-agent/faults": "{"}}), *NODES[1:]],
            [],
            AGENTS,
            None,
            "has stored no GPU",
        ),
    ],
)
def test_a_node_that_may_not_be_drilled_is_refused_with_the_reason(
    nodes: Any, more: Any, agents: Any, named: str | None, why: str
) -> None:
    with pytest.raises(UnfitError, match=re.escape(why)):
        choose(nodes, [*KIT, *more], agents, NS, named)


@pytest.mark.parametrize(
    ("simulation", "inject", "why"),
    [
        ({}, True, "--inject: the agents there read no simulated GPUs"),
        ({"scenario": "idle", "kernel_log": False}, True, "--inject: the agents there read no simulated GPUs"),
        ({"scenario": "idle"}, False, "add --inject"),
        ({}, False, ""),
        ({"scenario": "idle"}, True, ""),
        ({"scenario": "idle", "kernel_log": False}, False, ""),
    ],
)
def test_a_fault_is_never_written_into_a_log_that_no_agent_reads(simulation: Any, inject: bool, why: str) -> None:
    with pytest.raises(UnfitError, match=why) if why else contextlib.nullcontext():
        fits(simulation, inject)


def test_injected_the_fault_goes_through_the_pod_of_that_nodes_agent_while_the_drill_looks_on() -> None:
    agents = [
        {
            "metadata": {"name": f"agent-{node}", "namespace": "agents"},
            "spec": {"nodeName": node, "containers": [{"name": "agent"}, {"name": "sources"}]},
        }
        for node in ("n1", "n2")
    ]
    asked: list[tuple[str, str, str, list[str]]] = []
    looks: list[float] = []

    def execute(namespace: str, pod: str, container: str, command: Any) -> str:
        asked.append((namespace, pod, container, command))
        time.sleep(0.05)
        return '{"written": [{"pci": "0000:1b:00.0", "at": 1.5}]}'

    cluster = Cluster(lambda *_, **__: (200, {"items": agents}), NS, "agents", execute)
    scene = Scene(cluster, Settings(NS, "image:1", inject=True), outcome(), lambda _: None)
    done = scene.inject("n2", "fault", ["--nonce=x"], lambda: looks.append(time.time()))
    assert done["written"][0]["at"] == 1.5
    assert asked == [
        ("agents", "agent-n2", "sources", ["python3", "-m", "agent.drill.on_node", "--simulated", "--nonce=x"])
    ]
    assert looks


def test_finished_pods_of_others_are_in_nobodys_way() -> None:
    done = pod("done", "n1", namespace="team")
    done["status"]["phase"] = "Succeeded"
    assert choose(NODES, [*KIT, done], AGENTS, NS, None).node == "n1"


def kubeconfig(folder: Path) -> str:
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                "clusters": [{"name": "k", "cluster": {"server": "https://cluster.example.com:6443"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    return str(path)


def test_without_yes_nothing_is_asked_and_the_cluster_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drill", "--kubeconfig", kubeconfig(tmp_path), "--image", "x"]) == 64
    told = capsys.readouterr().err
    assert "https://cluster.example.com:6443" in told
    assert "namespace gpu-health-drill" in told
    words = ["drill", "--kubeconfig", kubeconfig(tmp_path), "--image", "x", "--yes", "--only", "ranks"]
    assert main(words) == 64
    assert "--only ranks: name an image with PyTorch" in capsys.readouterr().err
    for bad in (["--rate", "0"], ["--interval-s", "-1"], ["--storage-class", "a", "--shared-path", "b"]):
        with pytest.raises(SystemExit) as ended:
            main(["drill", "--kubeconfig", kubeconfig(tmp_path), *bad])
        assert ended.value.code == 64


@pytest.mark.parametrize("content", ["", "[]", "current-context: c", "\x00", "{"])
def test_a_kubeconfig_that_names_no_cluster_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "k"
    path.write_text(content)
    assert main(["drill", "--kubeconfig", str(path), "--yes"]) == 78  # of credentials, as with every command


def test_the_kit_is_applied_in_one_namespace_each_object_labelled_and_short_of_time() -> None:
    made = objects(None, Settings(NS, "image:1", 20, 0.5, 7, shared_path="/srv/shared", node="n2"))
    assert made[0]["kind"] == "Namespace"
    assert {one["metadata"].get("namespace", NS) for one in made} == {NS}
    assert all(one["metadata"]["labels"][DRILL_LABEL] == "true" for one in made)
    by = {(one["kind"], one["metadata"]["name"]): one for one in made}
    (training,) = by["Job", "training"]["spec"]["template"]["spec"]["containers"]
    assert {"--interval-s=20", "--step-s=0.5"} <= set(training["command"])
    assert "--restore-from=/checkpoints/backup/example" in training["command"]
    assert not [mount for mount in training["volumeMounts"] if mount["name"] == "backup"]
    assert {c["image"] for one in made for c in containers(one)} == {"image:1"}
    assert "7" in containers(by["Pod", "drill-load"])[0]["command"]
    assert containers(by["Pod", "drill-load"])[0]["resources"]["requests"]["cpu"], "on a busy node it would stand still"
    volumes = by["Job", "training"]["spec"]["template"]["spec"]["volumes"]
    assert {"name": "checkpoints", "hostPath": {"path": "/srv/shared"}} in volumes
    assert not [key for key in by if key[0] in ("CronJob", "PersistentVolumeClaim")]
    (claim,) = [
        one
        for one in objects(None, Settings(NS, "image:1", storage_class="c"))
        if one["kind"] == "PersistentVolumeClaim"
    ]
    assert (claim["spec"]["storageClassName"], claim["spec"]["resources"]["requests"]["storage"]) == ("c", "1Gi")
    programs = by["ConfigMap", "gpu-kit"]["data"]
    assert {"train.py", "gateway.py", "inference.py"} <= programs.keys()


def test_the_ranks_are_applied_apart_on_an_image_of_their_own_and_only_with_one() -> None:
    service, job = ranks(None, Settings(NS, "image:1", 20, 0.5, shared_path="/srv", ranks_image="torch:1"))
    assert (service["kind"], service["metadata"]["namespace"]) == ("Service", NS)
    (container,) = containers(job)
    assert container["image"] == "torch:1"
    assert {"--interval-s=20", "--step-s=0.5", "--restore-from=/checkpoints/backup/ranks"} <= set(container["command"])
    (term,) = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"].popitem()[1]
    assert term["podAffinityTerm"]["labelSelector"] == {"matchLabels": {"app": RANKS}}
    assert ranks(None, Settings(NS, "image:1")) == ()


def containers(one: dict[str, Any]) -> list[dict[str, Any]]:
    spec = one["spec"] if one["kind"] == "Pod" else one.get("spec", {}).get("template", {}).get("spec", {})
    return list(spec.get("containers", ()))


def test_a_folder_that_is_not_the_kit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--kit: .* is not the kit"):
        objects(tmp_path, Settings(NS, "image:1"))


class Server:
    """An API server of a few objects, by path; it takes the requests that clean up."""

    def __init__(self, **objects: list[dict[str, Any]]) -> None:
        self.nodes, self.made, self.writes = objects.get("nodes", []), objects, list[tuple[str, str]]()
        self.namespace: dict[str, Any] | None = {"metadata": {"name": NS, "labels": {DRILL_LABEL: "true"}}}

    def __call__(
        self, method: str, path: str, body: Any = None, content_type: str = JSON, accept: str = JSON
    ) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        if method != "GET":
            self.writes.append((method, path))
            if method == "PATCH" and isinstance(body, list):
                (one,) = (n for n in self.nodes if path.endswith(f"/{n['metadata']['name']}"))
                if one["metadata"]["annotations"].get(DRILL_ANNOTATION) != body[0]["value"]:
                    return 422, {"message": PATCH_FAILED}
                del one["metadata"]["annotations"][DRILL_ANNOTATION]
            return 200, {}
        if path == "/api/v1/nodes":
            return 200, {"items": self.nodes}
        if path == f"/api/v1/namespaces/{NS}":
            return (200, self.namespace) if self.namespace else (404, {"message": "not found"})
        assert query.startswith("labelSelector=gpu-health-agent%2Fdrill"), (
            "only what is labelled may be listed to delete"
        )
        kind = path.rpartition("/")[2]
        if path.startswith(f"/api/v1/namespaces/{NS}/"):
            kind = f"kit_{kind}"
        return 200, {
            "items": [one for one in self.made.get(kind, []) if DRILL_LABEL in one["metadata"].get("labels", {})]
        }


def labelled(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": name, "labels": {DRILL_LABEL: "true"}}, **more}


def drilled(name: str, text: str) -> dict[str, Any]:
    metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1", "annotations": {DRILL_ANNOTATION: text}}
    return {"metadata": metadata, "spec": {}}


def test_cleaning_up_removes_what_bears_the_label_and_our_nonce_and_nothing_else() -> None:
    ours, others = json.dumps({"nonce": NONCE}), json.dumps({"nonce": "f" * 32})
    server = Server(
        nodes=[drilled("n1", ours), drilled("n2", others)],
        pods=[labelled("hand")],
        namespaces=[labelled(NS), labelled("another-drills")],
    )
    Cluster(server, NS, "gpu-health-agent").sweep(NONCE)
    assert server.writes == [
        ("PATCH", "/api/v1/nodes/n1"),
        ("DELETE", "/api/v1/namespaces/gpu-health-agent/pods/hand"),
        ("DELETE", f"/api/v1/namespaces/{NS}"),
    ]
    assert server.nodes[1]["metadata"]["annotations"] == {DRILL_ANNOTATION: others}


def test_of_a_namespace_that_was_there_only_the_drills_own_pods_go() -> None:
    server = Server(pods=[labelled("hand")], kit_pods=[labelled("drill-load"), labelled("inference-1")], namespaces=[])
    server.namespace = {"metadata": {"name": NS, "labels": {}}}
    Cluster(server, NS, "agents").sweep(NONCE)
    assert server.writes == [
        ("DELETE", "/api/v1/namespaces/agents/pods/hand"),
        ("DELETE", f"/api/v1/namespaces/{NS}/pods/drill-load"),
    ]


def test_a_drill_that_is_over_is_dead_at_once_and_keep_leaves_the_kit() -> None:
    server = Server(
        nodes=[drilled("n1", json.dumps({"nonce": NONCE, "expires": "2020-01-01T00:00:00Z"}))],
        pods=[labelled("hand")],
        namespaces=[labelled(NS)],
    )
    cluster = Cluster(server, NS, "agents")
    assert not cluster.alive(cluster.marked())
    cluster.sweep(NONCE, keep=True)
    assert server.writes == [("PATCH", "/api/v1/nodes/n1"), ("DELETE", "/api/v1/namespaces/agents/pods/hand")]


def test_an_annotation_of_the_drill_is_one_that_agents_believe() -> None:
    bodies: list[Any] = []

    def api(method: str, path: str, body: Any = None, *_: Any, **__: Any) -> tuple[int, Any]:
        bodies.append(body)
        return 200, {}

    Cluster(api, NS, "agents").annotate("/api/v1/nodes/n1", NONCE)
    written = bodies[0]["metadata"]["annotations"][DRILL_ANNOTATION]
    assert valid(written, time.time()) == NONCE
    assert re.search(r"T\d\d:\d\d:\d\d\+00:00", written)


def test_every_wait_ends_and_says_what_did_not_happen() -> None:
    with pytest.raises(MissedError, match="the moon: not within 0 s"):
        Cluster(Server(), NS, "agents").wait("the moon", lambda: False, 0)


def test_what_does_not_come_on_a_withdrawn_node_is_explained_by_its_agents_own_word() -> None:
    watched = SimpleNamespace(state=lambda _: {"waits": ["a free permit"]})
    played: Any = SimpleNamespace(watched=watched, wait=Cluster(Server(), NS, "agents").wait)
    with pytest.raises(MissedError, match="saved: not within 0 s; its agent waits for: a free permit"):
        await_on(played, "n1", "saved", lambda: False, 0)


def test_what_is_written_on_the_node_is_what_the_kernel_logs_source_marks(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    log.touch()
    (written,) = write(log, [UUIDS["GPU-b"]], NONCE)
    assert written["pci"] == "0000:43:00.0"
    assert log.read_text() == record("0000:43:00.0", NONCE)
    (seen,) = Reader("boot", "", None, False, True).take(b"12,7,1000,-;" + log.read_bytes(), 1.0)
    assert (seen.value, seen.pci, seen.drill) == (74, "0000:43:00.0", NONCE)
    assert parse_line(seen.to_json(), 0.0).drill == NONCE
    assert addresses(["a/b"], UUIDS, tmp_path / "no.sock") == ["0000:1b:00.0"], (
        "a GPU of the node, where nobody can tell"
    )


def test_injected_it_is_the_same_record_in_the_simulations_kernel_log(tmp_path: Path) -> None:
    simulation = Simulation(Scenario("h100-8"), tmp_path)
    threading.Thread(target=simulation.serve, args=(simulation.listen(),), daemon=True).start()
    (written,) = simulate(tmp_path, [UUIDS["GPU-b"]], NONCE)
    assert written["pci"] == "0000:43:00.0"
    (seen,) = Reader("boot", "", None, False, True).take((tmp_path / "kmsg").read_bytes(), 1.0)
    assert (seen.value, seen.pci, seen.drill) == (74, "0000:43:00.0", NONCE)
    assert simulation.request({"state": True}) == {"state": {}}, "no fault of a GPU was injected"


class Seen:
    """A withdrawal as it looks from outside, a dictionary of what is so at the moment."""

    def __init__(self) -> None:
        self.steps: dict[str, dict[str, int]] = {}
        self.taint, self.there = False, list(KIT[:4])
        self.counted: int | None = 3

    def tainted(self, _: str) -> bool:
        return self.taint

    def checkpoints(self, _: str) -> int | None:
        return self.counted

    def pods(self) -> list[dict[str, Any]]:
        return self.there

    def whole(self) -> bool:
        return True

    def begin(self) -> Withdrawal:
        choice = choose(NODES, KIT, AGENTS, NS, None)
        return Withdrawal(self, self, Part("node", "", time.time()), choice, 3, self.whole)  # type: ignore[arg-type]  # all of the two that it asks


def moments(seen: Withdrawal) -> list[str]:
    return [moment.what for moment in seen._part.moments]


def test_a_training_that_is_gone_before_it_tells_of_its_checkpoint_has_saved_it_by_the_agents_word() -> None:
    """It answers the agent, is evicted and ends between two looks: what it last said of itself is of before."""
    scene = Seen()
    seen = scene.begin()
    scene.steps["uid-training"] = {"step": 50, "saved_step": 40}
    assert not seen.see()
    scene.taint = True
    assert seen.see()
    scene.there = [one for one in scene.there if one["metadata"]["name"] not in ("training", "inference-1")]
    seen.see()
    scene.counted = 4  # its /state is a second late
    seen.see()
    assert moments(seen) == ["tainted", "first evicted", "all are evicted", "checkpoint saved"]
    assert seen.count == 1


def test_moments_name_the_pods_that_left_and_came() -> None:
    scene = Seen()
    seen = scene.begin()
    scene.taint = True
    scene.there = [one for one in scene.there if one["metadata"]["name"] != "training"]
    seen.see()
    scene.there = [one for one in scene.there if one["metadata"]["name"] != "inference-1"]
    seen.see()
    scene.there += [pod("training-2", "n2", "training"), pod("inference-4", "n4", "inference")]
    seen.see()
    part = seen._part
    assert [moment.text for moment in part.moments] == [
        "tainted: n1",
        "first evicted: training",
        "all are evicted: inference-1, training",
        "all evicted pods are replaced on other nodes: inference-4, training-2",
        "all are ready",
    ]
    told = outcome()
    told.parts.append(part)
    assert "first evicted: training" in text(told)
    assert "first evicted: training" in page(told)
    assert ["training"] in [moment["pods"] for moment in as_json(told)["parts"][-1]["moments"]]


def test_a_checkpoint_of_its_own_accord_is_none_that_the_agent_asked_for() -> None:
    scene = Seen()
    seen = scene.begin()
    scene.steps["uid-training"] = {"step": 50, "saved_step": 40}
    seen.see()
    scene.taint = True
    scene.steps["uid-training"] = {"step": 60, "saved_step": 60}
    seen.see()
    scene.counted = None  # an agent that isn't heard for a moment counts nothing back
    seen.see()
    assert moments(seen) == ["tainted"]
    told = time.time()
    scene.counted = 4
    seen.see()
    assert moments(seen) == ["tainted", "checkpoint saved"]
    assert (seen._part.at("checkpoint saved") or told) <= told, "the training told of it first: that is the time"


def test_the_drills_pod_on_a_node_bears_no_token_and_ends() -> None:
    agent = {
        "spec": {"containers": [{"image": "agent:1", "imagePullPolicy": "Never"}], "imagePullSecrets": [{"name": "s"}]}
    }
    made = privileged_pod("n1", "agents", agent, "fault", ["--nonce", NONCE])
    assert made["metadata"]["labels"] == {DRILL_LABEL: "true"}
    spec = made["spec"]
    assert (spec["automountServiceAccountToken"], spec["restartPolicy"]) == (False, "Never")
    assert 180 <= spec["activeDeadlineSeconds"] < STAGE_S  # on a busy machine it starts late; the drill sees it fail
    assert (spec["nodeName"], spec["containers"][0]["image"]) == ("n1", "agent:1")
    said = {"containerStatuses": [{"state": {"terminated": {"message": '{"at": 1.5}', "exitCode": 0}}}]}
    assert finished({"spec": spec, "status": {"phase": "Running"}}) is None
    assert finished({"spec": spec, "status": {"phase": "Succeeded", **said}}) == {"at": 1.5}
    with pytest.raises(MissedError, match="on n1 failed"):
        finished({"spec": spec, "status": {"phase": "Failed", **said}})


def test_the_longest_gap_is_between_good_answers_across_windows() -> None:
    one = Window("pod", 100.0, answered=99.5)
    one.note(100.0, 100.1, "")
    one.note(100.2, 103.0, "503: no")
    one.note(103.0, 103.1, "")
    told = one.report()
    assert (told["sent"], told["failed"], round(told["longest_gap_s"], 3)) == (3, 1, 3.0)
    assert told["seconds"] == [[0, 1, 0], [3, 1, 1]]
    assert told["failures"] == [{"at": 100.2, "why": "503: no (new connection)"}]


HOSTILE = "<script>alert('x')</script>&\"<img src=x>"


def outcome(failed: int = 0, trouble: str = "") -> Outcome:
    made = Outcome(
        f"https://{HOSTILE}",
        "v1.37.2",
        NS,
        1000.0,
        drilled=(HOSTILE,),
        nodes=4,
        simulated_gpus=True,
        planned=("pod", "node", "training"),
        trouble=trouble,
        ended=1100.0,
    )
    for name in made.planned:
        part = Part(name, EXERCISES[name].title, 1000.0, 1030.0)
        part.note(f"fault {HOSTILE}", 1002.0)
        part.note("ready", 1012.5)
        part.measure(f"a {HOSTILE}", 3.0, 5.0, "s")
        window = Window(name, 1001.0, 1001.0)
        for second in range(20):
            window.note(1001.0 + second, 1001.1 + second, HOSTILE if second < failed else "")
        part.measure("requests failed", failed, 0, f"of {window.sent}")
        part.served(window.report(), 0.5)
        made.parts.append(part)
    return made


def test_the_page_is_one_file_that_escapes_everything_and_needs_no_script_and_no_colour() -> None:
    told = page(outcome(failed=2))
    assert "<script" not in told
    assert "<img" not in told
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in told
    assert not re.search(r"(src|href)=", re.sub(r"&[a-z]+;[^<]*", "", told))
    pictures = re.findall(r"<svg.*?</svg>", told, re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        tree = ElementTree.fromstring(picture)
        kinds = [element.get("class") for element in tree.iter()]
        assert kinds.count("cross") == kinds.count("bad") == 2, "a failure has a shape of its own"
        assert [element.text for element in tree.iter() if element.get("class") == "number"] == ["1", "2"]
    assert "missed" in told
    assert "GPUs: simulated. Nodes: real kubelets." in told


def test_the_report_says_plainly_that_pods_are_processes() -> None:
    made = outcome()
    made.simulated_nodes = made.process_pods = True
    played = "GPUs: simulated. Nodes: simulated. Pods: processes on one machine."
    assert played in text(made)
    assert played in page(made)


def test_a_report_begins_with_what_was_missed_and_in_which_exercise() -> None:
    assert text(outcome()).splitlines()[0].endswith(": passed, 6 of 6 targets met")
    made = outcome(failed=1)
    first, *missed = text(made).splitlines()[:4]
    assert first.endswith(": FAILED, 3 of 6 targets met")
    assert missed[1] == "  MISSED  node: requests failed: 1 of 20 (at most 0)"
    assert "Missed: node: requests failed: 1 of 20 (at most 0)" in page(made)


def test_what_was_left_out_is_said_with_the_reason() -> None:
    made = outcome()
    made.left_out = (f"The ranks ({HOSTILE})",)
    assert f"Left out: The ranks ({HOSTILE})" in text(made)
    assert "Left out: The ranks (&lt;script" in page(made)
    assert as_json(made)["left_out"] == (f"The ranks ({HOSTILE})",)


def test_a_drill_passes_only_whole_and_with_every_target_met() -> None:
    assert outcome().passed
    assert not outcome(failed=1).passed
    assert not outcome(trouble="interrupted").passed
    short = outcome()
    short.parts.pop()
    assert not short.passed
    unseen = outcome()
    unseen.parts[0].measure("steps lost", None, 1, "")
    assert not unseen.passed
    assert "MISSED  steps lost: not seen" in text(unseen)


def test_the_report_says_what_took_how_long_as_far_as_it_came() -> None:
    made = outcome()
    for number, part in enumerate(made.parts):
        part.began = 1010.0 + 30 * number
    made.cleaning = 1095.0
    assert "It took 10 s (start), 30 s (pod), 30 s (node), 25 s (training), 5 s (cleaning)" in text(made)
    made.parts = made.parts[:1]
    assert as_json(made)["phases"] == {"start": 10.0, "pod": 85.0, "cleaning": 5.0}


def test_the_report_in_json_says_the_same_as_the_text() -> None:
    made = outcome(failed=1)
    data = json.loads(json.dumps(as_json(made)))
    assert data["passed"] is made.passed
    assert [m["after_s"] for m in data["parts"][0]["moments"]] == [2.0, 12.5]
    assert data["parts"][1]["figures"][1] == {
        "name": "requests failed",
        "value": 1,
        "target": 0,
        "unit": "of 20",
        "met": False,
    }
    assert data["parts"][0]["requests"]["began"] == "1970-01-01T00:16:40.500000Z"
    assert "FAILED" in text(made).splitlines()[0]
