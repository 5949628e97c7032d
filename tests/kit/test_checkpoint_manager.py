"""The backup holds whole checkpoints only, one run is at work at a time, and both show in the metrics."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from checkpoint import Folder, verified
from checkpoint_manager import Found, look_after

from tests.kit.conftest import KIT, Start, newest, save, until


class Site:
    """A run's folder, its backup, and the program over both."""

    def __init__(self, path: Path) -> None:
        self.source, self.backup = Folder(path / "run", keep=3), Folder(path / "backup", keep=3)
        self.source.claim()
        self.code, self.said = -1, ""

    def save(self, *steps: int) -> None:
        for step in steps:
            save(self.source, step, b"%d" % step * 100)

    def manage(self, *extra: str) -> int:
        command = [
            sys.executable,
            str(KIT / "checkpoint_manager.py"),
            f"--folder={self.source.path}",
            f"--backup={self.backup.path}",
            "--keep=3",
            *extra,
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.code, self.said = done.returncode, done.stdout + done.stderr
        return self.code

    def metric(self, name: str) -> float:
        return float(next(line.split()[1] for line in self.said.splitlines() if line.startswith(f"{name} ")))

    def backed_up(self) -> int:
        return (newest(self.backup) or (-1,))[0]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_the_newest_is_verified_copied_once_and_old_copies_go(site: Site) -> None:
    for step in range(1, 7):
        site.save(step)
        assert site.manage() == 0, site.said
        assert site.backed_up() == step
        assert (site.metric("checkpoint_valid"), site.metric("checkpoint_step")) == (1, step)
        assert site.metric("checkpoint_backup_step") == step
        file = site.source.file(site.source.numbers()[0])
        assert abs(site.metric("checkpoint_saved_timestamp_seconds") - file.stat().st_mtime) < 0.01
    assert len(site.backup.numbers()) == 3
    before = {number: site.backup.file(number).stat().st_mtime_ns for number in site.backup.numbers()}
    assert site.manage() == 0
    assert {number: site.backup.file(number).stat().st_mtime_ns for number in site.backup.numbers()} == before


def test_a_broken_newest_is_reported_and_never_takes_a_good_copys_place(site: Site) -> None:
    site.save(1, 2)
    assert site.manage() == 0
    site.save(3)
    file = site.source.file(site.source.numbers()[0])
    for length in (file.stat().st_size - 1, 100):
        os.truncate(file, length)
        assert site.manage() == 1
        assert site.metric("checkpoint_valid") == 0
        assert site.backed_up() == 2
    for number in site.source.numbers():
        os.truncate(site.source.file(number), 5)
    assert site.manage() == 1
    assert site.backed_up() == 2


def whole(path: Path) -> bool:
    with path.open("rb") as file:
        return verified(file) is not None


def test_a_newest_torn_at_any_byte_is_called_broken_and_no_copy_suffers(site: Site) -> None:
    site.backup.path.mkdir()
    site.save(1, 2)
    look_after(site.source, site.backup, found := Found())
    assert found.valid == 1
    site.save(3)
    file = site.source.file(site.source.numbers()[0])
    for length in range(file.stat().st_size - 1, 0, -1):  # an empty one is a claim
        os.truncate(file, length)
        look_after(site.source, site.backup, found := Found())
        assert (found.valid, found.step, found.backup_step) == (0, 2, 2), length
        assert all(whole(site.backup.file(number)) for number in site.backup.numbers()), length


def test_a_claim_is_no_damage_and_no_checkpoint_at_all_is(site: Site) -> None:
    assert site.manage() == 1
    site.save(1)
    Folder(site.source.path).claim()
    assert site.manage() == 0
    assert site.metric("checkpoint_valid") == 1


def test_a_copy_that_went_bad_is_made_anew(site: Site) -> None:
    site.save(1, 2)
    assert site.manage() == 0
    copy = site.backup.file(site.backup.numbers()[0])
    copy.write_bytes(copy.read_bytes()[:-1] + b"?")
    assert site.backed_up() == -1
    assert site.manage() == 0
    assert site.backed_up() == 2


def test_a_new_run_in_an_old_runs_place_touches_no_copy(site: Site) -> None:
    site.save(1, 2, 3)
    assert site.manage() == 0
    for number in site.source.numbers():
        site.source.file(number).unlink()
    again = Folder(site.source.path)
    again.claim()
    save(again, 1, b"another run")
    assert site.manage() == 1
    assert "if this is another run, give it folders of its own" in site.said
    assert site.backed_up() == 3


def test_two_runs_are_never_at_work_at_once(site: Site) -> None:
    site.save(1)
    assert site.manage() == 0
    with (site.backup.path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        site.save(2)
        assert site.manage() == 75
        assert site.backed_up() == 1
    assert site.manage() == 0
    assert site.backed_up() == 2


def test_a_full_backup_keeps_its_copies(site: Site) -> None:
    site.backup.path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(site.backup.path)], check=True)
    try:
        site.save(1)
        assert site.manage() == 0
        save(site.source, 2, b"x" * 100_000)
        assert site.manage() == 1
        assert "No space left" in site.said
        assert site.backed_up() == 1
        site.save(3)
        assert site.manage() == 0
        assert site.backed_up() == 3
    finally:
        subprocess.run(["umount", "--lazy", str(site.backup.path)], check=True)


def test_a_run_killed_at_any_moment_leaves_whole_copies(site: Site, start: Start) -> None:
    def saves(step: int) -> bool:
        return any(site.backup.path.glob(".saving-*")) or site.backed_up() == step

    for step in range(1, 7):
        save(site.source, step, os.urandom(3_000_000))
        run = start("checkpoint_manager.py", f"--folder={site.source.path}", f"--backup={site.backup.path}", "--keep=2")
        until(partial(saves, step))
        run.signal(signal.SIGKILL)
        run.process.wait()
        assert site.backed_up() >= step - 1 or step == 1
        assert site.manage() == 0
        assert site.backed_up() == step
        assert not list(site.backup.path.glob(".saving-*"))


def test_the_metrics_are_put_to_a_pushgateway_under_the_runs_name(site: Site) -> None:
    seen: list[tuple[str, str]] = []

    class Pushgateway(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    site.save(7)
    server = HTTPServer(("127.0.0.1", 0), Pushgateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        assert site.manage(f"--pushgateway=http://127.0.0.1:{server.server_address[1]}/") == 0, site.said
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert seen[0][0] == "/metrics/job/checkpoint-manager/run/run"
    assert "checkpoint_step 7\n" in seen[0][1]
    assert site.manage("--pushgateway=http://127.0.0.1:1") == 1
    assert site.backed_up() == 7
