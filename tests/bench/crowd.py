"""What hostile neighbours cost on the agent's port: 3,000 idle clients, 600 slow ones, 30 with endless headers."""

from __future__ import annotations

import contextlib
import http.client
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path

from tests.bench.judging import Run
from tests.bench.usage import cpu_s, rollup

_IDLE, _SLOW, _LARGE, _THREADS = 3000, 600, 30, 30
_HELD_S, _DRIP_S = 20.0, 2.0
_HEADERS = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d: %b\r\n" % (n, b"a" * 65_000) for n in range(99))
_UNREAD = b"GET /state HTTP/1.0\r\n\r\n"  # by a client that never reads
_SLOWLY = b"GET / HTTP/1.1\r\nX: "  # and goes on, a byte at a time


class Crowd:
    """Clients that connect again whenever they are hung up on."""

    def __init__(self, port: int) -> None:
        self._port, self._over = port, threading.Event()
        each = {b"": _IDLE, _UNREAD: _SLOW // 2, _SLOWLY: _SLOW // 2, _HEADERS: _LARGE}
        begins = [said for said, number in each.items() for _ in range(number)]
        parts = [begins[n::_THREADS] for n in range(_THREADS)]
        self._threads = [threading.Thread(target=self._come, args=(part,)) for part in parts]

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _come(self, begins: list[bytes]) -> None:
        clients: dict[int, socket.socket] = {}
        while not self._over.wait(0 if len(clients) < len(begins) else _DRIP_S):
            for number, said in enumerate(begins):
                if self._over.is_set():
                    break
                with contextlib.suppress(OSError):
                    if number not in clients:
                        clients[number] = socket.create_connection(("127.0.0.1", self._port), 5)
                        clients[number].settimeout(0.5)
                        clients[number].sendall(said)
                    elif said != _UNREAD:
                        clients[number].sendall(b"a")
                    continue
                if number in clients:
                    clients.pop(number).close()
        for client in clients.values():
            client.close()


def crowd() -> None:
    """Print how soon probes and scrapes are answered, and what the agent takes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    agent = subprocess.Popen([sys.executable, "-m", "tests.bench.crowd"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdin
    assert agent.stdout
    port = int(agent.stdout.readline())
    before, cpu = rollup(agent.pid, "Rss"), cpu_s([agent.pid])
    print(f"{_IDLE} idle clients, {_SLOW} slow ones and {_LARGE} with large headers, for {_HELD_S:.0f} s")
    took: dict[str, list[float]] = {"/healthz": [], "/metrics": []}
    failed, largest = 0, before
    with Crowd(port):
        due = time.monotonic() + _HELD_S
        while time.monotonic() < due:
            for path, times in took.items():
                try:
                    times.append(_fetch_s(port, path))
                except (OSError, http.client.HTTPException):
                    failed += 1
            largest = max(largest, rollup(agent.pid, "Rss"))
            time.sleep(0.05)
    for path, times in took.items():
        print(f"  {path:<28}  {1000 * max(times):.0f} ms at most, of {len(times)}")
    share = 100 * (cpu_s([agent.pid]) - cpu) / _HELD_S
    print(f"  hung up on                    {failed} of those")
    print(f"  RSS of the agent              {before:.1f} MiB before, {largest:.1f} at most")
    print(f"  CPU of the agent              {share:.0f} % of a core")
    agent.stdin.close()
    agent.wait(30)
    print(f"  afterwards                    it ended with {agent.returncode}", flush=True)


def _fetch_s(port: int, path: str) -> float:
    began = time.monotonic()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        answer.read()
    return time.monotonic() - began


def main() -> None:
    """The agent by itself, so that its memory is its own; it ends when nobody wants it any more."""
    with tempfile.TemporaryDirectory(prefix="gha-") as name:
        run = Run(Path(name) / "crowd", 5.0)
        print(run.port, flush=True)
        for _ in iter(partial(sys.stdin.buffer.read, 1), b""):
            pass
        run.end()


if __name__ == "__main__":
    main()
