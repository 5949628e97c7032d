"""The Helm chart gives what the overlays give, and lives through install, upgrade, rollback and uninstall."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import agent
from agent.config.settings import Config
from agent.model.neighbours import Preset
from tests import chart as source
from tests.cluster.build import assets
from tests.cluster.conftest import OVERLAYS
from tests.cluster.control_plane import ControlPlane
from tests.cluster.helm import helm
from tests.cluster.test_monitoring import install_stubs
from tests.documents import DOCUMENTS, ON_CALL, anchors
from tests.monitoring.test_rules import RUNBOOKS
from tests.running import environment

CHART, MONITORING = source.CHART, OVERLAYS.parent / "monitoring"
NAMESPACE = "gpu-health-agent"
DAEMONSET = f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/gpu-health-agent"
ACTS = "config.mode=evict"
VALUES = {
    "observe": [],
    "evict": [ACTS],
    "repair": [ACTS, "repair.enabled=true"],
    "hardened": [ACTS, "hardened.enabled=true"],
    "dcgm": [ACTS, "dcgm.enabled=true"],
    "trace": [ACTS, "trace.enabled=true"],
    "gate": [ACTS, "gate.enabled=true"],
    **{str(preset): [ACTS, f"presets.{preset}=true"] for preset in Preset},
    "dra-no-execute": [ACTS, "presets.dra=true", "config.drain.on_deadline=no_execute"],
    "webhook": [ACTS, "presets.webhook=true", "config.webhook.url=https://receiver.example.com/gpu-health"],
}


def chart(command: str, *arguments: str, values: list[str] = [], kubeconfig: Path | None = None) -> str:  # noqa: B006
    """``helm COMMAND`` on the chart; values as --set takes them."""
    access = ["--kubeconfig", str(kubeconfig)] if kubeconfig else ["--kube-version", "1.37.2"]
    sets = [text for value in values for text in ("--set", value)]
    ran = subprocess.run(
        [str(helm()), command, *arguments, "--namespace", NAMESPACE, *access, *sets],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def objects(text: str) -> dict[tuple[str, str], Any]:
    """By kind and name, but for what the two ways do differently: how a change of the configuration is noticed."""
    found = {}
    for document in yaml.safe_load_all(text):
        if not document or document["kind"] == "Namespace":  # helm makes it by itself
            continue
        if "config.yaml" in document.get("data", ()):  # Kustomize names it by its content
            document["metadata"]["name"] = NAMESPACE
            document["data"] = {"config.yaml": Config.model_validate(yaml.safe_load(document["data"]["config.yaml"]))}
        if document["kind"] == "DaemonSet":
            template = document["spec"]["template"]
            template["metadata"]["annotations"].pop("checksum/config", None)
            for volume in template["spec"]["volumes"]:
                if volume["name"] == "config":
                    volume["configMap"]["name"] = NAMESPACE
        for variable in document["spec"].get("variables", ()) if "Policy" in document["kind"] else ():
            variable["expression"] = " ".join(variable["expression"].split())
        found[document["kind"], document["metadata"]["name"]] = document
    return found


def kustomized(overlay: Path) -> dict[tuple[str, str], Any]:
    ran = subprocess.run([str(assets() / "kubectl"), "kustomize", str(overlay)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return objects(ran.stdout)


@pytest.mark.parametrize("overlay", sorted(path.name for path in OVERLAYS.iterdir()))
def test_it_renders_what_the_overlay_of_the_same_name_is(overlay: str) -> None:
    assert objects(chart("template", "gpu-health-agent", str(CHART), values=VALUES[overlay])) == kustomized(
        OVERLAYS / overlay
    )


def test_two_more_witnesses_go_together() -> None:
    values = ["dcgm.enabled=true", "trace.enabled=true"]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    sources = made["ConfigMap", NAMESPACE]["data"]["config.yaml"].sources
    assert (sources.trace.enabled, sources.dcgm.address) == (True, "nvidia-dcgm.gpu-operator.svc:5555")
    pod = made["DaemonSet", NAMESPACE]["spec"]["template"]["spec"]
    mounted = {mount["name"] for mount in pod["containers"][1]["volumeMounts"]}
    assert mounted >= {"tracefs", "dcgm-bindings", "dcgm-library"}
    assert mounted <= {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    ("component", "value"),
    [
        ("driver-on-host", "driverLibrary=/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"),
        ("network-policy", "networkPolicy.enabled=true"),
        ("door", "door.enabled=true"),
        ("openshift", "openshift.enabled=true"),
    ],
)
def test_it_renders_what_a_component_makes_that_is_in_no_overlay(component: str, value: str, tmp_path: Path) -> None:
    base, part = (os.path.relpath(OVERLAYS.parent / one, tmp_path) for one in ("base", f"components/{component}"))
    (tmp_path / "kustomization.yaml").write_text(f"resources: [{base}]\ncomponents: [{part}]\n")
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=[value]))
    assert made == kustomized(tmp_path) != kustomized(OVERLAYS / "observe")


@pytest.mark.parametrize(
    ("component", "parts"),
    [("", ("gateway", "inference", "training")), ("gateway-only", ("gateway",)), ("training-only", ("training",))],
)
def test_of_the_kit_it_renders_the_parts_that_are_switched_on(
    component: str, parts: tuple[str, ...], tmp_path: Path
) -> None:
    """As Kustomize makes them, but with the programs in the image. Switched off, it removes no checkpoint."""
    base, part = (os.path.relpath(OVERLAYS.parent / "kit" / one, tmp_path) for one in ("", component))
    words = {"resources": [base], "components": [part] if component else []}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(words))
    wanted = {key: one for key, one in kustomized(tmp_path).items() if key[0] != "ConfigMap"}
    for one in wanted.values():
        job = one["spec"].get("jobTemplate", one).get("spec", {})
        if template := job.get("template"):
            pod = template["spec"]
            pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "kit"]
            for container in pod["containers"]:
                container["volumeMounts"] = [mount for mount in container["volumeMounts"] if mount["name"] != "kit"]
    values = [*(f"kit.{name}.enabled=true" for name in parts), "kit.image.tag=latest"] + (
        ["kit.gateway.replicas=my-replicas.my-namespace:8080"] if component == "gateway-only" else []
    )
    text = chart("template", "gpu-health-agent", str(CHART), values=values)
    alone = objects(chart("template", "gpu-health-agent", str(CHART)))
    made = {key: one for key, one in objects(text).items() if key not in alone}
    for (kind, _), one in made.items():
        kept = one["metadata"].pop("annotations", {}) == {"helm.sh/resource-policy": "keep"}
        assert kept == (kind == "PersistentVolumeClaim")
    assert made == wanted
    (namespace,) = [one for one in yaml.safe_load_all(text) if one and one["kind"] == "Namespace"]
    assert namespace["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_an_upgrade_of_the_agent_changes_no_training() -> None:
    """A Job can't be changed: so its image is the operator's to name, and not the chart's version."""
    with pytest.raises(AssertionError, match="name the tag of your image of the kit"):
        chart("template", "gpu-health-agent", str(CHART), values=["kit.training.enabled=true"])
    values = ["kit.training.enabled=true", "kit.image.tag=1.2.3"]
    training = objects(chart("template", "gpu-health-agent", str(CHART), values=values))["Job", "training"]
    assert agent.__version__ not in yaml.safe_dump(training)


