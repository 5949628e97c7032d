"""The DaemonSet keeps what it says: no container holds both the cluster's credential and the host's privileges."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.cli import parser
from agent.config.settings import Config
from agent.model.names import REPLACEMENT

BASE = Path(__file__).parents[1] / "daemonset" / "base"
POD: dict[str, Any] = yaml.safe_load((BASE / "daemonset.yaml").read_text())["spec"]["template"]["spec"]
CONTAINERS = {one["name"]: one for one in POD["containers"]}
AGENT, SOURCES = CONTAINERS["agent"], CONTAINERS["sources"]
VOLUMES = {one["name"]: one for one in POD["volumes"]}


def mounts(container: dict[str, Any]) -> dict[str, str]:
    return {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}


def test_the_credential_is_in_one_container_and_the_privileges_are_in_the_other() -> None:
    assert POD["automountServiceAccountToken"] is False
    holders = [name for name, volume in VOLUMES.items() if "projected" in volume]
    assert holders == ["credential"]
    assert [name for name, one in CONTAINERS.items() if "credential" in mounts(one)] == ["agent"]
    assert [name for name, one in CONTAINERS.items() if one["securityContext"].get("privileged")] == ["sources"]
    host = {name for name, volume in VOLUMES.items() if "hostPath" in volume}
    assert not host & mounts(AGENT).keys()
    assert not POD.get("hostNetwork")


def test_the_agent_runs_without_root_without_capabilities_and_without_a_writable_root() -> None:
    context = AGENT["securityContext"]
    assert context["runAsUser"] == 65532
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "NVIDIA_VISIBLE_DEVICES" not in {one["name"] for one in AGENT["env"]}, "it needs no GPU"


def test_the_projected_credential_is_what_a_client_in_a_pod_looks_for() -> None:
    assert mounts(AGENT)["credential"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    paths = {
        item["path"]
        for source in VOLUMES["credential"]["projected"]["sources"]
        for kind in source.values()
        for item in kind.get("items", [kind])
    }
    assert paths == {"token", "ca.crt", "namespace"}


def test_both_containers_are_started_as_the_program_understands_and_meet_at_one_socket() -> None:
    run, sources = (parser(container["args"]).parse_args(container["args"]) for container in (AGENT, SOURCES))
    assert (run.command, sources.command) == ("run", "sources")
    assert run.sources == sources.socket
    assert run.config == sources.config == "/etc/gpu-health-agent/config.yaml"
    assert mounts(AGENT)["socket"] == mounts(SOURCES)["socket"] == str(sources.socket.parent)
    assert "emptyDir" in VOLUMES["socket"]


def test_the_agent_may_write_to_no_folder_that_the_privileged_container_reads() -> None:
    writable = [mount["name"] for mount in AGENT["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["evidence"]
    assert "evidence" not in mounts(SOURCES)
    assert mounts(AGENT)["evidence"] == str(Config().evidence.folder)


def test_who_answers_strangers_has_no_credential_no_privilege_and_only_its_own_folder() -> None:
    added = yaml.safe_load((BASE.parent / "components" / "door" / "door.yaml").read_text())
    door, (first,), volume = (one["value"] for one in added)
    parsed = parser(door["args"]).parse_args(door["args"])
    assert (parsed.command, parsed.config) == ("door", "/etc/gpu-health-agent/config.yaml")
    assert mounts(door) == {"config": "/etc/gpu-health-agent", "door": str(parsed.socket.parent)}
    assert volume["hostPath"]["path"] == "/run/gpu-health-agent"
    assert door["securityContext"] == AGENT["securityContext"]
    assert first["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["CHOWN"]}
    assert mounts(first) == {"door": first["command"][-1]}


def test_the_one_port_is_the_configurations_and_the_probes_ask_there() -> None:
    ports = [port for container in CONTAINERS.values() for port in container.get("ports", ())]
    assert ports == [{"name": "metrics", "containerPort": Config().http.port}]
    assert {AGENT[f"{kind}Probe"]["httpGet"]["port"] for kind in ("liveness", "readiness")} == {"metrics"}


def test_where_pods_take_all_cpu_the_agent_has_ten_minutes_to_start_and_seconds_to_answer() -> None:
    """It asks for 20m: killed three quarters of a minute after each start it would never be there."""
    start = AGENT["startupProbe"]
    assert start["periodSeconds"] * start["failureThreshold"] >= 600
    assert all(AGENT[f"{kind}Probe"]["timeoutSeconds"] >= 5 for kind in ("startup", "liveness", "readiness"))


def test_one_slow_answer_on_a_busy_node_takes_no_gateway_and_no_replica_out_of_service() -> None:
    probes = [
        container["readinessProbe"]
        for path in (BASE.parent / "kit").rglob("*.yaml")
        for made in yaml.safe_load_all(path.read_text())
        if made.get("kind") == "Deployment"
        for container in made["spec"]["template"]["spec"]["containers"]
        if "readinessProbe" in container
    ]
    assert len(probes) >= 3
    assert all(probe.get("failureThreshold", 3) >= 3 for probe in probes)
    assert all(probe["periodSeconds"] * 3 + probe["timeoutSeconds"] <= 10 for probe in probes), "what hangs is"


def test_the_network_policy_is_of_the_agents_pods_and_their_one_port_and_of_nothing_that_they_send() -> None:
    file = BASE.parent / "components" / "network-policy" / "networkpolicy.yaml"
    spec = yaml.safe_load(file.read_text())["spec"]
    labels = yaml.safe_load((BASE / "daemonset.yaml").read_text())["spec"]["template"]["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress"]
    (rule,) = spec["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": AGENT["ports"][0]["name"]}]
    one = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["monitoring"]}
    assert rule["from"] == [{"namespaceSelector": {"matchExpressions": [one]}}], "all others are kept out"
    assert not POD.get("hostNetwork"), "a policy says nothing about pods of the host's network"


# By OpenShift's reference of security.openshift.io/v1: field → its type. The first are required.
_REQUIRED = dict.fromkeys(
    (
        "allowHostDirVolumePlugin",
        "allowHostIPC",
        "allowHostNetwork",
        "allowHostPID",
        "allowHostPorts",
        "allowPrivilegedContainer",
        "readOnlyRootFilesystem",
    ),
    bool,
)
_DOCUMENTED: dict[str, type] = {
    **_REQUIRED,
    **dict.fromkeys(("allowPrivilegeEscalation", "defaultAllowPrivilegeEscalation"), bool),
    **dict.fromkeys(("runAsUser", "seLinuxContext", "fsGroup", "supplementalGroups"), dict),
    **dict.fromkeys(("seccompProfiles", "volumes", "users", "groups"), list),
    **dict.fromkeys(("defaultAddCapabilities", "requiredDropCapabilities", "allowedCapabilities"), list),
    "priority": int,
}


def test_openshifts_constraints_have_their_documented_form_and_allow_what_the_pods_ask_for_and_no_more() -> None:
    components = BASE.parent / "components"
    constraints, role, binding = yaml.safe_load_all((components / "openshift" / "scc.yaml").read_text())
    kind, version, metadata = (constraints.pop(name) for name in ("kind", "apiVersion", "metadata"))
    assert (kind, version) == ("SecurityContextConstraints", "security.openshift.io/v1")
    assert constraints.keys() >= _REQUIRED.keys()
    assert {name for name, value in constraints.items() if not isinstance(value, _DOCUMENTED[name])} == set()
    templates = yaml.safe_load_all((components / "repair" / "templates.yaml").read_text())
    pods = [POD, *(one["spec"]["jobTemplate"]["spec"]["template"]["spec"] for one in templates)]
    contexts = [container["securityContext"] for pod in pods for container in pod["containers"]]
    volumes = [{*volume} - {"name"} for pod in pods for volume in pod.get("volumes", ())]
    patches = yaml.safe_load((components / "webhook" / "kustomization.yaml").read_text())["patches"]
    added = [step["value"] for one in patches for step in yaml.safe_load(one["patch"])]
    volumes += [{*value} - {"name"} for value in added if "secret" in value]
    assert set(constraints["volumes"]) == set().union(*volumes)
    asked = {
        "allowHostDirVolumePlugin": {"hostPath"} in volumes,
        "allowHostPID": any(pod.get("hostPID") for pod in pods),
        "allowHostNetwork": any(pod.get("hostNetwork") for pod in pods),
        "allowHostIPC": any(pod.get("hostIPC") for pod in pods),
        "allowHostPorts": any("hostPort" in port for one in POD["containers"] for port in one.get("ports", ())),
        "allowPrivilegedContainer": any(context.get("privileged") for context in contexts),
        "allowPrivilegeEscalation": any(context.get("privileged") for context in contexts),
        "readOnlyRootFilesystem": all(context["readOnlyRootFilesystem"] for context in contexts),
    }
    assert {name: constraints[name] for name in asked} == asked
    assert {constraints[name]["type"] for name in ("runAsUser", "seLinuxContext", "fsGroup")} == {"RunAsAny"}
    assert not any(context.get("capabilities", {}).get("add") for context in contexts)
    (rule,) = role["rules"]
    assert (rule["verbs"], rule["resourceNames"]) == (["use"], [metadata["name"]])
    (subject,) = binding["subjects"]
    assert subject["name"] == f"system:serviceaccounts:{role['metadata']['namespace']}", "of this namespace alone"


def test_a_fleet_in_trouble_takes_a_share_of_the_api_server_that_is_bounded_and_what_acts_has_the_larger_one() -> None:
    """One that borrows without a limit takes whatever nobody uses at that moment, and the server's CPU with it."""
    every = [one for one in yaml.safe_load_all((BASE / "flowcontrol.yaml").read_text()) if one["kind"] != "FlowSchema"]
    limited = {one["metadata"]["name"].removeprefix("gpu-health-agent-"): one["spec"]["limited"] for one in every}
    assert limited.keys() == {"acts", "reports"}
    most = {
        name: one["nominalConcurrencyShares"] * (1 + one["borrowingLimitPercent"] / 100)
        for name, one in limited.items()
    }
    assert most["reports"] < most["acts"] <= 20, "of some 250"


