"""The ledger to Prometheus: counters and histograms that a restart of the agent does not begin anew."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from agent.remediation.ledger import BUCKETS_S, PHASES, End, Lasted
from agent.status.snapshot import Snapshot


def ledger_families(shot: Snapshot) -> Iterator[Metric]:
    node, sums, stands = shot.node, shot.ledger.sums(shot.ledger_at), shot.ledger.open
    # A counter that begins at 1 never grew for Prometheus: those of what stands begin at 0.
    rules_of, cards_of = ((stands.rule,), {one.uuid: 0 for one in stands.suspects if one.uuid}) if stands else ((), {})
    ended = CounterMetricFamily(
        "gpu_health_incidents", "Incidents that ended, by what ended them.", labels=["node", "by"]
    )
    for end in End:
        ended.add_metric([node, end], sum(count for (_, by), count in sums.ends.items() if by is end))
    yield ended
    rules = CounterMetricFamily("gpu_health_rule_incidents", "Incidents that ended, by rule.", labels=["node", "rule"])
    for rule in sorted({*rules_of, *(rule for rule, _ in sums.ends)}):
        rules.add_metric([node, rule], sum(sums.ends.get((rule, end), 0) for end in End))
    yield rules
    cards = CounterMetricFamily("gpu_health_card_incidents", "Incidents that ended, by card.", labels=["node", "uuid"])
    for uuid, count in sorted((cards_of | dict(sums.cards)).items()):
        cards.add_metric([node, uuid], count)
    yield cards
    lost = CounterMetricFamily(
        "gpu_health_lost_gpu_seconds", "GPU-seconds that the node was withdrawn, by cause.", labels=["node", "rule"]
    )
    for rule, seconds in sorted(sums.lost_gpu_s.items()):
        lost.add_metric([node, rule], seconds)
    yield lost
    phases = HistogramMetricFamily(
        "gpu_health_incident_phase_seconds", "How long the parts of incidents took.", labels=["node", "phase"]
    )
    for phase in PHASES:
        one = sums.lasted.get(phase, Lasted())
        within = [(str(float(most)), count) for most, count in zip(BUCKETS_S, one.within, strict=True)]
        phases.add_metric([node, phase], [*within, ("+Inf", one.count)], one.seconds)
    yield phases
