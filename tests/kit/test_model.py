"""The example model, in PyTorch where it is installed and else in NumPy: a checkpoint is all of it, and only data."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy
import pytest
from model import FEATURES, LostGpuError, NumpyModel, OutOfMemoryError, TorchModel, meaning, model

from tests.kit.conftest import Start, dumped, until

try:
    import torch
except ImportError:
    torch = None

ROWS = [[0.1 * number for number in range(FEATURES)], [0.5] * FEATURES]


def test_who_goes_on_from_a_checkpoint_computes_what_an_undisturbed_one_would() -> None:
    undisturbed, first, second = model(16), model(16), model(16)
    for step in range(40):
        undisturbed.train(step)
    for step in range(20):
        first.train(step)
    second.load(io.BytesIO(dumped(first)))
    for step in range(20, 40):
        second.train(step)
    assert second.infer(ROWS) == undisturbed.infer(ROWS)
    assert dumped(second) == dumped(undisturbed)


class Evil:
    """What a pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._path),)


def test_a_checkpoint_of_another_model_is_refused_and_none_runs_code(tmp_path: Path) -> None:
    trap = tmp_path / "it-ran"
    whole = dumped(model(16))
    others = [dumped(model(8)), b"", b"nothing", whole[:-40], pickle.dumps({"layers": Evil(trap), "optimizer": {}}, 2)]
    if torch is not None:
        others += [dumped(NumpyModel(16)), saved({"layers": {}}), saved([1]), saved({"layers": Evil(trap)})]
    for payload in others:
        with pytest.raises(ValueError, match=r"checkpoint|pickle"):
            model(16).load(io.BytesIO(payload))
    assert not trap.exists()


def test_a_restore_holds_no_second_model_and_a_wrong_one_changes_nothing() -> None:
    learner, wanted = NumpyModel(200_000), NumpyModel(200_000)
    wanted.train(0)
    fits = dumped(wanted)
    numpy.savez(wrong := io.BytesIO(), **{**numpy.load(io.BytesIO(fits)), "velocity2": numpy.zeros(3)})
    before = dumped(learner)
    with pytest.raises(ValueError, match="another model"):
        learner.load(io.BytesIO(wrong.getvalue()))
    assert dumped(learner) == before
    tracemalloc.start()
    learner.load(io.BytesIO(fits))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert dumped(learner) == fits
    assert most < 0.2 * len(fits), f"{most} bytes held for a checkpoint of {len(fits)}"


def saved(content: object) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()


def test_a_replica_that_can_read_no_checkpoint_says_so_and_serves_the_next_that_it_can(
    start: Start, tmp_path: Path
) -> None:
    from checkpoint import Folder

    folder = Folder(tmp_path / "run")
    folder.claim()
    folder.save(1, model(8).dump)
    replica = start("inference.py", "--folder", folder.path, "--port", 0, "--again-s", 0.05)
    until(lambda: "can't serve from" in replica.text())
    assert replica.request("GET", "/readyz")[0] == 503
    folder.save(2, model(256).dump)
    until(lambda: replica.request("GET", "/readyz")[0] == 200)


def test_the_model_is_of_the_library_that_is_installed() -> None:
    assert isinstance(model(16), NumpyModel if torch is None else TorchModel)


class AcceleratorError(RuntimeError):
    """As PyTorch names it since 2.8."""


@pytest.mark.parametrize(
    ("error", "meant"),
    [
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), LostGpuError),
        (AcceleratorError("CUDA error: out of memory"), OutOfMemoryError),
        (RuntimeError("CUDA error: device-side assert triggered"), LostGpuError),  # before 2.8
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemoryError),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate"), OutOfMemoryError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x8 and 9x4)"), RuntimeError),
    ],
)
def test_an_error_of_pytorchs_is_taken_for_what_it_is(error: RuntimeError, meant: type[Exception]) -> None:
    assert type(meaning(error)) is meant
