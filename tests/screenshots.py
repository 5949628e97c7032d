"""``make screenshots``: the page / of a real agent in its states, taken by Debian's Chromium into build/screenshots."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from tests.monitoring.site import ROOT, Agent, ApiServer, until

TAKEN = ROOT / "build" / "screenshots"
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
          "--disable-background-networking", "--disable-component-update", "--disable-sync",
          "--virtual-time-budget=1000")  # fmt: skip


def main() -> None:
    TAKEN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        api = ApiServer(folder)
        agent = Agent(api, "gpu-node-7", folder)
        try:
            api.cluster.add_pod("research", "train-0", "gpu-node-7", gpus=4, owner="Job")
            api.cluster.add_pod("serving", "inference-a", "gpu-node-7", gpus=1)
            api.protected.add("train-0")
            take(agent, folder, "healthy")
            agent.inject("--gpu", "5", "--temperature", "95")
            until("degraded", lambda: agent.state().get("status") == "degraded")
            take(agent, folder, "degraded")
            agent.inject("--gpu", "3", "--xid", "79")
            until("draining", lambda: agent.state().get("stage") == "draining" and agent.state()["waits"])
            take(agent, folder, "unhealthy-draining")
            take(agent, folder, "unhealthy-draining-phone", "400,2400")
            take(agent, folder, "unhealthy-draining-dark", dark=True)
            agent.inject("--gpu", "0", "--hang", "nvmlDeviceGetEccMode")
            until("blind", lambda: agent.state().get("blind"))
            take(agent, folder, "unhealthy-and-blind")
        finally:
            agent.stop()
            api.shutdown()


def take(agent: Agent, folder: Path, name: str, size: str = "1200,1500", dark: bool = False) -> None:
    target = TAKEN / f"{name}.png"
    profile = tempfile.mkdtemp(dir=folder)
    theme = ("--force-dark-mode", "--blink-settings=preferredColorScheme=0") if dark else ()
    command = ["chromium", *_FLAGS, *theme, f"--user-data-dir={profile}", f"--window-size={size}",
               f"--screenshot={target}", f"http://127.0.0.1:{agent.port}/?hold"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert target.is_file(), done.stderr
    print(target)


if __name__ == "__main__":
    main()
