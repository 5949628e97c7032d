"""Snapshot → Prometheus families, rendered at each scrape: a GPU that is gone leaves no stale series."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from agent import __version__
from agent.model.fault import Status
from agent.model.observation import Missing
from agent.model.steps import On
from agent.status.ledger_metrics import ledger_families
from agent.status.snapshot import Snapshot

_GPU = ["node", "pci_bus_id", "uuid", "gpu"]

# One row per reading: signal, metric, help. Base units, as the readings have them.
_GAUGES = (
    ("temperature_c", "temperature_celsius", "GPU temperature."),
    ("margin_c", "temperature_margin_celsius", "Degrees left until the nearest thermal limit (Ada and later)."),
    ("memory_temperature_c", "memory_temperature_celsius", "Memory (HBM) temperature."),
    ("power_w", "power_watts", "Power drawn."),
    ("recovery_action", "recovery_action", "The driver's recovery action: 0 none, 1 GPU reset, 2 node reboot, …"),
    ("remapped_rows_uncorrected", "row_remaps_uncorrected", "Memory rows remapped for uncorrectable errors."),
    ("remapped_rows_pending", "row_remap_pending", "1 while a memory row waits for a reset to be remapped."),
    ("remapped_rows_failure", "row_remap_failure", "1 once a memory row could not be remapped."),
    ("sram_threshold_exceeded", "sram_threshold_exceeded", "1 once on-chip memory passed NVIDIA's RMA threshold."),
    ("pcie_width", "pcie_link_width", "PCIe lanes in use."),
    ("pcie_generation", "pcie_link_generation", "PCIe generation in use; it falls when idle."),
)
_COUNTERS = (
    ("ecc_corrected_volatile", "ecc_corrected_volatile_errors", "Corrected memory errors since the driver loaded."),
    ("ecc_uncorrected_volatile", "ecc_uncorrected_volatile_errors", "Uncorrectable ones since the driver loaded."),
    ("ecc_corrected_aggregate", "ecc_corrected_aggregate_errors", "Corrected memory errors in the card's life."),
    ("ecc_uncorrected_aggregate", "ecc_uncorrected_aggregate_errors", "Uncorrectable ones in the card's life."),
    ("pcie_replays", "pcie_replays", "PCIe replays."),
    ("energy_j", "energy_joules", "Energy used since the driver loaded."),
)


def registry(snapshot: Callable[[], Snapshot | None]) -> CollectorRegistry:
    """A registry of its own, rendered from the latest Snapshot."""
    own = CollectorRegistry()
    own.register(_Snapshots(snapshot))
    ProcessCollector(registry=own)
    return own


class _Snapshots(Collector):
    def __init__(self, snapshot: Callable[[], Snapshot | None]) -> None:
        self._snapshot = snapshot

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        shot = self._snapshot()
        if shot is not None:
            yield from families(shot)


def families(shot: Snapshot) -> Iterator[Metric]:
    """Every family of one Snapshot."""
    node, verdict = shot.node, shot.verdict
    info = GaugeMetricFamily(
        "gpu_health_agent_info", "1, with the agent's version and mode.", labels=["node", "version", "mode"]
    )
    info.add_metric([node, __version__, shot.mode], 1)
    yield info
    status = GaugeMetricFamily(
        "gpu_health_status", "1 for the node's status, 0 for the others.", labels=["node", "status"]
    )
    for one in Status:
        status.add_metric([node, one], float(verdict.status is one))
    yield status
    blind = GaugeMetricFamily(
        "gpu_health_blind", "Reasons why the agent can't see everything; /state names them.", labels=["node"]
    )
    blind.add_metric([node], len(verdict.blind))
    yield blind
    gpus = GaugeMetricFamily("gpu_health_gpus", "GPUs that were read lately.", labels=["node"])
    gpus.add_metric([node], len(shot.readings))
    yield gpus
    known = GaugeMetricFamily(
        "gpu_health_gpu_info",
        "1 for each GPU that the node is known to have, those that are gone too.",
        labels=[*_GPU, "model", "serial", "driver", "slot"],
    )
    for pci, card in sorted(verdict.cards.items()):
        of = card.identity
        known.add_metric([node, pci, card.uuid, of.index, of.model, of.serial, of.driver, of.slot], 1)
    yield known
    faults = GaugeMetricFamily(
        "gpu_health_fault", "1 for each fault that stands.", labels=[*_GPU, "rule", "severity", "remedy"]
    )
    doubts = GaugeMetricFamily(
        "gpu_health_fault_doubts", "In how many points the witnesses of a fault disagree.", labels=[*_GPU, "rule"]
    )
    for fault in verdict.faults:
        found = fault.finding
        gpu = _gpu(shot, found.pci, fault.uuid)
        faults.add_metric([*gpu, found.rule, found.severity.name.lower(), found.remedy], 1)
        doubts.add_metric([*gpu, found.rule], len(fault.doubts))
    yield faults
    yield doubts
    onsets = GaugeMetricFamily(
        "gpu_health_fatal_onsets", "Times the GPU turned fatal, as counted for a relapse.", labels=_GPU
    )
    for pci, times in sorted(verdict.onsets.items()):
        onsets.add_metric(_gpu(shot, pci), len(times))
    yield onsets
    yield from _xids(shot)
    for signal, name, said in _GAUGES:
        yield _readings(shot, GaugeMetricFamily(f"gpu_health_{name}", said, labels=_GPU), signal)
    for signal, name, said in _COUNTERS:
        yield _readings(shot, CounterMetricFamily(f"gpu_health_{name}", said, labels=_GPU), signal)
    apart = GaugeMetricFamily(
        "gpu_health_witnesses_disagree", "1 while NVML and DCGM read the signal differently.", labels=[*_GPU, "signal"]
    )
    for pci, signal in shot.disagreements:
        if pci in shot.readings:
            apart.add_metric([*_gpu(shot, pci), signal], 1)
    yield apart
    unreadable = GaugeMetricFamily(
        "gpu_health_unreadable", "1 while a value can't be read, or is what no GPU can have.", labels=[*_GPU, "signal"]
    )
    for pci, reading in sorted(shot.readings.items()):
        for signal in (name for name, value in reading.values.items() if value is Missing.UNREADABLE):
            unreadable.add_metric([*_gpu(shot, pci), signal], 1)
    yield unreadable
    failed = CounterMetricFamily(
        "gpu_health_failed_reads", "Polls in which a value could not be read.", labels=[*_GPU, "signal"]
    )
    for (pci, signal), count in sorted(shot.failed_reads.items()):
        if pci in shot.readings:
            failed.add_metric([*_gpu(shot, pci), signal], count)
    yield failed
    yield from _sources(shot)
    yield from _standing(shot)
    yield from _actions(shot)
    yield from ledger_families(shot)


def _xids(shot: Snapshot) -> Iterator[Metric]:
    count = CounterMetricFamily("gpu_health_xid", "Xid errors seen, by code.", labels=[*_GPU, "xid"])
    last = GaugeMetricFamily(
        "gpu_health_xid_last_timestamp_seconds", "When the last one was seen.", labels=[*_GPU, "xid"]
    )
    for (pci, code), (number, at) in sorted(shot.xids.items()):
        labels = [*_gpu(shot, pci), str(code)]
        count.add_metric(labels, number)
        last.add_metric(labels, at)
    yield count
    yield last


def _sources(shot: Snapshot) -> Iterator[Metric]:
    labels = ["node", "source"]
    up = GaugeMetricFamily("gpu_health_source_up", "1 while the source can see.", labels=labels)
    age = GaugeMetricFamily("gpu_health_source_age_seconds", "Since the source last spoke.", labels=labels)
    polls = GaugeMetricFamily(
        "gpu_health_source_poll_seconds", "How long the source's last poll took, or the one under way.", labels=labels
    )
    starts = CounterMetricFamily("gpu_health_source_starts", "Starts of the source's process.", labels=labels)
    garbage = CounterMetricFamily("gpu_health_source_garbage_lines", "Lines that made no sense.", labels=labels)
    for source in shot.sources:
        key = [shot.node, source.name]
        up.add_metric(key, float(source.up))
        if source.age_s is not None:
            age.add_metric(key, source.age_s)
        if source.poll_s is not None:
            polls.add_metric(key, source.poll_s)
        starts.add_metric(key, source.starts)
        garbage.add_metric(key, source.garbage)
    yield from (up, age, polls, starts, garbage)


def _standing(shot: Snapshot) -> Iterator[Metric]:
    """The node in its cluster."""
    withdrawn = GaugeMetricFamily(
        "gpu_health_withdrawn",
        "1 while our taint keeps new pods off the node, or stands beside a fence of single GPUs.",
        labels=["node"],
    )
    if shot.withdrawn is not None:
        withdrawn.add_metric([shot.node], float(shot.withdrawn))
    yield withdrawn
    since = GaugeMetricFamily(
        "gpu_health_withdrawn_timestamp_seconds", "When the node's withdrawal got its permit.", labels=["node"]
    )
    if shot.withdrawn_since is not None:
        since.add_metric([shot.node], shot.withdrawn_since)
    yield since
    waits = GaugeMetricFamily(
        "gpu_health_waits", "What is waited for: a permit, a refused eviction, a person …", labels=["node", "kind"]
    )
    for on in On:
        waits.add_metric([shot.node, on], sum(wait.on is on for wait in shot.waits))
    yield waits
    labels = ["node", "kind"]
    held = GaugeMetricFamily("gpu_health_permit_held", "1 while this node holds a permit.", labels=labels)
    taken = GaugeMetricFamily(
        "gpu_health_permits_taken", "Permits of the pool that are taken, as this node read them.", labels=labels
    )
    limit = GaugeMetricFamily("gpu_health_permits_allowed", "Permits that the budget allows the pool.", labels=labels)
    for permits in shot.permits:
        key = [shot.node, permits.kind]
        held.add_metric(key, float(permits.held))
        taken.add_metric(key, permits.taken)
        limit.add_metric(key, permits.allowed)
    yield from (held, taken, limit)


def _actions(shot: Snapshot) -> Iterator[Metric]:
    labels = ["node", "step"]
    done = CounterMetricFamily("gpu_health_steps", "Steps done on the cluster, by kind.", labels=labels)
    failed = CounterMetricFamily("gpu_health_step_failures", "Steps and reads that failed.", labels=labels)
    for family, counts in ((done, shot.done), (failed, shot.failed)):
        for kind, number in sorted(counts.items()):
            family.add_metric([shot.node, kind], number)
        yield family
    sent = CounterMetricFamily("gpu_health_api_requests", "Requests to the API server.", labels=["node", "method"])
    for method, number in sorted(shot.requests.items()):
        sent.add_metric([shot.node, method], number)
    yield sent
    saved = CounterMetricFamily(
        "gpu_health_checkpoints", "Evicted pods that declare a checkpoint, by how it ended.", labels=["node", "outcome"]
    )
    for outcome, number in sorted(shot.checkpoints.items()):
        saved.add_metric([shot.node, outcome], number)
    yield saved
    waited = CounterMetricFamily("gpu_health_checkpoint_wait_seconds", "Waited for checkpoints.", labels=["node"])
    waited.add_metric([shot.node], shot.checkpoint_wait_s)
    yield waited
    breaker = GaugeMetricFamily(
        "gpu_health_api_circuit_open", "1 while the API server is left alone for a pause.", labels=["node"]
    )
    breaker.add_metric([shot.node], float(shot.api_failures > 0))
    yield breaker
    keep_off = GaugeMetricFamily(
        "gpu_health_standing_aside", "1 while the agent leaves the GPUs to a repair or upgrade.", labels=["node"]
    )
    keep_off.add_metric([shot.node], float(bool(shot.keep_off)))
    yield keep_off
    look = GaugeMetricFamily(
        "gpu_health_look_seconds", "How long the reads before the last steps took.", labels=["node"]
    )
    look.add_metric([shot.node], shot.look_s)
    yield look
    age = GaugeMetricFamily(
        "gpu_health_act_age_seconds", "Since the act loop began a round or asked the API server.", labels=["node"]
    )
    if shot.act_age_s is not None:
        age.add_metric([shot.node], shot.act_age_s)
    yield age


def _readings(shot: Snapshot, family: GaugeMetricFamily | CounterMetricFamily, signal: str) -> Metric:
    for pci, reading in sorted(shot.readings.items()):
        value = reading.values.get(signal)
        if isinstance(value, int | float):
            family.add_metric(_gpu(shot, pci), float(value))
    return family


def _gpu(shot: Snapshot, pci: str, uuid: str = "") -> list[str]:
    """As it reads, or as it was known when it last did."""
    reading, card = shot.readings.get(pci), shot.verdict.cards.get(pci)
    values = reading.values if reading else {"uuid": card.uuid, "index": card.identity.index} if card else {}
    return [shot.node, pci, uuid or str(values.get("uuid", "")), str(values.get("index", ""))]
