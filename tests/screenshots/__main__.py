"""``make screenshots``: what a person sees of real agents, taken by Debian's Chromium into build/screenshots.

The documents show some of them, which are kept beside them.
"""

from __future__ import annotations

import html
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import agent as product
from agent.model.text import rfc3339
from tests.monitoring.site import Agent, ApiServer, until
from tests.monitoring.stack import Stack
from tests.running import ROOT
from tests.screenshots.panels import served

TAKEN = ROOT / "build" / "screenshots"
_KEPT = {
    "unhealthy-draining": "daemonset/guide/page.png",
    "nodes-watch": "daemonset/guide/nodes.png",
    "dashboard": "daemonset/monitoring/dashboard.png",
}
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--run-all-compositor-stages-before-draw",  # else a busy machine's picture may be torn
)
_WATCHED_S = 30.0  # long enough for lines in the dashboard


def main() -> None:
    TAKEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, ExitStack() as ending:
        folder = Path(name)
        api = ApiServer(folder)
        ending.callback(api.server_close)
        ending.callback(api.shutdown)
        agents = {node: Agent(api, node, folder) for node in ("gpu-node-7", "gpu-node-8", "gpu-node-9")}
        for node, agent in agents.items():
            ending.callback(agent.stop)
            pod_of_agent(api, node)
        stack = Stack(folder, {node: agent.port for node, agent in agents.items()})
        ending.callback(stack.stop)
        page(api, agents["gpu-node-7"], folder)
        agents["gpu-node-8"].inject("--gpu", "2", "--ecc-uncorrected", "3")
        agents["gpu-node-9"].inject("--gpu", "1", "--xid", "13")
        time.sleep(_WATCHED_S)
        fleet(api, folder)
        watched(api, folder)
        with served(stack.prometheus.url) as address:
            for picture, theme, size in (
                ("dashboard", "light", "1620,1060"),
                ("dashboard-light", "light", "1620,2240"),
                ("dashboard-dark", "dark", "1620,2240"),
            ):
                take(f"{address}&node=gpu-node-7&theme={theme}", folder, picture, size, wait_ms=15_000)
    for name, kept in _KEPT.items():
        shutil.copy(TAKEN / f"{name}.png", ROOT / kept)


def pod_of_agent(api: ApiServer, node: str) -> None:
    """Its agent is a process of this machine; the fleet is told of agents by the DaemonSet's pods."""
    owner = {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "gpu-health-agent", "uid": "u", "controller": True}
    labels = {"app.kubernetes.io/name": "gpu-health-agent", "app.kubernetes.io/version": product.__version__}
    metadata = {
        "name": f"gpu-health-agent-{node}",
        "namespace": "gpu-health-agent",
        "creationTimestamp": rfc3339(time.time(), "seconds"),
        "labels": labels,
        "ownerReferences": [owner],
    }
    spec = {"nodeName": node, "containers": [{"name": "agent"}]}
    status = {"phase": "Running", "containerStatuses": [{"name": "agent", "ready": True}]}
    pod = {"metadata": metadata, "spec": spec, "status": status}
    api.cluster("POST", "/api/v1/namespaces/gpu-health-agent/pods", pod)


def watched(api: ApiServer, folder: Path) -> None:
    """``kubectl gpu-health --watch``, as a terminal of 140 columns shows it."""
    command = [sys.executable, "-m", "agent", "nodes", "--watch", "--kubeconfig", str(api.kubeconfig)]
    command += ["--config", str(folder / "gpu-node-7.yaml")]
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(command, stdout=theirs, cwd=ROOT, env={**os.environ, "COLUMNS": "140"})
    os.close(theirs)
    text = ""
    while text.count("\x1b[2J") < 3:  # the second picture is whole once a third begins
        text += os.read(ours, 65536).decode()
    watching.kill()
    watching.wait()
    os.close(ours)
    shown = html.escape(text.split("\x1b[2J")[2].replace("\x1b[H", "").replace("\r", ""))
    style = "background:#16181d;color:#e6e6e6;font:14px/1.45 monospace;padding:16px;margin:0;min-height:100vh"
    file = folder / "watched.html"
    file.write_text(
        f'<!doctype html><meta charset="utf-8"><pre style="{style}">$ kubectl gpu-health --watch\n\n{shown}</pre>'
        "<style>body{margin:0}</style>",
        encoding="utf-8",
    )
    take(file.as_uri(), folder, "nodes-watch", "1240,230")


def fleet(api: ApiServer, folder: Path) -> None:
    """``gpu-health-agent nodes -o html``."""
    file, config = folder / "nodes.html", folder / "gpu-node-7.yaml"
    asked = ["--output", "html", "--kubeconfig", str(api.kubeconfig), "--config", str(config)]
    command = [sys.executable, "-m", "agent", "nodes", *asked]
    file.write_bytes(subprocess.run(command, check=True, capture_output=True, cwd=ROOT).stdout)
    take(file.as_uri(), folder, "nodes", "1200,420")


def page(api: ApiServer, agent: Agent, folder: Path) -> None:
    """The page / in its states."""
    address = f"http://127.0.0.1:{agent.port}/?hold"
    api.cluster.add_pod("research", "train-0", "gpu-node-7", gpus=4, owner="Job")
    api.cluster.add_pod("serving", "inference-a", "gpu-node-7", gpus=1)
    api.protected.add("train-0")
    take(address, folder, "healthy")
    agent.inject("--gpu", "5", "--temperature", "95")
    until("degraded", lambda: agent.state().get("status") == "degraded")
    take(address, folder, "degraded")
    agent.inject("--gpu", "3", "--xid", "79")
    until("draining", lambda: agent.state().get("stage") == "draining" and agent.state()["waits"])
    take(address, folder, "unhealthy-draining", "1200,900")
    take(address, folder, "unhealthy-draining-phone", "400,2400")
    take(address, folder, "unhealthy-draining-dark", dark=True)
    agent.inject("--gpu", "0", "--hang", "nvmlDeviceGetEccMode")
    until("blind", lambda: agent.state().get("blind"))
    take(address, folder, "unhealthy-and-blind")


def take(
    address: str, folder: Path, name: str, size: str = "1200,1500", dark: bool = False, wait_ms: int = 5000
) -> None:
    target = TAKEN / f"{name}.png"
    profile = tempfile.mkdtemp(dir=folder)
    theme = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ()
    command = [
        "chromium",
        *_FLAGS,
        *theme,
        f"--virtual-time-budget={wait_ms}",
        f"--user-data-dir={profile}",
        f"--window-size={size}",
        f"--screenshot={target}",
        address,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert target.is_file(), done.stderr
    print(target)


if __name__ == "__main__":
    main()
