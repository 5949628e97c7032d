"""A machine that has no more threads."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest


class _Refused(threading.Thread):
    def start(self) -> None:
        raise RuntimeError("can't start new thread")


@contextlib.contextmanager
def no_threads(starter: type) -> Iterator[None]:
    """Its module can start none meanwhile. Others can: a thread of a test before this one may do so."""
    with pytest.MonkeyPatch.context() as scarce:
        scarce.setattr(
            sys.modules[starter.__module__], "threading", SimpleNamespace(**{**vars(threading), "Thread": _Refused})
        )
        yield
