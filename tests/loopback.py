"""A server on loopback that treats each of its connections as a function says, and the kubeconfig of such a one."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self


class Loopback:
    """Listens from its making on; each connection has a thread, and is closed when its function ends."""

    def __init__(self, serve: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> None:
        self._serve, self.context = serve, context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.connections = 0
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{self.port}"
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The thread ends first: it would accept at this file number, which the next test's server may have.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                line, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._talk, args=(line,), daemon=True).start()

    def _talk(self, line: socket.socket) -> None:
        with suppress(OSError), line:
            if not self.context:
                self._serve(line)
                return
            with self.context.wrap_socket(line, server_side=True) as inside:
                self._serve(inside)


def head(line: socket.socket) -> str:
    """The head of the next request; empty if the client hung up."""
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        one = line.recv(1)
        if not one:
            return ""
        got += one
    return got.decode("latin-1")


def answer(body: Any, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer; a body that is no text is sent as JSON."""
    text = (body if isinstance(body, str) else json.dumps(body)).encode()
    lines = (f"HTTP/1.1 {status}", f"Content-Length: {len(text)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + text


def answers(*said: bytes) -> Callable[[socket.socket], None]:
    """One after the other, and the last one for ever."""

    def serve(line: socket.socket) -> None:
        left = list(said)
        while head(line):
            line.sendall(left[0])
            left = left[1:] or left

    return serve


def kubeconfig(folder: Path, url: str, ca: Path | None = None, **user: str) -> str:
    cluster = {"server": url} | ({"certificate-authority": str(ca)} if ca else {})
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "there", "user": "me"}}],
        "clusters": [{"name": "there", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return str(folder / "kubeconfig")
