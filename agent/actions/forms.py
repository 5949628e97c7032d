"""What is read of each kind of object, and its form. A field that is absent or null is empty, unless it must be there.

Whatever else an object holds is not looked at. Of pods in a list there is no form here: what makes no sense in one is
that pod's trouble, and no other's.
"""

from __future__ import annotations

from typing import Any

from agent.model.text import printable

_CALLED = {dict: "object", list: "list", str: "text", int: "whole number"}

# "*" is each name that is there. A mark behind a name: it must be there.
_ANY: dict[str, Any] = {}
_TEXTS = {"*": str}
_TEXTED = {"labels": _TEXTS, "annotations": _TEXTS}
_METADATA = {
    "name": str,
    "uid": str,
    "resourceVersion": str,
    "creationTimestamp": str,
    "managedFields": [{"time": str}],
    **_TEXTED,
}
_NAMED = {**_METADATA, "name!": str, "uid!": str}
_WRITTEN = {**_NAMED, "resourceVersion!": str}  # only under the version that was read
_OBJECT = {"metadata": _METADATA, "spec": _ANY, "status": _ANY, "data": _TEXTS}
_CONDITIONS = {"conditions": [{"type!": str, "status!": str, "reason": str, "message": str}]}
_TAINT = {"key!": str, "effect!": str, "value": str}
_POD = {"metadata": _TEXTED, "spec!": _ANY}
_JOB = {"ttlSecondsAfterFinished": int, "activeDeadlineSeconds": int, "template!": _POD}
_DEVICES = [{"name!": str, "attributes": {"*": _ANY}, "taints": [_TAINT]}]
_FORMS: dict[str, Any] = {
    "nodes": {
        "metadata!": _WRITTEN,
        "spec": {"taints": [_TAINT]},
        "status": {**_CONDITIONS, "capacity": _ANY, "allocatable": _ANY},
    },
    "leases": {**_OBJECT, "metadata!": _WRITTEN},
    "jobs": {**_OBJECT, "metadata!": _NAMED, "status": _CONDITIONS},
    "cronjobs": {"metadata!": _NAMED, "spec!": {"jobTemplate!": {"metadata": _TEXTED, "spec!": _JOB}}},
    "resourceslices": {"spec!": {"driver!": str, "pool!": {"name!": str, "generation!": int}, "devices": _DEVICES}},
    "devicetaintrules": {
        "metadata!": _NAMED,
        "spec!": {"deviceSelector": {"driver": str, "pool": str, "device": str}, "taint!": _TAINT},
        "status": _CONDITIONS,
    },
}
TABLE_FORM = {
    "columnDefinitions!": [{"name!": str}],
    "rows": [{"cells!": [], "object": {"metadata": _METADATA}}],
    "metadata": {"continue": str, "remainingItemCount": int},
}


def form_of(resource: str) -> Any:
    """That of an object, by the resource that was asked for: ``nodes/status`` is answered with a Node."""
    return _FORMS.get(resource.partition("/")[0], _OBJECT)


def wrong(value: Any, form: Any) -> str:
    """The first field of another form than it must have, as a person finds it; empty if there is none."""
    found = _wrong(value, form)
    return printable(f"it{found}" if found.startswith(" ") else found.lstrip("."))[:200]


def _wrong(value: Any, form: Any) -> str:
    """``.spec.taints[0].key is no text``. Nearly every answer is well: where is put together only for what is not."""
    kind: Any = form if isinstance(form, type) else type(form)
    if not isinstance(value, kind) or isinstance(value, bool):
        return f" is no {_CALLED[kind]}"
    if kind is list and form:
        return next((f"[{number}]{found}" for number, one in enumerate(value) if (found := _wrong(one, form[0]))), "")
    if kind is dict:
        for name, part in form.items():
            key = name.rstrip("!")
            for found in value if key == "*" else (key,):
                if type(inner := value.get(found)) is part:
                    continue  # as most are: this spares a call
                if inner is None and key != "*":
                    if key != name:
                        return f".{found} is missing"
                elif wrong_inside := _wrong(inner, part):
                    return f".{found}{wrong_inside}"
    return ""
