"""A diagnosis as a process: bounded, alone, and gone when it should be; the process itself stands in here."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from agent.config.source_index import Known
from agent.model.errors import UndiagnosedError
from agent.sources.dcgm.diag_process import LONGEST_BYTES, Diagnosing, asked, failures, result
from agent.sources.process.supervisor import Supervisor
from tests.waiting import LATEST_S

PASSED = {"passed": True, "gpus": ["0000:1b:00.0"], "results": {"0000:1b:00.0": {"memory": "pass"}}, "errors": []}
WAITS = "import os, sys, time; sys.stderr.write('here'); open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def process(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def says(told: object) -> list[str]:
    return process(f"print({json.dumps(told)!r})")


def started(path: Path) -> int:
    """Its pid, once it says that it runs."""
    due = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < due
        time.sleep(0.01)
    return int(path.read_text())


def ignore(_: float) -> None:
    pass


class Asking(threading.Thread):
    """A thread that asks, and how that ended."""

    def __init__(self, one: Diagnosing | Supervisor) -> None:
        super().__init__(daemon=True)
        self._ask = one.run if isinstance(one, Diagnosing) else one.diagnose
        self.why = ""
        self.start()

    def run(self) -> None:
        try:
            self._ask(1, ["GPU-a"], ignore)
        except UndiagnosedError as error:
            self.why = str(error)


def test_the_result_is_told_of_the_level_and_gpus_that_were_asked_for() -> None:
    code = (
        f"import sys; assert sys.argv[1:] == ['--level', '2', '--gpus', 'GPU-a,GPU-b']; print({json.dumps(PASSED)!r})"
    )
    assert Diagnosing(process(code)).run(2, ["GPU-a", "GPU-b"], ignore) == PASSED


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (process("print('[]')"), "ended without a result"),
        (process("import sys; sys.exit('it broke\\033[1m')"), r"ended without a result \(1\): it broke\?\[1m"),
        (says({"passed": "yes", "results": {}, "errors": []}), "ended without a result"),
        (says({"error": "no DCGM engine answers"}), "^no DCGM engine answers$"),
        (says({"error": "two\nlines"}), r"^two\?lines$"),
        (process(f"print('x' * {LONGEST_BYTES + 1000}, flush=True); import time; time.sleep(60)"), "said too much"),
        (["/nowhere/python"], "can't be started"),
    ],
)
def test_what_is_no_result_is_said_in_one_sentence(command: Sequence[str], why: str) -> None:
    one = Diagnosing(command)
    with pytest.raises(UndiagnosedError, match=why):
        one.run(1, ["GPU-a"], ignore)
    assert one.ended


def test_one_that_does_not_end_in_time_is_ended(tmp_path: Path) -> None:
    one = Diagnosing(process(WAITS, tmp_path / "pid"))
    with pytest.raises(UndiagnosedError, match="did not end within 0 s"):
        one._run(one._command, ignore, 0.2)
    assert one.ended
    assert gone_if_it_began(tmp_path / "pid")


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def gone_if_it_began(path: Path) -> bool:
    """It may have been ended before it could write down who it is."""
    pid = path.read_text() if path.exists() else ""
    return not pid or gone(int(pid))


def test_never_two_at_once_and_the_gpus_are_not_let_go_of_before_it_has_ended(tmp_path: Path) -> None:
    source = process("import time; time.sleep(60)")
    every = frozenset({"nvml", "dcgm"})
    one = Supervisor({"nvml": source, "dcgm": source}, 60, (), process(WAITS, tmp_path / "pid"))
    with pytest.raises(UndiagnosedError, match="let go of"):
        one.diagnose(1, ["GPU-a"], ignore)
    one.want(every, Known())
    asking = Asking(one)
    pid = started(tmp_path / "pid")
    with pytest.raises(UndiagnosedError, match="another diagnosis runs"):
        one.diagnose(1, ["GPU-a"], ignore)
    one.want(frozenset({"dcgm"}), Known())
    assert not one.ended(["nvml"]) or gone(pid)
    asking.join(LATEST_S)
    assert "let go of" in asking.why
    assert one.ended(["nvml"])
    assert gone(pid)
    one.close()


def test_one_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    class EnoughError(Exception):
        pass

    def enough(_: float) -> None:
        raise EnoughError

    one = Diagnosing(process(WAITS, tmp_path / "pid"))
    with pytest.raises(EnoughError):
        one.run(1, ["GPU-a"], enough)
    assert one.ended
    assert gone_if_it_began(tmp_path / "pid")


def test_a_supervisor_that_closes_leaves_no_diagnosis_behind(tmp_path: Path) -> None:
    one = Supervisor({}, 60, (), process(WAITS, tmp_path / "pid"))
    one.want(frozenset(), Known())
    asking = Asking(one)
    pid = started(tmp_path / "pid")
    one.close()
    asking.join(LATEST_S)
    assert gone(pid)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        ({}, "level must be"),
        ({"level": 5, "gpus": ["GPU-a"]}, "level must be"),
        ({"level": True, "gpus": ["GPU-a"]}, "level must be"),
        ({"level": "1", "gpus": ["GPU-a"]}, "level must be"),
        ({"level": 1}, "gpus must be"),
        ({"level": 1, "gpus": []}, "gpus must be"),
        ({"level": 1, "gpus": "GPU-a"}, "gpus must be"),
        ({"level": 1, "gpus": ["--address"]}, "gpus must be"),
        ({"level": 1, "gpus": ["GPU-a,GPU-b"]}, "gpus must be"),
        ({"level": 1, "gpus": [7]}, "gpus must be"),
        ({"level": 1, "gpus": ["GPU-" + "a" * 61]}, "gpus must be"),
        ({"level": 1, "gpus": ["GPU-a"] * 65}, "gpus must be"),
    ],
)
def test_a_request_of_hostile_values_is_refused_in_one_sentence(request_: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        asked(request_)


def test_failures_name_test_gpu_and_reason_and_nothing_that_can_not_be_printed() -> None:
    said = {"gpu": "0000:1b:00.0", "test": "memory", "code": 58, "message": "a mis\x1b[1mmatch"}
    results = {"0000:1b:00.0": {"memory": "fail", "pcie": "pass"}, "node": 7}
    told = {"passed": False, "results": results, "errors": [said, 3]}
    assert failures(result(told)) == "memory failed on 0000:1b:00.0; memory: a mis?[1mmatch"
    assert failures(result({"passed": False, "results": {}, "errors": []})) == "nothing was tested"
    skipped = {"passed": False, "results": {"node": {"": "fail"}}, "errors": [], "untested": ["0000:43:00.0"]}
    assert failures(result(skipped)) == "0000:43:00.0 was not tested"
    assert len(failures({"results": {"x" * 1000: {"y": "fail"}}, "errors": []})) == 300
