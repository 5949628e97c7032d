"""Asks a pod to save its work before it is evicted. What it declares is hostile input: it reaches its own IP only."""

from __future__ import annotations

import io
import re
import socket
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import BadStatusLine, HTTPConnection, HTTPException, LineTooLong, RemoteDisconnected
from ipaddress import ip_address
from typing import Any

from agent.model.names import CHECKPOINT_ANNOTATION, TIMEOUT_ANNOTATION

ANSWER_S = 2.0  # for everything, from connecting to the end of the answer's head

_DEFAULT_S = 60.0
_MOST_BYTES = 16384  # of the status, of all headers and of the 1xx answers before them
_MOST_CALLS = 32  # at once: more than a node has pods with GPUs, and little memory
_STATUS = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: .*)?\r?\n")
_HTTP = re.compile(r"http:([1-9][0-9]{0,4})/([!-~]{0,200})")


@dataclass(frozen=True, slots=True)
class Declared:
    """What a pod's annotations say."""

    way: str = ""  # http, annotation, sigterm; empty: nothing declared
    port: int = 0
    path: str = ""
    timeout_s: float = _DEFAULT_S
    said: str = ""  # what is wrong with the declaration


def declared(annotations: Mapping[str, str]) -> Declared:
    """Read the annotations; a malformed one is said, and asks for nothing."""
    text = annotations.get(CHECKPOINT_ANNOTATION, "").strip()
    if not text:
        return Declared()
    try:
        timeout_s = float(annotations.get(TIMEOUT_ANNOTATION, _DEFAULT_S))
    except ValueError:
        timeout_s = -1.0
    if not 0 <= timeout_s <= 86400:
        return Declared(said=f"{TIMEOUT_ANNOTATION} must be seconds from 0 to 86400")
    if text in ("annotation", "sigterm"):
        return Declared(text, timeout_s=timeout_s)
    match = _HTTP.fullmatch(text)
    if not match or int(match[1]) > 65535:
        return Declared(said=f"{CHECKPOINT_ANNOTATION} must be http:<port>/<path>, annotation or sigterm")
    return Declared("http", int(match[1]), "/" + match[2], timeout_s)


class Calls:
    """Asks pods beside the act loop, which never waits for them: each pod once at a time, many pods at once.

    Where there are too many, the others wait for their turn.
    """

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        """``answer_s``: how long one call may last, in seconds."""
        self._answer_s = answer_s
        self._lock = threading.Lock()
        self._threads = 0
        self._queue: deque[tuple[str, tuple[str, int, str]]] = deque()  # pod UID, and IP, port and path
        self._asking: set[str] = set()  # UIDs of the pods that are asked, or wait for their turn
        self._answers: dict[str, tuple[bool, str]] = {}  # the last one, by pod UID

    @property
    def asking(self) -> bool:
        """Whether a call has not ended yet."""
        return bool(self._asking)

    def answer(self, uid: str) -> tuple[bool, str]:
        """What this pod answered last, as ``post`` tells it."""
        return self._answers.get(uid, (False, ""))

    def ask(self, uid: str, ip: str, port: int, path: str) -> None:
        """Return at once. A pod that is being asked, or has saved, is not asked."""
        with self._lock:
            if uid in self._asking or self.answer(uid)[0]:
                return
            if self._threads < _MOST_CALLS:
                try:
                    threading.Thread(target=self._work, name="checkpoint", daemon=True).start()
                    self._threads += 1
                except RuntimeError:  # the machine has no more: whoever runs takes this call too
                    if not self._threads:
                        self._answers[uid] = False, "the agent could start no thread to ask it"
                        return
            self._asking.add(uid)
            self._queue.append((uid, (ip, port, path)))

    def forget(self, uid: str) -> None:
        """What this pod answered, or will answer to what it was asked up to now, is nobody's any more."""
        with self._lock:
            self._asking.discard(uid)
            self._queue = deque(call for call in self._queue if call[0] != uid)
            self._answers.pop(uid, None)

    def forget_others(self, uids: Collection[str]) -> None:
        """Only these pods are still there."""
        with self._lock:
            self._asking.intersection_update(uids)
            self._queue = deque(call for call in self._queue if call[0] in uids)
            self._answers = {uid: answer for uid, answer in self._answers.items() if uid in uids}

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._threads -= 1
                    return
                uid, address = self._queue.popleft()
            answer = post(*address, self._answer_s)
            with self._lock:
                if uid in self._asking:  # else its pod is gone
                    self._asking.remove(uid)
                    self._answers[uid] = answer


def post(ip: str, port: int, path: str, answer_s: float = ANSWER_S) -> tuple[bool, str]:
    """One POST to the pod: saved or not, and what it said. It ends within ``answer_s``, whatever the pod does.

    Redirects are not followed, its words are not believed, and no body is read.
    """
    until = time.monotonic() + answer_s
    try:
        address = ip_address(ip.partition("%")[0])  # a zone would be looked up as a part of a name
    except ValueError:
        return False, "it has no IP address"
    connection = HTTPConnection(str(address), port, timeout=answer_s)
    try:
        connection.connect()
        connection.sock.settimeout(_left_s(until))
        connection.request("POST", path, headers={"Content-Length": "0", "User-Agent": "gpu-health-agent"})
        status = _status(io.BufferedReader(_Received(connection.sock, until)))
    except (OSError, HTTPException) as error:
        return False, f"its port {port} does not answer ({type(error).__name__})"
    finally:
        connection.close()
    if status == HTTPStatus.OK:
        return True, ""
    return False, "it is saving" if status == HTTPStatus.ACCEPTED else f"it answered {status}"


class _Received(io.RawIOBase):
    """What comes over a connection until a time (monotonic seconds), and not too much of it."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._connection, self._until, self._left = connection, until, _MOST_BYTES

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._left <= 0:
            raise LineTooLong("head of an answer")
        self._connection.settimeout(_left_s(self._until))
        number = self._connection.recv_into(buffer)
        self._left -= number
        return number


def _left_s(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _status(received: io.BufferedReader) -> int:
    """The final status, once its headers are over; 1xx are no answers yet."""
    while True:
        line = received.readline()
        if not line:
            raise RemoteDisconnected("")
        match = _STATUS.fullmatch(line)
        if not match:
            raise BadStatusLine(repr(line))
        while received.readline() not in (b"\r\n", b"\n", b""):
            pass
        if int(match[1]) >= HTTPStatus.OK:
            return int(match[1])
