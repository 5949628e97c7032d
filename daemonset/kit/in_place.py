"""What ``torch.save`` wrote, read into the tensors that are there: no second model is held. Needs PyTorch 2.7 or newer.

``torch.load`` first makes all tensors anew, and for a moment holds both models. Copy this file for a model of your own.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import torch
from torch._subclasses.fake_tensor import FakeTensorMode  # where PyTorch's notes on serialization have it from

_PIECE = 1 << 20


def load(file: BinaryIO, state: dict[str, Any], device: str) -> Any:
    """As ``torch.load`` with ``weights_only``, of a file that stands at the first byte of what was saved.

    A tensor that ``state`` has in the same place is filled; others are made. ValueError, before any is touched, if one
    does not fit.
    """
    begins = file.tell()
    with FakeTensorMode():  # the tensors without their data, which know where it stands
        outline = torch.load(file, map_location="cpu", weights_only=True)
    _each(outline, state, lambda saved, there: _check(saved, there))
    return _each(outline, state, lambda saved, there: _read(file, begins, saved, there, device))


def _each(outline: Any, state: Any, act: Any) -> Any:
    """The same dicts, lists and values; ``act`` of each tensor and of the one in its place."""
    if isinstance(outline, torch.Tensor):
        return act(outline, state if isinstance(state, torch.Tensor) else None)
    if isinstance(outline, dict):
        known = state if isinstance(state, dict) else {}
        return type(outline)([(key, _each(one, known.get(key), act)) for key, one in outline.items()])
    if isinstance(outline, list | tuple):
        same = isinstance(state, list | tuple) and len(state) == len(outline)
        return type(outline)([_each(one, state[at] if same else None, act) for at, one in enumerate(outline)])
    return outline


def _check(saved: torch.Tensor, there: torch.Tensor | None) -> None:
    if not saved.is_contiguous():
        raise ValueError("a tensor was saved that is not contiguous")
    if there is not None and (there.shape, there.dtype) != (saved.shape, saved.dtype):
        raise ValueError(f"a tensor of {list(saved.shape)} is none of {list(there.shape)}")


def _read(file: BinaryIO, begins: int, saved: torch.Tensor, there: torch.Tensor | None, device: str) -> torch.Tensor:
    """Piece by piece, onto the GPU as well."""
    if there is None or not there.is_contiguous():
        there = torch.empty(saved.shape, dtype=saved.dtype, device=device)
    place = saved.untyped_storage()._checkpoint_offset
    file.seek(begins + place + saved.storage_offset() * saved.element_size())
    room = there.detach().view(-1).view(torch.uint8)
    for at in range(0, room.numel(), _PIECE):
        piece = bytearray(file.read(min(_PIECE, room.numel() - at)))
        room[at : at + len(piece)].copy_(torch.frombuffer(piece, dtype=torch.uint8))
    return there
