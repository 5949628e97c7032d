"""Whoever waits for pods waits alone: in every situation the draining permit goes back, or others may take it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from agent.actions.fences import RULES
from agent.actions.kube import KubeClient
from agent.config.settings import Config
from agent.model.errors import RefusedError, UnreachableError
from agent.model.fault import Status, Verdict
from agent.model.names import HARD_TAINT
from agent.model.steps import TakePermit, Wait
from agent.model.world import Local, PermitKind
from agent.remediation.case import Case
from agent.remediation.plan import plan
from agent.remediation.situation import Situation, situation
from tests.actions.test_kube import MERGE, cluster, fatal, healthy, holders, node
from tests.actions.test_permits import REFUSED, Clock
from tests.actions.test_pods import annotate, change
from tests.observe import silent

DEADLINE_S, CHECKPOINT_S, LEAVES_S, LATE_S, ABANDONED_S, STEP_S = 900, 60, 660, 300, 600, 60
SETTINGS: dict[str, Any] = {
    "mode": "evict",
    "budget": {"max_withdrawn": 2},
    "drain": {"deadline_s": {"reboot_node": DEADLINE_S}, "checkpoint_s": CHECKPOINT_S},
    "repair": {"reboot_node": "reboot", "check": "check"},
}
CONFIG = Config.model_validate(SETTINGS)
UNSEEN = replace(healthy(), status=Status.UNKNOWN, blind=silent())
DRAINING = "gpu-health-agent-draining-gpu-0"
FAULTS = "gpu-health-agent/faults"


class Site:
    """A broken node in the middle of its drain, and another that is broken too."""

    def __init__(self, pod: str) -> None:
        self.made, self.clock, self.pod = cluster("n1", "n2", "n3"), Clock(), pod
        self.made.add_pod("research", "other", "n2", owner="Job")
        self.config, self.verdict, self.dead = CONFIG, fatal(), False
        self.fresh = set[str]()  # whose agent has just begun: it gathers its faults first
        self.client = {name: self.starts(name) for name in ("n1", "n2")}
        if pod == "saving":
            annotate(self.made, "train", checkpoint="annotation")
        for _ in range(7):
            self.round("n1")
        assert holders(self.made)[DRAINING] == "n1"

    def starts(self, name: str) -> KubeClient:
        self.fresh.add(name)
        return KubeClient(self.api, name, CONFIG, self.clock)

    def api(self, method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        if path.startswith(RULES):
            return 403, {"message": "forbidden"}
        if not path.endswith("/pods/train/eviction"):
            return self.made(method, path, *rest, **more)
        match self.pod:
            case "refused":
                return 429, REFUSED
            case "denied":
                return 403, {"message": 'admission webhook "x" denied the request: no'}
            case "failing":
                return 500, {"message": "Internal error occurred: failed calling webhook"}
            case "hanging":
                raise UnreachableError("timed out")
            case "swallowed" | "saving":
                return 201, {}
        change(self.made, "train", {"metadata": HOSTILE[self.pod], "spec": {"terminationGracePeriodSeconds": 10**12}})
        return 201, {}

    def round(self, name: str) -> None:
        config, verdict = (self.config, self.verdict) if name == "n1" else (CONFIG, fatal())
        local = Local(gathered=name not in self.fresh)
        self.fresh.discard(name)
        try:
            for step in plan(verdict, self.client[name].look(closely=True), config, local).steps:
                if not isinstance(step, Wait):
                    self.client[name].do(step)
        except (RefusedError, UnreachableError):
            pass  # the round ends

    def waited_s(self, most_s: float) -> float:
        """Until the draining permit is not n1's any more."""
        began = self.clock.now
        while holders(self.made).get(DRAINING) == "n1" and self.clock.now - began <= most_s:
            self.clock.now += STEP_S
            for name in ("n1", "n2"):
                if name != "n1" or not self.dead:
                    self.round(name)
        return self.clock.now - began

    def patch(self, body: dict[str, Any]) -> None:
        assert self.made("PATCH", "/api/v1/nodes/n1", body, MERGE)[0] == 200


