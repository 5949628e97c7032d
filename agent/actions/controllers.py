"""What controls a pod: as a person knows it, and as an Event may be about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.actions.rights import TOLD_CONTROLLERS
from agent.model.errors import RefusedError
from agent.model.world import About

_SCHEDULED = re.compile(r"(.+)-\d{8,}")  # a CronJob names its Jobs by the minute


def controller(metadata: Mapping[str, Any]) -> About | None:
    """As long as real ones are: whoever makes a pod may write any text there, and it is stored on the Node."""
    found = (one for one in metadata.get("ownerReferences") or () if one.get("controller"))
    return next((_about(one, metadata["namespace"]) for one in found), None)


def _about(owner: Mapping[str, Any], namespace: str) -> About:
    uid, version = str(owner.get("uid") or ""), str(owner.get("apiVersion") or "")
    return About(owner["kind"][:63], namespace, owner["name"][:253], uid[:63], version[:253])


def workload(metadata: Mapping[str, Any]) -> str:
    """The controller that a person knows: a Deployment behind its ReplicaSet, a CronJob behind its Job."""
    owner = controller(metadata)
    kind, name = (owner.kind, owner.name) if owner else ("Pod", metadata["name"])
    template = (metadata.get("labels") or {}).get("pod-template-hash")
    if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
        kind, name = "Deployment", name.removesuffix(f"-{template}")
    elif kind == "Job" and (scheduled := _SCHEDULED.fullmatch(name)):
        kind, name = "CronJob", scheduled[1]
    return f"{metadata['namespace']}/{kind}/{name}"


def told(owner: About | None) -> About | None:
    """It, if an Event may be about it."""
    return owner if owner and owner.uid and TOLD_CONTROLLERS.get(owner.kind) == owner.version else None


def behind(api: Api, about: About) -> About:
    """The Deployment behind a ReplicaSet, which is what its people look at; else the thing itself. UnreachableError."""
    if about.kind != "ReplicaSet":
        return about
    path = f"/apis/apps/v1/namespaces/{quote(about.namespace, safe='')}/replicasets/{quote(about.name, safe='')}"
    try:
        metadata = ask(api, "GET", path)["metadata"]
        found = told(controller({**metadata, "namespace": about.namespace})) if metadata["uid"] == about.uid else None
    except (RefusedError, KeyError, TypeError, AttributeError):  # gone, not to be read, or of another form
        return about
    return found or about
