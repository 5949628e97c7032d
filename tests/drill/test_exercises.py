"""The drill's client, its targets, and what an exercise does on a node, each without a cluster."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agent.drill.cluster import Cluster
from agent.drill.course import EXERCISES
from agent.drill.course import run as play
from agent.drill.kit import Settings, errands
from agent.drill.load import Client, Window
from agent.drill.on_node import hang, strike
from agent.drill.outcome import Outcome, Part
from agent.drill.scene import Scene
from agent.drill.targets import TARGETS, targets
from agent.drill.withdrawn_rank import withdrawn_rank
from agent.model.errors import UnreachableError, UsageError
from tests.waiting import LATEST_S, until

UID = "01234567-89ab-cdef-0123-456789abcdef"


class Gateway(BaseHTTPRequestHandler):
    """Answers every second request of a connection last, and without a word that it closes then."""

    protocol_version = "HTTP/1.1"
    served: dict[Any, int]
    closes_after = 2

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        count = self.served[self.client_address] = self.served.get(self.client_address, 0) + 1
        self.close_connection = count >= self.closes_after
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def gateway() -> Iterator[tuple[int, dict[Any, int]]]:
    served = dict[Any, int]()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Gateway,), {"served": served}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1], served
    finally:
        server.shutdown()
        server.server_close()


def test_every_other_request_goes_over_a_kept_connection_and_a_closed_one_costs_none() -> None:
    with gateway() as (port, served):
        client = Client("127.0.0.1", port, 100.0, 5.0)
        until(lambda: client.report()["windows"][0]["sent"] >= 30)
        (told,) = client.report()["windows"]
    assert told["failed"] == 0, told["failures"]
    assert {1, 2} <= set(served.values()), "new ones are asked once, kept ones as often as the server likes"
    assert min(one["answered"] for one in told["connections"].values()) >= 10


def test_a_window_has_its_own_rate_and_the_answers_of_what_was_asked_in_it() -> None:
    with gateway() as (port, _):
        client = Client("127.0.0.1", port, 100.0, 5.0)
        until(lambda: client.report()["windows"][0]["sent"] >= 5)
        client.begin("quiet", 1.0)
        time.sleep(0.5)
        client.begin("between", 100.0)
        until(lambda: client.report()["windows"][1]["waiting"] == 0)
        sent = [window["sent"] for window in client.report()["windows"]]
    assert sent[1] <= 2 < sent[0]


def scene(window: Window, rate: float = 20.0) -> tuple[Scene, Outcome]:
    """One whose client reports this window."""
    told = Outcome("https://c", "v1", "ns", time.time())

    def api(method: str, path: str, *_: Any, **__: Any) -> tuple[int, Any]:
        return 200, {"now": time.time(), "windows": [window.report()]} if "/report" in path else {"path": path}

    made = Scene(Cluster(api, "ns", "agents"), Settings("ns", "i", rate=rate), told, lambda _: None)
    made.after_s = 0.0
    return made, told


def figures(outcome: Outcome) -> dict[str, tuple[Any, float, bool]]:
    return {one.name: (one.value, one.target, one.met) for one in outcome.parts[0].figures}


def test_what_clients_saw_stands_beside_its_targets() -> None:
    window = Window("pod", 100.0, 100.0)
    window.note(100.0, 100.1, "")
    window.note(100.2, 103.0, "503: no")
    window.note(103.0, 109.0, "", "kept")
    made, told = scene(window)
    made.end(made.begin("pod", "A pod"))
    assert figures(told) == {
        "requests failed": (1, 0, False),
        "longest gap between two answers": (pytest.approx(8.9), 2.0, False),
        "slowest answer": (pytest.approx(6.0), 5.0, False),
    }


def test_where_a_gateway_died_it_counts_for_how_long_requests_failed() -> None:
    window = Window("gateway", 100.0, 100.0)
    for at in (100.0, 101.5):
        window.note(at, at + 0.5, "refused")
    window.note(102.0, 102.1, "")
    made, told = scene(window)
    made.end(made.begin("gateway", "A gateway"), refuses=True)
    assert figures(told)["from the first failed request to the last"] == (1.5, 5.0, True)
    assert "requests failed" not in figures(told)


def test_no_request_at_all_is_no_success() -> None:
    made, told = scene(Window("pod", 100.0, 100.0))
    made.end(made.begin("pod", "A pod"))
    assert not any(met for _, _, met in figures(told).values())


def test_in_quiet_traffic_the_pause_between_two_requests_is_no_gap() -> None:
    made, told = scene(Window("quiet", 100.0, 100.0))
    made.end(made.begin("quiet", "Quiet", 1.0), 1.0)
    assert figures(told)["longest gap between two answers"][1] == 3.0


def test_each_target_can_be_set_and_a_wrong_one_is_refused_with_the_names() -> None:
    assert targets(["gap-s=0.5", "failed=3"]) == {**TARGETS, "gap-s": 0.5, "failed": 3}
    for wrong in ("gap=1", "gap-s", "gap-s=x", "gap-s=-1", "gap-s=nan"):
        with pytest.raises(UsageError, match="taint-s"):
            targets([wrong])


def test_every_target_is_asked_for_by_an_exercise() -> None:
    """One that nobody measures against would be set in vain."""
    text = "".join(path.read_text() for path in Path("agent/drill").glob("*.py") if path.stem != "targets")
    assert [name for name in TARGETS if f'"{name}"' not in text] == []


def test_the_document_has_each_exercise_and_each_target_with_its_default() -> None:
    text = Path("daemonset/kit/README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", text.partition("\n## Drill\n")[2], re.MULTILINE)
    assert rows == [*EXERCISES, *EXERCISES], "in the table of what happens, and of what was seen"
    told = {name: float(number) for number, name in re.findall(r"([\d.]+)(?: s)? \(`([\w-]+)`\)", text)}
    assert {**told, "failed": 0} == TARGETS


def test_the_folder_of_a_kit_that_is_not_the_drills_own_is_not_taken_away() -> None:
    said: list[str] = []

    def api(method: str, path: str, *_: Any, **__: Any) -> tuple[int, Any]:
        raise UnreachableError("no cluster here")

    told = Outcome("https://c", "v1", "ns", time.time())
    theirs = Scene(Cluster(api, "ns", "agents"), Settings("ns", "i", own=False), told, said.append)
    theirs.wait = lambda *_: (_ for _ in ()).throw(UnreachableError("far enough"))  # type: ignore[method-assign]
    with pytest.raises(UnreachableError):
        play(theirs, [])
    assert told.planned == tuple(name for name in EXERCISES if name not in ("folder", "ranks"))
    assert ["left out" in word for word in said[:2]] == [True, True]
    assert len(told.left_out) == 2


def test_the_folder_is_moved_aside_and_the_copy_is_made_as_the_cron_job_makes_it() -> None:
    copy, lose, job = errands(None, Settings("ns", "image:1", shared_path="/srv"), "0123456789abcdef")
    (copying,), (losing,) = copy["spec"]["containers"], lose["spec"]["containers"]
    assert "--backup=/checkpoints/backup/example" in copying["command"]
    assert losing["command"][-1] == "import os; os.rename('/checkpoints/example', '/checkpoints/example-01234567')"
    assert not any(mount.get("readOnly") for mount in copying["volumeMounts"] if mount["name"] == "checkpoints")
    assert {one["metadata"]["namespace"] for one in (copy, lose, job)} == {"ns"}
    assert job["kind"] == "Job"


class Gang:
    """Four ranks, as the drill hears them."""

    def __init__(self) -> None:
        self.said = {f"rank-{index}": {"step": 9, "restored_step": 0, "restarts": 0} for index in range(4)}

    def live(self, _: str) -> list[dict[str, Any]]:
        return [{"metadata": {"uid": name, "name": name}} for name in self.said]

    def hear(self, pod: dict[str, Any]) -> dict[str, int]:
        return self.said[pod["metadata"]["uid"]]

    def whole(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("restored", "restarts", "figures"), [((9, 9, 9, 9), 1, (1, 0, True)), ((9, 9, 9, 7), 2, (2, 2, False))]
)
def test_ranks_are_well_again_once_each_has_gone_on_and_restarts_and_steps_are_counted(
    restored: tuple[int, ...], restarts: int, figures: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gang, part = Gang(), Part("ranks", "", time.time())

    def withdraw(*words: Any) -> None:
        whole = words[3]
        assert not whole(), "none has left yet"
        gang.said["rank-9"] = {"step": 9, "restored_step": restored[3], "restarts": 0}
        del gang.said["rank-3"]
        for index in range(2):
            gang.said[f"rank-{index}"] = {"step": 9, "restored_step": restored[index], "restarts": restarts}
        assert not whole(), "one still goes on as before"
        gang.said["rank-2"] = {"step": 9, "restored_step": restored[2], "restarts": restarts}
        assert whole()

    monkeypatch.setattr("agent.drill.withdrawn_rank.withdraw", withdraw)
    job = {"spec": {"completions": 4}}
    ended: list[Any] = []
    cluster = SimpleNamespace(apply=lambda one: None, end=ended.append)
    played = SimpleNamespace(
        cluster=cluster, watched=gang, ranks=(job,), targets=TARGETS, say=str, wait=lambda _, ready: ready()
    )
    withdrawn_rank(played, part)  # type: ignore[arg-type]  # all of it that it asks
    told = [(one.value, one.met) for one in part.figures]
    assert told == [(figures[0], figures[2]), (figures[1], figures[2])]
    assert "3 of 4 ranks kept their pods" in part.notes
    assert ended == [job]


@contextmanager
def pod(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process as a node's /proc shows one of a pod, beside the one that holds the pod's network."""
    with subprocess.Popen(["sleep", "60"]) as holder, subprocess.Popen(["sleep", "60"]) as process:
        for one, name in ((holder, "pause"), (process, "python3")):
            (there := folder / str(one.pid)).mkdir()
            (there / "cgroup").write_text(f"0::/kubepods/pod{UID}/x\n")
            (there / "comm").write_text(f"{name}\n")
        try:
            yield process
            assert holder.poll() is None, "its network is not the replica's to lose"
        finally:
            holder.kill()
            process.kill()


def state(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_pods_processes_are_killed_and_nobody_elses(tmp_path: Path) -> None:
    with pod(tmp_path) as process:
        assert strike(UID.replace("0", "1"), signal.SIGKILL, tmp_path) == []
        assert strike(UID, signal.SIGKILL, tmp_path) == [process.pid]
        assert process.wait(LATEST_S) == -signal.SIGKILL


def test_a_replica_that_hangs_goes_on_again(tmp_path: Path) -> None:
    with pod(tmp_path) as process:
        hanging = threading.Thread(target=lambda: done.update(hang(UID, 0.3, tmp_path)))
        done: dict[str, Any] = {}
        hanging.start()
        until(lambda: state(process) == "T")
        hanging.join()
        until(lambda: state(process) == "S")
    assert json.dumps(done["hung"]) == f"[{process.pid}]"
    assert done["on_at"] - done["at"] >= 0.3
