"""A restore with PyTorch fills the tensors that are there. ``make kit-torch`` runs it."""

from __future__ import annotations

import io
from typing import Any

import in_place
import pytest
import torch
from model import TorchModel

from tests.kit.conftest import dumped


def test_a_restore_with_pytorch_fills_the_tensors_that_are_there() -> None:
    learner, wanted = TorchModel(200_000), TorchModel(200_000)
    for step in range(2):
        learner.train(step)
        wanted.train(step + 1)
    fits, before = dumped(wanted), dumped(learner)
    with pytest.raises(ValueError, match="another model"):
        learner.load(io.BytesIO(dumped(TorchModel(200_001))))
    assert dumped(learner) == before
    there = _tensors(learner)
    (file := io.BytesIO(b"a head" + fits)).seek(len(b"a head"))  # as a checkpoint has one
    learner.load(file)
    assert dumped(learner) == fits
    assert _tensors(learner) == there


@pytest.mark.parametrize("there", ["contiguous_format", "channels_last"])
@pytest.mark.parametrize("stored", ["contiguous_format", "channels_last"])
def test_tensors_of_any_layout_and_kind_are_what_torch_load_would_give(there: str, stored: str) -> None:
    def made(layout: str) -> Any:
        layer = torch.nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=getattr(torch, layout))
        return layer, torch.optim.AdamW([*layer.parameters()])

    layer, optimizer = made(stored)
    layer(torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    content = _saved({"layer": layer.state_dict(), "optimizer": optimizer.state_dict(), "part": torch.arange(9)[3:6]})
    other, _ = made(there)
    got = in_place.load(io.BytesIO(content), {"layer": other.state_dict()}, "cpu")
    wanted = torch.load(io.BytesIO(content), weights_only=True)
    assert repr(got) == repr(wanted)
    assert got["layer"]._metadata == wanted["layer"]._metadata == {"": {"version": 1}}
    assert torch.equal(other.weight, layer.weight)


def _tensors(learner: TorchModel) -> set[int]:
    """Where the model's and the optimizer's lie."""
    momenta = [state["momentum_buffer"] for state in learner._optimizer.state.values()]
    return {one.data_ptr() for one in (*learner._layers.parameters(), *momenta)}


def _saved(content: object) -> bytes:
    torch.save(content, file := io.BytesIO())
    return file.getvalue()
