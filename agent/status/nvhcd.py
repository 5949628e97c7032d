"""The same answer by gRPC, as NVIDIA's ft_launcher asks for it: ``--ft-node-health-check-endpoint``.

Its messages: NVIDIA/nvidia-resiliency-ext, shared_utils/proto/nvhcd.proto. A launcher that gets no answer takes its
node for healthy.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from agent.sources.kubelet.pod_resources import Messages, messages
from agent.status.fitness import Answer

_SERVICE, _METHOD = "nvhcd.HealthCheckService", "RunHealthCheck"
_MOST, _MOST_BYTES = 2048, 16 * 1024
MESSAGES: Messages = {
    "HealthCheckRequest": {"args": (1, True, "string")},
    "HealthCheckResponse": {
        "success": (1, False, "bool"),
        "exit_code": (2, False, "int32"),
        "output": (3, False, "string"),
        "error": (4, False, "string"),
    },
}


def serve(path: Path, now: Callable[[], Answer]) -> Any:
    """The server, which has begun; whoever drops it ends it. OSError, RuntimeError: it can't listen there."""
    import grpc

    known = messages("nvhcd", MESSAGES)

    def run(_request: Any, _context: Any) -> Any:
        found = now()
        failed = [] if found.fit else [found.status, *found.why]
        output = json.dumps({"fail_count": len(failed), "failed_checks": failed})
        return known["HealthCheckResponse"](success=found.fit, exit_code=int(not found.fit), output=output)

    handler = grpc.unary_unary_rpc_method_handler(
        run,
        request_deserializer=known["HealthCheckRequest"].FromString,
        response_serializer=known["HealthCheckResponse"].SerializeToString,
    )
    # Beyond so many, and so long, a call is refused, and its launcher takes the node for healthy.
    longest = (("grpc.max_receive_message_length", _MOST_BYTES),)
    server = grpc.server(ThreadPoolExecutor(4, "nvhcd"), options=longest, maximum_concurrent_rpcs=_MOST)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {_METHOD: handler}),))
    path.unlink(missing_ok=True)
    server.add_insecure_port(f"unix:{path}")
    server.start()
    path.chmod(0o666)
    return server