def test_the_kits_image_and_storage_can_be_said() -> None:
    values = [
        "kit.training.enabled=true",
        "kit.image.repository=r.example/kit",
        "kit.image.tag=1.2.3",
        "kit.storageClassName=efs",
        "kit.backupStorageClassName=other",
    ]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    (container,) = made["Job", "training"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "r.example/kit:1.2.3"
    claims = {name: one["spec"]["storageClassName"] for (kind, name), one in made.items() if "Claim" in kind}
    assert claims == {"checkpoints": "efs", "checkpoints-backup": "other"}


def test_a_network_policy_lets_in_the_namespaces_that_are_named() -> None:
    values = ["networkPolicy.enabled=true", "networkPolicy.namespaces={a,b}"]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    (rule,) = made["NetworkPolicy", NAMESPACE]["spec"]["ingress"]
    (selected,) = rule["from"][0]["namespaceSelector"]["matchExpressions"]
    assert selected == {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["a", "b"]}


def test_with_monitoring_it_renders_what_its_folder_makes_too_and_without_nothing_of_it() -> None:
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=["monitoring.enabled=true"]))
    assert made == kustomized(OVERLAYS / "observe") | kustomized(MONITORING)
    alone = objects(chart("template", "gpu-health-agent", str(CHART)))
    assert made.keys() - alone.keys() == {
        ("PodMonitor", NAMESPACE),
        ("PrometheusRule", NAMESPACE),
        ("ConfigMap", f"{NAMESPACE}-dashboard"),
    }


