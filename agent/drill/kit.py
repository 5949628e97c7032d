"""The kit's manifests as a drill applies them: without kustomize, in one namespace, little storage, short intervals."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from agent.model.errors import UsageError
from agent.model.names import DRILL_LABEL

RANKS = "training-ranks"  # a training of many ranks: its Job, and the label app of its pods
LOAD, LOAD_PORT = "drill-load", 8090
_HERE = Path(__file__).parents[2] / "daemonset" / "kit"
_SIZE, _IMAGE, _BACKUP = "1Gi", "gpu-kit", "backup"
_READ_S = 2  # of the gateway: after which a replica hangs; the drill's model answers in milliseconds
_LEFT_OUT = {("CronJob", "checkpoint-manager"), ("PersistentVolumeClaim", "checkpoints-backup")}

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Settings:
    """How the kit is set up for a drill."""

    namespace: str
    image: str
    interval_s: float = 20.0  # between two periodic checkpoints
    step_s: float = 0.5  # of the training
    rate: float = 20.0  # requests a second
    storage_class: str | None = None
    shared_path: str | None = None  # a folder that is the same on every node, instead of a storage class
    node: str | None = None  # where the training should start
    inject: bool = False  # the fault by the simulation of the agent's GPUs
    own: bool = True  # deployed by the drill, and not there before it
    ranks_image: str = ""  # with PyTorch, for a training of many ranks


def objects(folder: Path | None, settings: Settings) -> list[Object]:
    """Everything to apply, in order. UsageError if the folder is not the kit."""
    folder = folder or _HERE
    try:
        plan = yaml.safe_load((folder / "kustomization.yaml").read_text(encoding="utf-8"))
        texts = [(folder / name).read_text(encoding="utf-8") for name in plan["resources"]]
        (generated,) = plan["configMapGenerator"]
        programs = {name: (folder / name).read_text(encoding="utf-8") for name in generated["files"]}
        made = [one for text in texts for one in yaml.safe_load_all(text) if one]
        config: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": generated["name"]},
            "data": programs,
        }
        adapted = [
            _adapted(one, _IMAGE, settings)
            for one in [config, *made, *_load()]
            if (one["kind"], one["metadata"]["name"]) not in _LEFT_OUT
            and not (one["kind"] == "PersistentVolumeClaim" and settings.shared_path)
        ]
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--kit: {folder} is not the kit ({error}): name the folder daemonset/kit") from error
    return sorted(adapted, key=lambda one: (one["kind"] != "Namespace", one["kind"] == "Job"))


def errands(folder: Path | None, settings: Settings, nonce: str) -> tuple[Object, ...]:
    """To be applied later: a pod that backs the checkpoints up, one that moves their folder away, the training anew."""
    text = ((folder or _HERE) / "checkpoint-manager.yaml").read_text(encoding="utf-8")
    spec = yaml.safe_load(text)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    for one in (*spec["volumes"], *container["volumeMounts"]):
        one.get("persistentVolumeClaim", one).pop("readOnly", None)  # the backup is a folder in the same volume
    (path,) = (word.partition("=")[2] for word in container["command"] if word.startswith("--folder="))
    move = f"import os; os.rename({path!r}, {f'{path}-{nonce[:8]}'!r})"
    made = []
    for name, command in (("drill-copy", container["command"]), ("drill-lose", ["python3", "-c", move])):
        own = {**spec, "containers": [{**container, "command": command}]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": own}
        made.append(_adapted(pod, _IMAGE, settings))
    (training,) = (one for one in objects(folder, settings) if one["kind"] == "Job")
    return (*made, training)


def ranks(folder: Path | None, settings: Settings) -> tuple[Object, ...]:
    """A training of many ranks, to be applied later; none without an image for it."""
    if not settings.ranks_image:
        return ()
    file = (folder or _HERE) / "ranks" / "training-ranks.yaml"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--ranks-image: {file} can't be read ({error.strerror}): name the kit's folder") from error
    own = replace(settings, image=settings.ranks_image)
    made = [_adapted(one, _IMAGE, own) for one in yaml.safe_load_all(text) if one]
    return tuple(sorted(made, key=lambda one: one["kind"] == "Job"))  # its pods find each other by the Service


def _adapted(one: Object, image: str, settings: Settings) -> Object:
    one = copy.deepcopy(one)
    metadata = one["metadata"]
    metadata["labels"] = {**metadata.get("labels", {}), DRILL_LABEL: "true"}
    if one["kind"] == "Namespace":
        metadata["name"] = settings.namespace
        if settings.shared_path:  # Pod Security allows a hostPath nowhere else
            metadata["labels"]["pod-security.kubernetes.io/enforce"] = "privileged"
    else:
        metadata["namespace"] = settings.namespace
    if one["kind"] == "PersistentVolumeClaim":
        one["spec"]["resources"]["requests"]["storage"] = _SIZE
        if settings.storage_class:
            one["spec"]["storageClassName"] = settings.storage_class
    for pod in _templates(one):
        pod["metadata"].setdefault("labels", {})[DRILL_LABEL] = "true"
        spec = pod["spec"]  # the backup is a folder beside the checkpoints: no storage of its own for a drill
        spec["volumes"] = [volume for volume in spec.get("volumes", ()) if volume["name"] != _BACKUP]
        for volume in spec["volumes"] if settings.shared_path else ():
            if volume.pop("persistentVolumeClaim", None):
                volume["hostPath"] = {"path": settings.shared_path}
        for container in pod["spec"]["containers"]:
            if container["image"] == image:
                container["image"] = settings.image
            mounts = container.get("volumeMounts", ())
            container["volumeMounts"] = [mount for mount in mounts if mount["name"] != _BACKUP]
            container["command"] = [_argument(word, settings) for word in container["command"]]
            if metadata["name"] in ("training", RANKS):
                container["command"].append(f"--step-s={settings.step_s:g}")
        if metadata["name"] == "training":
            pod["spec"]["affinity"] = _beside(settings.node)
        if metadata["name"] == RANKS:
            pod["spec"]["affinity"] = {"podAntiAffinity": _preferred("podAffinityTerm", _on_node_of(RANKS))}
    return one


def _templates(one: Object) -> Iterator[Object]:
    if one["kind"] in ("Deployment", "Job"):
        yield one["spec"]["template"]
    elif one["kind"] == "Pod":
        yield one


def _argument(word: str, settings: Settings) -> str:
    word = re.sub(r"^--interval-s=.*", f"--interval-s={settings.interval_s:g}", word)
    word = re.sub(r"^--read-s=.*", f"--read-s={_READ_S:g}", word)
    word = word.replace("=/backup/", "=/checkpoints/backup/")
    return word.replace("{rate}", f"{settings.rate:g}")


def _beside(node: str | None) -> Object:
    """The training on the node that was named, else beside an inference replica."""
    if node:
        term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}
        return {"nodeAffinity": _preferred("preference", term)}
    return {"podAffinity": _preferred("podAffinityTerm", _on_node_of("inference"))}


def _preferred(kind: str, term: Object) -> Object:
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, kind: term}]}


def _on_node_of(app: str) -> Object:
    return {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": app}}}


def load(settings: Settings) -> list[Object]:
    """The client alone, for a kit that is there."""
    return [_adapted(one, _IMAGE, settings) for one in _load()]


def _load() -> Iterator[Object]:
    """The client in the cluster: what a workload beside the gateway sees, without the way from this machine."""
    program = files("agent.drill").joinpath("load.py").read_text(encoding="utf-8")
    yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": LOAD}, "data": {"load.py": program}}
    drop = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    yield {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": LOAD, "labels": {"app": LOAD}},
        "spec": {
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "load",
                    "image": _IMAGE,
                    "securityContext": drop,
                    # Without a share of the CPU it gets next to none on a busy node, and its requests fail for it.
                    "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                    "command": ["python3", "/load/load.py", "gateway", "80", "{rate}", "10", str(LOAD_PORT)],
                    "ports": [{"containerPort": LOAD_PORT}],
                    "volumeMounts": [{"name": "load", "mountPath": "/load", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "load", "configMap": {"name": LOAD}}],
        },
    }
