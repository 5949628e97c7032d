"""Which pods are on the node and how they are, by the kubelet's Pods API (Kubernetes 1.37), by a process that ends.

The kubelet knows it while the API server does not answer.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from agent.model.errors import UnaskedError
from agent.model.text import printable
from agent.sources.kubelet.pod_resources import Asking, Messages, called, messages, told

_METHOD = "/v1alpha1.Pods/ListPods"
_MOST_BYTES = 64 * 1024 * 1024  # of whole pods
_MOST_CHARS, _MOST_PODS = 300, 1024  # of what is said of one, and of how many

# k8s.io/kubelet/pkg/apis/pods/v1alpha1, and k8s.io/api/core/v1 as far as it is read.
_LISTED: Messages = {"ListPodsRequest": {}, "ListPodsResponse": {"pods": (1, True, "bytes")}}
_POD: Messages = {
    "Pod": {"metadata": (1, False, "ObjectMeta"), "status": (3, False, "PodStatus")},
    "ObjectMeta": {"name": (1, False, "string"), "namespace": (3, False, "string")},
    "PodStatus": {"phase": (1, False, "string"), "statuses": (8, True, "ContainerStatus")},
    "ContainerStatus": {"resources": (14, True, "ResourceStatus")},
    "ResourceStatus": {"name": (1, False, "string"), "devices": (2, True, "ResourceHealth")},
    "ResourceHealth": {"id": (1, False, "string"), "health": (2, False, "string"), "message": (6, False, "string")},
}

Runs = Mapping[str, str]  # namespace/name → how the pod is, in words


def command_line(socket: Path | None) -> list[str]:
    """Of the process that asks; empty where nobody is to be asked."""
    return [sys.executable, "-m", "agent.sources.kubelet.pods_api", "--socket", str(socket)] if socket else []


class PodsApi(Asking):
    """The kubelet's Pods API."""

    def who_runs(self) -> Runs:
        """UnaskedError if it is not to be asked, or could not be."""
        if not self._command:
            raise UnaskedError("the kubelet's Pods API is not configured")
        return runs(self.answer())


def runs(answer: Any) -> Runs:
    """The answer as it is passed on in JSON; UnaskedError if it is none, or says why there is none."""
    if not isinstance(answer, dict):
        raise UnaskedError("no answer that makes sense")
    if "unasked" in answer:
        raise UnaskedError(printable(str(answer["unasked"]))[:200])
    return {printable(str(pod)): printable(str(how))[:_MOST_CHARS] for pod, how in [*answer.items()][:_MOST_PODS]}


def ask(socket: Path) -> dict[str, str]:
    """One ListPods call; OSError, ValueError or grpc.RpcError where there is no answer."""
    from google.protobuf.message import DecodeError

    listed, known = messages("v1alpha1", _LISTED), messages("corev1", _POD)
    answer = called(socket, _METHOD, listed["ListPodsRequest"], listed["ListPodsResponse"], _MOST_BYTES)
    try:
        pods = [known["Pod"].FromString(one) for one in answer.pods]
    except DecodeError as error:
        raise ValueError("a pod of its answer can't be read") from error
    return {f"{pod.metadata.namespace}/{pod.metadata.name}": "; ".join(_said(pod.status)) for pod in pods}


def _said(status: Any) -> Iterator[str]:
    yield status.phase or "Unknown"
    for resource in (one for container in status.statuses for one in container.resources):
        for device in resource.devices:
            if device.health not in ("", "Healthy"):
                why = f" ({device.message})" if device.message else ""
                yield f"{resource.name} {device.id} {device.health}{why}"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.kubelet.pods_api", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    socket = parser.parse_args(arguments).socket
    told(socket, "the kubelet serves its Pods API from Kubernetes 1.37 on", "Pods", ask)


if __name__ == "__main__":
    main(sys.argv[1:])
