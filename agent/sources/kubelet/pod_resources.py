"""Which pod holds which GPU, by the kubelet's PodResources API: one JSON object, asked for by a process that ends.

gRPC costs 20 MB, and it is only needed while pods leave a bad GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.model.errors import UnaskedError
from agent.model.ownership import GPU_DRIVER
from agent.model.text import printable, read_json
from agent.sources.process.program import say_result

_METHOD = "/v1.PodResourcesLister/List"
_ANSWER_S, _LONGEST_S, _LAST_S = 5.0, 10.0, 1.0  # for an answer, in all, and to be gone after SIGKILL
_MOST_BYTES = 16 * 1024 * 1024
_UUID = re.compile(r"GPU-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_DRA_GPU = re.compile(r"gpu-(\d+)(?:-mig-.*)?")

# k8s.io/kubelet/pkg/apis/podresources/v1, as far as it is read: message → field → (number, repeated, type).
Messages = Mapping[str, Mapping[str, tuple[int, bool, str]]]
_MESSAGES: Messages = {
    "ListPodResourcesRequest": {},
    "ListPodResourcesResponse": {"pod_resources": (1, True, "PodResources")},
    "PodResources": {
        "name": (1, False, "string"),
        "namespace": (2, False, "string"),
        "containers": (3, True, "ContainerResources"),
    },
    "ContainerResources": {"devices": (2, True, "ContainerDevices"), "dynamic_resources": (5, True, "DynamicResource")},
    "ContainerDevices": {"resource_name": (1, False, "string"), "device_ids": (2, True, "string")},
    "DynamicResource": {"claim_resources": (4, True, "ClaimResource")},
    "ClaimResource": {"driver_name": (2, False, "string"), "device_name": (4, False, "string")},
}

Holders = Mapping[str, frozenset[str] | None]


def command_line(socket: Path, prefixes: Iterable[str] = ("nvidia.com/",)) -> list[str]:
    """Of the process that asks at the kubelet's socket. ``prefixes`` are those of the resources that are GPUs."""
    options = ["--socket", str(socket), "--prefixes", *prefixes]
    return [sys.executable, "-m", "agent.sources.kubelet.pod_resources", *options]


class Asking:
    """Asks by one process at a time, and ends it; it starts none beside one that the kernel won't let end."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._stuck: subprocess.Popen[bytes] | None = None

    def answer(self) -> Any:
        """What it says in JSON; UnaskedError if the kubelet could not be asked."""
        if self._stuck is not None and self._stuck.poll() is None:
            raise UnaskedError("the process that asked last hangs in the kernel and can't be ended")
        try:
            process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except OSError as error:
            raise UnaskedError(f"the process that asks can't be started ({error.strerror})") from error
        try:
            output, complaint = process.communicate(timeout=_LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_LAST_S)
            self._stuck = process
            raise UnaskedError(f"no answer within {_LONGEST_S:.0f} s") from None
        if process.returncode:
            lines = complaint.decode(errors="replace").strip().splitlines() or ["it ended without a message"]
            raise UnaskedError(printable(lines[-1])[:200])
        try:
            return read_json(output)
        except ValueError as error:
            raise UnaskedError(f"no answer that makes sense ({type(error).__name__})") from error


class PodResources(Asking):
    """The kubelet's PodResources API."""

    def who_holds(self) -> Holders:
        """``namespace/name`` → the UUIDs of the GPUs that the pod holds; None where one of them can't be told.

        UnaskedError if the kubelet could not be asked.
        """
        return holders(self.answer())


def holders(answer: Any) -> Holders:
    """The answer as it is passed on in JSON; UnaskedError if it is none, or says why there is none."""
    if isinstance(answer, dict) and isinstance(answer.get("unasked"), str):
        raise UnaskedError(printable(answer["unasked"])[:200])
    try:
        return {pod: None if uuids is None else frozenset(_names(uuids)) for pod, uuids in answer.items()}
    except (TypeError, AttributeError) as error:
        raise UnaskedError(f"no answer that makes sense ({type(error).__name__})") from error


def _names(uuids: Any) -> list[str]:
    if not (isinstance(uuids, list) and all(isinstance(uuid, str) for uuid in uuids)):
        raise TypeError("UUIDs must be a list of texts")
    return uuids


