"""The drill's client, in a pod of its own: asks the gateway at a steady rate, and tells what came of it. Python alone.

GET /window?name=N&rate=R begins a window of that name with R requests a second, GET /report tells of all of them.
"""

from __future__ import annotations

import http.client
import itertools
import json
import select
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_BODY = json.dumps({"inputs": [[0.1] * 8]})
_MOST_EXAMPLES = 20
_BEHIND_S = 1.0  # what it may catch up on after it got no CPU


class Window:
    """What was asked between one mark and the next. Times are Unix seconds of this pod's node."""

    def __init__(self, name: str, began: float, answered: float) -> None:
        self.name, self.began, self.ended = name, began, began
        self.sent = self.waiting = 0
        self.longest_gap_s, self.gap_ended = 0.0, began
        self.answered = answered  # the last good answer, of the window before at first
        self.took: dict[str, list[float]] = {"kept": [], "new": []}  # by connection
        self.failed = {"kept": 0, "new": 0}
        self.failing: list[float] = []  # when the first and the last failed request ended
        self.seconds: dict[int, list[int]] = {}  # second of the window → good answers, failures
        self.failures: list[dict[str, Any]] = []

    def note(self, began: float, ended: float, failure: str, kind: str = "new") -> None:
        self.sent += 1
        self.ended = max(self.ended, ended)
        second = self.seconds.setdefault(int(ended - self.began), [0, 0])
        if failure:
            self.failed[kind] += 1
            self.failing = [*self.failing[:1], ended]
            second[1] += 1
            self.failures = [*self.failures, {"at": began, "why": f"{failure} ({kind} connection)"}][:_MOST_EXAMPLES]
            return
        second[0] += 1
        self.took[kind].append(ended - began)
        if ended - self.answered > self.longest_gap_s:
            self.longest_gap_s, self.gap_ended = ended - self.answered, ended
        self.answered = max(self.answered, ended)

    def report(self) -> dict[str, Any]:
        took = sorted(self.took["kept"] + self.took["new"])
        return {
            "name": self.name,
            "began": self.began,
            "ended": self.ended,
            "sent": self.sent,
            "waiting": self.waiting,
            "failed": sum(self.failed.values()),
            "failing_s": self.failing[-1] - self.failing[0] if self.failing else 0.0,
            "longest_gap_s": self.longest_gap_s,
            "gap_ended": self.gap_ended,
            "longest_s": took[-1] if took else None,
            "p50_s": took[len(took) // 2] if took else None,
            "p99_s": took[int(len(took) * 0.99)] if took else None,
            "connections": {
                kind: {
                    "failed": self.failed[kind],
                    "answered": len(one),
                    "p50_s": sorted(one)[len(one) // 2] if one else None,
                }
                for kind, one in self.took.items()
            },
            "seconds": [[at, good, bad] for at, (good, bad) in sorted(self.seconds.items())],
            "failures": self.failures,
        }


class Client:
    """Asks at its own time, however long answers take: every other time on a connection that it has kept."""

    def __init__(self, host: str, port: int, rate: float, timeout_s: float) -> None:
        self._host, self._port, self._rate, self._timeout_s = host, port, rate, timeout_s
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self.windows = [Window("before", time.time(), time.time())]
        threading.Thread(target=self._pace, daemon=True).start()

    def begin(self, name: str, rate: float) -> None:
        with self._lock:
            self.windows.append(Window(name, time.time(), self.windows[-1].answered))
            self._rate = rate

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {"now": time.time(), "windows": [window.report() for window in self.windows]}

    def _pace(self) -> None:
        due = time.monotonic()
        for kind in itertools.cycle(("kept", "new")):
            time.sleep(max(0.0, due - time.monotonic()))
            threading.Thread(target=self._ask, args=(kind,), daemon=True).start()
            due = max(due, time.monotonic() - _BEHIND_S) + 1 / self._rate

    def _ask(self, kind: str) -> None:
        with self._lock:
            window = self.windows[-1]
            window.waiting += 1
        began = time.time()
        failure = self._once(kind == "kept")
        with self._lock:
            window.waiting -= 1
            window.note(began, time.time(), failure, kind)

    def _once(self, keep: bool) -> str:
        """Why it failed; empty if it did not. Nothing is asked twice: what the gateway does not mend counts."""
        connection = self._kept() if keep else self._new()
        again = False
        try:
            connection.request("POST", "/infer", _BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            again = keep and not answer.will_close
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            again = False
            return f"{type(error).__name__}: {error}"[:200]
        finally:
            if again:
                self._idle.append(connection)
            else:
                connection.close()
        return "" if answer.status == HTTPStatus.OK else f"{answer.status}: {text.decode(errors='replace')}"[:200]

    def _new(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)

    def _kept(self) -> http.client.HTTPConnection:
        """One that the other end has closed meanwhile is of no use, as every client's pool finds out before it asks."""
        while self._idle:
            try:
                connection = self._idle.pop(0)
            except IndexError:  # another thread had it
                break
            if not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return self._new()


def serve(client: Client, port: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/window":
                asked = dict(parse_qsl(url.query))
                client.begin(asked["name"][:40], float(asked["rate"]))
            data = json.dumps(client.report() if url.path == "/report" else {"path": url.path}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
            pass

    ThreadingHTTPServer(("", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(Client(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])), int(sys.argv[5]))
