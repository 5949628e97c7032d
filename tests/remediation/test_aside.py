"""While the GPUs are somebody else's what is seen is told and nothing is done; later it withdraws nothing by itself."""

from __future__ import annotations

from typing import Any

import pytest

from agent.config.limits import Limits
from agent.model.names import ERROR_LABEL, STATE_LABEL
from agent.model.steps import On, Wait
from agent.remediation.records import Stage
from agent.remediation.stored import load
from tests.life import CONFIG, Life, lives
from tests.observe import GPU

RESET, REPLACE = 95, 64
UPGRADE = {"nvidia.com/gpu-driver-upgrade-state": "pod-restart-required"}
LABELS = {
    "nvidia.com/gpu-driver-upgrade-state": "pod-restart-required",
    "nvidia.com/mig.config.state": "rebooting",
    "nvidia.com/gpu.deploy.dcgm-exporter": "paused-for-mig-change",
}


def say(life: Life, **labels: str | None) -> None:
    body = {"metadata": {"labels": labels}}
    life.cluster("PATCH", "/api/v1/nodes/n1", body, "application/merge-patch+json")


def conditions(life: Life) -> dict[str, Any]:
    return {c["type"]: c for c in life.node()["status"]["conditions"]}


def labels(life: Life) -> dict[str, str]:
    return dict(life.node()["metadata"]["labels"])


def healthy() -> Life:
    """Its GPU breaks once it is told to."""
    life = Life(0)
    life.run(20)
    return life


@pytest.mark.parametrize("label", LABELS)
def test_what_the_kernel_log_says_meanwhile_is_told_at_once_and_nobody_acts_on_it(label: str) -> None:
    life = healthy()
    say(life, **{label: LABELS[label]})
    life.run(20)
    life.breaks(code=RESET)
    life.tick()
    told = conditions(life)["GpuUnhealthy"]
    assert (told["status"], told["message"].endswith("(seen only while the agent stood aside)")) == ("True", True)
    assert labels(life)[STATE_LABEL] == "unhealthy"
    life.run(300)
    assert (life.tainted(), life.holders(), life.cluster.evicted, life.repairs) == (False, [], [], [])
    assert ERROR_LABEL not in labels(life)
    assert life.released


@pytest.mark.parametrize("state", ["cordon-required", "pod-restart-required", "validation-required", "anything"])
def test_a_fault_from_before_it_is_acted_on_after_it(state: str) -> None:
    life = Life(RESET)
    say(life, **{"nvidia.com/gpu-driver-upgrade-state": state})
    life.run(600)
    assert (life.tainted(), life.holders(), ERROR_LABEL in labels(life)) == (False, [], False)
    assert (labels(life)[STATE_LABEL], life.released) == ("unhealthy", True)
    say(life, **{"nvidia.com/gpu-driver-upgrade-state": "upgrade-done"})
    life.run(20)
    assert life.tainted()


def test_our_label_goes_with_a_fault_that_ends_meanwhile_and_a_persons_stays() -> None:
    """The record of whose the label is changes with the label, or not at all."""
    life = Life(RESET)
    life.run(20)
    assert labels(life)[ERROR_LABEL] == "true"
    say(life, **{"nvidia.com/mig.config.state": "rebooting"})
    life.cluster(
        "PATCH",
        "/api/v1/nodes/n1",
        {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-{RESET}@{GPU}"}}},
        "application/merge-patch+json",
    )
    life.run(60)
    assert ERROR_LABEL not in labels(life)
    life.breaks(code=RESET)
    life.run(20)
    say(life, **{ERROR_LABEL: "true"})
    life.run(60)
    assert labels(life)[ERROR_LABEL] == "true", "a person's, beside our condition that says unhealthy"


def test_what_was_seen_only_meanwhile_withdraws_nothing_whenever_the_agent_dies() -> None:
    life = healthy()
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.tick()
    life.breaks(code=79)
    life.writes = 0

    def over(writes: int) -> None:
        if writes == 2:
            say(life, **{"nvidia.com/mig.config.state": "success"})

    life.after = over
    for one in lives(life, 200, killed=lambda writes: len(writes) <= 2):
        assert (one.tainted(), one.holders(), one.cluster.evicted) == (False, [], []), one.kills
        assert conditions(one)["GpuUnhealthy"]["status"] == "True"


def test_a_fault_that_was_seen_only_in_an_upgrade_says_what_it_waits_for() -> None:
    life = healthy()
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.tick()
    life.breaks(code=79)
    life.run(50)
    say(life, **{"nvidia.com/mig.config.state": "success"})
    life.run(50)
    assert any("withdraws nothing" in why for why in life.waits)
    assert not life.tainted()
    life.breaks(code=79)
    life.run(20)
    assert life.tainted()


def test_a_driver_that_asks_for_a_reset_confirms_it() -> None:
    life = healthy()
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.tick()
    life.breaks(code=RESET)
    life.run(50)
    assert not life.tainted()
    say(life, **{"nvidia.com/mig.config.state": "success"})
    life.run(20)
    assert life.tainted()


def test_a_request_for_a_replacement_is_taken_back_meanwhile() -> None:
    asks = {"reset_gpu": None, "reboot_node": None, "replace_node": None, "request_replacement": True}
    life = Life(REPLACE, CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update=asks)}))
    life.run(200)
    assert conditions(life)["GpuReplacementRequested"]["status"] == "True"
    before = labels(life)
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.run(50)
    assert conditions(life)["GpuReplacementRequested"]["status"] == "False"
    assert labels(life) == {**before, "nvidia.com/mig.config.state": "pending"}
    assert life.tainted()
    say(life, **{"nvidia.com/mig.config.state": "success"})
    life.run(50)
    assert conditions(life)["GpuReplacementRequested"]["status"] == "True"


