"""A gRPC server of ours that plays the kubelet."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc


@contextmanager
def served(socket: Path, kubelet: grpc.GenericRpcHandler) -> Iterator[None]:
    """It answers at ``socket`` meanwhile."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((kubelet,))
        server.add_insecure_port(f"unix://{socket}")
        server.start()
        yield
        server.stop(None).wait()
