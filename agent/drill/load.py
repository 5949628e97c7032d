"""The drill's client, in a pod of its own: asks the gateway at a steady rate, and tells what came of it. Python alone.

GET /window?name=N begins a window of that name, GET /report tells of all of them.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

_BODY = json.dumps({"inputs": [[0.1] * 8]})
_MOST_EXAMPLES = 20


class Window:
    """What was asked between one mark and the next. Times are Unix seconds of this pod's node."""

    def __init__(self, name: str, began: float, answered: float) -> None:
        self.name, self.began, self.ended = name, began, began
        self.sent = self.failed = 0
        self.longest_gap_s, self.gap_ended = 0.0, began
        self.answered = answered  # the last good answer, of the window before at first
        self.took: list[float] = []
        self.seconds: dict[int, list[int]] = {}  # second of the window → good answers, failures
        self.failures: list[dict[str, Any]] = []

    def note(self, began: float, ended: float, failure: str) -> None:
        self.sent += 1
        self.ended = ended
        second = self.seconds.setdefault(int(ended - self.began), [0, 0])
        if failure:
            self.failed += 1
            second[1] += 1
            self.failures = [*self.failures, {"at": began, "why": failure}][:_MOST_EXAMPLES]
            return
        second[0] += 1
        self.took.append(ended - began)
        if ended - self.answered > self.longest_gap_s:
            self.longest_gap_s, self.gap_ended = ended - self.answered, ended
        self.answered = max(self.answered, ended)

    def report(self) -> dict[str, Any]:
        took = sorted(self.took)
        return {
            "name": self.name,
            "began": self.began,
            "ended": self.ended,
            "sent": self.sent,
            "failed": self.failed,
            "longest_gap_s": self.longest_gap_s,
            "gap_ended": self.gap_ended,
            "p50_s": took[len(took) // 2] if took else None,
            "p99_s": took[int(len(took) * 0.99)] if took else None,
            "seconds": [[at, good, bad] for at, (good, bad) in sorted(self.seconds.items())],
            "failures": self.failures,
        }


class Client:
    """Threads that ask each at its own time, however long others wait for their answers."""

    def __init__(self, host: str, port: int, rate: float, timeout_s: float) -> None:
        self._host, self._port, self._timeout_s = host, port, timeout_s
        self._lock = threading.Lock()
        self.windows = [Window("before", time.time(), time.time())]
        workers = max(1, int(rate * min(timeout_s, 2.0)))  # enough for answers of two seconds
        for number in range(workers):
            threading.Thread(target=self._ask, args=(number / rate, workers / rate), daemon=True).start()

    def begin(self, name: str) -> None:
        with self._lock:
            self.windows.append(Window(name, time.time(), self.windows[-1].answered))

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {"now": time.time(), "windows": [window.report() for window in self.windows]}

    def _ask(self, first_s: float, every_s: float) -> None:
        due = time.monotonic() + first_s
        while True:
            time.sleep(max(0.0, due - time.monotonic()))
            began = time.time()
            failure = self._once()
            with self._lock:
                self.windows[-1].note(began, time.time(), failure)
            while due <= time.monotonic():  # what was slow keeps its place among the others: the rate stays even
                due += every_s

    def _once(self) -> str:
        """Why it failed; empty if it did not. Nothing is asked twice: what the gateway does not mend counts."""
        connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        try:
            connection.request("POST", "/infer", _BODY, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:200]
        finally:
            connection.close()
        return "" if answer.status == HTTPStatus.OK else f"{answer.status}: {text.decode(errors='replace')}"[:200]


def serve(client: Client, port: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if url.path == "/window":
                client.begin(parse_qs(url.query).get("name", [""])[0][:40])
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
