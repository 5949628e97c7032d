"""The log, where nobody takes it."""

from __future__ import annotations

import contextlib
import sys

import pytest
import structlog

from agent.runtime import log
from agent.sources.process.serving import tell


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_log_that_nobody_takes_keeps_nobody_from_acting(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    full = open("/dev/full", "w", buffering=1, encoding="utf-8")  # noqa: SIM115 - closing it fails as well
    monkeypatch.setattr(sys, "stderr", full)
    try:
        log.configure("n1", form=form)
        log.tell("done", step="taint the node")
        tell("info", form, "an agent is connected")
    finally:
        structlog.reset_defaults()
        with contextlib.suppress(OSError):
            full.close()
