"""A real Prometheus and a real Alertmanager on loopback, with the shipped rules and routes, and a receiver for them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from tests.monitoring.programs import at_home, program
from tests.monitoring.site import Agent, ApiServer, get, until
from tests.running import ROOT

FOLDER = ROOT / "daemonset" / "monitoring"
SCRAPE_S = 1
# Long enough for the withdrawal to be scraped before anything is told, as the shipped 30 s are.
GROUP_WAIT_S, GROUP_INTERVAL_S = 8, 3


class Receiver(ThreadingHTTPServer):
    """Takes what Alertmanager delivers: when, to whom, what."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Delivery)
        self.taken: list[tuple[float, str, dict[str, Any]]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def told(self, receiver: str, node: str, alert: str, status: str = "firing") -> tuple[float, dict[str, Any]] | None:
        """The first delivery to a receiver that tells this alert of this node."""
        for at, name, payload in list(self.taken):
            for one in payload["alerts"]:
                if (name, one["labels"]["alertname"], one["labels"].get("node", ""), one["status"]) == (
                    receiver,
                    alert,
                    node,
                    status,
                ):
                    return at, payload
        return None


class _Delivery(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        payload = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((time.monotonic(), self.path.strip("/"), payload))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """What was taken is remembered."""


class Program:
    """A server that says in its log where it listens."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=log.parent)
        self.url = f"http://127.0.0.1:{until(f'{command[0]} listens', self._port)}"
        until(f"{command[0]} is ready", self._ready)

    def _port(self) -> int:
        said = self.log.read_text()
        assert self._process.poll() is None, said
        found = re.search(r'msg="Listening on" address=127\.0\.0\.1:(\d+)', said)
        return int(found[1]) if found else 0

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def alertmanager(folder: Path, receiver: Receiver, group_wait_s: int, group_interval_s: int) -> Program:
    """With the shipped routes and inhibitions, all of whose receivers are one."""
    routes = yaml.safe_load((FOLDER / "alertmanager.yaml").read_text())
    for one in routes["receivers"]:
        one["webhook_configs"][0]["url"] = f"{receiver.url}/{one['name']}"
    (ours,) = routes["route"]["routes"]
    for route in (routes["route"], ours, *ours["routes"]):
        route.update(group_wait=f"{group_wait_s}s", group_interval=f"{group_interval_s}s")
    (folder / "alertmanager.yaml").write_text(yaml.safe_dump(routes))
    return Program(
        folder / "alertmanager.log",
        *at_home("prometheus-alertmanager", "prometheus-alertmanager"),  # its templates have a fixed place
        f"--config.file={folder}/alertmanager.yaml",
        f"--storage.path={folder}/alertmanager",
        "--web.listen-address=127.0.0.1:0",
        "--cluster.listen-address=",
    )


class Stack:
    """Scrapes ``targets`` (node → port) every second; rules and routes are the shipped ones, the times shorter."""

    def __init__(self, folder: Path, targets: Mapping[str, int]) -> None:
        self.receiver = Receiver()
        self.alertmanager = alertmanager(folder, self.receiver, GROUP_WAIT_S, GROUP_INTERVAL_S)
        config = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str(FOLDER / "rules.yaml")],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": [self.alertmanager.url[7:]]}]}]},
            "scrape_configs": [
                {
                    "job_name": "gpu-health-agent",
                    "honor_labels": True,
                    "static_configs": [
                        {"targets": [f"127.0.0.1:{port}"], "labels": {"node": node}} for node, port in targets.items()
                    ],
                }
            ],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.prometheus = Program(
            folder / "prometheus.log",
            program("prometheus", "prometheus"),
            f"--config.file={folder}/prometheus.yaml",
            f"--storage.tsdb.path={folder}/prometheus",
            "--web.listen-address=127.0.0.1:0",
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        answer = get(f"{self.prometheus.url}/api/v1/query?query={quote(expression)}")
        assert answer, expression
        return list(answer["data"]["result"])

    def alerts(self) -> list[dict[str, Any]]:
        """As Alertmanager has them, the silenced too."""
        return list(get(f"{self.alertmanager.url}/api/v2/alerts") or ())

    def stop(self) -> None:
        self.prometheus.stop()
        self.alertmanager.stop()
        self.receiver.shutdown()
        self.receiver.server_close()


@dataclass
class Fleet:
    api: ApiServer
    agents: dict[str, Agent]
    stack: Stack


@contextmanager
def fleet(folder: Path, *nodes: str) -> Iterator[Fleet]:
    """A real agent with eight GPUs on each node, all of them scraped."""
    with ExitStack() as ending:
        api = ApiServer(folder)
        ending.callback(api.server_close)
        ending.callback(api.shutdown)
        agents = {}
        for node in nodes:
            agents[node] = Agent(api, node, folder)
            ending.callback(agents[node].stop)
        stack = Stack(folder, {node: agent.port for node, agent in agents.items()})
        ending.callback(stack.stop)
        until("all agents are scraped", lambda: len(stack.query("gpu_health_agent_info")) == len(nodes))
        yield Fleet(api, agents, stack)