def test_what_the_sources_open_by_default_is_mounted() -> None:
    assert mounts(SOURCES)["kmsg"] == str(Config().sources.kmsg.path)
    assert mounts(SOURCES)["pod-resources"] == str(Config().sources.pods.socket.parent)


def test_the_components_mount_is_where_the_trace_is_looked_for() -> None:
    component = yaml.safe_load((BASE.parent / "components" / "trace" / "kustomization.yaml").read_text())
    container, mount, volume = (step["value"] for step in yaml.safe_load(component["patches"][0]["patch"]))
    there = str(Config().sources.trace.path)
    assert (container, mount["mountPath"], volume["hostPath"]["path"]) == ("sources", there, there)
    assert (mount["name"], mount.get("readOnly", False)) == (volume["name"], False)


@pytest.mark.parametrize(
    ("file", "conditions"),
    [
        ("cluster-api/machinehealthcheck", ("checks", "unhealthyNodeConditions")),
        ("medik8s/nodehealthcheck", ("unhealthyConditions",)),
    ],
)
def test_what_others_are_to_watch_is_the_request_and_no_report(file: str, conditions: tuple[str, ...]) -> None:
    """A report that somebody replaces a node on would go past the budget."""
    spec = yaml.safe_load((BASE.parent / "overlays" / f"{file}.yaml").read_text())["spec"]
    for part in conditions:
        spec = spec[part]
    assert [(one["type"], one["status"]) for one in spec] == [(REPLACEMENT, "True")]


