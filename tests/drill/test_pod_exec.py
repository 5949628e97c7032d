"""A command in a container, asked of an API server that never answers."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.drill.pod_exec import executor
from agent.model.errors import UnreachableError
from tests.loopback import Loopback, head, kubeconfig


def silent(line: socket.socket) -> None:
    while line.recv(4096):
        pass


@pytest.mark.parametrize("serve", [head, silent], ids=["hangs up", "hangs"])
def test_an_exec_that_the_api_server_never_answers_ends_in_its_time(
    serve: Callable[[socket.socket], Any], tmp_path: Path
) -> None:
    with Loopback(serve) as server:
        execute = executor(kubeconfig(tmp_path, server.url), 0.1, 0.1)
        with pytest.raises(UnreachableError, match=f"{server.url} does not answer"):
            execute("ns", "pod", "main", ["true"])
