"""The watch of a Node over HTTP: its words one by one, and an end with a reason for whatever else comes."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from agent.actions.api import connect
from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.errors import RefusedError, UnreachableError
from tests.waiting import LATEST_S


def event(kind: str, **metadata: Any) -> bytes:
    return json.dumps({"type": kind, "object": {"metadata": metadata}}).encode() + b"\n"


class Server(ThreadingHTTPServer):
    """Sends these chunks, and then hangs, hangs up or ends in order."""

    daemon_threads = True

    def __init__(self, chunks: list[bytes], end: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.chunks, self.end, self.over, self.asked = chunks, end, threading.Event(), ""
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.asked = f"{self.path} {self.headers['Accept']}"
        self.send_response(403 if self.server.end == "refuses" else 200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in self.server.chunks:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
            self.wfile.flush()
        if self.server.end == "hangs":
            self.server.over.wait(LATEST_S)
        if self.server.end != "hangs up":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def words(tmp_path: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def begin(end: str, *chunks: bytes, quiet_s: float = 150) -> Iterator[Any]:
        servers.append(server := Server([*chunks], end))
        config = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
            "clusters": [{"name": "k", "cluster": {"server": f"http://127.0.0.1:{server.server_address[1]}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config))
        yield from KubeClient(connect(str(tmp_path / "kubeconfig"), quiet_s=quiet_s), "n1", Config()).words()

    begin.servers = servers  # type: ignore[attr-defined]
    yield begin
    for server in servers:
        server.over.set()
        server.shutdown()
        server.server_close()


def test_each_word_comes_as_soon_as_it_was_sent_however_it_was_cut(words: Any) -> None:
    whole = event("ADDED", labels={"a": "1"}) + event("BOOKMARK", resourceVersion="7") + event("MODIFIED")
    told = words("hangs", whole[:10], whole[10:90], whole[90:])
    assert [next(told), next(told)] == [({"a": "1"}, {}), ({}, {})]
    asked = words.servers[0].asked
    assert "fieldSelector=metadata.name%3Dn1" in asked
    assert "PartialObjectMetadata" in asked


def test_the_server_may_end_a_watch_in_order(words: Any) -> None:
    assert len([*words("ends", event("ADDED"), event("DELETED"))]) == 1


@pytest.mark.parametrize(
    ("end", "chunk"),
    [("hangs up", event("ADDED")), ("ends", event("ADDED") + b"<html>\n"), ("ends", event("ADDED") + b"\xff\n")],
)
def test_a_watch_that_breaks_off_or_makes_no_sense_is_no_answer(words: Any, end: str, chunk: bytes) -> None:
    told = words(end, chunk)
    assert next(told) == ({}, {})
    with pytest.raises(UnreachableError, match="the watch broke off"):
        next(told)


def test_an_event_without_an_end_is_not_kept(words: Any) -> None:
    with pytest.raises(UnreachableError, match="an event without an end"):
        next(words("hangs", *[b"x" * 1_000_000] * 5))


def test_a_watch_whose_server_is_gone_is_known_by_its_silence(words: Any) -> None:
    told = words("hangs", event("ADDED"), quiet_s=0.5)
    assert next(told) == ({}, {})
    with pytest.raises(UnreachableError, match="the watch broke off"):
        next(told)


def test_a_refusal_has_the_servers_sentence_whether_at_once_or_later(words: Any) -> None:
    with pytest.raises(RefusedError, match="no watch"):
        next(words("refuses", json.dumps({"message": "no watch on nodes"}).encode()))
    gone = {"type": "ERROR", "object": {"code": 410, "message": "too old resource version"}}
    with pytest.raises(RefusedError, match="too old"):
        next(words("ends", json.dumps(gone).encode() + b"\n"))