def test_the_runbooks_are_where_the_operator_keeps_them(tmp_path: Path) -> None:
    """In both forms, and each of them an anchor of the document."""
    address = "https://wiki.example.com/gpu/README.md"
    own = tmp_path / "monitoring"
    shutil.copytree(MONITORING, own)
    text = (own / "kustomization.yaml").read_text()
    assert text.count(f"runbooks: {RUNBOOKS}") == 1
    (own / "kustomization.yaml").write_text(text.replace(f"runbooks: {RUNBOOKS}", f"runbooks: {address}"))
    values = ["monitoring.enabled=true", f"monitoring.runbooks={address}", "monitoring.labels.release=mine"]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    rules = made["PrometheusRule", NAMESPACE]
    assert rules["spec"] == kustomized(own)["PrometheusRule", NAMESPACE]["spec"]
    alerts = [rule for group in rules["spec"]["groups"] for rule in group["rules"] if "alert" in rule]
    assert alerts
    assert {"address": address} in [rule.get("labels") for group in rules["spec"]["groups"] for rule in group["rules"]]
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert (page, anchor in anchors(DOCUMENTS[ON_CALL])) == (address, True), alert["alert"]
    for kind in ("PodMonitor", "PrometheusRule"):
        assert made[kind, NAMESPACE]["metadata"]["labels"].items() >= {"release": "mine"}.items()


def test_it_is_of_the_agents_version_and_helm_finds_nothing_to_complain_about() -> None:
    made = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert made["version"] == made["appVersion"] == agent.__version__
    pods = yaml.safe_load((CHART / "base" / "daemonset.yaml").read_text())["spec"]["template"]["metadata"]["labels"]
    assert pods["app.kubernetes.io/version"] == agent.__version__
    assert "0 chart(s) failed" in chart("lint", str(CHART))


def test_values_that_an_operator_sets_reach_the_pods() -> None:
    values = [
        "image.repository=registry.example/agent",
        "image.tag=1.2.3",
        "resources.agent.limits.memory=1Gi",
        "podAnnotations.team=gpu",
        "config.poll_s=10",
        "repair.enabled=true",
        "imagePullSecrets[0].name=pull",
    ]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    template = made["DaemonSet", NAMESPACE]["spec"]["template"]
    assert {one["image"] for one in template["spec"]["containers"]} == {"registry.example/agent:1.2.3"}
    assert template["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "20m", "memory": "64Mi"},
        "limits": {"memory": "1Gi"},
    }
    assert template["metadata"]["annotations"].items() >= {"team": "gpu", "prometheus.io/port": "9836"}.items()
    config = made["ConfigMap", NAMESPACE]["data"]["config.yaml"]
    assert (config.poll_s, config.repair.reset_gpu) == (10, "gpu-reset")
    job = made["CronJob", "gpu-reset"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert (job["containers"][0]["image"], job["imagePullSecrets"]) == (
        "registry.example/agent:1.2.3",
        [{"name": "pull"}],
    )


def test_its_copies_and_the_schema_of_its_values_are_current() -> None:
    for below, text in source.made().items():
        assert (CHART / below).read_text() == text, f"{below}: make chart"
    assert not [path for path in CHART.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("repair.enable=true", "'enable' not allowed"),
        ("config.budget.max_withdrawm=2", "'max_withdrawm' not allowed"),
        ("config.mode=drain", "/config/mode"),
        ("config.poll_s=often", "/config/poll_s"),
    ],
)
def test_a_value_that_is_none_is_refused_by_its_name(value: str, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        chart("template", "gpu-health-agent", str(CHART), values=[value])


def test_a_word_that_looks_like_no_switches_nothing_on() -> None:
    with pytest.raises(AssertionError, match="'/repair/enabled': got string"):
        chart("template", "gpu-health-agent", str(CHART), "--set-string", "repair.enabled=false")


def test_where_and_how_the_pods_run_can_be_said() -> None:
    values = [
        "nodeSelector.pool=a100",
        "tolerations[0].key=gpu,tolerations[0].operator=Exists",
        "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0]"
        ".key=gpu,affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]"
        ".matchExpressions[0].operator=Exists",
        "podLabels.team=gpu",
        "image.pullPolicy=Always",
        "priorityClassName=mine",
        "kubeletRoot=/data/kubelet/",
        "logLevel=debug",
        "extraVolumes[0].name=tmp,extraVolumeMounts.agent[0].name=tmp,extraVolumeMounts.agent[0].mountPath=/x",
    ]
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))["DaemonSet", NAMESPACE]
    template = made["spec"]["template"]
    pod, agent = template["spec"], template["spec"]["containers"][0]
    assert template["metadata"]["labels"].items() >= {"app.kubernetes.io/name": NAMESPACE, "team": "gpu"}.items()
    assert (pod["nodeSelector"], pod["priorityClassName"]) == ({"pool": "a100"}, "mine")
    assert pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    (term,) = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term == {"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}
    assert {one["imagePullPolicy"] for one in pod["containers"]} == {"Always"}
    paths = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in pod["volumes"]}
    assert (paths["pod-resources"], paths["tmp"]) == ("/data/kubelet/pod-resources", None)
    assert {"name": "tmp", "mountPath": "/x"} in agent["volumeMounts"]
    assert [one["args"][-2:] for one in pod["containers"]] == [["--log-level", "debug"]] * 2


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path_factory.mktemp("chart"), assets())
    made.up(nodes=2)
    yield made
    made.down()