HOSTILE: dict[str, dict[str, Any]] = {
    "terminating": {"deletionTimestamp": "2020-01-01T00:00:00Z"},
    "for ever": {"deletionTimestamp": "9999-12-31T23:59:59Z", "deletionGracePeriodSeconds": 10**12},
    "nonsense": {"deletionTimestamp": "soon", "deletionGracePeriodSeconds": float("nan")},
}
PODS = (*HOSTILE, "refused", "denied", "failing", "hanging", "swallowed", "saving")


def label(key: str, value: str) -> Callable[[Site], None]:
    return lambda site: site.patch({"metadata": {"labels": {key: value}}})


def annotation(text: str | None) -> Callable[[Site], None]:
    return lambda site: site.patch({"metadata": {"annotations": {FAULTS: text}}})


def told(verdict: Verdict) -> Callable[[Site], None]:
    return lambda site: setattr(site, "verdict", verdict)


def mode(name: str) -> Callable[[Site], None]:
    return lambda site: setattr(site, "config", Config.model_validate({**SETTINGS, "mode": name}))


def unexplained(site: Site) -> None:
    annotation(None)(site)
    site.verdict = healthy()


def anothers(site: Site) -> None:
    taints = [*(node(site.made)["spec"].get("taints") or ()), {"key": "karpenter.sh/disrupted", "effect": "NoSchedule"}]
    site.patch({"spec": {"taints": taints}})


def unlisted(site: Site) -> None:
    site.patch({"spec": {"taints": [{"key": HARD_TAINT, "value": "reboot_node", "effect": "PreferNoSchedule"}]}})


def paused(site: Site) -> None:
    metadata = {"name": "gpu-health-agent-pause"}
    site.made._store("configmaps", "gpu-health-agent", {"metadata": metadata, "data": {"paused": "true"}})


def robbed(site: Site) -> None:
    """Its withdrawn permit is another's, and so is every other."""
    site.round("n2")
    for number, holder in enumerate(("n2", "n3")):
        lease = site.made._objects["leases", "gpu-health-agent", f"gpu-health-agent-withdrawn-gpu-{number}"]
        lease["spec"]["holderIdentity"] = f"{holder}/{node(site.made, holder)['metadata']['uid']}"
    site.made("PATCH", "/api/v1/nodes/n3", {"spec": {"taints": node(site.made)["spec"]["taints"]}}, MERGE)


def held(site: Site) -> None:
    labels = {"gpu-health-agent/node-uid": node(site.made)["metadata"]["uid"]}
    site.made._store("jobs", "gpu-health-agent", {"metadata": {"name": "a-repair", "labels": labels}})
    site.verdict = UNSEEN


def in_service(site: Site) -> None:
    site.verdict = healthy()
    site.config = Config.model_validate({**SETTINGS, "repair": {}})
    site.patch({"spec": {"taints": None}})


HAPPENS: dict[Situation, Callable[[Site], None]] = {
    Situation.OPTED_OUT: label("gpu-health-agent/managed", "false"),
    Situation.KEEP_OFF: label("nvidia.com/mig.config.state", "pending"),
    Situation.NEWER: annotation('{"version":2}'),
    Situation.MALFORMED: annotation("{}"),
    Situation.UNEXPLAINED: unexplained,
    Situation.ANOTHERS: anothers,
    Situation.UNLISTED: unlisted,
    Situation.OBSERVED: mode("observe"),
    Situation.PAUSED: paused,
    Situation.TO_WITHDRAW: robbed,
    Situation.WITHDRAWN: lambda _: None,
    Situation.BY_HAND: mode("taint"),
    Situation.HELD: held,
    Situation.BLIND: told(UNSEEN),
    Situation.CURED: told(healthy()),
    Situation.IN_SERVICE: in_service,
}


def test_nothing_that_may_become_of_a_drain_is_left_out() -> None:
    assert {*Situation} - {*HAPPENS} == {Situation.ANOTHER_AGENT}, "of the same node: that one gives the permit back"


