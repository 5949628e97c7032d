"""A node is in one situation at a time, and each has its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.config.settings import Config, Mode
from agent.model.fault import Status, Verdict
from agent.model.names import HARD_TAINT
from agent.model.steps import Wait
from agent.model.world import Claim, Job, Local, Permit, PermitKind, Taint, World
from agent.remediation.case import Case
from agent.remediation.plan import plan
from agent.remediation.records import Records
from agent.remediation.situation import Situation, situation
from agent.remediation.stored import dump
from tests.actions.test_kube import EVICT, fatal, healthy
from tests.observe import silent

PERMIT = Permit(PermitKind.WITHDRAWN, 0, "n1/uid")
HARD = Taint(HARD_TAINT, "reboot_node", "NoSchedule")
SERVING = World("n1", "uid", stored=dump(fatal(), 1, 0.0, Records()), permits=(), pods=(), jobs=(), pool_size=10)
OUT = replace(SERVING, taints=(HARD,), permits=(PERMIT,))
UNSEEN = replace(healthy(), status=Status.UNKNOWN, blind=silent())
LOOKS: dict[Situation, tuple[Verdict, World, Config]] = {
    Situation.OPTED_OUT: (fatal(), replace(OUT, managed=False, paused="by a person"), EVICT),
    Situation.KEEP_OFF: (fatal(), replace(OUT, labels={"nvidia.com/mig.config.state": "pending"}), EVICT),
    Situation.NEWER: (fatal(), replace(OUT, stored='{"version":2}'), EVICT),
    Situation.MALFORMED: (fatal(), replace(OUT, stored="{}"), EVICT),
    Situation.ANOTHER_AGENT: (
        fatal(),
        replace(OUT, stored=dump(fatal(), 1, 0.0, Records(), Claim(2, "uid-of-a-pod"))),
        EVICT,
    ),
    Situation.UNEXPLAINED: (healthy(), replace(OUT, stored=None), EVICT),
    Situation.ANOTHERS: (
        fatal(),
        replace(OUT, taints=(HARD, Taint("karpenter.sh/disrupted", "", "NoSchedule"))),
        EVICT,
    ),
    Situation.UNLISTED: (fatal(), replace(OUT, unlisted="forbidden"), EVICT),
    Situation.OBSERVED: (fatal(), replace(SERVING, paused="by a person"), Config()),
    Situation.PAUSED: (fatal(), replace(OUT, paused="by a person"), EVICT),
    Situation.TO_WITHDRAW: (fatal(), replace(OUT, permits=()), EVICT),
    Situation.WITHDRAWN: (fatal(), OUT, EVICT),
    Situation.BY_HAND: (fatal(), OUT, Config(mode=Mode.TAINT)),
    Situation.HELD: (UNSEEN, replace(OUT, jobs=(Job("gpu-health-reboot-node-1", "active"),)), EVICT),
    Situation.BLIND: (UNSEEN, OUT, EVICT),
    Situation.CURED: (healthy(), OUT, EVICT),
    Situation.IN_SERVICE: (UNSEEN, SERVING, EVICT),
}
STILL = {*Situation} - {Situation.TO_WITHDRAW, Situation.WITHDRAWN, Situation.CURED, Situation.IN_SERVICE}


@pytest.mark.parametrize("name", Situation)
def test_each_look_shows_one_situation_and_where_nothing_is_done_it_says_why(name: Situation) -> None:
    local = Local(claim=Claim(1, "uid-of-ours"))
    now = situation(Case(*LOOKS[name], local))
    assert (now.situation, bool(now.stands)) == (name, name in STILL)
    steps = plan(*LOOKS[name], local).steps
    assert {*now.stands} <= {step for step in steps if isinstance(step, Wait)}
