"""A training of many ranks under torchrun, DDP or FSDP2, that loses little: train.py's promises, kept by all ranks.

Whichever rank is asked to save, by SIGTERM, POST or annotation, all save at the same step: once a step each tells the
others. A rank that is ended takes the others along, after they saved; torchrun starts them anew with its replacement,
all at that step.

Exit codes: 0 done; 143 ended by SIGTERM, after saving; 76 another rank was ended, after saving; 75 another gang has
taken over; 1 could not save before its end, or can't go on from what is there.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from checkpoint import UNFIT, BrokenError, FencedError, Folder
from model import BATCH, FEATURES, MOMENTUM, RATE, batch
from on_request import ACCOUNT, SaveRequests
from sharded import Gang, Shards
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from trouble import Troubles

_TERMINATED, _FENCED, _LEFT = 143, 75, 76
_LOOK_S, _RETRY_S, _INSIST_S = 1.0, 5.0, 1.0
_log = logging.getLogger("train")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="this run's own folder on storage that all ranks share"
    )
    parser.add_argument("--restore-from", type=Path, help="the manager's backup: where the folder is lost or broken")
    parser.add_argument("--parallel", choices=("ddp", "fsdp"), default="fsdp")
    parser.add_argument("--grace-s", type=float, default=25, help="after SIGTERM, to save; torchrun kills after 30")
    parser.add_argument("--patience-s", type=float, default=600, help="the longest that a step takes on any rank")
    parser.add_argument("--interval-s", type=float, default=300, help="between periodic checkpoints")
    parser.add_argument("--keep", type=int, default=3, help="checkpoints kept; the storage needs room for one more")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument(
        "--step-s", type=float, default=0, help="the least time for a step: the example's are too quick"
    )
    parser.add_argument("--width", type=int, default=256, help="of the model")
    parser.add_argument("--port", type=int, default=8080, help="of the pod's first rank: POST /checkpoint, GET /status")
    parser.add_argument("--annotations", type=Path, help="the pod's annotations as the downward API writes them")
    parser.add_argument("--account", type=Path, default=ACCOUNT, help="folder with the token and ca.crt")
    return parser.parse_args()


class Learner:
    """The example's model over all ranks, which you replace by your own."""

    def __init__(self, width: int, parallel: str) -> None:
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.manual_seed(0)
        linear = torch.nn.Linear
        layers = torch.nn.Sequential(linear(FEATURES, width), torch.nn.Tanh(), linear(width, 1)).to(self._device)
        if parallel == "fsdp":
            fully_shard(layers[0])
            fully_shard(layers[2])
            fully_shard(layers)
        self._model = DistributedDataParallel(layers) if parallel == "ddp" else layers
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=RATE, momentum=MOMENTUM)
        self._rank, self._size = dist.get_rank(), dist.get_world_size()

    def train(self, step: int) -> None:
        mine = slice(self._rank % BATCH, None, min(self._size, BATCH))
        inputs, wanted = (torch.from_numpy(one[mine]).to(self._device) for one in batch(step))
        self._optimizer.zero_grad()
        torch.nn.functional.mse_loss(self._model(inputs), wanted).backward()
        self._optimizer.step()

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on, each rank its part."""
        model, optimizer = get_state_dict(self._model, self._optimizer)
        return {"model": model, "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        set_state_dict(
            self._model, self._optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )


class Training:
    """The loop on one rank. All ranks take the same way through it, for each branch goes by what all have said."""

    def __init__(self, gang: Gang, shards: Shards, requests: SaveRequests, learner: Learner, grace_s: float) -> None:
        self._gang, self._shards, self._requests, self._learner = gang, shards, requests, learner
        self._grace_s, self._troubles = grace_s, Troubles()
        self._due = self._not_before = 0.0
        self.step = self.restored_step = self.saved_step = self._saving_step = 0

    def status(self) -> dict[str, Any]:
        steps = {"step": self.step, "restored_step": self.restored_step, "saved_step": self.saved_step}
        trouble = self._troubles.text()
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))  # by torchrun, of this pod's ranks
        gang = {"ranks": self._gang.size, "restarts": restarts}
        return {**steps, **gang, **({"trouble": trouble} if trouble else {})}

    def begin(self) -> None:
        """Claim before restoring: from then on nobody else can add what we would miss."""
        self._insist("take the folder", self._shards.claim)
        self._insist("restore", self._restore)

    def _restore(self) -> None:
        step = self._shards.restore(state := self._learner.state())
        if step is None:  # a storage that takes no checkpoint shows before the first hour of work, not after it
            self._save()
        else:
            self._learner.load(state)
            self.step = self.restored_step = self.saved_step = step
            _log.info("restored step %d", step)

    def run(self, steps: int, interval_s: float, step_s: float) -> int:
        self._due, look_due = time.monotonic() + interval_s, 0.0
        while self.step < steps:
            began = time.monotonic()
            self._learner.train(self.step)
            self.step += 1
            may = not self._shards.saving and began >= self._not_before
            wanted = may and (self._requests.wanted() or began >= self._due)
            look = self._gang.rank == 0 and began >= look_due
            busy, leaving, wanted, look = self._gang.any(self._shards.busy, self._requests.terminating, wanted, look)
            if leaving:
                return self._leave()
            if look:
                self._troubles.tried("look whether another has taken over", self._shards.check)
                look_due = began + _LOOK_S
            if wanted or (self._shards.saving and not busy):
                act = self._commit if self._shards.saving else self._begin
                if self._troubles.tried("save", act):
                    self._due = time.monotonic() + interval_s
                else:
                    self._due = self._not_before = time.monotonic() + _RETRY_S
            if step_s:
                time.sleep(max(0.0, began + step_s - time.monotonic()))
        return 0 if self._leave() != 1 else 1

    def _begin(self) -> None:
        """What goes on beside the training; ``_commit`` makes it a checkpoint."""
        self._saving_step = self.step
        self._shards.begin(self.step, self._learner.state())

    def _commit(self) -> None:
        self._shards.commit()
        self.saved_step = self._saving_step
        self._requests.saved()
        _log.info("saved step %d", self.saved_step)

    def _save(self) -> None:
        """All of it, at once."""
        if self._shards.saving:
            self._commit()
        self._requests.wanted()  # whoever asks after this gets another
        self._begin()
        self._commit()

    def _leave(self) -> int:
        """All ranks at one step; a storage that fails is tried for as long as all have."""
        end = time.monotonic() + self._grace_s
        while not self._troubles.tried("save", self._save):
            if self._gang.any(time.monotonic() > end)[0]:
                return 1
            time.sleep(_INSIST_S)
        return _TERMINATED if self._requests.terminating else _LEFT

    def _insist(self, what: str, act: Callable[[], object]) -> None:
        """A storage that fails for a while costs that while, and no restart."""
        while not self._troubles.tried(what, act, UNFIT):
            if self._gang.any(self._requests.terminating)[0]:
                sys.exit(_LEFT)  # nothing was trained
            time.sleep(_INSIST_S)


def main() -> int:
    options = arguments()
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    gang = Gang(options.patience_s)
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s rank {gang.rank}: %(message)s", stream=sys.stdout)
    requests = SaveRequests(options.annotations, options.account)
    requests.catch_sigterm()
    shards = Shards(gang, Folder(options.folder, options.keep, options.restore_from))
    training = Training(gang, shards, requests, Learner(options.width, options.parallel), options.grace_s)
    try:
        training.begin()
        if os.environ.get("LOCAL_RANK", "0") == "0":
            port = requests.serve(options.port, "/checkpoint", training.status)
            _log.info("training from step %d on %d ranks, port %d", training.step, gang.size, port)
        return training.run(options.steps, options.interval_s, options.step_s)
    except FencedError as error:
        _log.error("%s: this gang stops at step %d", error, training.step)
        if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun would start us anew, and we would take the folder back
            os.kill(os.getppid(), signal.SIGTERM)
        return _FENCED
    except (BrokenError, OSError, ValueError) as error:
        _log.error("can't go on: %s", error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
