"""How the node's pods are, as the kubelet's Pods API says it: a gRPC server of ours plays the kubelet."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.config.config_file import load
from agent.model.errors import UnaskedError
from agent.sources.kubelet.pod_resources import messages
from agent.sources.kubelet.pods_api import _LISTED, _POD, PodsApi, command_line
from agent.sources.process.command_lines import supervisor
from agent.sources.process.remote import Remote
from tests.sources.kubelet.playing import served
from tests.waiting import LATEST_S, until

LISTED, KNOWN = messages("v1alpha1", _LISTED), messages("corev1", _POD)


def pod(name: str, phase: str, **health: str) -> bytes:
    """A device of it for each word."""
    made = KNOWN["Pod"]()
    made.metadata.name, made.metadata.namespace, made.status.phase = name, "a", phase
    if health:
        resource = made.status.statuses.add().resources.add(name="nvidia.com/gpu")
        for device, word in health.items():
            resource.devices.add(id=device, health=word, message="it said so" if word == "Unhealthy" else "")
    return bytes(made.SerializeToString())


class Kubelet(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no type information
    def __init__(self) -> None:
        self.pods: list[bytes] = []

    def service(self, details: Any) -> Any:
        if details.method != "/v1alpha1.Pods/ListPods":
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: LISTED["ListPodsResponse"](pods=self.pods),
            request_deserializer=LISTED["ListPodsRequest"].FromString,
            response_serializer=LISTED["ListPodsResponse"].SerializeToString,
        )


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[tuple[Kubelet, Path]]:
    socket, played = tmp_path / "pods-api.sock", Kubelet()
    with served(socket, played):
        yield played, socket


def test_each_pod_is_told_with_its_phase_and_with_devices_that_are_not_healthy(kubelet: tuple[Kubelet, Path]) -> None:
    played, socket = kubelet
    played.pods = [pod("train", "Running", g1="Unhealthy", g2="Healthy", g3="Unknown"), pod("web\x1b[2J", "")]
    assert PodsApi(command_line(socket)).who_runs() == {
        "a/train": "Running; nvidia.com/gpu g1 Unhealthy (it said so); nvidia.com/gpu g3 Unknown",
        "a/web?[2J": "Unknown",
    }


@pytest.mark.parametrize("containers", [1, 2])
def test_it_is_asked_in_one_container_and_in_two(kubelet: tuple[Kubelet, Path], folder: Path, containers: int) -> None:
    played, socket = kubelet
    played.pods = [pod("train", "Running")]
    made = folder / "config.yaml"
    made.write_text(json.dumps({"sources": {"pods": {"pods_api": str(socket)}}}))
    if containers == 1:
        assert supervisor(load(made)).who_runs() == {"a/train": "Running"}
        return
    options = ["--config", str(made), "--socket", str(folder / "s"), "--simulate", "--simulation-dir", str(folder)]
    other = subprocess.Popen([sys.executable, "-m", "agent", "sources", *options], stderr=subprocess.DEVNULL)
    try:
        until((folder / "s").is_socket)
        assert Remote(folder / "s", ()).who_runs() == {"a/train": "Running"}
    finally:
        other.terminate()
        other.wait(LATEST_S)


def _hostile(played: Kubelet, socket: Path) -> Path:
    played.pods = [b"\xff\xff"]
    return socket


@pytest.mark.parametrize(
    ("asks", "why"),
    [
        (lambda _, socket: socket.with_name("none"), "is not a socket: the kubelet serves its Pods API from"),
        (_hostile, "a pod of its answer can't be read"),
        (lambda _played, _socket: None, "is not configured"),
    ],
)
def test_a_kubelet_that_does_not_serve_it_is_one_sentence(
    kubelet: tuple[Kubelet, Path], asks: Callable[[Kubelet, Path], Path | None], why: str
) -> None:
    with pytest.raises(UnaskedError, match=why):
        PodsApi(command_line(asks(*kubelet))).who_runs()