@pytest.mark.parametrize("what", HAPPENS)
def test_no_other_node_waits_for_ever_behind_a_drain_whatever_becomes_of_it(what: Situation) -> None:
    for pod in PODS:
        site = Site(pod)
        HAPPENS[what](site)
        world = site.client["n1"].look(closely=True)
        assert situation(Case(site.verdict, world, site.config, Local())).situation is what
        # While it goes on, a budget is given until the deadline. Where nobody asks any more, nobody waits for that.
        goes_on = what is Situation.WITHDRAWN and pod not in HOSTILE
        most_s = LEAVES_S + LATE_S + (DEADLINE_S + CHECKPOINT_S if goes_on else 0)
        assert site.waited_s(most_s) <= most_s, pod


@pytest.mark.parametrize("pod", PODS)
def test_a_node_that_dies_in_its_drain_keeps_others_waiting_for_ten_minutes_though_it_bears_our_taint(pod: str) -> None:
    site = Site(pod)
    site.dead = True
    assert ABANDONED_S <= site.waited_s(86400) <= ABANDONED_S + 2 * STEP_S
    assert holders(site.made)[DRAINING] == "n2"
    assert holders(site.made)["gpu-health-agent-withdrawn-gpu-0"] == "n1", "while its Node bears our taint"


@pytest.mark.parametrize("what", [what for what in HAPPENS if what not in (Situation.WITHDRAWN, Situation.TO_WITHDRAW)])
def test_the_draining_permit_goes_back_once_those_that_were_asked_have_gone_where_nothing_was_asked_in_vain(
    what: Situation,
) -> None:
    site = Site("terminating")
    HAPPENS[what](site)
    assert site.waited_s(LEAVES_S - 2 * STEP_S) > LEAVES_S - 2 * STEP_S
    waits = plan(site.verdict, site.client["n1"].look(closely=True), site.config, Local()).steps
    assert Wait("the draining permit goes back once these have gone: research/train") in waits
    del site.made._objects["pods", "research", "train"]
    assert site.waited_s(LEAVES_S) == STEP_S
    refused = Site("refused")
    HAPPENS[what](refused)
    assert refused.waited_s(LEAVES_S) == STEP_S


@pytest.mark.parametrize("what", [Situation.OPTED_OUT, Situation.CURED, Situation.WITHDRAWN])
def test_a_draining_permit_of_the_life_before_stays_for_five_minutes_for_its_eviction_may_still_arrive(
    what: Situation,
) -> None:
    site = Site("refused")
    site.clock.now += DEADLINE_S + CHECKPOINT_S + LEAVES_S  # nobody would wait for it any more
    HAPPENS[what](site)
    site.client["n1"] = site.starts("n1")
    assert LATE_S <= site.waited_s(86400) <= LATE_S + STEP_S


def test_once_a_drains_deadline_is_over_others_drain_first_and_it_goes_on_when_nobody_else_wants_to() -> None:
    site = Site("swallowed")
    assert site.waited_s(86400) <= DEADLINE_S + CHECKPOINT_S + LEAVES_S + STEP_S
    while site.made.pods_on("n2"):
        site.round("n2")
    site.round("n2")
    for waited_s in range(0, 600, STEP_S):
        steps = plan(site.verdict, site.client["n1"].look(closely=True), CONFIG, Local()).steps
        takes = any(isinstance(step, TakePermit) and step.kind is PermitKind.DRAINING for step in steps)
        behind = any(isinstance(step, Wait) and "go first" in step.why for step in steps)
        assert (takes, behind) == (waited_s >= 300, waited_s < 300)
        site.clock.now += STEP_S


def test_a_drains_beginning_is_written_as_monotonic_time_and_one_in_no_time_of_the_boot_begins_anew() -> None:
    site = Site("refused")
    stored = json.loads(node(site.made)["metadata"]["annotations"][FAULTS])
    assert (stored["drain"]["boot_s"], stored["drain"]["boot_id"]) == (int(site.clock.now), "boot-1")
    for boot_s in (10**15, 0):  # what is no time at all stops the agent by name
        annotation(json.dumps({**stored, "drain": {**stored["drain"], "boot_s": boot_s}}))(site)
        site.round("n1")
        assert json.loads(node(site.made)["metadata"]["annotations"][FAULTS])["drain"] == stored["drain"], boot_s
