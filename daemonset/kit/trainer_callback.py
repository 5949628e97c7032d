"""Hugging Face's Trainer saves when the agent asks, on all ranks at one step, and ends after SIGTERM once it has saved.

    requests = SaveRequests()
    requests.catch_sigterm()
    trainer = Trainer(..., callbacks=[SaveWhenAsked(requests)])
    if trainer.args.local_process_index == 0:
        requests.serve(8080, "/checkpoint", lambda: {"step": trainer.state.global_step})
    trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))

Copy it beside on_request.py; for many ranks beside sharded.py, checkpoint.py and directory.py too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from on_request import SaveRequests
from transformers import TrainerCallback


class SaveWhenAsked(TrainerCallback):  # type: ignore[misc]  # it ships no type information
    """What one rank is asked, all do."""

    def __init__(self, requests: SaveRequests) -> None:
        self._requests = requests
        self._any: Callable[[bool], Sequence[bool]] = lambda word: [word]

    def on_train_begin(self, args: Any, *_: Any, **__: Any) -> None:
        if args.world_size > 1:
            from sharded import Gang

            self._any = Gang().any

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:  # noqa: ARG002 - the Trainer's
        control.should_save |= self._any(self._requests.wanted())[0]
        return control

    def on_save(self, *_: Any, **__: Any) -> None:
        self._requests.saved()
        if self._any(self._requests.terminating)[0]:
            sys.exit(143)  # never 0 for an interrupted training: a Job would call it complete
