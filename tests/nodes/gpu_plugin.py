"""A device plugin that offers made-up ``nvidia.com/gpu`` devices, with the UUIDs of the simulated GPUs, to the kubelet.

A line in /run/gpu-unhealthy (an index or a UUID) makes that device Unhealthy; ``GONE`` before it takes it off the list,
as a plugin does for a GPU that fell off the bus.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc

from agent.simulation.gpu import h100_8
from agent.sources.kubelet.pod_resources import Messages, messages

_FOLDER, _SICK = Path("/var/lib/kubelet/device-plugins"), Path("/run/gpu-unhealthy")
_SERVICE = "/v1beta1.DevicePlugin"
# k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1, as far as it is needed; a map is a list of entries on the wire.
_MESSAGES: Messages = {
    "Empty": {},
    "DevicePluginOptions": {},
    "RegisterRequest": {
        "version": (1, False, "string"),
        "endpoint": (2, False, "string"),
        "resource_name": (3, False, "string"),
    },
    "ListAndWatchResponse": {"devices": (1, True, "Device")},
    "Device": {"ID": (1, False, "string"), "health": (2, False, "string")},
    "AllocateRequest": {"container_requests": (1, True, "ContainerAllocateRequest")},
    "ContainerAllocateRequest": {"devices_ids": (1, True, "string")},
    "AllocateResponse": {"container_responses": (1, True, "ContainerAllocateResponse")},
    "ContainerAllocateResponse": {"envs": (1, True, "Entry")},
    "Entry": {"key": (1, False, "string"), "value": (2, False, "string")},
}
_KNOWN = messages("v1beta1", _MESSAGES)


class Plugin(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no type information
    def __init__(self, uuids: list[str]) -> None:
        self._uuids = uuids

    def service(self, details: Any) -> Any:
        """The three calls that the kubelet makes of a plugin."""
        known: dict[str, tuple[Any, Any, str]] = {
            f"{_SERVICE}/GetDevicePluginOptions": (grpc.unary_unary_rpc_method_handler, self._options, "Empty"),
            f"{_SERVICE}/ListAndWatch": (grpc.unary_stream_rpc_method_handler, self._list, "Empty"),
            f"{_SERVICE}/Allocate": (grpc.unary_unary_rpc_method_handler, self._allocate, "AllocateRequest"),
        }
        if details.method not in known:
            return None
        handler, answer, request = known[details.method]
        return handler(
            answer,
            request_deserializer=_KNOWN[request].FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    def _options(self, _request: Any, _context: Any) -> Any:
        return _KNOWN["DevicePluginOptions"]()

    def _list(self, _request: Any, context: Any) -> Iterator[Any]:
        sent = None
        while context.is_active():
            answer = _KNOWN["ListAndWatchResponse"]()
            for uuid, health in devices(self._uuids, _SICK.read_text() if _SICK.exists() else ""):
                answer.devices.add(ID=uuid, health=health)
            if answer != sent:
                yield answer
                sent = answer
            time.sleep(0.2)

    def _allocate(self, request: Any, _context: Any) -> Any:
        answer = _KNOWN["AllocateResponse"]()
        for one in request.container_requests:
            answer.container_responses.add().envs.add(key="NVIDIA_VISIBLE_DEVICES", value=",".join(one.devices_ids))
        return answer


def devices(uuids: list[str], sick: str) -> list[tuple[str, str]]:
    """What is offered, with its health, by the lines of the file."""
    state = {line.split()[-1]: line.split()[0] for line in sick.splitlines() if line.strip()}
    offered = []
    for index, uuid in enumerate(uuids):
        word = state.get(str(index)) or state.get(uuid)
        if word != "GONE":
            offered.append((uuid, "Unhealthy" if word else "Healthy"))
    return offered


def register(endpoint: str) -> None:
    with grpc.insecure_channel(f"unix://{_FOLDER}/kubelet.sock") as channel:
        call = channel.unary_unary(
            "/v1beta1.Registration/Register",
            request_serializer=_KNOWN["RegisterRequest"].SerializeToString,
            response_deserializer=_KNOWN["Empty"].FromString,
        )
        request = _KNOWN["RegisterRequest"](version="v1beta1", endpoint=endpoint, resource_name="nvidia.com/gpu")
        call(request, timeout=5)


def kubelet() -> int | None:
    """Which kubelet listens, by its socket's birth."""
    try:
        return (_FOLDER / "kubelet.sock").stat().st_ctime_ns
    except FileNotFoundError:
        return None


def main(count: int) -> None:
    uuids, known = [gpu.uuid for gpu in h100_8()[:count]], None
    while True:  # a kubelet that starts again empties its folder: serve anew and register again
        now = kubelet()
        if now and now != known:
            endpoint = f"simulated-{time.time_ns()}.sock"
            server = grpc.server(ThreadPoolExecutor(8))
            server.add_generic_rpc_handlers((Plugin(uuids),))
            server.add_insecure_port(f"unix://{_FOLDER / endpoint}")
            server.start()
            try:
                register(endpoint)
                known = now
            except grpc.RpcError as error:
                print("not registered:", error, flush=True)
                server.stop(0)
        time.sleep(0.3)


if __name__ == "__main__":
    main(int(sys.argv[1]))
