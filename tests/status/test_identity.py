"""Who a card is stays with its fault when the card is gone: whoever sends it back needs it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from agent.commands.explain import in_words
from agent.config.limits import Limits
from agent.diagnosis.judge import Memory
from agent.diagnosis.resume import resumed
from agent.model.fault import Verdict
from agent.model.observation import Missing, Observation, Value
from agent.model.world import World
from agent.remediation.conditions import reported
from agent.remediation.events import announcements
from agent.remediation.records import Records
from agent.remediation.stored import dump, restored
from agent.status.metrics import registry
from agent.status.page import page
from agent.status.snapshot import Snapshot
from agent.status.state import state
from tests.observe import GPU, OTHER, START, Judge, alive, lost, reading

NODE = World("n1", "uid")
WORDS = "GPU 3, NVIDIA H100 80GB HBM3, serial 1650323000003, driver 580.65.06, slot 7"
NAMED: dict[str, Value] = {"index": 3, "name": "NVIDIA H100 80GB HBM3", "serial": "1650323000003"}


def told(verdict: Verdict) -> dict[str, str]:
    """All that people and machines are shown of it."""
    shot = Snapshot("n1", "evict", verdict)
    shown = state(shot, Limits())
    return {
        "explain": in_words(shown, None),
        "page": page(shown, START),
        "event": announcements(verdict, NODE)[0].message,
        "condition": " ".join(one.message for one in reported(verdict, NODE, {})),
        "metric": generate_latest(registry(lambda: shot)).decode(),
    }


@pytest.mark.parametrize("gone", [lost(), alive(missing=f"{GPU}=absent"), alive(missing=f"{GPU}=none")])
def test_the_card_is_named_wherever_its_fault_is_once_it_is_gone_and_after_a_restart(gone: Observation) -> None:
    life = Judge()
    there = alive(driver_version="580.65.06", slots=f"{GPU}=7,{OTHER}=2")
    life.after(0, there, reading(**NAMED), reading(OTHER))
    life.after(5, there, reading(**{**NAMED, "serial": Missing.UNREADABLE}), reading(OTHER))
    verdict = life.each_poll(70, gone, reading(OTHER))

    again = Judge()
    again.now = life.now + 60
    kept = restored(dump(verdict, 1, 0.0, Records()), again.now)
    again.memory = resumed(Memory(), kept, Limits(), {})
    for one in (verdict, again.after(1, gone, reading(OTHER))):
        said = told(one)
        metric = said.pop("metric")
        assert [name for name, text in said.items() if WORDS not in text] == []
        labels = 'driver="580.65.06",gpu="3",model="NVIDIA H100 80GB HBM3",node="n1",pci_bus_id="0000:1b:00.0"'
        assert f'gpu_health_gpu_info{{{labels},serial="1650323000003",slot="7",uuid="GPU-{GPU}"}} 1.0' in metric
        assert f'gpu_health_fault{{gpu="3",node="n1",pci_bus_id="{GPU}"' in metric


def test_another_card_in_the_slot_lends_its_name_to_no_fault_of_the_one_before() -> None:
    life = Judge()
    life.after(0, alive(), reading(**NAMED))
    verdict = life.after(5, lost())
    another = {GPU: replace(verdict.cards[GPU], uuid="GPU-another")}
    assert "serial" not in told(replace(verdict, cards=another))["explain"]
