"""Questions to the container of the sources: however many are asked, one process at a time answers."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from agent.config.source_index import Known
from agent.sources.kubelet.pod_resources import Holders
from agent.sources.process.remote import Remote
from agent.sources.process.serving import Serving
from agent.sources.process.supervisor import Supervisor
from tests.scarce import no_threads
from tests.sources.process.container import serving
from tests.waiting import LATEST_S, until

MANY = 60
HELD: Holders = {"a/train": frozenset({"GPU-a"}), "a/other": None}


class HungKubelet(Supervisor):
    """Each question to the kubelet takes until it is let go of."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun, self.under_way, self.most = 0, 0, 0
        self.go_on = threading.Event()

    def who_holds(self) -> Holders:
        self.begun += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        assert self.go_on.wait(LATEST_S)
        self.under_way -= 1
        return HELD


@contextlib.contextmanager
def asking(served: Serving, question: dict[str, Any], number: int) -> Iterator[list[socket.socket]]:
    """So many clients who ask one after the other; each question was taken in."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(number):
            before = len(served._buffers)
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.settimeout(20)
            client.connect(str(served._path))
            until(partial(_connected, served, before + 1))
            client.sendall(json.dumps(question).encode() + b"\n")
            until(partial(_connected, served, before))
            clients.append(client)
        yield clients


def _connected(served: Serving, number: int) -> bool:
    return len(served._buffers) == number


def answer(client: socket.socket) -> Any:
    with client.makefile("rb") as lines:
        return json.loads(lines.readline() or "null")


def test_sixty_who_ask_a_hung_kubelet_make_one_process_and_one_thread(folder: Path) -> None:
    with serving(folder, [], HungKubelet) as (served, supervisor):
        assert isinstance(supervisor, HungKubelet)
        before = threading.active_count()
        with asking(served, {"do": "who-holds"}, MANY) as clients:
            assert (supervisor.begun, threading.active_count()) == (1, before + 1)
            supervisor.go_on.set()
            answers = [answer(client) for client in clients]
        assert answers[0] == answers[-1] == {"a/train": ["GPU-a"], "a/other": None}
        assert answers.count(None) == MANY - 9, "as many wait as may be connected; the others are hung up on"
        assert (supervisor.begun, supervisor.most) == (2, 1), "who asked meanwhile gets no older answer"
        until(lambda: threading.active_count() == before)


def test_after_a_hung_kubelet_the_next_question_is_answered(folder: Path) -> None:
    with serving(folder, [], HungKubelet) as (served, supervisor):
        assert isinstance(supervisor, HungKubelet)
        with asking(served, {"do": "who-holds"}, 3):
            until(lambda: supervisor.begun == 1)
        supervisor.go_on.set()
        assert Remote(folder / "s", ()).who_holds() == HELD


def test_without_a_thread_for_an_answer_whoever_asks_next_has_all_answered(folder: Path) -> None:
    with serving(folder, [], HungKubelet) as (served, supervisor):
        assert isinstance(supervisor, HungKubelet)
        supervisor.go_on.set()
        with contextlib.ExitStack() as stack, no_threads(Serving):
            (refused,) = stack.enter_context(asking(served, {"do": "diagnose", "level": 1, "gpus": ["GPU-a"]}, 1))
            assert answer(refused) is None
            (first,) = stack.enter_context(asking(served, {"do": "who-holds"}, 1))
            until(lambda: not served._asking)
            waiting = stack.pop_all()
        with waiting:
            assert Remote(folder / "s", ()).who_holds() == HELD
            assert answer(first) == {"a/train": ["GPU-a"], "a/other": None}


def test_without_a_file_for_whoever_comes_the_sources_go_on_and_it_is_heard_later(folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(folder, [], HungKubelet) as (served, supervisor), socket.socket(socket.AF_UNIX) as late:
        assert isinstance(supervisor, HungKubelet)
        supervisor.go_on.set()
        late.settimeout(20)
        free = os.dup(late.fileno())
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            late.connect(str(served._path))
            late.sendall(b'{"do":"who-holds"}\n')
            time.sleep(0.2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert answer(late) == {"a/train": ["GPU-a"], "a/other": None}


def test_sixty_diagnoses_make_one_process(folder: Path) -> None:
    begun = folder / "begun"
    program = f"import sys; open({str(begun)!r}, 'a').write('x'); sys.stdin.read()"
    with serving(folder, [], diagnosis=program) as (served, supervisor):
        remote = Remote(folder / "s", ("nvml",))
        remote.want(frozenset({"nvml"}), Known())
        until(lambda: remote.turn(0.1))
        question = {"do": "diagnose", "level": 1, "gpus": ["GPU-a"]}
        with asking(served, question, 1):
            until(begun.exists)
            with asking(served, question, MANY - 1) as others:
                refused = [answer(other) for other in others]
            assert all("another diagnosis runs" in one["error"] for one in refused)
            assert begun.read_text() == "x"
        until(lambda: supervisor._diagnosing.ended)
        remote.close()