def test_an_upgrade_that_never_ends_counts_as_forgotten_and_faults_are_reported_as_ever() -> None:
    life = healthy()
    life.config = CONFIG.model_copy(update={"policy": Limits(aside_s=100)})
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.run(90)
    assert not [wait for wait in stands(life) if wait.on is On.STOPPED]
    life.run(50)
    assert [wait.on for wait in stands(life)] == [On.STOPPED]
    said = life.waits
    life.run(3600)
    assert life.waits == said, "the same words, which are logged once"
    life.breaks(code=79)
    life.run(20)
    assert labels(life)[ERROR_LABEL] == "true"
    assert (life.tainted(), life.holders(), life.released) == (False, [], True)


def stands(life: Life) -> list[Wait]:
    return [step for step in life.planned.steps if isinstance(step, Wait)]


def test_a_node_that_is_well_costs_no_write_a_minute_meanwhile() -> None:
    life = healthy()
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.run(100)
    before = life.writes
    life.run(600)
    assert life.writes == before
    stored = load(life.node()["metadata"]["annotations"]["gpu-health-agent/faults"], 0.0)
    assert stored.faults == ()


def test_what_was_seen_only_meanwhile_withdraws_nothing_later_however_long_it_took() -> None:
    life = healthy()
    life.config = CONFIG.model_copy(update={"policy": Limits(aside_s=100)})
    say(life, **{"nvidia.com/mig.config.state": "pending"})
    life.run(150)
    life.breaks(code=79)
    life.run(20)
    say(life, **{"nvidia.com/mig.config.state": "success"})
    for _ in range(10):
        life.tick()
        assert (life.tainted(), life.holders()) == (False, [])
    assert ERROR_LABEL not in labels(life)
    assert any("seen only while the agent stood aside" in wait.why for wait in stands(life))


def test_no_pod_leaves_a_node_that_was_rebooted_meanwhile_before_it_is_known_what_that_cured() -> None:
    life = Life(RESET)
    life.gathered = False
    life.run(30)
    say(life, **UPGRADE)
    life.reboots()
    life.gathered = True
    life.run(300)
    say(life, **dict.fromkeys(UPGRADE))
    life.run(400)
    assert (life.cluster.evicted, life.repairs, life.tainted(), life.holders()) == ([], [], False, [""])


def test_the_time_for_the_proof_of_a_cure_does_not_run_meanwhile() -> None:
    life = Life(RESET)
    stages: list[Stage] = []

    def begins(_: int) -> None:
        """With the very write that says that the repair is done."""
        now = [one.stage for one in life.records().attempts]
        if Stage.DONE in now and Stage.DONE not in stages:
            say(life, **UPGRADE)
        stages.extend(now)

    life.after = begins
    life.run(600)
    assert life.tainted()
    say(life, **dict.fromkeys(UPGRADE))
    life.run(400)
    assert (len(life.repairs), {*stages}, life.tainted()) == (1, {Stage.RESERVED, Stage.STARTED, Stage.DONE}, False)
