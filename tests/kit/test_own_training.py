"""The lines that the document gives for a training of one's own do what its ten steps say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checkpoint import Folder

from tests.kit.conftest import KIT, Program, Start, until

ROOT = KIT.parents[1]
_OWN = """
import json

STEPS, state = 10**9, {"trained": 0}


def train(step):
    assert step == state["trained"], (step, state)
    state["trained"] += 1
    time.sleep(0.01)


def dump(file):
    file.write(json.dumps(state).encode())


def load(file):
    state.update(json.load(file))
    print("goes on from", state["trained"], flush=True)


"""


@pytest.fixture
def train(start: Start, tmp_path: Path) -> Callable[[], Program]:
    """Starts it, with folders of the test's own and a free port that it tells."""
    (code,) = re.findall(r"```python\n(.*?)```", (KIT / "README.md").read_text(), re.DOTALL)
    before, folder, after = code.partition("folder = ")
    whole = before + "import time\n" + _OWN + folder + after
    for old, new in (
        ('"/checkpoints/', f'"{tmp_path}/checkpoints/'),
        ('"/backup/', f'"{tmp_path}/backup/'),
        ("requests.serve(8080,", 'print("port", requests.serve(0,'),
        ('{"step": step})', '{"step": step}), flush=True)'),
    ):
        assert old in whole
        whole = whole.replace(old, new)
    (tmp_path / "own.py").write_text(whole)
    return partial(start, str(tmp_path / "own.py"), environment={"PYTHONPATH": str(ROOT)})


def test_it_saves_when_asked_and_when_ended_and_goes_on_from_there_and_from_the_backup(
    train: Callable[[], Program], tmp_path: Path
) -> None:
    (tmp_path / "checkpoints").mkdir()
    folder = Folder(tmp_path / "checkpoints/my-run")
    own = train()
    own.port()
    until(lambda: own.get("/status")["step"] > 0)
    assert until(lambda: own.request("POST", "/checkpoint")[0] == 200)
    asked = folder.restore()
    assert asked
    assert asked.step > 0
    assert own.end() == 143
    ended = folder.restore()
    assert ended
    assert ended.step >= asked.step
    manager = [sys.executable, str(KIT / "checkpoint_manager.py"), f"--folder={folder.path}"]
    subprocess.run([*manager, f"--backup={tmp_path / 'backup/my-run'}"], check=True, capture_output=True)
    for lost in (False, True):
        if lost:
            shutil.rmtree(folder.path)
        again = train()
        until(partial(goes_on, again, ended.step))
        again.process.kill()
        again.process.wait()


def goes_on(own: Program, step: int) -> bool:
    return f"goes on from {step}\n" in own.text()
