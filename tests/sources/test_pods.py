"""Who holds which GPU, as the kubelet's PodResources API says it: a gRPC server of ours plays the kubelet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from agent.sources.pods import UnaskedError, gpu_of, messages, who_holds

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


class Kubelet(grpc.GenericRpcHandler):
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
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((played,))
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        yield played, socket
        server.stop(None).wait()


def test_each_pod_is_told_with_the_gpus_that_it_holds(kubelet: tuple[Kubelet, Path]) -> None:
    played, socket = kubelet
    played.answer = lambda: listing(
        whole={"nvidia.com/gpu": [A, B]},
        shared={"nvidia.com/gpu.shared": [f"{A}::3"]},
        old_mig={"nvidia.com/mig-1g.5gb": [f"MIG-{B}/7/0"]},
        network={"rdma/hca": ["mlx5_0"]},
        nothing={},
        mystery={"nvidia.com/gpu": [A, "MIG-no-such-instance"]},
        claimed={"claims": ["gpu-0"]},
    )
    assert who_holds(socket) == {
        "a/whole": {A, B},
        "a/shared": {A},
        "a/old_mig": {B},
        "a/network": set(),
        "a/nothing": set(),
        "a/mystery": None,
        "a/claimed": None,
    }


def test_a_kubelet_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UnaskedError, match="is not a socket: mount the kubelet's folder"):
        who_holds(tmp_path / "kubelet.sock")


def test_a_kubelet_that_hangs_is_one_sentence(kubelet: tuple[Kubelet, Path]) -> None:
    played, socket = kubelet
    played.answer = lambda: time.sleep(6)
    with pytest.raises(UnaskedError, match="does not answer: DEADLINE_EXCEEDED"):
        who_holds(socket)


@pytest.mark.parametrize("device", ["", "0", "gpu", "MIG-", "GPU-short", "../../x"])
def test_an_id_that_says_nothing_is_not_guessed(device: str) -> None:
    assert gpu_of(device) is None
