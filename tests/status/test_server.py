"""HTTP as rude clients use it."""

from __future__ import annotations

import socket
import struct
import threading
import urllib.request

import pytest
from prometheus_client import CollectorRegistry

from agent.config.settings import Http
from agent.status.server import Server


def test_a_client_that_hangs_up_leaves_no_word_in_the_log(capfd: pytest.CaptureFixture[str]) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def state() -> dict[str, str]:
        asked.set()
        go_on.wait(10)
        return {"filler": "x" * 10_000_000}  # more than the sockets hold

    server = Server(Http(address="127.0.0.1", port=0), CollectorRegistry(), state, lambda: True, lambda: True)
    server.start()
    try:
        client = socket.create_connection(("127.0.0.1", server.port))
        client.sendall(b"GET /state HTTP/1.0\r\n\r\n")
        assert asked.wait(10)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()  # with a reset
        go_on.set()
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10) as answer:
            assert answer.status == 200
        for thread in threading.enumerate():  # the rude client's
            if "process_request_thread" in thread.name:
                thread.join(10)
    finally:
        server.shutdown()
        server.server_close()
    assert capfd.readouterr().err == ""