def test_the_nodehealthcheck_is_one_that_medik8s_takes() -> None:
    """By its API (v1alpha1, July 2026), and by what its webhook refuses beyond that."""
    check = yaml.safe_load((BASE.parent / "overlays" / "medik8s" / "nodehealthcheck.yaml").read_text())
    spec, template = check["spec"], check["spec"]["remediationTemplate"]
    assert (check["apiVersion"], check["kind"]) == ("remediation.medik8s.io/v1alpha1", "NodeHealthCheck")
    assert "namespace" not in check["metadata"], "it is the cluster's"
    assert {*spec} == {"selector", "minHealthy", "unhealthyConditions", "remediationTemplate"}
    assert re.fullmatch(r"(100|[0-9]{1,2})%|[0-9]+", spec["minHealthy"])  # maxUnhealthy is refused where Machines go
    assert spec["selector"]["matchLabels"], "an empty selector is refused"
    (condition,) = spec["unhealthyConditions"]
    assert re.fullmatch(r"([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+", condition["duration"])
    assert (sorted(template), template["kind"][-8:]) == (["apiVersion", "kind", "name", "namespace"], "Template")


@pytest.mark.parametrize("host", ["10.96.0.1", "fd00::1"])
def test_no_proxy_stands_between_the_agent_and_the_api_server(host: str) -> None:
    (value,) = (one["value"] for one in AGENT["env"] if one["name"] == "NO_PROXY")
    environment = {
        **os.environ,
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": value.replace("$(KUBERNETES_SERVICE_HOST)", host),
    }
    netloc = f"[{host}]" if ":" in host else host
    code = f"""
from kubernetes.client.api_client import ApiClient
from kubernetes.client.configuration import Configuration
made = Configuration()
made.host = "https://{netloc}:443"
print(type(ApiClient(made).rest_client.pool_manager).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout == "PoolManager\n"


def container_of(template: str) -> dict[str, Any]:
    """Of a remedy's Job."""
    documents = yaml.safe_load_all((BASE.parent / "components" / "repair" / "templates.yaml").read_text())
    found = next(one for one in documents if one["metadata"]["name"] == template)
    return dict(found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0])


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("code", [0, 15])
@pytest.mark.parametrize("persistence", ["Enabled", "Disabled", "hangs"])
def test_a_reset_finds_persistence_mode_off_sets_it_back_and_ends_as_nvidia_smi_does(
    tmp_path: Path, code: int, persistence: str
) -> None:
    command, log = container_of("gpu-reset")["command"], tmp_path / "log"
    answer = "exit 124" if persistence == "hangs" else f"echo {persistence}"
    says = f'case "$1" in --query-gpu*) {answer} ;; --gpu-reset) exit {code} ;; esac'
    program(tmp_path / "nvidia-smi", f'echo "$*" >> {log}; {says}')
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(command, env={**path, "GPUS": "GPU-a,GPU-b"}).returncode == code
    told = log.read_text().splitlines()[1:]
    reset, off, on = "--gpu-reset -i GPU-a,GPU-b", "-pm 0 -i GPU-a,GPU-b", "-pm 1 -i GPU-a,GPU-b"
    assert told == ([off, reset, on] if persistence == "Enabled" else [reset])
    assert subprocess.run(command, env=path, stderr=subprocess.DEVNULL).returncode != 0, "no GPU is named"
    assert len(log.read_text().splitlines()) == len(told) + 1


