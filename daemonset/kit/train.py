"""A training that loses little: it saves every few minutes, when asked to and when ended, and goes on from there.

A storage that fails for a while ends nothing: training goes on, saving waits, and GET /status says what is the trouble.

Exit codes: 0 done; 143 ended by SIGTERM, after saving; 75 another pod has taken over; 1 could not save before its end,
or can't go on from what is there. Never 0 for an interrupted training: a Job would call it complete.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from checkpoint import UNFIT, BrokenError, FencedError, Folder
from model import Model, model
from on_request import ACCOUNT, SaveRequests
from trouble import Troubles

_TERMINATED, _FENCED = 143, 75
_FENCE_S, _RETRY_S, _INSIST_S = 1.0, 5.0, 1.0
_log = logging.getLogger("train")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="this run's own folder on shared storage")
    parser.add_argument("--restore-from", type=Path, help="the manager's backup: where the folder is lost or broken")
    parser.add_argument("--grace-s", type=float, default=100, help="after SIGTERM, to save: less than the pod's grace")
    parser.add_argument("--interval-s", type=float, default=300, help="between periodic checkpoints")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints kept; the storage needs room for one more")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument(
        "--step-s", type=float, default=0, help="the least time for a step: the example's are too quick"
    )
    parser.add_argument("--width", type=int, default=256, help="of the model")
    parser.add_argument("--port", type=int, default=8080, help="POST /checkpoint, GET /status; 0: any free one")
    parser.add_argument("--annotations", type=Path, help="the pod's annotations as the downward API writes them")
    parser.add_argument(
        "--account", type=Path, default=ACCOUNT, help="folder with the ServiceAccount's token and ca.crt"
    )
    return parser.parse_args()


class Training:
    """The loop, and how far it is."""

    def __init__(self, folder: Folder, requests: SaveRequests, learner: Model, grace_s: float) -> None:
        self._folder, self._requests, self._model, self._grace_s = folder, requests, learner, grace_s
        self._begun = False
        self._troubles = Troubles()
        self.step = self.restored_step = self.saved_step = 0

    def status(self) -> dict[str, Any]:
        """Without steps until it has begun: what it was asked before it restored is no answer."""
        steps = {"step": self.step, "restored_step": self.restored_step, "saved_step": self.saved_step}
        trouble = self._troubles.text()
        return {**(steps if self._begun else {}), **({"trouble": trouble} if trouble else {})}

    def begin(self) -> None:
        """Claim before restoring: from then on nobody else can add what we would miss."""
        self._insist("take the folder", self._folder.claim)
        self._insist("restore", self._restore)
        self._begun = True

    def _restore(self) -> None:
        if found := self._folder.restore(self._model.load):
            self.step = self.restored_step = self.saved_step = found.step
            _log.info("restored step %d from %s", found.step, found.file)
        else:  # a storage that takes no checkpoint shows before the first hour of work, not after it
            self.save()

    def run(self, steps: int, interval_s: float, step_s: float) -> int:
        due = time.monotonic() + interval_s
        fence_due = 0.0
        while self.step < steps:
            began = time.monotonic()
            loss = self._model.train(self.step)
            self.step += 1
            _log.debug("step %d loss %.4f", self.step, loss)
            if self._requests.terminating:
                return self._leave()
            if began >= fence_due:
                self._troubles.tried("look whether another has taken over", self._folder.check)
                fence_due = began + _FENCE_S
            if self._requests.wanted() or time.monotonic() >= due:
                saved = self._troubles.tried("save", self.save)
                due = time.monotonic() + (interval_s if saved else _RETRY_S)
            if step_s:
                time.sleep(max(0.0, began + step_s - time.monotonic()))
        while not self._troubles.tried("save", self.save):
            if self._requests.terminating:
                return self._leave()
            time.sleep(_INSIST_S)
        return 0

    def save(self) -> None:
        self._requests.wanted()  # whoever asks after this gets another
        self._folder.save(self.step, self._model.dump)
        self.saved_step = self.step
        self._requests.saved()
        _log.info("saved step %d", self.step)

    def _leave(self) -> int:
        """Nothing more is computed; a storage that fails is tried for as long as the pod has."""
        end = time.monotonic() + self._grace_s
        while not self._troubles.tried("save", self.save):
            if time.monotonic() > end:
                return 1
            time.sleep(_INSIST_S)
        return _TERMINATED

    def _insist(self, what: str, act: Callable[[], object]) -> None:
        """A storage that fails for a while costs that while, and no restart. One that can't do it at all is no such."""
        while not self._troubles.tried(what, act, UNFIT):
            if self._requests.terminating:
                sys.exit(_TERMINATED)  # nothing was trained
            time.sleep(_INSIST_S)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    options = arguments()
    requests = SaveRequests(options.annotations, options.account)
    requests.catch_sigterm()
    folder = Folder(options.folder, options.keep, options.restore_from)
    training = Training(folder, requests, model(options.width), options.grace_s)
    port = requests.serve(options.port, "/checkpoint", training.status)
    try:
        training.begin()
        _log.info("training from step %d, port %d", training.step, port)
        return training.run(options.steps, options.interval_s, options.step_s)
    except FencedError as error:
        _log.error("%s: this pod stops at step %d", error, training.step)
        return _FENCED
    except (BrokenError, OSError, ValueError) as error:
        _log.error("can't go on: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
