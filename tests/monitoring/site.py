"""A cluster in memory that listens on loopback, and real agent processes with simulated GPUs on its nodes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.running import ROOT, Running

LONG_S = 60.0  # for what takes a second on a quiet machine


def until(what: str, true: Callable[[], Any], timeout_s: float = LONG_S) -> Any:
    """Its first true answer."""
    deadline = time.monotonic() + timeout_s
    while not (answer := true()):
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.05)
    return answer


def get(url: str) -> Any:
    """JSON by GET; None while nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return json.loads(answer.read() or b"null")
    except OSError:
        return None


class ApiServer(ThreadingHTTPServer):
    """A PretendCluster over HTTP; evictions of ``protected`` pods are refused, as a budget would."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.cluster = InMemoryCluster()
        self.protected: set[str] = set()
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.server_address[1]}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [cluster],
                    "contexts": [context],
                    "users": [{"name": "u", "user": {"token": "t"}}],
                }
            )
        )
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answer(self, method: str, path: str, body: Any, content_type: str, accept: str) -> tuple[int, Any]:
        if path.endswith("/eviction") and path.split("/")[-2] in self.protected:
            said = "Cannot evict pod as it would violate the pod's disruption budget."
            return 429, {"message": said, "details": {"causes": [{"reason": "DisruptionBudget"}]}}
        return self.cluster(method, path, body, content_type, accept)


class _Requests(BaseHTTPRequestHandler):
    server: ApiServer
    protocol_version = "HTTP/1.1"

    def _any(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = str(self.headers.get("Content-Type", "application/json"))
        accept = str(self.headers.get("Accept", "application/json"))
        status, answer = self.server.answer(self.command, self.path, json.loads(text) if text else None, kind, accept)
        if not isinstance(answer, dict):
            self._watched(answer)
            return
        body = json.dumps({"kind": "Any", **answer}).encode()  # as the real one's have
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watched(self, events: Iterator[Any]) -> None:
        """For as long as whoever watches listens."""
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            for event in events:
                self.wfile.write(json.dumps(event).encode() + b"\n")

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815 - http.server names them

    def log_message(self, *_: Any) -> None:
        """The agent's own log tells enough."""


class Agent:
    """``gpu-health-agent run`` on one node, with simulated GPUs."""

    def __init__(self, api: ApiServer, node: str, folder: Path, **settings: Any) -> None:
        api.cluster.add_node(node)
        self.simulation = folder / node
        config = folder / f"{node}.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "mode": "evict",
                    "poll_s": 0.5,
                    "http": {"address": "127.0.0.1", "port": 0},
                    "policy": {
                        "soak_s": 2,
                        "flag_confirm_s": 0.3,
                        "temperature_confirm_s": 1,
                        "temperature_clear_s": 2,
                    },
                    "drain": {"gather_s": 0.5},
                    **settings,
                }
            )
        )
        self.log = folder / f"{node}.log"
        simulated = ("--simulate", "--simulation-dir", str(self.simulation))
        self._life = Running(self.log, config, node, api.kubeconfig, *simulated, NO_PROXY="127.0.0.1")
        self.port = until(f"the agent of {node} listens", lambda: self._life.port)
        until(f"the GPUs of {node} are read", lambda: self.state().get("status") == "healthy")

    def state(self) -> dict[str, Any]:
        return get(f"http://127.0.0.1:{self.port}/state") or {}

    def inject(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "agent", "inject", "--simulation-dir", str(self.simulation), *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)

    def stop(self) -> None:
        self._life.end()
