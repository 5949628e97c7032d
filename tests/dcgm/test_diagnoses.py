"""What the agent makes of each answer of a real engine's diagnosis, laid down as bytes.

An answer of DCGM 4 (version 12 of the response) is a list of tests, of errors and of results; one of DCGM 3 (version 8)
is a table of tests for each GPU. The bytes are packed here by NVIDIA's headers, not by the bindings that read them.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.sources.dcgm.diag_process import failures
from tests.dcgm.standin import Engine
from tests.dcgm.test_diagnose import A, B, diagnosed

ANSWERS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parent / "diagnoses.yaml").read_text())
_GPU, _NOT_RUN = 1, 4


def of_dcgm_4(answer: dict[str, Any]) -> bytes:
    """From behind the version word on: counts; 20 tests, 1024 entities, 32 errors, 128 remarks; results."""
    error = answer.get("error")
    results = [one for one in enumerate(answer["gpus"]) if one[1] != _NOT_RUN]
    test = struct.pack("<32s32sI4xH32x128x2048x2xI2048x", b"memory", b"memory", answer["whole"], len(results), 0)
    words = error["words"].encode() if error else b""
    told = struct.pack("<IIIII512sI", _GPU, 1, error["code"], 0, error["severity"], words, 0) if error else b""
    assert (len(test), len(told)) in ((4336, 0), (4336, 536))
    return b"".join(
        (
            struct.pack("<BBBBHH", 1, bool(error), 0, 0, 2, len(results)),
            test.ljust(20 * len(test), b"\0"),
            bytes(1024 * 272),
            told.ljust(32 * 536, b"\0"),
            bytes(128 * 524),
            *(struct.pack("<IIiI", _GPU, gpu, result, 0) for gpu, result in results),
        )
    )


def of_dcgm_3(answer: dict[str, Any]) -> bytes:
    """From behind the version word on: counts; 16 tests of the software; of each GPU 13 tests."""
    none = struct.pack("<I1024sI1024s", _NOT_RUN, b"", 0, b"")
    gpus = b""
    for gpu, result in enumerate(answer["gpus"]):
        error = answer.get("error") if gpu else None
        code, words = (error["code"], error["words"].encode()) if error else (0, b"")
        gpus += struct.pack("<II", gpu, 0) + struct.pack("<I1024sI1024s", result, words, code, b"") + 12 * none
    assert len(none) == 2056
    return struct.pack("<II", 2, 0) + 16 * none + gpus


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda one: f"{one['gpus']} {one.get('error', {}).get('code', '')}")
def test_what_is_made_of_each_answer(
    engine: Engine, built: tuple[Path, Path], tmp_path: Path, answer: dict[str, Any]
) -> None:
    by_test = "numTests" in (built[0] / "dcgm_structs.py").read_text()
    (tmp_path / "bytes").write_bytes((of_dcgm_4 if by_test else of_dcgm_3)(answer))
    engine.answers(f"diag {tmp_path / 'bytes'}\n")
    code, told = diagnosed(engine, 2, "GPU-a", "GPU-b")
    assert (code == 0, told["passed"], told["gpus"]) == (answer["passed"], answer["passed"], [A, B])
    if not answer["passed"]:
        assert failures(told) == answer["because"]
    error = answer.get("error")
    assert [(one["gpu"], one["code"], one["message"]) for one in told["errors"]] == (
        [(B, error["code"], error["words"])] if error else []
    )