def test_installed_upgraded_rolled_back_and_uninstalled(plane: ControlPlane) -> None:
    plane.toolkit()

    def mode() -> str:
        name = f"/api/v1/namespaces/{NAMESPACE}/configmaps/gpu-health-agent"
        return str(yaml.safe_load(plane.must("GET", name)["data"]["config.yaml"])["mode"])

    def rolled_out() -> bool:
        made = plane.must("GET", DAEMONSET)
        status = made.get("status", {})
        seen = status.get("observedGeneration") == made["metadata"]["generation"]
        return bool(seen and status.get("updatedNumberScheduled") == status.get("numberReady") == 2)

    release = ("gpu-health-agent", str(CHART))
    told = chart("install", *release, "--create-namespace", kubeconfig=plane.kubeconfig)
    assert "in mode observe" in told
    assert "--set config.mode=evict" in told
    plane.wait("installed", rolled_out)
    assert mode() == "observe"
    install_stubs(plane)
    kit = [*(f"kit.{part}.enabled=true" for part in ("gateway", "inference", "training")), "kit.image.tag=1.2.3"]
    more = [ACTS, "repair.enabled=true", "monitoring.enabled=true", "networkPolicy.enabled=true", *kit]
    assert "does no longer" in chart("upgrade", *release, kubeconfig=plane.kubeconfig)
    assert "evicts the pods" in chart("upgrade", *release, values=more, kubeconfig=plane.kubeconfig)
    plane.wait("upgraded", rolled_out)
    assert mode() == "evict"
    assert plane.request("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/cronjobs/gpu-reset")[0] == 200
    monitors = f"/apis/monitoring.coreos.com/v1/namespaces/{NAMESPACE}/podmonitors/gpu-health-agent"
    assert plane.request("GET", monitors)[0] == 200
    policies = f"/apis/networking.k8s.io/v1/namespaces/{NAMESPACE}/networkpolicies/gpu-health-agent"
    assert plane.request("GET", policies)[0] == 200
    of_kit = "pvc,deploy,job,cronjob,svc,pdb"
    there = "get", of_kit, "--namespace=gpu-kit", "--output=custom-columns=:kind,:metadata.name", "--no-headers"
    assert {tuple(line.split()) for line in plane.kubectl(*there).splitlines()} == set(kit_objects(kit))
    plane.wait("the gateways run", lambda: running(plane, "gateway") == 2)
    chart("upgrade", *release, values=[*more, "kit.training.enabled=false"], kubeconfig=plane.kubeconfig)
    chart("upgrade", *release, values=more, kubeconfig=plane.kubeconfig)
    assert {tuple(line.split()) for line in plane.kubectl(*there).splitlines()} == set(kit_objects(kit))
    chart("rollback", "gpu-health-agent", "1", kubeconfig=plane.kubeconfig)
    plane.wait("rolled back", rolled_out)
    assert mode() == "observe"
    assert plane.request("GET", f"/apis/batch/v1/namespaces/{NAMESPACE}/cronjobs/gpu-reset")[0] == 404
    assert plane.request("GET", monitors)[0] == 404
    left = {tuple(line.split()) for line in plane.kubectl(*there).splitlines()}
    assert left == {("PersistentVolumeClaim", "checkpoints"), ("PersistentVolumeClaim", "checkpoints-backup")}
    chart("uninstall", "gpu-health-agent", kubeconfig=plane.kubeconfig)
    kinds = (
        "validatingadmissionpolicies,validatingadmissionpolicybindings,clusterroles,clusterrolebindings,"
        "flowschemas,prioritylevelconfigurations"
    )
    assert "gpu-health-agent" not in plane.kubectl("get", kinds, "-o", "name")


def kit_objects(values: list[str]) -> list[tuple[str, str]]:
    """What the chart makes of the kit, but the namespace."""
    made = objects(chart("template", "gpu-health-agent", str(CHART), values=values))
    return [key for key, one in made.items() if one["metadata"].get("namespace") == "gpu-kit"]


def running(plane: ControlPlane, app: str) -> int:
    pods = plane.must("GET", f"/api/v1/namespaces/gpu-kit/pods?labelSelector=app%3D{app}")["items"]
    return sum(pod["status"].get("phase") == "Running" for pod in pods)
