"""The example's model, which you replace by your own: PyTorch where it is installed, else the same in NumPy."""

from __future__ import annotations

import pickle
import zipfile
from typing import IO, Any, BinaryIO, Protocol

import numpy

try:
    import torch
except ImportError:
    torch = None
else:
    import in_place

FEATURES, BATCH, RATE, MOMENTUM = 8, 32, 0.01, 0.9
_ARRAYS, _PIECE = ("first", "second", "velocity1", "velocity2"), 1 << 20
_NO_MEMORY = ("out of memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
Floats = numpy.ndarray[Any, numpy.dtype[numpy.float32]]


class OutOfMemoryError(Exception):
    """The request does not fit into the memory that is left; a smaller model's may."""


class LostGpuError(Exception):
    """CUDA failed in a way that only a new process cures, if that."""


def meaning(error: RuntimeError) -> Exception:
    """Of an error of PyTorch's: out of memory, a lost GPU, or itself where it is only this request's.

    On a CPU, and in libraries, memory that ran out has no exception of its own. AcceleratorError goes by its name, for
    releases before 2.8 have none: there it is a RuntimeError that begins with "CUDA error".
    """
    if any(words in str(error) for words in _NO_MEMORY):
        return OutOfMemoryError(str(error))
    if type(error).__name__ == "AcceleratorError" or str(error).startswith("CUDA error"):
        return LostGpuError(str(error))  # an ECC error, an illegal address, a GPU off the bus: the context is gone
    return error


class Model(Protocol):
    """What training and inference ask of a model."""

    def train(self, step: int) -> float:
        """One step; its loss."""

    def infer(self, rows: list[list[float]]) -> list[float]:
        """A number for each row. OutOfMemoryError, LostGpuError, ValueError for rows of another shape.

        Any other RuntimeError is this request's alone.
        """

    def dump(self, file: BinaryIO) -> None:
        """Write all that the next step depends on: weights and optimizer. The batch is a function of the step."""

    def load(self, file: BinaryIO) -> None:
        """The reverse, from where the file stands. ValueError if it is another model's."""


def model(width: int) -> Model:
    return NumpyModel(width) if torch is None else TorchModel(width)


def batch(step: int) -> tuple[Floats, Floats]:
    """Of the step alone, so that a training that was interrupted sees what it would have seen."""
    inputs = numpy.random.default_rng(step).standard_normal((BATCH, FEATURES), numpy.float32)
    return inputs, numpy.sin(inputs).sum(axis=1, keepdims=True)


def shaped(rows: list[list[float]]) -> Floats:
    inputs = numpy.asarray(rows, numpy.float32)
    if inputs.ndim != 2 or inputs.shape[1] != FEATURES or not numpy.isfinite(inputs).all():
        raise ValueError(f"inputs must be rows of {FEATURES} finite numbers")
    return inputs


class NumpyModel:
    """One hidden layer, trained by gradient descent with momentum."""

    def __init__(self, width: int) -> None:
        random = numpy.random.default_rng(0)
        self._weights: list[Floats] = [
            random.standard_normal((FEATURES, width), numpy.float32) * 0.3,
            random.standard_normal((width, 1), numpy.float32) / numpy.float32(width**0.5),
        ]
        self._velocities = [numpy.zeros_like(weights) for weights in self._weights]

    def train(self, step: int) -> float:
        inputs, wanted = batch(step)
        hidden = numpy.tanh(inputs @ self._weights[0])
        error = hidden @ self._weights[1] - wanted
        behind = error @ self._weights[1].T * (1 - hidden**2)
        for layer, slope in enumerate((inputs.T @ behind, hidden.T @ error)):
            self._velocities[layer] *= numpy.float32(MOMENTUM)
            self._velocities[layer] -= numpy.float32(RATE / BATCH) * slope
            self._weights[layer] += self._velocities[layer]
        return float((error**2).mean())

    def infer(self, rows: list[list[float]]) -> list[float]:
        try:
            hidden = numpy.tanh(shaped(rows) @ self._weights[0])
            return [float(value) for value in (hidden @ self._weights[1])[:, 0]]
        except MemoryError as error:
            raise OutOfMemoryError(str(error)) from error

    def dump(self, file: BinaryIO) -> None:
        first, second = self._weights
        numpy.savez(file, first=first, second=second, velocity1=self._velocities[0], velocity2=self._velocities[1])

    def load(self, file: BinaryIO) -> None:
        """Into the arrays that are there, piece by piece, so that no second model is held."""
        arrays = dict(zip(_ARRAYS, (*self._weights, *self._velocities), strict=True))
        try:
            with zipfile.ZipFile(file) as saved:
                for fill in (False, True):  # nothing is touched before all are known to fit
                    for name, array in arrays.items():
                        with saved.open(f"{name}.npy") as member:
                            _read(member, array, fill)
        except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, OSError) and error.errno:  # the storage's, and not NumPy's
                raise
            raise ValueError(f"the checkpoint is of another model ({error!r})") from error


def _read(member: IO[bytes], array: Floats, fill: bool) -> None:
    """What ``numpy.savez`` wrote, into an array of its shape."""
    numpy.lib.format.read_magic(member)
    shape, by_columns, dtype = numpy.lib.format.read_array_header_1_0(member)
    if (shape, by_columns, dtype) != (array.shape, False, array.dtype):
        raise ValueError(f"an array of {shape} is none of {array.shape}")
    room = array.data.cast("B")
    for at in range(0, len(room) if fill else 0, _PIECE):
        room[at : at + _PIECE] = member.read(min(_PIECE, len(room) - at))


class TorchModel:
    """The same layers on the GPU, if there is one."""

    def __init__(self, width: int) -> None:
        torch.manual_seed(0)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        linear = torch.nn.Linear
        self._layers = torch.nn.Sequential(linear(FEATURES, width), torch.nn.Tanh(), linear(width, 1)).to(self._device)
        self._optimizer = torch.optim.SGD(self._layers.parameters(), lr=RATE, momentum=MOMENTUM)

    def train(self, step: int) -> float:
        inputs, wanted = (torch.from_numpy(one).to(self._device) for one in batch(step))
        loss = torch.nn.functional.mse_loss(self._layers(inputs), wanted)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return float(loss.detach())

    def infer(self, rows: list[list[float]]) -> list[float]:
        inputs = torch.from_numpy(shaped(rows))
        try:
            with torch.inference_mode():
                return [float(value) for value in self._layers(inputs.to(self._device))[:, 0].cpu()]
        except RuntimeError as error:
            meant = meaning(error)
            if self._device == "cuda" and isinstance(meant, OutOfMemoryError):
                torch.cuda.empty_cache()
            raise meant from error

    def dump(self, file: BinaryIO) -> None:
        torch.save({"layers": self._layers.state_dict(), "optimizer": self._optimizer.state_dict()}, file)

    def load(self, file: BinaryIO) -> None:
        """Into the tensors that are there: it holds no second model. A checkpoint is data, and runs no code."""
        state = {"layers": self._layers.state_dict(), "optimizer": self._optimizer.state_dict()}
        try:
            saved = in_place.load(file, state, self._device)
            self._layers.load_state_dict(saved["layers"])
            self._optimizer.load_state_dict(saved["optimizer"])
        except (
            pickle.UnpicklingError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            ValueError,
        ) as error:
            raise ValueError(f"the checkpoint is of another model ({repr(error)[:200]})") from error
