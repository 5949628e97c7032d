"""``gpu-health-agent run`` as an operator starts it: a process with a log, which says where it listens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from tests.waiting import LATEST_S

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """The environment for programs under test: no cluster of the person's own may leak in."""
    return {k: v for k, v in os.environ.items() if k not in ("KUBECONFIG", "NODE_NAME", "POD_UID")}


class Running:
    """One life of an agent, by the name of its module. Its log goes on where that of the life before ended."""

    def __init__(
        self, log: Path, config: Path, node: str, kubeconfig: Path, *extra: str, module: str = "agent", **variables: str
    ) -> None:
        options = ["--config", str(config), "--node", node, "--kubeconfig", str(kubeconfig), *extra]
        self._log, environ = log, {**environment(), **variables}
        with log.open("ab") as out:
            self._began = out.tell()
            command = [sys.executable, "-m", module, "run", *options]
            self._process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=environ)
        self.pid, self._port = self._process.pid, 0

    @property
    def port(self) -> int:
        """0 before it listens."""
        if not self._port:
            said = self._log.read_bytes()[self._began :]
            assert self._process.poll() is None, said.decode()[-3000:]
            lines = (line for line in said.splitlines() if b'"event": "started"' in line)
            self._port = next((int(json.loads(line)["port"]) for line in lines), 0)
        return self._port

    def get(self, path: str) -> str:
        """OSError: nobody answers there, or not with 200."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return str(answer.read().decode())

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Returns once it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        self._process.wait(LATEST_S)
