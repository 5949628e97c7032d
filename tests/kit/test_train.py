"""A training that is killed, ended, asked or replaced loses what it says and no more."""

from __future__ import annotations

import http.client
import random
import signal
import subprocess
import sys
import time
from email.message import Message
from pathlib import Path

import pytest
from checkpoint import Folder
from model import model
from on_request import SaveRequests

from agent.actions.checkpoint import declared, post
from agent.model.names import REQUESTED_ANNOTATION
from tests.kit.conftest import KIT, Program, Start, dumped, newest, until

_WIDTH = 16


def train(start: Start, folder: Path, *extra: object, interval_s: float = 1000) -> Program:
    return start("train.py", "--folder", folder, "--interval-s", interval_s, "--width", _WIDTH, "--port", 0, *extra)


def saved_step(folder: Path) -> int:
    return (newest(Folder(folder), 5) or (-1,))[0]


def test_a_training_killed_again_and_again_ends_as_if_nothing_had_been(start: Start, tmp_path: Path) -> None:
    steps, chance = 3000, random.Random(7)
    for _ in range(6):
        run = train(start, tmp_path / "run", "--steps", steps, "--step-s", 0.001, interval_s=0.05)
        run.port()
        time.sleep(chance.random() * 0.5)
        run.signal(signal.SIGKILL)
        run.process.wait()
    assert train(start, tmp_path / "run", "--steps", steps, interval_s=0.05).process.wait(300) == 0
    undisturbed = model(_WIDTH)
    for step in range(steps):
        undisturbed.train(step)
    resumed = model(_WIDTH)
    found = Folder(tmp_path / "run").restore(resumed.load)
    assert found is not None
    assert (found.step, dumped(resumed)) == (steps, dumped(undisturbed))


def test_twenty_kills_in_the_midst_of_saving_break_no_restore() -> None:
    program = [sys.executable, "-m", "tests.kit.kills", "--kills=20"]
    done = subprocess.run(program, cwd=KIT.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 kills -9 over 1 rank(s)" in done.stdout


def test_sigterm_loses_no_step_and_never_looks_like_success(start: Start, tmp_path: Path) -> None:
    run = train(start, tmp_path / "run", "--step-s", 0.01)
    until(lambda: run.get("/status")["step"] > 20)
    assert run.end() == 143
    ended_at = saved_step(tmp_path / "run")
    assert ended_at > 20
    assert f"saved step {ended_at}" in run.text().splitlines()[-1]


def test_the_agents_post_is_answered_200_once_what_was_done_until_then_is_saved(start: Start, tmp_path: Path) -> None:
    run = train(start, tmp_path / "run", "--step-s", 0.01)
    wish = declared({"gpu-health-agent/checkpoint": "http:8080/checkpoint"})  # as the manifest says
    for _ in range(3):
        done = run.get("/status")["step"]
        assert until(lambda: post("127.0.0.1", run.port(), wish.path)[0])
        assert saved_step(tmp_path / "run") >= done


def test_a_save_slower_than_the_agents_patience_is_told_at_its_next_post() -> None:
    requests = SaveRequests()
    assert requests.post() == 202
    assert requests.wanted()
    requests.saved()
    assert not requests.wanted()
    assert requests.post() == 200
    assert requests.post() == 202  # which asks anew
    assert requests.wanted()


def test_who_may_not_ask_for_a_save_is_refused_and_nothing_is_saved() -> None:
    requests = SaveRequests()

    def may_ask(address: str, headers: Message) -> bool:
        return address == "127.0.0.1" and headers["X-Mesh-Peer"] == "agent"

    port = requests.serve(0, "/checkpoint", dict, may_ask)
    for peer, code in (("somebody", 403), ("agent", 202)):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/checkpoint", headers={"X-Mesh-Peer": peer})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert (answer.status, requests.wanted()) == (code, peer == "agent")


def test_the_annotation_is_seen_in_the_downward_apis_file_and_one_save_follows(start: Start, tmp_path: Path) -> None:
    podinfo = tmp_path / "annotations"
    podinfo.write_text('prometheus.io/scrape="true"\n')
    run = train(start, tmp_path / "run", "--step-s", 0.01, "--annotations", podinfo)
    until(lambda: run.get("/status")["step"] > 20)
    assert saved_step(tmp_path / "run") == 0
    podinfo.write_text(
        f'hostile="x\\n{REQUESTED_ANNOTATION}=\\"2020\\""\n{REQUESTED_ANNOTATION}="2026-11-25T12:00:00.000Z"\n'
    )
    until(lambda: saved_step(tmp_path / "run") > 0)
    until(lambda: "can't answer by annotation yet" in run.text())  # there is no API server here
    first, at = saved_step(tmp_path / "run"), run.get("/status")["step"]
    until(lambda: run.get("/status")["step"] > at + 100)
    assert saved_step(tmp_path / "run") == first


def test_the_older_of_two_trainings_notices_and_stops(start: Start, tmp_path: Path) -> None:
    """As on a hung node, where nobody ends the old pod when its replacement starts."""
    old = train(start, tmp_path / "run", "--step-s", 0.01, interval_s=0.1)
    until(lambda: old.get("/status")["saved_step"] > 10)
    new = train(start, tmp_path / "run", "--step-s", 0.01, interval_s=0.1)
    restored = until(lambda: new.get("/status")["restored_step"])
    assert old.process.wait(60) == 75
    until(lambda: new.get("/status")["saved_step"] > restored)
    assert new.process.poll() is None


def test_a_training_that_slept_on_a_hung_node_adds_nothing_when_it_wakes(start: Start, tmp_path: Path) -> None:
    old = train(start, tmp_path / "run", "--step-s", 0.001, interval_s=0.02)
    until(lambda: old.get("/status")["saved_step"] > 10)
    old.signal(signal.SIGSTOP)
    new = train(start, tmp_path / "run", "--step-s", 0.001, interval_s=0.02)
    at = until(lambda: new.get("/status")["restored_step"])
    until(lambda: new.get("/status")["saved_step"] > at + 200)
    old.signal(signal.SIGCONT)
    assert old.process.wait(60) == 75
    until(lambda: new.get("/status")["saved_step"] > at + 400)


def test_a_full_disk_stops_no_training(start: Start, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)], check=True)
    try:
        run = train(start, disk / "run", "--step-s", 0.01, interval_s=0.05)
        until(lambda: run.get("/status")["saved_step"] > 3)
        ballast = disk / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(b"x" * 200_000)
        until(lambda: "can't save" in run.text())
        before = run.get("/status")
        until(lambda: run.get("/status")["step"] > before["step"] + 5)
        assert saved_step(disk / "run") == before["saved_step"]
        ballast.unlink()
        until(lambda: run.get("/status")["saved_step"] > before["saved_step"])
        run.end()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
