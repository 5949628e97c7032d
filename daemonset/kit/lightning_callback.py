"""Lightning saves when the agent asks, on all ranks at one step, and ends after SIGTERM once it has saved.

    requests = SaveRequests()
    asked = SaveWhenAsked(requests, Path("/checkpoints/mine"))
    trainer = Trainer(..., callbacks=[asked])
    if trainer.local_rank == 0:
        requests.serve(8080, "/checkpoint", lambda: {"step": trainer.global_step})
    trainer.fit(model, ckpt_path=asked.newest())

Copy it beside on_request.py. ``newest`` knows the checkpoints that were asked for; yours of each hour may be newer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from on_request import SaveRequests


class SaveWhenAsked(Callback):  # type: ignore[misc]  # it ships no type information
    """What one rank is asked, all do."""

    def __init__(self, requests: SaveRequests, folder: Path) -> None:
        self._requests, self._folder, self._step = requests, folder, 0

    def newest(self) -> Path | None:
        return max(self._folder.glob("asked-*.ckpt"), default=None)

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        self._step = trainer.global_step
        self._requests.catch_sigterm()  # in the place of Lightning's, which ends each rank by itself and saves nothing

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self._step:  # in the midst of adding gradients up
            return
        self._step, any_rank = trainer.global_step, trainer.strategy.reduce_boolean_decision
        if any_rank(self._requests.wanted(), all=False):
            trainer.save_checkpoint(self._folder / f"asked-{self._step:010d}.ckpt")
            self._requests.saved()
            if any_rank(self._requests.terminating, all=False):
                sys.exit(143)  # never 0 for an interrupted training: a Job would call it complete
