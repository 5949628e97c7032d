"""A receiver gets what is signed, whole and in the end; nobody waits for it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import time
from pathlib import Path

import pytest

from agent.actions.webhook import Receiver, signed
from agent.config.neighbour_settings import Webhook
from agent.model.steps import Post
from tests.actions.test_permits import Clock
from tests.loopback import Loopback, head
from tests.scarce import no_threads
from tests.waiting import until

STEP = Post("0123", "requested", "xid-64@0000:1b:00.0", {"node_uid": "u"})


def receiver(url: str, folder: Path, clock: Clock, secret: str = "s3cret") -> Receiver:
    (folder / "secret").write_text(f"{secret}\n")
    return Receiver(Webhook(url=url, secret_file=folder / "secret"), "n1", clock, lambda: 1_700_000_000.4)


def answer(line: socket.socket, status: str) -> None:
    line.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def test_what_is_posted_is_a_cloud_event_that_the_secret_signs(tmp_path: Path) -> None:
    got: list[tuple[dict[str, str], bytes]] = []

    def take(line: socket.socket) -> None:
        rows = [row.partition(": ") for row in head(line).splitlines()[1:] if row]
        headers = {name.lower(): value for name, _, value in rows}
        got.append((headers, line.recv(int(headers["content-length"]), socket.MSG_WAITALL)))
        answer(line, "204 No Content")

    with Loopback(take) as server:
        made = receiver(server.url, tmp_path, Clock())
        assert not made.post(STEP)
        until(lambda: made.taken)
        assert made.post(STEP), "and it is not posted again"
    ((headers, body),) = got
    mac = hmac.new(b"s3cret", b"0123.1700000000." + body, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(mac).decode()}"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("0123", "1700000000")
    assert headers["content-type"].startswith("application/cloudevents+json")
    assert json.loads(body) == {
        "specversion": "1.0",
        "id": "0123",
        "type": "gpu-health-agent.replacement.requested",
        "source": "/gpu-health-agent/nodes/n1",
        "subject": "xid-64@0000:1b:00.0",
        "time": "2023-11-14T22:13:20Z",
        "datacontenttype": "application/json",
        "data": {"node": "n1", "node_uid": "u"},
    }


def test_a_secret_of_the_libraries_form_is_what_it_encodes() -> None:
    encoded = base64.b64encode(b"raw").decode()
    assert signed(f"whsec_{encoded}", "1", 2, b"x") == signed("raw", "1", 2, b"x")


@pytest.mark.parametrize("status", ["302 Found", "401 Unauthorized", "500 x"])
def test_whatever_is_no_success_is_told_and_posted_again_ever_more_seldom(tmp_path: Path, status: str) -> None:
    def take(line: socket.socket) -> None:
        head(line)
        answer(line, status)

    clock = Clock()
    with Loopback(take) as server:
        made = receiver(server.url, tmp_path, clock)
        for calls, pause_s in enumerate((5, 15, 60, 300, 300), 1):
            made.post(STEP)
            until(lambda: made.trouble and not made._calls)
            assert (made.trouble, server.connections) == (f"it answered {status[:3]}", calls)
            clock.now += pause_s - 1
            made.post(STEP)
            assert server.connections == calls
            clock.now += 1
    assert not made.taken


def test_a_receiver_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    with Loopback(lambda line: time.sleep(1)) as server:
        made, began = receiver(server.url, tmp_path, Clock()), time.monotonic()
        for _ in range(20):
            assert not made.post(STEP)
        assert time.monotonic() - began < 0.5
        until(lambda: server.connections)
        assert server.connections == 1, "it is asked once at a time"


@pytest.mark.parametrize("secret", ["", "whsec_no base64"])
def test_without_a_secret_nothing_is_sent(tmp_path: Path, secret: str) -> None:
    with Loopback(lambda line: None) as server:
        made = receiver(server.url, tmp_path, Clock(), secret)
        made.post(STEP)
        until(lambda: made.trouble)
        assert server.connections == 0
    assert secret == "" or secret not in made.trouble


def test_a_call_for_which_there_is_no_thread_is_told_and_made_later(tmp_path: Path) -> None:
    def take(line: socket.socket) -> None:
        head(line)
        answer(line, "200 OK")

    with Loopback(take) as server:
        clock = Clock()
        made = receiver(server.url, tmp_path, clock)
        with no_threads(Receiver):
            assert not made.post(STEP)
        assert made.trouble == "can't start new thread"
        clock.now += 5
        made.post(STEP)
        until(lambda: made.taken)


@pytest.mark.parametrize(
    "said", [b"\x00\xff\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1000, b"HTTP/1.1 99999 x\r\n\r\n", b""]
)
def test_an_answer_that_is_no_http_is_told_and_never_taken_for_a_yes(tmp_path: Path, said: bytes) -> None:
    def take(line: socket.socket) -> None:
        head(line)
        line.sendall(said)

    with Loopback(take) as server:
        made = receiver(server.url, tmp_path, Clock())
        made.post(STEP)
        until(lambda: made.trouble)
    assert not made.taken
