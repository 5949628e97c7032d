"""The label ``node.kubernetes.io/gpu-error`` is others' as well: what we did not set we never take off."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.actions.removal import release
from agent.model.names import ERROR_LABEL, FAULTS_ANNOTATION
from agent.simulation.in_memory_cluster import InMemoryCluster
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy, node
from tests.observe import silent


def says(made: InMemoryCluster, value: str | None) -> None:
    """Somebody's word."""
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {ERROR_LABEL: value}}}, MERGE)


def label(made: InMemoryCluster) -> str | None:
    value = node(made)["metadata"]["labels"].get(ERROR_LABEL)
    return None if value is None else str(value)


def lives(made: InMemoryCluster, *verdicts: Any) -> None:
    """A life of the agent for each."""
    for verdict in verdicts:
        drive(KubeClient(made, "n1", EVICT), verdict)


@pytest.mark.parametrize("value", ["true", "rma-4711", "false"])
def test_a_label_that_a_person_set_stays_before_during_and_after_a_fault_of_ours(value: str) -> None:
    made = cluster()
    lives(made, healthy())
    says(made, value)
    lives(made, healthy(), fatal(), fatal())
    assert label(made) == value
    lives(made, healthy(), healthy())
    assert label(made) == value
    list(release(made, "gpu-health-agent", "n1"))
    assert label(made) == value


def test_our_label_comes_and_goes_with_the_fault_over_any_restart() -> None:
    made = cluster()
    lives(made, healthy(), fatal(), fatal())
    assert label(made) == "true"
    lives(made, healthy())
    assert label(made) is None


def test_a_label_that_a_person_changed_is_theirs_from_then_on() -> None:
    made = cluster()
    lives(made, fatal())
    says(made, "rma-4711")
    lives(made, fatal(), healthy())
    assert label(made) == "rma-4711"


def test_a_label_that_a_person_took_off_is_set_again_while_the_fault_stands() -> None:
    made = cluster()
    lives(made, fatal())
    says(made, None)
    lives(made, fatal())
    assert label(made) == "true"


def test_a_label_that_a_person_set_while_a_blind_agent_keeps_its_condition_stays() -> None:
    """What stood was dismissed, and whether the node is well can't be seen: so it still says unhealthy."""
    made, blind = cluster(), replace(healthy(), blind=silent())
    lives(made, fatal(), blind)
    assert label(made) is None
    says(made, "true")
    lives(made, blind, healthy())
    assert label(made) == "true"


@pytest.mark.parametrize("unhealthy", [True, False])
def test_of_an_older_agents_label_the_condition_tells_whose_it_is(unhealthy: bool) -> None:
    """It wrote both, and noted nothing."""
    made = cluster()
    lives(made, fatal() if unhealthy else healthy())
    annotations = node(made)["metadata"]["annotations"]
    stored = {key: value for key, value in json.loads(annotations[FAULTS_ANNOTATION]).items() if key != "labelled"}
    body = {"metadata": {"annotations": {FAULTS_ANNOTATION: json.dumps(stored)}, "labels": {ERROR_LABEL: "true"}}}
    made("PATCH", "/api/v1/nodes/n1", body, MERGE)
    lives(made, healthy())
    assert label(made) == (None if unhealthy else "true")


@pytest.mark.parametrize("writes", range(1, 6))
def test_wherever_the_agent_dies_it_knows_whose_the_label_is(writes: int) -> None:
    for first, last in ((None, None), ("true", "true")):
        made = cluster()
        lives(made, healthy())
        says(made, first)
        drive(KubeClient(made, "n1", EVICT), fatal(), cuts=[writes], rounds=1)
        drive(KubeClient(made, "n1", EVICT), healthy(), cuts=[writes], rounds=1)
        lives(made, healthy())
        assert label(made) == last


@pytest.mark.parametrize("ours", [False, True])
def test_a_persons_label_stays_though_the_agent_died_before_its_condition_said_that_the_fault_is_over(
    ours: bool,
) -> None:
    """The conditions come in a write of their own."""
    for writes in range(1, 6):
        made = cluster()
        lives(made, healthy())
        says(made, None if ours else "true")
        lives(made, fatal(), fatal())
        drive(KubeClient(made, "n1", EVICT), healthy(), cuts=[writes], rounds=1)
        theirs = not ours or label(made) is None
        if theirs:
            says(made, "true")
        lives(made, healthy(), healthy())
        assert label(made) == ("true" if theirs else None), writes
