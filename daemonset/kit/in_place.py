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
        made: Any = type(outline)([(key, _each(one, known.get(key), act)) for key, one in outline.items()])
        if hasattr(outline, "_metadata"):  # of a module's state_dict: the versions by which its parts are read
            made._metadata = outline._metadata
        return made
    if isinstance(outline, list | tuple):
        same = isinstance(state, list | tuple) and len(state) == len(outline)
        return type(outline)([_each(one, state[at] if same else None, act) for at, one in enumerate(outline)])
    return outline


def _check(saved: torch.Tensor, there: torch.Tensor | None) -> None:
    if there is not None and (there.shape, there.dtype) != (saved.shape, saved.dtype):
        raise ValueError(f"a tensor of {list(saved.shape)} is none of {list(there.shape)}")


def _read(file: BinaryIO, begins: int, saved: torch.Tensor, there: torch.Tensor | None, device: str) -> torch.Tensor:
    """Piece by piece, onto the GPU as well. What does not lie in a row (channels last) is held on its way."""
    in_a_row = saved.is_contiguous()
    if in_a_row and there is not None and there.is_contiguous():
        room = there.detach().view(-1)
    else:
        ends = ((size - 1) * stride for size, stride in zip(saved.shape, saved.stride(), strict=True))
        room = torch.empty(1 + sum(ends) if saved.numel() else 0, dtype=saved.dtype, device=device)
    place = saved.untyped_storage()._checkpoint_offset
    file.seek(begins + place + saved.storage_offset() * saved.element_size())
    data = room.view(torch.uint8)
    for at in range(0, data.numel(), _PIECE):
        piece = bytearray(file.read(min(_PIECE, data.numel() - at)))
        data[at : at + len(piece)].copy_(torch.frombuffer(piece, dtype=torch.uint8))
    if there is None:
        return room.as_strided(saved.shape, saved.stride())
    if room.data_ptr() != there.data_ptr():
        there.detach().copy_(room.as_strided(saved.shape, saved.stride()))
    return there
