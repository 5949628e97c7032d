"""/metrics against a golden file: names and labels are what dashboards and alerts rely on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from agent.actions.kube import KubeClient
from agent.config.limits import Limits
from agent.config.settings import Config
from agent.model.observation import Missing, Value
from agent.model.steps import On, Wait
from agent.model.world import PermitKind
from agent.remediation.ledger import End, Entry, Ledger, Moment, Suspect
from agent.status.metrics import families
from agent.status.snapshot import PermitsView, Snapshot, SourceView
from agent.status.state import state
from tests.actions.test_kube import cluster, drive, node
from tests.documents import stored_names
from tests.observe import GPU, OTHER, Judge, alive, lost, reading, xid

UNREAD = {"margin_c": Missing.UNSUPPORTED, "power_w": Missing.UNREADABLE}
ENDED = dict(zip(Moment, range(1_759_000_000, 1_759_007_000, 1000), strict=True))
STANDS = {moment: ENDED[moment] + 10**6 for moment in tuple(Moment)[:4]}
CARD = Suspect(GPU, f"GPU-{GPU}")
LEDGER = Ledger(
    (
        Entry(ENDED, (f"xid-48@{GPU}",), (CARD,), 2, by=End.PROOF),
        Entry({**STANDS, Moment.TAINT: 1_760_000_001}, (f"xid-79@{GPU}",), (CARD,), 2),
    )
)
GOLDEN = Path(__file__).parent / "metrics.golden"


def snapshot() -> Snapshot:
    judge = Judge()
    named: dict[str, Value] = {"index": 0, "name": "NVIDIA H100 80GB HBM3", "serial": "1650323000000"}
    there = alive(driver_version="580.65.06", slots=f"{GPU}=7")
    judge.after(0, there, reading(**named, temperature_c=41, margin_c=46, power_w=96.0), reading(OTHER, index=1))
    verdict = judge.after(1, xid(79), lost(), reading(OTHER, index=1, **UNREAD))
    history = judge.memory.history
    return Snapshot(
        node="n1",
        mode="evict",
        verdict=verdict,
        readings=history.readings,
        xids={key: (tally.count, tally.last_at) for key, tally in history.tallies.items()},
        sources=(
            SourceView("nvml", True, 1.5, 1, 0, 42, "", poll_s=0.125),
            SourceView("kmsg", False, None, 3, 2, None, "gone"),
            SourceView("dcgm", False, None, 1, 0, 43, "no DCGM engine answers"),
        ),
        disagreements=((OTHER, "pcie_replays"),),
        failed_reads={(OTHER, "temperature_c"): 3},
        waits=(Wait("pod a/b may not be evicted yet", On.EVICTION),),
        stage="draining",
        withdrawn=True,
        withdrawn_since=1_760_000_001.0,
        permits=(
            PermitsView(PermitKind.WITHDRAWN, held=True, taken=2, allowed=10),
            PermitsView(PermitKind.DRAINING, held=False, taken=1, allowed=1),
        ),
        done={"retaint": 1, "evict": 2},
        failed={"look": 1},
        requests={"GET": 3, "PATCH": 1},
        checkpoints={"saved": 2, "expired": 1},
        checkpoint_wait_s=12.5,
        look_s=0.25,
        ledger=LEDGER,
        ledger_at=1_760_000_121.0,
        act_age_s=4.5,
    )


def render(shot: Snapshot) -> str:
    class One(Collector):
        def collect(self) -> Iterator[Metric]:
            return families(shot)

    registry = CollectorRegistry()
    registry.register(One())
    return generate_latest(registry).decode()


def exported() -> set[str]:
    """Every metric's name as Prometheus stores it."""
    return {name for family in families(snapshot()) for name in stored_names(family)}


def test_metrics_are_what_the_golden_file_says() -> None:
    """To accept a change: delete the file and run the test twice."""
    text = render(snapshot())
    if not GOLDEN.exists():
        GOLDEN.write_text(text)
        raise AssertionError("the golden file was missing and is written anew: read it, then run again")
    assert text == GOLDEN.read_text()


def test_the_first_incident_of_a_card_and_of_a_rule_is_seen_to_grow() -> None:
    (_, stands) = LEDGER.entries
    ended = replace(stands, times={**stands.times, Moment.ENDED: 1_760_000_100}, by=End.PROOF)
    for entry, count in ((stands, "0.0"), (ended, "1.0")):
        told = render(replace(snapshot(), ledger=Ledger((entry,))))
        for labels in (
            'card_incidents_total{node="n1",uuid="GPU-0000:1b:00.0"}',
            'rule_incidents_total{node="n1",rule="xid-79"}',
        ):
            assert f"gpu_health_{labels} {count}" in told


def test_a_gpu_that_is_gone_leaves_no_series_but_who_it_is() -> None:
    shot = snapshot()
    assert OTHER in render(shot)
    left = render(replace(shot, readings={GPU: shot.readings[GPU]}))
    assert {line.partition("{")[0] for line in left.splitlines() if OTHER in line} == {"gpu_health_gpu_info"}


@pytest.mark.parametrize("code", [None, 109, 63, 79])
@pytest.mark.parametrize("silence", ["", "node", "GPU"])
def test_state_metric_and_label_say_the_same_word(code: int | None, silence: str) -> None:
    judge = Judge()
    judge.after(0, reading(), reading(OTHER), alive())
    for _ in range(5 if silence else 1):
        polled = () if silence == "node" else (reading(), *(() if silence else (reading(OTHER),)), alive())
        verdict = judge.after(20, *polled, *((xid(code, source="kmsg"),) if code else ()))
    shot = Snapshot("n1", "observe", verdict)
    made, observe = cluster(), Config()
    drive(KubeClient(made, "n1", observe), verdict, observe)
    (metric,) = re.findall(r'gpu_health_status{node="n1",status="(\w+)"} 1.0', render(shot))
    label = node(made)["metadata"]["labels"]["gpu-health-agent/state"]
    grave = {63: "degraded", 109: "degraded" if silence else None, 79: "unhealthy"}
    word = grave.get(code or 0) or ("unknown" if silence else "healthy")
    assert (state(shot, Limits())["status"], metric, label) == (word, word, word)
