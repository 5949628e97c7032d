"""An inference replica: loads the newest whole checkpoint, answers, and leaves without failing a request.

POST /infer answers all rows in one JSON object, POST /infer/stream a line for each as it is computed. GET /healthz is
false once CUDA failed in a way that only a new process cures, or the loader ended; /readyz until the model is there,
with what it waits for, and from SIGTERM on.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from checkpoint import BrokenError, Folder
from model import LostGpuError, Model, OutOfMemoryError, model

_LARGEST_BYTES = 16 << 20
_OUT_OF_MEMORY = 507  # the gateway knows it by this: no fault of the replica, and a smaller model may have room
_GPU_LOST = "X-GPU-Lost"  # and by this that the request may be what killed the GPU: it is passed to no other replica
_LEFT = 499  # counted for a client that went away
_log = logging.getLogger("inference")


class Replica:
    """The model and what is going on with it."""

    def __init__(self, learner: Model, most_in_flight: int) -> None:
        self._model, self._gpu = learner, threading.Lock()  # one request at a time on the GPU
        self.most_in_flight = most_in_flight
        self.step: int | None = None
        self.lost = self.stuck = self.draining = False
        self.waits, self.load_failures = "it is loading", 0
        self.answers: Counter[int] = Counter()
        self.seconds = 0.0
        self.in_flight = 0
        self.changed = threading.Condition()

    def load(self, folder: Folder, again_s: float) -> None:
        """Weights that nobody trained must not answer: without a checkpoint it waits, not ready, and says for what."""
        try:
            while self.step is None:
                try:
                    found = folder.restore(self._model.load)
                    self.waits = "" if found else f"no checkpoint in {folder.path} yet"
                    if found:
                        self.step = found.step
                        _log.info("serving step %d from %s", found.step, found.file)
                        return
                except (OSError, ValueError, BrokenError) as error:  # storage may come back, another may be saved
                    self.waits = f"can't serve from {folder.path}: {error}"
                    self.load_failures += 1
                _log.error(self.waits)
                time.sleep(again_s)
        finally:  # whatever else ended it: only a new process would load
            self.stuck = self.step is None

    def ready(self) -> bool:
        return self.step is not None and not self.draining and not self.lost

    def infer(self, rows: list[list[float]], left: Callable[[], bool]) -> list[float]:
        """ConnectionError for a client that left while others had the GPU; else as the model says."""
        with self._gpu:
            if left():
                raise ConnectionAbortedError
            began = time.monotonic()
            try:
                return self._model.infer(rows)
            except LostGpuError:
                self.lost = True
                raise
            finally:
                self.seconds += time.monotonic() - began

    def metrics(self) -> str:
        """The text format, by hand: training images bring PyTorch, rarely a Prometheus client."""
        lines = ["# TYPE inference_requests_total counter"]
        lines += [f'inference_requests_total{{code="{code}"}} {count}' for code, count in sorted(self.answers.items())]
        lines += ["# TYPE inference_model_seconds_total counter", f"inference_model_seconds_total {self.seconds:.6f}"]
        lines += ["# TYPE inference_in_flight gauge", f"inference_in_flight {self.in_flight}"]
        lines += ["# TYPE inference_ready gauge", f"inference_ready {int(self.ready())}"]
        lines += ["# TYPE inference_checkpoint_step gauge", f"inference_checkpoint_step {self.step or 0}"]
        lines += ["# TYPE inference_load_failures_total counter", f"inference_load_failures_total {self.load_failures}"]
        return "\n".join(lines) + "\n"


class Handler(BaseHTTPRequestHandler):
    """One connection, in a thread of its own."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # an idle connection, or a client that sends no body
    disable_nagle_algorithm = True  # else an answer's body waits for the client's word on its head: 40 ms
    replica: Replica

    def do_GET(self) -> None:
        replica = self.replica
        match urlsplit(self.path).path:
            case "/healthz":
                gone = replica.lost or replica.stuck
                self._say(503 if gone else 200, {"gpu": "lost" if replica.lost else "ok", "loader": not replica.stuck})
            case "/readyz":
                self._say(
                    200 if replica.ready() else 503,
                    {"ready": replica.ready(), "step": replica.step, "waits": replica.waits},
                )
            case "/metrics":
                self._send(200, "text/plain; version=0.0.4", replica.metrics().encode())
            case _:
                self._say(404, {"error": "there is /infer, /infer/stream, /healthz, /readyz and /metrics"})

    def do_POST(self) -> None:
        replica = self.replica
        with replica.changed:
            replica.in_flight += 1
        try:
            self._infer(urlsplit(self.path).path)
        finally:
            with replica.changed:
                replica.in_flight -= 1
                replica.changed.notify_all()

    def _infer(self, path: str) -> None:
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if not 0 <= length <= _LARGEST_BYTES:
            self.close_connection = True  # the body is left unread
            self._say(413 if length > 0 else 411, {"error": f"Content-Length must be 0 to {_LARGEST_BYTES}"})
            return
        if self.replica.in_flight > self.replica.most_in_flight:
            self.close_connection = True
            self._say(503, {"error": "too many requests at once"}, {"Retry-After": "1"})
            self._discard(length)  # a connection closed upon it would take the answer away
            return
        body = self.rfile.read(length)
        if path not in ("/infer", "/infer/stream"):
            self._say(404, {"error": "POST /infer or /infer/stream"})
        elif self.replica.step is None or self.replica.lost:
            error = "the GPU is lost" if self.replica.lost else "not ready"
            self._say(503, {"error": error}, {"Retry-After": "1"})  # nothing was done: another replica may be asked
        else:
            try:
                rows = json.loads(body)["inputs"]
                if path == "/infer":
                    self._say(200, {"outputs": self.replica.infer(rows, self._left), **self._who()})
                else:
                    self._stream(rows)
            except (OutOfMemoryError, MemoryError):
                self._say(_OUT_OF_MEMORY, {"error": "gpu_out_of_memory"})
            except LostGpuError as error:
                self._say(500, {"error": f"the GPU is lost: {error}"}, {_GPU_LOST: "true"})
            except ConnectionError:
                self._count(_LEFT)
                self.close_connection = True
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                self._say(400, {"error": f'the body must be {{"inputs": [[...], ...]}}: {error}'})
            except RuntimeError as error:
                self._say(500, {"error": f"the model failed: {error}"})

    def _stream(self, rows: list[list[float]]) -> None:
        """The first row before the status, so that a model out of memory can still say so."""
        first = self.replica.infer(rows[:1], self._left)
        self._head(200, "application/x-ndjson", {"Transfer-Encoding": "chunked"})
        for index in range(len(rows)):
            try:
                output = first if index == 0 else self.replica.infer(rows[index : index + 1], self._left)
            except (ValueError, RuntimeError, OutOfMemoryError, LostGpuError) as error:
                _log.error("a stream broke off: %s", error)
                self.close_connection = True  # without the last chunk, so that the client knows
                return
            line = json.dumps({"output": output[0], **self._who()}).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _discard(self, length: int) -> None:
        while length > 0 and (part := self.rfile.read(min(length, 65536))):
            length -= len(part)

    def _left(self) -> bool:
        """Whether the client hung up: what it asked for is not worth the GPU's time."""
        readable = select.select([self.connection], [], [], 0)[0]
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _who(self) -> dict[str, Any]:
        return {
            "step": self.replica.step,
            "pod": os.environ.get("POD_NAME", ""),
            "node": os.environ.get("NODE_NAME", ""),
        }

    def _say(self, code: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        self._send(code, "application/json", json.dumps(body).encode(), headers)

    def _send(self, code: int, kind: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(code, kind, {"Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(data)

    def _head(self, code: int, kind: str, headers: dict[str, str]) -> None:
        if self.command == "POST":
            self._count(code)
        self.send_response(code)
        for name, value in {"Content-Type": kind, **headers}.items():
            self.send_header(name, value)
        if self.replica.draining:
            self.send_header("Connection", "close")  # the client's next request goes to another replica
            self.close_connection = True
        self.end_headers()

    def _count(self, code: int) -> None:
        with self.replica.changed:
            self.replica.answers[code] += 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
        _log.debug(format, *args)


class Server(ThreadingHTTPServer):
    daemon_threads = True  # an idle connection must not keep the process
    request_queue_size = 128


def drain(replica: Replica, server: Server, linger_s: float, drain_s: float) -> None:
    """Not ready at once; goes on serving while others learn of it; then no new connection, and the last answers."""
    replica.draining = True
    time.sleep(linger_s)
    server.shutdown()
    server.server_close()
    with replica.changed:
        if not replica.changed.wait_for(lambda: replica.in_flight == 0, drain_s):
            _log.error("%d requests were still running after %g s", replica.in_flight, drain_s)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where training saves its checkpoints")
    parser.add_argument("--restore-from", type=Path, help="the manager's backup: where the folder is lost or broken")
    parser.add_argument("--width", type=int, default=256, help="of the model")
    parser.add_argument("--port", type=int, default=8080, help="0: any free one")
    parser.add_argument("--most-in-flight", type=int, default=32, help="requests; more are answered 503 at once")
    parser.add_argument("--again-s", type=float, default=5, help="between looks for a first checkpoint")
    parser.add_argument("--linger-s", type=float, default=3, help="served after SIGTERM, while clients learn of it")
    parser.add_argument("--drain-s", type=float, default=20, help="for the last requests; within the grace period")
    options = parser.parse_args()

    terminated = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: terminated.set())
    replica = Replica(model(options.width), options.most_in_flight)
    server = Server(("", options.port), type("Bound", (Handler,), {"replica": replica}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    folder = Folder(options.folder, backup=options.restore_from)
    threading.Thread(target=replica.load, args=(folder, options.again_s), daemon=True).start()
    _log.info("listening on port %d", server.server_address[1])
    terminated.wait()
    drain(replica, server, options.linger_s, options.drain_s)
    return 0


if __name__ == "__main__":
    sys.exit(main())
