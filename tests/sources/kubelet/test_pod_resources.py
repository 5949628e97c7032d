"""Who holds which GPU, as the kubelet's PodResources API says it: a gRPC server of ours plays the kubelet."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pynvml as nv
import pytest

from agent.config.config_file import load
from agent.model.errors import UnaskedError
from agent.simulation.gpu import h100_8
from agent.simulation.library import Library
from agent.sources.kubelet.pod_resources import PodResources, command_line, gpu_of, messages
from agent.sources.process.command_lines import supervisor
from agent.sources.process.remote import Remote
from tests.sources.kubelet.playing import served
from tests.waiting import LATEST_S, until

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000001", "GPU-aaaaaaaa-0000-0000-0000-000000000002"
KNOWN = messages()


def listing(**pods: dict[str, Any]) -> Any:
    """A List answer: pod → device ids by resource name, claims as ``claims``."""
    answer = KNOWN["ListPodResourcesResponse"]()
    for name, resources in pods.items():
        pod = answer.pod_resources.add(name=name, namespace="a")
        container = pod.containers.add()
        for claim in resources.pop("claims", ()):
            container.dynamic_resources.add().claim_resources.add(driver_name="gpu.nvidia.com", device_name=claim)
        for resource, ids in resources.items():
            container.devices.add(resource_name=resource, device_ids=ids)
    return answer


class Kubelet(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no type information
    def __init__(self) -> None:
        self.answer: Callable[[], Any] = listing

    def service(self, details: Any) -> Any:
        if details.method != "/v1.PodResourcesLister/List":
            return None
        return grpc.unary_unary_rpc_method_handler(
            lambda _request, _context: self.answer(),
            request_deserializer=KNOWN["ListPodResourcesRequest"].FromString,
            response_serializer=KNOWN["ListPodResourcesResponse"].SerializeToString,
        )


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[tuple[Kubelet, Path]]:
    socket, played = tmp_path / "kubelet.sock", Kubelet()
    with served(socket, played):
        yield played, socket


def test_each_pod_is_told_with_the_gpus_that_it_holds(kubelet: tuple[Kubelet, Path]) -> None:
    played, socket = kubelet
    played.answer = lambda: listing(
        whole={"nvidia.com/gpu": [A, B]},
        shared={"nvidia.com/gpu.shared": [f"{A}::3"]},
        old_mig={"nvidia.com/mig-1g.5gb": [f"MIG-{B}/7/0"]},
        network={"rdma/hca": ["mlx5_0"]},
        renamed={"example.com/gpu": [A]},
        volcano={"volcano.sh/vgpu-number": [f"{B}-3"]},
        nothing={},
        mystery={"nvidia.com/gpu": [A, "MIG-no-such-instance"]},
        claimed={"claims": ["gpu-0"]},
    )
    assert PodResources(command_line(socket)).who_holds() == {
        "a/whole": {A, B},
        "a/shared": {A},
        "a/old_mig": {B},
        "a/network": set(),
        "a/renamed": {A},
        "a/volcano": {B},
        "a/nothing": set(),
        "a/mystery": None,
        "a/claimed": None,
    }


@pytest.mark.parametrize("containers", [1, 2])
def test_the_prefixes_of_the_configuration_tell_what_is_a_gpu_in_one_container_and_in_two(
    kubelet: tuple[Kubelet, Path], folder: Path, containers: int
) -> None:
    played, socket = kubelet
    played.answer = lambda: listing(
        ours={"vendor.example/slice": ["7"]}, mixed={"vendor.example/slice": [A]}, theirs={"nvidia.com/x": ["0"]}
    )
    settings = {"drain": {"resource_prefixes": ["vendor.example/"]}, "sources": {"pods": {"socket": str(socket)}}}
    made = folder / "config.yaml"
    made.write_text(json.dumps(settings))
    held = {"a/ours": None, "a/mixed": {A}, "a/theirs": set()}
    if containers == 1:
        assert supervisor(load(made)).who_holds() == held
        return
    options = ["--config", str(made), "--socket", str(folder / "s"), "--simulate", "--simulation-dir", str(folder)]
    other = subprocess.Popen([sys.executable, "-m", "agent", "sources", *options], stderr=subprocess.DEVNULL)
    try:
        until((folder / "s").is_socket)
        assert Remote(folder / "s", ()).who_holds() == held
    finally:
        other.terminate()
        other.wait(LATEST_S)


def test_a_kubelet_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnaskedError, match="is not a socket: mount the kubelet's folder"):
        PodResources(command_line(tmp_path / "kubelet.sock")).who_holds()


def test_a_kubelet_that_hangs_is_one_sentence(kubelet: tuple[Kubelet, Path]) -> None:
    played, socket = kubelet
    played.answer = lambda: time.sleep(6)
    with pytest.raises(UnaskedError, match="does not answer: DEADLINE_EXCEEDED"):
        PodResources(command_line(socket)).who_holds()


@pytest.mark.parametrize("device", ["", "0", "gpu", "MIG-", "GPU-short", "../../x"])
def test_an_id_that_says_nothing_is_not_guessed(device: str) -> None:
    assert gpu_of(device) is None


MIG = "MIG-12345678-0000-4000-8000-000000000005"


@pytest.fixture
def library() -> Iterator[Library]:
    """Eight simulated GPUs behind the real binding; a MIG instance of the sixth answers to its UUID."""
    made = Library(h100_8())
    made.install()
    instance = 0x77777

    def by_uuid(uuid: Any, out: Any) -> int:
        if uuid.value.decode() != MIG:
            return int(nv.NVML_ERROR_NOT_FOUND)
        ctypes.c_void_p.from_buffer(out._obj).value = instance
        return 0

    def parent(handle: Any, out: Any) -> int:
        assert ctypes.cast(handle, ctypes.c_void_p).value == instance
        return int(nv.nvmlLib.nvmlDeviceGetHandleByIndex_v2(5, out))

    nv.nvmlLib.nvmlDeviceGetHandleByUUID = by_uuid
    nv.nvmlLib.nvmlDeviceGetDeviceHandleFromMigDeviceHandle = parent
    yield made
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()


def test_a_mig_instance_and_a_claimed_gpu_are_traced_to_their_card(library: Library) -> None:
    assert gpu_of(MIG) == library.gpus[5].uuid
    assert gpu_of(f"{MIG}::2") == library.gpus[5].uuid, "shared in time"
    assert gpu_of("gpu-3") == library.gpus[3].uuid
    assert gpu_of("gpu-3-mig-1g10gb-19-0") == library.gpus[3].uuid
    assert gpu_of(MIG.replace("5", "6")) is None
    assert gpu_of("gpu-11") is None


def test_a_driver_that_does_not_answer_makes_no_guess(library: Library) -> None:
    library.init_error = 9
    assert gpu_of(MIG) is None
    assert gpu_of("gpu-3") is None
