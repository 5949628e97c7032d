"""What in the chart is made of other files, and ``python -m tests.chart``, which makes it anew.

Helm packs no file from outside of a chart, and Flux follows no link out of it: so the templates begin with copies.
The schema of its values is that of the agent's configuration, and of what the chart adds.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from agent import __version__
from agent.config.settings import Config
from agent.model.neighbours import Preset

DAEMONSET = Path(__file__).parents[1] / "daemonset"
CHART = DAEMONSET / "chart"
COPIED = (
    "base/daemonset.yaml",
    "base/flowcontrol.yaml",
    "base/namespace.yaml",
    "base/policies.yaml",
    "base/rbac.yaml",
    "components/door/door.yaml",
    "components/dra/policies.yaml",
    "components/dra/rbac.yaml",
    "components/hardened/policies.yaml",
    "components/hardened/rbac.yaml",
    "components/network-policy/networkpolicy.yaml",
    "components/openshift/scc.yaml",
    "components/repair/policies.yaml",
    "components/repair/rbac.yaml",
    "components/repair/templates.yaml",
    "kit/checkpoint-manager.yaml",
    "kit/gateway.yaml",
    "kit/inference.yaml",
    "kit/namespace.yaml",
    "kit/storage.yaml",
    "kit/training.yaml",
    "monitoring/dashboard.json",
    "monitoring/podmonitor.yaml",
    "monitoring/prometheusrule.yaml",
)
_TEXT, _YES_OR_NO, _WORDS = {"type": "string"}, {"type": "boolean"}, {"type": "array", "items": {"type": "string"}}
_NAMED = {"type": "object", "additionalProperties": _TEXT}
_KUBERNETES, _ALL_KUBERNETES = {"type": "object"}, {"type": "array", "items": {"type": "object"}}


def _of(**fields: Any) -> dict[str, Any]:
    """An object with these fields and no other."""
    return {"type": "object", "additionalProperties": False, "properties": fields}


def schema() -> dict[str, Any]:
    """Of the chart's values: whatever is not a value of it, or of another type, is refused by its name."""
    config = Config.model_json_schema()
    switch = _of(enabled=_YES_OR_NO)
    values = _of(
        image=_of(repository=_TEXT, tag=_TEXT, pullPolicy={"enum": ["", "Always", "IfNotPresent", "Never"]}),
        imagePullSecrets=_ALL_KUBERNETES,
        config={key: value for key, value in config.items() if key != "$defs"},
        repair=switch,
        hardened=switch,
        dcgm=switch,
        trace=switch,
        openshift=switch,
        presets=_of(**{str(preset): _YES_OR_NO for preset in Preset}),
        monitoring=_of(enabled=_YES_OR_NO, labels=_NAMED, runbooks=_TEXT),
        gate=switch,
        door=_of(enabled=_YES_OR_NO, nvhcd=_YES_OR_NO),
        networkPolicy=_of(enabled=_YES_OR_NO, namespaces=_WORDS),
        kit=_of(
            image=_of(repository=_TEXT, tag=_TEXT),
            gateway=_of(enabled=_YES_OR_NO, replicas=_TEXT),
            inference=switch,
            training=switch,
            storageClassName=_TEXT,
            backupStorageClassName=_TEXT,
        ),
        runtimeClassName=_TEXT,
        driverLibrary=_TEXT,
        kubeletRoot=_TEXT,
        logLevel={"enum": ["debug", "info", "warning", "error"]},
        maxUnavailable={"type": ["string", "integer"]},
        priorityClassName=_TEXT,
        nodeSelector=_NAMED,
        affinity=_KUBERNETES,
        tolerations=_ALL_KUBERNETES,
        podLabels=_NAMED,
        podAnnotations=_NAMED,
        extraVolumes=_ALL_KUBERNETES,
        extraVolumeMounts=_of(agent=_ALL_KUBERNETES, sources=_ALL_KUBERNETES),
        resources=_of(agent=_KUBERNETES, sources=_KUBERNETES),
        **{"global": _KUBERNETES},  # Helm's own, where the chart is a part of another
    )
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$defs": config["$defs"], **values}


# Where manifests name the version, which stands in agent/__init__.py.
_VERSION = re.compile(
    r"^(version: |appVersion: |    newTag: | *image: gpu-health-agent:|.*app.kubernetes.io/version: )[\w.+-]+",
    re.MULTILINE,
)
STAMPED = (
    "chart/Chart.yaml",
    "base/daemonset.yaml",
    "base/kustomization.yaml",
    "components/door/door.yaml",
    "components/repair/templates.yaml",
)


def stamped() -> dict[str, str]:
    """Path below the manifests → its text with this version."""
    return {name: _VERSION.sub(rf"\g<1>{__version__}", (DAEMONSET / name).read_text()) for name in STAMPED}


def presets() -> dict[str, Any]:
    """Preset, or the gate → what its overlay adds to the configuration, and what its component opens in the Nodes'
    policy."""
    return {
        name: {"config": _configured(DAEMONSET / "overlays" / name), "variables": opened(name)}
        for name in (*Preset, "gate")
    }


def _configured(overlay: Path) -> dict[str, Any]:
    """Beyond what every preset's overlay says."""
    config: dict[str, Any] = yaml.safe_load((overlay / "config.yaml").read_text(encoding="utf-8"))
    assert (config.pop("mode"), config.pop("presets", [overlay.name])) == ("evict", [overlay.name])
    config.pop("webhook", None)  # whose receiver is a made-up one
    return config


def opened(component: str) -> dict[str, str]:
    """The policy's variables that it replaces, each named by the test before it."""
    file = DAEMONSET / "components" / component / "kustomization.yaml"
    patches = yaml.safe_load(file.read_text(encoding="utf-8")).get("patches", ())
    policies = (one["patch"] for one in patches if one["target"]["kind"] == "ValidatingAdmissionPolicy")
    steps = [step for patch in policies for step in yaml.safe_load(patch)]
    assert [step["op"] for step in steps] == ["test", "replace"] * (len(steps) // 2)
    return {test["value"]: replaced["value"] for test, replaced in zip(steps[::2], steps[1::2], strict=True)}


def made() -> dict[str, str]:
    """Path below the chart → its text."""
    copied = {name: (DAEMONSET / name).read_text(encoding="utf-8") for name in COPIED}
    generated = {"values.schema.json": schema(), "presets.json": presets()}
    return {**copied, **{name: json.dumps(what, indent=1) + "\n" for name, what in generated.items()}}


if __name__ == "__main__":
    for name, text in stamped().items():
        (DAEMONSET / name).write_text(text, encoding="utf-8")
    for below, text in made().items():
        (CHART / below).parent.mkdir(parents=True, exist_ok=True)
        (CHART / below).write_text(text, encoding="utf-8")
    sys.exit(0)
