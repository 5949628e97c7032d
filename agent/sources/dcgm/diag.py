"""DCGM's diagnosis of GPUs, run by the engine while this process waits: one JSON object on standard output.

A process of its own, for the call takes from seconds (level 1) to over an hour (4), and nothing but the end of the
process ends it. The engine goes on testing without its client: so SIGTERM has it told to stop first, and one of DCGM 4
hears a heartbeat and stops by itself minutes after the last.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
import time
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from agent.model.text import normalise_pci
from agent.sources.dcgm.bindings import Bindings, NoBindingsError, load
from agent.sources.dcgm.engine import EngineError, where
from agent.sources.dcgm.fields import text
from agent.sources.dcgm.poll import AUTO, EMBEDDED, UNREACHABLE, USUAL, answers, error_number, failure
from agent.sources.process.program import say_result

_RESULTS = {0: "pass", 1: "skip", 2: "warn", 3: "fail", 4: "not run"}
_PASS, _WARN, _FAIL, _NOT_RUN = 0, 2, 3, 4
# PERSISTENCE_MODE, ECC_DISABLED, ECC_UNSUPPORTED: how the node is set up, and no fault of its GPUs.
_CONFIGURATION = (29, 55, 60)
_GPU, _NODE = 1, "node"
_BEAT_S = 8.0  # as dcgmi; the engine's patience is 10 minutes
_ISOLATE = -51  # NVVS_ISOLATE_ERROR: it ran, and found a GPU that should be taken out of service
_SENTENCES = {
    -34: "another diagnosis runs on this engine",  # IN_USE
    -39: "another diagnosis runs on this engine",  # DIAG_ALREADY_RUNNING
    -52: "the engine has no diagnosis: install DCGM's CUDA packages beside it",
}
_LEFT_BEHIND = "; an nvvs that a killed engine left holds its port and answers nothing until SIGKILL ends it"
# DCGM 3 has no names in its answer: the order of its tests (dcgm_structs.py, DCGM_*_INDEX and DCGM_SWTEST_*).
_BY_GPU = (
    "memory",
    "diagnostic",
    "pcie",
    "sm_stress",
    "targeted_stress",
    "targeted_power",
    "memory_bandwidth",
    "memtest",
    "pulse_test",
    "eud",
    "unused-10",
    "unused-11",
    "unused-12",
)
_SOFTWARE = (
    "denylist",
    "nvml_library",
    "cuda_main_library",
    "cuda_runtime_library",
    "permissions",
    "persistence_mode",
    "environment",
    "page_retirement",
    "graphics_processes",
    "inforom",
)


Error = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """What a diagnosis found, whichever generation of the bindings says so."""

    results: dict[tuple[str, str], int]  # of each GPU (or the node) and test
    errors: list[Error]
    tests: dict[str, int]  # each test's own result, where it has one beside those of the GPUs
    by_gpu: bool  # at level 1, too, each tested GPU has a result

    def judged(self) -> dict[tuple[str, str], int]:
        """The results as dcgmi reads them: an error fails its test, whatever result stands beside it.

        Of a limit that one GPU passed all GPUs are warned; the error alone names the one. Configuration fails nothing.
        """
        results, told = dict(self.results), {error["test"] for error in self.errors}
        for error in self.errors:
            if error["code"] not in _CONFIGURATION:
                results[error["gpu"], error["test"]] = _FAIL
        told |= {test for (_, test), result in results.items() if result == _FAIL}
        alone = [test for test, result in self.tests.items() if result == _FAIL and test not in told]
        return {**results, **{(_NODE, test): _FAIL for test in alone}}

    def untested(self, gpus: set[str], level: int) -> set[str]:
        """GPUs that were skipped, or are in no result."""
        seen = {place for (place, _), result in self.results.items() if result in (_PASS, _WARN, _FAIL)}
        return gpus - seen if self.by_gpu or level > 1 else set()


def diagnose(bindings: Bindings, address: str, level: int, wanted: set[str]) -> dict[str, Any]:
    """Run it on the GPUs with these UUIDs; the bindings' DCGMError or ValueError if it can't be run."""
    began = time.monotonic()
    session = bindings.pydcgm.DcgmHandle(**where(address))
    places, numbers = {}, {}
    for number in bindings.agent.dcgmGetAllSupportedDevices(session.handle):
        identifiers = bindings.agent.dcgmGetDeviceAttributes(session.handle, number).identifiers
        places[number] = normalise_pci(text(identifiers, "pciBusId"))
        numbers[text(identifiers, "uuid")] = number
    if unknown := wanted - numbers.keys():
        raise ValueError(f"DCGM lists no GPU {', '.join(sorted(unknown))}")
    chosen = sorted(numbers[uuid] for uuid in wanted)
    if address != EMBEDDED:  # such a one ends with this process and its group
        threading.Thread(target=_stop_on_sigterm, args=(bindings, address), name="stop", daemon=True).start()
    with redirect_stdout(io.StringIO()):
        import DcgmDiag
    diag = DcgmDiag.DcgmDiag(gpuIds=chosen, testNamesStr=str(level))
    over = threading.Event()
    if hasattr(diag, "SetEnableHeartbeat"):
        diag.SetEnableHeartbeat(True)
        threading.Thread(target=_beat, args=(bindings, session.handle, over), name="heartbeat", daemon=True).start()
    try:
        response = diag.Execute(session.handle)
        found = (_by_gpu if hasattr(response, "perGpuResponses") else _by_test)(response, places)
    except bindings.structs.DCGMError as error:
        if error.value != _ISOLATE:
            raise
        found = Found({}, [_error(_NODE, "", _ISOLATE, str(error))], {}, by_gpu=False)
    over.set()
    session.Shutdown()
    gpus, results = {places[number] for number in chosen}, found.judged()
    each, untested = set(results.values()), found.untested(gpus, level)
    told: dict[str, dict[str, str]] = {}
    for (place, test), result in results.items():
        told.setdefault(place, {})[test] = _RESULTS.get(result, str(result))
    return {
        "level": level,
        "gpus": sorted(gpus),
        "passed": bool(each & {_PASS, _WARN}) and _FAIL not in each and not untested,
        "untested": sorted(untested),
        "seconds": round(time.monotonic() - began, 1),
        "results": told,
        "errors": found.errors,
    }


def _beat(bindings: Bindings, handle: Any, over: threading.Event) -> None:
    while True:
        with suppress(bindings.structs.DCGMError):
            bindings.agent.dcgmDiagSendHeartbeat(handle)
        if over.wait(_BEAT_S):
            return


def _stop_on_sigterm(bindings: Bindings, address: str) -> None:
    """On a connection of its own, as dcgmi does."""
    signal.sigwait({signal.SIGTERM})
    with suppress(Exception):  # whatever the engine says to it, this process ends
        session = bindings.pydcgm.DcgmHandle(**where(address))
        bindings.structs._dcgmGetFunctionPointer("dcgmStopDiagnostic")(session.handle)
    os._exit(1)


def _end_with_whoever_asked() -> None:
    """Killed, it tells us nothing but by the end of our input."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def _by_test(response: Any, places: dict[int, str]) -> Found:
    """DCGM 4: a list of results, each of an entity and a test. An error of no test is the engine's own."""
    tests = response.tests[: response.numTests]
    named = {number: text(test, "name") for number, test in enumerate(tests)}
    results = {
        (_place(one.entity, places), named.get(int(one.testId), "")): int(one.result)
        for one in response.results[: response.numResults]
    }
    errors = [
        _error(_place(one.entity, places), named.get(int(one.testId), ""), int(one.code), text(one, "msg"))
        for one in response.errors[: response.numErrors]
    ]
    return Found(results, errors, {text(test, "name"): int(test.result) for test in tests}, by_gpu=True)


