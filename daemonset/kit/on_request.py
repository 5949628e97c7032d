"""Asked to save: by SIGTERM, by a POST, or by an annotation, the three ways of ``gpu-health-agent/checkpoint``.

``annotation`` needs the pod's annotations as a file (downward API) and a ServiceAccount that may patch its own pod; the
kubelet renews the file about once a minute, so give it a ``gpu-health-agent/checkpoint-timeout-s`` of 180.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

REQUESTED, SAVED = "gpu-health-agent/checkpoint-requested-at", "gpu-health-agent/checkpoint-saved-at"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOOK_S, _AGAIN_S = 1.0, 3.0
_WAIT_S, _REMEMBER_S = 1.5, 60.0  # the agent waits 2 s for an answer, and asks again after 5
_log = logging.getLogger("on_request")
MayAsk = Callable[[str, Message], bool]


class SaveRequests:
    """The training loop asks ``wanted`` after each step; if it is true it saves, and calls ``saved``."""

    def __init__(self, annotations: Path | None = None, account: Path = ACCOUNT) -> None:
        self.terminating = False
        self._annotations, self._account, self._looked_at = annotations, account, 0.0
        self._asked_at = self._served_at = ""  # the annotation's times
        self._posts = self._begun = self._done = 0
        self._untold_at = float("-inf")  # when a save was done that no POST has heard of
        self._changed = threading.Condition()

    def catch_sigterm(self) -> None:
        signal.signal(signal.SIGTERM, self._terminate)

    def wanted(self) -> bool:
        """Whether a save is wanted that has not begun; whoever asks while one is running gets another."""
        self._look()
        with self._changed:
            self._begun = self._posts
            return self.terminating or self._begun > self._done or self._asked_at != self._served_at

    def saved(self) -> None:
        """The save that ``wanted`` asked for is on the disk: tell those who asked."""
        with self._changed:
            if self._begun > self._done:
                self._done, self._untold_at = self._begun, time.monotonic()
            self._changed.notify_all()
        if self._asked_at != self._served_at:
            self._served_at = self._asked_at
            threading.Thread(target=self._answer, args=(self._asked_at,), daemon=True).start()

    def post(self) -> int:
        """Status for a POST: 200 once a save that began after it is done, 202 until then."""
        with self._changed:
            if time.monotonic() - self._untold_at > _REMEMBER_S:
                if self._posts == self._done:
                    self._posts += 1
                self._changed.wait_for(lambda: self._done >= self._posts, _WAIT_S)
            if self._done < self._posts:
                return 202
            self._untold_at = float("-inf")
            return 200

    def serve(
        self, port: int, path: str, status: Callable[[], dict[str, Any]], may_ask: MayAsk = lambda *_: True
    ) -> int:
        """POST ``path`` asks for a save, GET /status tells how training goes. The port, which may be given as 0.

        ``may_ask`` gets the asker's IP address and headers: a POST for which it is false is answered 403. The agent
        comes from its pod's address and sends no credentials, so go by the address, or by what a mesh puts before it.
        """
        requests = self

        class Handler(BaseHTTPRequestHandler):
            timeout = 5

            def do_POST(self) -> None:
                if self.path != path:
                    self._answer(404, {})
                elif not may_ask(self.client_address[0], self.headers):
                    self._answer(403, {"error": "may_ask says no"})
                else:
                    self._answer(requests.post(), {})

            def do_GET(self) -> None:
                self._answer(*((200, status()) if self.path == "/status" else (404, {})))

            def _answer(self, code: int, body: dict[str, Any]) -> None:
                data = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name in http.server
                _log.debug(format, *args)

        server = ThreadingHTTPServer(("", port), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return int(server.server_address[1])

    def _terminate(self, *_: object) -> None:
        self.terminating = True

    def _look(self) -> None:
        """The downward API writes a line for each annotation: key="value", quoted as Go quotes."""
        if self._annotations is None or time.monotonic() - self._looked_at < _LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            text = self._annotations.read_text(encoding="utf-8")
        except OSError:
            return
        if found := re.search(rf'^{re.escape(REQUESTED)}="([0-9TZ:.+-]+)"$', text, re.MULTILINE):
            self._asked_at = found[1]

    def _answer(self, asked_at: str) -> None:
        """Beside the training, which must not wait for an API server."""
        while not self._annotate(asked_at) and asked_at == self._asked_at:
            time.sleep(_AGAIN_S)

    def _annotate(self, asked_at: str) -> bool:
        """Our own pod's annotation; no client library for one PATCH."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        # Two clocks may differ: the answer must not look older than the question.
        body = {"metadata": {"annotations": {SAVED: max(now, asked_at)}}}
        try:
            request = urllib.request.Request(
                f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
                f"/api/v1/namespaces/{os.environ['POD_NAMESPACE']}/pods/{os.environ['POD_NAME']}",
                json.dumps(body).encode(),
                {
                    "Authorization": f"Bearer {(self._account / 'token').read_text()}",
                    "Content-Type": "application/merge-patch+json",
                },
                method="PATCH",
            )
            context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
            urllib.request.urlopen(request, timeout=5, context=context).close()  # noqa: S310 - https, and a host that the kubelet names
        except (OSError, KeyError) as error:
            _log.warning("can't answer by annotation yet: %r", error)
            return False
        return True
