"""Asks the agent that runs on this node."""

from __future__ import annotations

import http.client
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from agent.config.settings import Config
from agent.model.text import read_json

_ASK_S = 3.0  # in all: an answer that drips is none
_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Evidence:
    at: str
    source: str
    raw: str


@dataclass(frozen=True, slots=True)
class _Fault:
    id: str
    severity: str
    remedy: str
    message: str
    since: str
    last: str
    count: int
    evidence: list[_Evidence]
    explains: list[str]
    doubts: list[str]
    clears: str
    next: str
    commands: list[str] = field(default_factory=list)  # of older agents there are none


@dataclass(frozen=True, slots=True)
class _Source:
    name: str
    up: bool
    trouble: str


@dataclass(frozen=True, slots=True)
class _State:
    """What a command takes for granted in /state: whatever listens on our port may answer."""

    status: str
    gpus: dict[str, dict[str, Any]]
    faults: list[_Fault]
    blind: list[str]
    waits: list[str]
    sources: list[_Source]


def running(config: Config) -> dict[str, Any] | None:
    """The running agent's state; None if no agent answers on its port."""
    connection = http.client.HTTPConnection(config.http.address or "localhost", config.http.port, timeout=_ASK_S)
    over = threading.Timer(_ASK_S, _hang_up, (connection,))
    over.daemon = True
    over.start()
    try:
        connection.request("GET", "/state")
        answer: dict[str, Any] = read_json(connection.getresponse().read(_MOST_BYTES))
        TypeAdapter(_State).validate_python(answer)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    else:
        return answer
    finally:
        over.cancel()
        connection.close()


def _hang_up(connection: http.client.HTTPConnection) -> None:
    with suppress(OSError, AttributeError):  # not connected yet, or not any more
        connection.sock.shutdown(socket.SHUT_RDWR)
