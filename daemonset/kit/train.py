"""A training that loses little: it saves every few minutes, when asked to and when ended, and goes on from there.

Exit codes: 0 done; 143 ended by SIGTERM, after saving; 75 another pod has taken over; 1 could not save or restore.
Never 0 for an interrupted training: a Job would call it complete.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from pathlib import Path
from typing import Any

from checkpoint import FencedError, Folder
from model import Model, model
from on_request import ACCOUNT, SaveRequests

_TERMINATED, _FENCED = 143, 75
_FENCE_S, _RETRY_S = 1.0, 5.0
_log = logging.getLogger("train")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="this run's own folder on shared storage")
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

    def __init__(self, folder: Folder, requests: SaveRequests, learner: Model) -> None:
        self._folder, self._requests, self._model = folder, requests, learner
        self.step = self.restored_step = self.saved_step = 0

    def status(self) -> dict[str, Any]:
        return {"step": self.step, "restored_step": self.restored_step, "saved_step": self.saved_step}

    def begin(self) -> None:
        """Claim before restoring: from then on nobody else can add what we would miss."""
        self._folder.claim()
        if found := self._folder.restore():
            self._model.load(found.payload)
            self.step = self.restored_step = self.saved_step = found.step
            _log.info("restored step %d from %s", found.step, self._folder.file(found.number))
        else:
            self.save()  # a storage that takes no checkpoint shows before the first hour of work, not after it

    def run(self, steps: int, interval_s: float, step_s: float) -> int:
        due = time.monotonic() + interval_s
        fence_due = 0.0
        while self.step < steps:
            began = time.monotonic()
            loss = self._model.train(self.step)
            self.step += 1
            _log.debug("step %d loss %.4f", self.step, loss)
            if began >= fence_due:
                self._folder.check()
                fence_due = began + _FENCE_S
            wanted = self._requests.wanted()
            if wanted or time.monotonic() >= due:
                try:
                    self.save()
                    due = time.monotonic() + interval_s
                except OSError as error:
                    _log.error("could not save step %d: %s; the older checkpoints stand", self.step, error)
                    if self._requests.terminating:
                        return 1
                    due = time.monotonic() + _RETRY_S
            if self._requests.terminating:
                return _TERMINATED
            if step_s:
                time.sleep(max(0.0, began + step_s - time.monotonic()))
        self.save()
        return 0

    def save(self) -> None:
        self._folder.save(self.step, self._model.dump())
        self.saved_step = self.step
        self._requests.saved()
        _log.info("saved step %d", self.step)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    options = arguments()
    requests = SaveRequests(options.annotations, options.account)
    requests.catch_sigterm()
    training = Training(Folder(options.folder, options.keep), requests, model(options.width))
    try:
        training.begin()
        port = requests.serve(options.port, "/checkpoint", training.status)
        _log.info("training from step %d, port %d", training.step, port)
        return training.run(options.steps, options.interval_s, options.step_s)
    except FencedError as error:
        _log.error("%s: this pod stops at step %d", error, training.step)
        return _FENCED
    except ValueError as error:
        _log.error("can't go on from %s: %s", options.folder, error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
