"""kill -9 after every single write, on a real API server: the agent stands behind a proxy that sees each of them."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.conftest import AgentProcess, Site, StartAgent
from tests.cluster.test_repair import jobs


class Proxy:
    """Forwards to the API server; ``written`` is called after each write was carried out, before it is answered."""

    def __init__(self, kubeconfig: Path, own: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._host = urlsplit(cluster["server"]).netloc
        self._trust = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self.written: Callable[[str, str], None] = lambda method, path: None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection = http.client.HTTPSConnection(proxy._host, timeout=30, context=proxy._trust)
                try:
                    headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                    connection.request(self.command, self.path, body or None, headers)
                    answer = connection.getresponse()
                    text = answer.read()
                finally:
                    connection.close()
                if self.command != "GET" and answer.status < 300 and "dryRun" not in self.path:
                    proxy.written(self.command, self.path)
                try:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers.get("Content-Type", "application/json"))
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)
                except OSError:
                    self.close_connection = True  # whoever asked is dead

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        cluster.pop("certificate-authority")
        cluster["server"] = f"http://127.0.0.1:{self._server.server_address[1]}"
        own.write_text(yaml.safe_dump(config))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxied(site: Site, tmp_path: Path) -> Iterator[tuple[Proxy, Path]]:
    proxy = Proxy(site.plane.agent_kubeconfig(site.nodes[0]), tmp_path / "proxied.kubeconfig")
    yield proxy, tmp_path / "proxied.kubeconfig"
    proxy.close()


def killed_after_each_write(
    site: Site, proxy: Proxy, running: AgentProcess, gpu: str, wrote: Callable[[], object] = bool
) -> list[str]:
    """From a fault of this GPU to the node's return: after which writes it was killed. ``wrote`` hears of every one."""
    running.module = "tests.cluster.hasty"  # every life from the first kill on
    killed: list[str] = []
    dead = threading.Event()

    def kill(method: str, path: str) -> None:
        """After each write but an Event, which changes no plan, and the third confirmation of a permit or a condition:
        every new life begins with one, and every minute brings another."""
        write = f"{method} {path}"
        wrote()
        if path.endswith("/events"):
            return
        confirms = "leases" in path or path.endswith("/status")
        if site.taints() and not dead.is_set() and not (confirms and killed.count(write) >= 2):
            killed.append(write)
            running.kill()
            dead.set()

    running.inject("--gpu", gpu, "--xid", "95")
    proxy.written = kill
    healed = False
    for _ in range(40):  # the last life waits 30 s for what the one before may have asked
        if not healed and jobs(site):
            running.inject("--gpu", gpu, "--clear")  # what the Job would have done
            healed = True
        if not dead.wait(6):
            if not site.taints() and killed:
                break
            continue
        dead.clear()
        running.start()
    proxy.written = lambda method, path: None
    site.plane.wait("returned", lambda: site.taints() == [] and running.state()["status"] == "healthy")
    return killed


def test_killed_after_every_write_from_the_taint_on_it_repairs_once_and_returns(
    site: Site, agent: StartAgent, proxied: tuple[Proxy, Path]
) -> None:
    proxy, kubeconfig = proxied
    site.deploy("train", 1, pin=site.nodes[0])
    running = agent(simulate="idle", kubeconfig=kubeconfig, repair={"reset_gpu": "gpu-reset", "pause_s": 1})
    site.plane.wait("healthy", lambda: running.state()["status"] == "healthy")
    killed = killed_after_each_write(site, proxy, running, "3")
    site.plane.wait("state", lambda: site.node()["metadata"]["labels"]["gpu-health-agent/state"] == "healthy")
    assert len(jobs(site)) == 1, killed
    assert site.running("train") == [site.nodes[1]]
    assert len(killed) >= 8, killed
