"""A training by Hugging Face's Trainer that saves when asked, as the head of ``trainer_callback.py`` writes it."""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
from on_request import SaveRequests
from trainer_callback import SaveWhenAsked
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint


class Line(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, x: Any, labels: Any) -> dict[str, Any]:
        time.sleep(0.01)
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


requests = SaveRequests()
requests.catch_sigterm()
arguments = TrainingArguments(
    sys.argv[1],
    max_steps=100_000,
    per_device_train_batch_size=1,
    gradient_accumulation_steps=2,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    ddp_backend="gloo",
    disable_tqdm=True,
    dataloader_pin_memory=False,
)
data = [{"x": torch.ones(1) * number, "labels": torch.ones(1)} for number in range(1000)]
trainer = Trainer(Line(), arguments, train_dataset=data, callbacks=[SaveWhenAsked(requests)])
if trainer.args.local_process_index == 0:
    port = requests.serve(0, "/checkpoint", lambda: {"step": trainer.state.global_step})
    print(f"port {port}", flush=True)
trainer.train(resume_from_checkpoint=get_last_checkpoint(trainer.args.output_dir))