def messages(package: str = "v1", described: Messages = _MESSAGES) -> dict[str, Any]:
    """The message classes by name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=f"{package}.proto", package=package, syntax="proto3")
    for message, fields in described.items():
        added = file.message_type.add(name=message)
        for name, (number, repeated, kind) in fields.items():
            field = added.field.add(name=name, number=number)
            field.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in described:
                field.type, field.type_name = kinds.TYPE_MESSAGE, f".{package}.{kind}"
            else:
                field.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}")) for name in described
    }


def called(socket: Path, method: str, request: Any, response: Any, most_bytes: int) -> Any:
    """The kubelet's answer to a call that says nothing; OSError or grpc.RpcError where there is none."""
    import grpc

    options = [("grpc.max_receive_message_length", most_bytes)]
    with grpc.insecure_channel(f"unix://{socket}", options=options) as channel:
        call = channel.unary_unary(
            method, request_serializer=request.SerializeToString, response_deserializer=response.FromString
        )
        return call(request(), timeout=_ANSWER_S)


def ask(socket: Path, prefixes: tuple[str, ...]) -> dict[str, list[str] | None]:
    """One List call; OSError or grpc.RpcError where there is no answer."""
    known = messages()
    kinds = known["ListPodResourcesRequest"], known["ListPodResourcesResponse"]
    answer = called(socket, _METHOD, *kinds, _MOST_BYTES)
    return {f"{pod.namespace}/{pod.name}": _gpus(_devices(pod, prefixes)) for pod in answer.pod_resources}


def _devices(pod: Any, prefixes: tuple[str, ...]) -> list[str]:
    """Every device id of a pod that is a GPU's, by device plugin and by claim.

    A plugin may call its resource as it likes, as those that share GPUs do: an id that names a GPU is one.
    """
    found = []
    for container in pod.containers:
        for device in container.devices:
            gpu = device.resource_name.startswith(prefixes)
            found += [one for one in device.device_ids if gpu or _UUID.match(one)]
        for claim in (one for resource in container.dynamic_resources for one in resource.claim_resources):
            if claim.driver_name == GPU_DRIVER:
                found.append(claim.device_name)
    return found


def _gpus(devices: Iterable[str]) -> list[str] | None:
    uuids = [gpu_of(device) for device in devices]
    return None if None in uuids else sorted({uuid for uuid in uuids if uuid})


def gpu_of(device: str) -> str | None:
    """The GPU behind a device id: ``GPU-…``, shared as ``GPU-…::3``, a MIG instance, or a claim's ``gpu-<minor>``."""
    device = device.partition("::")[0]
    if match := _UUID.search(device):  # old drivers name MIG devices MIG-GPU-<uuid>/<gi>/<ci>
        return match[0]
    return _by_nvml(device)


def _by_nvml(device: str) -> str | None:
    import pynvml as nv

    try:
        nv.nvmlInit()
        try:
            if device.startswith("MIG-"):
                parent = nv.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nv.nvmlDeviceGetHandleByUUID(device))
                return str(nv.nvmlDeviceGetUUID(parent))
            if match := _DRA_GPU.fullmatch(device):
                for index in range(nv.nvmlDeviceGetCount()):
                    handle = nv.nvmlDeviceGetHandleByIndex(index)
                    if nv.nvmlDeviceGetMinorNumber(handle) == int(match[1]):
                        return str(nv.nvmlDeviceGetUUID(handle))
        finally:
            nv.nvmlShutdown()
    except nv.NVMLError:
        pass  # not known: whoever holds it is taken to hold any GPU
    return None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.kubelet.pod_resources", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--prefixes", nargs="*", default=(), help="of the resources that are GPUs")
    options = parser.parse_args(arguments)
    missing = "mount the kubelet's folder pod-resources into the agent"
    told(options.socket, missing, "PodResources", lambda socket: ask(socket, tuple(options.prefixes)))


def told(socket: Path, missing: str, api: str, ask: Callable[[Path], Any]) -> None:
    """Say what the kubelet answers there, or end in one sentence. ``missing``: what to do where there is no socket."""
    if not socket.is_socket():
        sys.exit(f"{socket} is not a socket: {missing}")
    import grpc

    try:
        say_result(ask(socket.absolute()))
    except ValueError as error:
        sys.exit(f"the kubelet's {api} API: {error}")
    except grpc.RpcError as error:
        code = getattr(error, "code", lambda: "no answer")()
        sys.exit(f"the kubelet's {api} API does not answer: {getattr(code, 'name', code)}")


if __name__ == "__main__":
    main(sys.argv[1:])