@pytest.mark.parametrize("driver", ["the host's", "gpu-operator's"])
@pytest.mark.parametrize("code", [0, 1])
def test_evidence_bears_its_jobs_name_and_the_latest_alone_are_kept(tmp_path: Path, driver: str, code: int) -> None:
    kept, programs, job = tmp_path / "evidence", tmp_path / "bin", f"gpu-health-collect-{tmp_path.name}"
    for folder in (kept, programs, tmp_path / "driver" / "tmp"):
        folder.mkdir(parents=True)
    for number in range(20):
        (kept / f"old-{number}.log.gz").touch()
    report = f'[ "$1 $2" = "--safe-mode --output-file" ] && echo report > "$ROOT$3.gz"; exit {code}'
    program(programs / "dcgmi", 'echo "$*"')
    if driver == "the host's":
        program(programs / "nvidia-bug-report.sh", report)
    else:  # found in its root alone
        program(tmp_path / "driver" / "nvidia-bug-report.sh", report)
        program(programs / "chroot", 'export ROOT="$1"; shift; exec "$ROOT/$@"')
    made = container_of("gpu-collect")
    assert {one["name"] for one in made["env"]} == {"JOB", "EVIDENCE", "DRIVER"}
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "DRIVER": str(tmp_path / "driver")}
    shell = made["command"][made["command"].index("sh") :]
    assert subprocess.run(shell, env={**path, "JOB": job, "EVIDENCE": str(kept)}).returncode == code
    assert (kept / f"{job}.log.gz").read_text() == "report\n"
    assert (kept / f"{job}.dcgm.json").read_text() == "diag -r 1 -j\n"
    assert len([*kept.iterdir()]) == 8
