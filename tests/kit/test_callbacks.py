"""The callbacks for Hugging Face's Trainer and for Lightning, called in the order that the two libraries document.

``make kit-torch`` runs them in the libraries themselves (``tests/kit/ranks/test_callbacks_in_libraries.py``).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from on_request import SaveRequests

RANKS = SimpleNamespace(others=False)  # what the other ranks say


class Base:
    """Both libraries' callback: every event is a method that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    transformers, lightning, pytorch = (ModuleType(n) for n in ("transformers", "lightning", "lightning.pytorch"))
    transformers.TrainerCallback, pytorch.Callback = Base, Base  # type: ignore[attr-defined]
    sharded = ModuleType("sharded")
    sharded.Gang = lambda: SimpleNamespace(any=lambda word: [word or RANKS.others])  # type: ignore[attr-defined]
    for module in (transformers, lightning, pytorch, sharded):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    RANKS.others = False
    yield
    for name in ("trainer_callback", "lightning_callback"):
        sys.modules.pop(name, None)


class Trainer:
    """As transformers.Trainer goes about it: the control is cleared before each step, and on_save follows the save."""

    def __init__(self, requests: SaveRequests, ranks: int = 1) -> None:
        self.callback = importlib.import_module("trainer_callback").SaveWhenAsked(requests)
        self.args, self.state = SimpleNamespace(world_size=ranks), SimpleNamespace(global_step=0)
        self.saved: list[int] = []
        self.callback.on_train_begin(self.args, self.state, SimpleNamespace(), model=None)

    def step(self) -> None:
        self.state.global_step += 1
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        control = self.callback.on_step_end(self.args, self.state, control, model=None) or control
        if control.should_save:
            self.saved.append(self.state.global_step)
            self.callback.on_save(self.args, self.state, control, model=None)


class Lightning:
    """As lightning.pytorch.Trainer: a batch is a step unless gradients of several are added up."""

    def __init__(self, requests: SaveRequests, folder: Path) -> None:
        self.callback = importlib.import_module("lightning_callback").SaveWhenAsked(requests, folder)
        self.global_step, self.saved = 0, list[int]()
        self.strategy = SimpleNamespace(reduce_boolean_decision=lambda word, all: word or (not all and RANKS.others))  # noqa: A006
        self.callback.on_train_start(self, None)

    def save_checkpoint(self, path: Path) -> None:
        path.touch()
        self.saved.append(self.global_step)

    def step(self, whole: bool = True) -> None:
        self.global_step += whole
        self.callback.on_train_batch_end(self, None, None, None, 0)


@pytest.fixture(params=["trainer", "lightning"])
def training(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, SaveRequests]:
    requests = SaveRequests()
    requests.catch_sigterm = lambda: None  # type: ignore[method-assign]  # pytest's own handler stays
    made = Trainer(requests, ranks=2) if request.param == "trainer" else Lightning(requests, tmp_path)
    return made, requests


def asked(requests: SaveRequests) -> None:
    """As a POST asks, without its wait."""
    with requests._changed:
        requests._posts += 1


def test_nobody_asked_so_nothing_is_saved(training: tuple[Any, SaveRequests]) -> None:
    made, _ = training
    for _ in range(3):
        made.step()
    assert made.saved == []


def test_what_the_agent_asks_is_saved_at_the_next_step_and_answered(training: tuple[Any, SaveRequests]) -> None:
    made, requests = training
    made.step()
    asked(requests)
    made.step()
    made.step()
    assert made.saved == [2]
    assert requests.post() == 200


def test_where_another_rank_was_asked_this_one_saves_at_the_same_step(training: tuple[Any, SaveRequests]) -> None:
    made, _ = training
    made.step()
    RANKS.others = True
    with pytest.raises(SystemExit, match="143"):  # the stand-in's other rank says yes to both questions
        made.step()
    assert made.saved == [2]


def test_a_training_that_is_ended_saves_and_is_not_complete(training: tuple[Any, SaveRequests]) -> None:
    made, requests = training
    made.step()
    requests.terminating = True
    with pytest.raises(SystemExit, match="143"):
        made.step()
    assert made.saved == [2]


def test_lightning_saves_between_two_steps_and_goes_on_from_the_newest(tmp_path: Path) -> None:
    requests = SaveRequests()
    requests.catch_sigterm = lambda: None  # type: ignore[method-assign]
    made = Lightning(requests, tmp_path)
    assert made.callback.newest() is None
    for number in range(2):
        asked(requests)
        made.step(whole=False)
        assert len(made.saved) == number
        made.step()
    assert made.saved == [1, 2]
    assert made.callback.newest() == tmp_path / "asked-0000000002.ckpt"


def test_one_rank_alone_needs_no_gang() -> None:
    requests = SaveRequests()
    made = Trainer(requests)
    RANKS.others = True
    made.step()
    assert made.saved == []