def _by_gpu(response: Any, places: dict[int, str]) -> Found:
    """DCGM 3: a table of tests for each GPU, and one for the node's software."""
    tests = list(zip(cycle([_NODE]), _SOFTWARE, response.levelOneResults[: response.levelOneTestCount], strict=False))
    for gpu in response.perGpuResponses[: response.gpuCount]:
        if place := places.get(int(gpu.gpuId), ""):
            tests += zip(cycle([place]), _BY_GPU, gpu.results, strict=False)
    ran = [(place, test, one) for place, test, one in tests if one.result != _NOT_RUN]
    results = {(place, test): int(one.result) for place, test, one in ran}
    said = [(place, test, error) for place, test, one in ran for error in _each(one.error)]
    said += [(_NODE, "", error) for error in _each(response.systemError)]
    errors = [_error(place, test, int(error.code), text(error, "msg")) for place, test, error in said if error.code]
    return Found(results, errors, {}, by_gpu=False)


def _each(error: Any) -> list[Any]:
    """A test has one error up to DCGM 3.2, and a list of them from 3.3 on."""
    return [error] if hasattr(error, "code") else list(error)


def _error(gpu: str, test: str, code: int, message: str) -> Error:
    return {"gpu": gpu, "test": test, "code": code, "message": message}


def _place(entity: Any, places: dict[int, str]) -> str:
    return places.get(int(entity.entityId), _NODE) if entity.entityGroupId == _GPU else _NODE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m agent.sources.dcgm.diag", description=__doc__)
    parser.add_argument("--address", default=AUTO)
    parser.add_argument("--bindings", type=Path)
    parser.add_argument("--library", type=Path)
    parser.add_argument("--level", type=int, choices=(1, 2, 3, 4), required=True)
    parser.add_argument("--gpus", required=True, help="UUIDs, separated by commas")
    parser.add_argument("--asked", action="store_true", help="end when standard input does, with whoever asked")
    options = parser.parse_args()
    address = USUAL if options.address == AUTO else options.address
    try:
        if not answers(address):
            raise ValueError(f"no DCGM engine answers at {address}")
        bindings, wanted = load(options.bindings, options.library), set(options.gpus.split(","))
        if address != EMBEDDED:  # a thread waits for it, while this one is in a call
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        if options.asked:  # after the line above, which only later threads heed
            threading.Thread(target=_end_with_whoever_asked, name="asked", daemon=True).start()
        result = diagnose(bindings, address, options.level, wanted)
    except (ValueError, NoBindingsError, EngineError) as error:
        result = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the bindings' own error class is not importable here
        number = error_number(error)
        result = {"error": _SENTENCES.get(number or 0) or failure(error, address).raw}
        if number in UNREACHABLE:
            result["error"] += _LEFT_BEHIND
    say_result(result)
    os._exit(0 if result.get("passed") else 1)  # without the bindings' destructors, which call into dead connections


if __name__ == "__main__":
    main()
