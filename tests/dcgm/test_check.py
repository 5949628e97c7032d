"""``check`` without a running agent: what DCGM knows is in its exit code."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.dcgm.standin import GENERATIONS, Engine

pytestmark = pytest.mark.parametrize("built", GENERATIONS[-1:], indirect=True)
BOUND_S = 15
REMAP = "incident 10 20 80 1 1 a row could not be remapped\n"


def check(engine: Engine, folder: Path, **dcgm: Any) -> tuple[int, str]:
    """With DCGM as the only source: without it nothing is seen."""
    engine_here = {"address": engine.address, "bindings": str(engine.bindings), "library": str(engine.library)}
    off = {"enabled": False}
    sources = {"nvml": off, "kmsg": off, "dcgm": {**engine_here, **dcgm}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"http": {"address": "127.0.0.1", "port": 1}, "sources": sources}))
    done = subprocess.run(
        [sys.executable, "-m", "agent", "check", "--config", str(path)],
        env=engine.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize("slow", ["", "slow dcgmInit 3\n", "slow dcgmHealthCheck 3\n"])
def test_it_waits_for_what_dcgm_knows_though_that_takes_a_while(engine: Engine, tmp_path: Path, slow: str) -> None:
    engine.answers(f"{slow}{REMAP}")
    code, said = check(engine, tmp_path)
    assert (code, "dcgm-80@0000:43:00.0" in said) == (2, True), said
    engine.answers(slow)
    assert check(engine, tmp_path)[0] == 0


def test_an_engine_that_never_answers_is_named_after_a_while(engine: Engine, tmp_path: Path) -> None:
    engine.answers("hang dcgmHealthCheck\n")
    began = time.monotonic()
    code, said = check(engine, tmp_path)
    assert (code, "blind: dcgm: the DCGM engine does not answer" in said) == (3, True), said
    assert time.monotonic() - began >= BOUND_S


def test_nobody_waits_for_an_engine_that_is_not_there(engine: Engine, tmp_path: Path) -> None:
    engine.stops_listening()
    began = time.monotonic()
    code, said = check(engine, tmp_path)
    assert (code, f"blind: dcgm: no DCGM engine answers at {engine.address}" in said) == (3, True), said
    assert time.monotonic() - began < BOUND_S


def test_the_first_poll_has_values_for_the_engine_was_told_to_read_at_once(engine: Engine, tmp_path: Path) -> None:
    check(engine, tmp_path)
    calls = [call.split()[0] for call in engine.calls()]
    assert (
        calls.index("dcgmWatchFields") < calls.index("dcgmUpdateAllFields") < calls.index("dcgmEntitiesGetLatestValues")
    )
