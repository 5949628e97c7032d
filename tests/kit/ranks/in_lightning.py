"""A training by Lightning that saves when asked, as the head of ``lightning_callback.py`` writes it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_callback import SaveWhenAsked
from on_request import SaveRequests


class Line(LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: Any, _: int) -> Any:
        time.sleep(0.01)
        return ((self.layer(batch) - 1) ** 2).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


requests = SaveRequests()
asked = SaveWhenAsked(requests, Path(sys.argv[1]))
trainer = Trainer(
    accelerator="cpu",
    devices=1,
    num_nodes=2,
    strategy="ddp",
    max_epochs=-1,
    accumulate_grad_batches=2,
    callbacks=[asked],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
if trainer.local_rank == 0:
    port = requests.serve(0, "/checkpoint", lambda: {"step": trainer.global_step})
    print(f"port {port}", flush=True)
data = torch.utils.data.DataLoader(torch.ones(1000, 1))
trainer.fit(Line(), data, ckpt_path=asked.newest())
