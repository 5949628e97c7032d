"""What the Node should say, and the writes that make it say so. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from agent.config.settings import Mode
from agent.model.names import ERROR_LABEL, OUT_LABEL, STATE_LABEL
from agent.model.ownership import own_taint
from agent.model.steps import Report, Retaint
from agent.model.world import Condition, Taint
from agent.remediation.conditions import replacement, reported
from agent.remediation.drain import drained
from agent.remediation.noting import written
from agent.remediation.other_controllers import out_by_others
from agent.remediation.presets import cordon, error_label
from agent.remediation.records import Records, Stage
from agent.remediation.recurrence import held
from agent.remediation.repair import operand_labels
from agent.remediation.situation import Now, Situation
from agent.remediation.stored import dump
from agent.remediation.taints import aimed_taints, withdrawn_label

_POSITION_EVERY_S = 60.0  # how often the kernel position alone is worth a write


@dataclass(frozen=True, slots=True)
class Aim:
    """What the Node should say."""

    now: Now
    records: Records
    taints: tuple[Taint, ...]
    labels: dict[str, str | None]
    conditions: tuple[Condition, ...]
    stored: str
    cordon: str | None

    def retaint(self) -> tuple[Retaint | Report, ...]:
        """Our taints, and labels, stored state and ledger with them in one write."""
        ours = {taint for taint in self.now.case.world.taints if own_taint(taint)}
        if ours == {*self.taints} and self.cordon is None:
            return ()
        labels, history = {**self.labels, **withdrawn_label(self.taints)}, written(self.now, self.records, self.taints)
        return (Retaint(self.taints, labels, self.stored, history, self.cordon),)

    def report(self, with_taint: bool = False) -> tuple[Retaint | Report, ...]:
        """One write for what differs; ``with_taint``: labels, stored state and ledger travel with the taint already."""
        world = self.now.case.world
        conditions = tuple(c for c in self.conditions if world.conditions.get(c.type) != c)
        wanted = {} if with_taint else {**self.labels, **withdrawn_label(world.taints)}
        labels = {k: v for k, v in wanted.items() if world.labels.get(k) != v}
        stored = None if with_taint or world.stored == self.stored else self.stored
        history = None if with_taint else written(self.now, self.records, world.taints)
        return (Report(conditions, labels, stored, history),) if conditions or labels or stored or history else ()


def aim(now: Now, records: Records) -> Aim:
    """With these records; what is known of idle GPUs outlives them."""
    case, verdict, world, config = now.case, now.case.verdict, now.case.world, now.case.config
    error, noted = error_label(case, now.records.labelled)
    if now.situation is Situation.KEEP_OFF and error.get(ERROR_LABEL) and not case.forgotten:
        error, noted = {}, False  # others act on it: an upgrade makes lines that look fatal
    asks = replacement(now, records)
    taints = aimed_taints(case, now.treatment, now.records)
    cordons, ours = cordon(config.presets, world, taints, now.records.cordoned)
    records = replace(records, idle=now.records.idle, labelled=noted, asked=asks.asked, cordoned=ours)
    labels: dict[str, str | None] = {
        STATE_LABEL: _state(now, records),
        **error,
        OUT_LABEL: "true" if out_by_others(world, config.budget.others_taints) else None,
        **operand_labels(world, config.repair, now.records, records),
        **asks.labels,
    }
    conditions = (*reported(verdict, world, records.idle.failed_resets), *asks.conditions)
    return Aim(now, records, taints, labels, conditions, _stored(now, records), cordons)


def _state(now: Now, records: Records) -> str:
    world, treatment = now.case.world, now.treatment
    if treatment:
        if now.case.config.mode is not Mode.EVICT or not world.tainted or world.pods is None:
            return "degraded" if treatment.idle else "unhealthy"
        if records.live:
            return "repairing"
        if not treatment.unproved or (records.attempts and records.attempts[-1].stage is Stage.DONE):
            return "validating"
        if treatment.idle:
            return "degraded"
        return "drained" if drained(world, treatment) else "draining"
    if records.validation:  # one that failed is a person's matter
        return "validating" if records.validation.stage.live else "unhealthy"
    if records.live:
        return "repairing"
    if now.situation is Situation.CURED and held(now.case):
        return "validating"
    return str(now.case.verdict.status)


def _stored(now: Now, records: Records) -> str:
    """The new annotation; the kernel position alone is carried along at most once a minute.

    Which life of the agent acts stands in it before anything is done, and is no reason to write it otherwise.
    """
    verdict, old, own = now.case.verdict, now.stored, now.case.local.claim
    if old is not None:
        recent = verdict.kernel_seq == old.kernel_seq or 0 <= verdict.at - old.at < _POSITION_EVERY_S
        writer = own if own and (now.case.world.withdrawn or now.situation is Situation.TO_WITHDRAW) else old.writer
        if recent and (same := dump(verdict, old.kernel_seq, old.at, records, writer)) == now.case.world.stored:
            return same
    return dump(verdict, verdict.kernel_seq, verdict.at, records, own or (old.writer if old else None))
