"""A new node's GPUs are diagnosed before its startup taint goes, where that is asked for; through any crash."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.commands.explain import stored
from agent.config.config_file import load
from agent.config.neighbour_settings import Gate
from agent.config.settings import Config
from agent.model.errors import ConfigError
from agent.model.names import GATE_TAINT
from agent.remediation.records import Stage
from tests.life import CONFIG
from tests.observe import GPU, OTHER
from tests.remediation.test_repair import MERGE, RESET
from tests.remediation.test_validation import IDLE, Diagnosed, demanding, dismiss, state

ASKED = CONFIG.model_copy(update={"gate": Gate(enabled=True, diagnose=2)})
BOTH = (2, f"GPU-{GPU}", f"GPU-{OTHER}")


@dataclass
class New(Diagnosed):
    """A node that came with the startup taint."""

    config: Config = ASKED
    effect: str = "NoSchedule"

    def _settles(self) -> None:
        super()._settles()
        self.gated()

    def gated(self) -> None:
        taint = {"key": GATE_TAINT, "effect": self.effect}
        self.cluster("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": [taint]}}, MERGE)

    def gate(self) -> bool:
        return any(taint["key"] == GATE_TAINT for taint in self.node()["spec"].get("taints") or ())

    def kept_off(self) -> bool:
        return self.gate()


def test_it_goes_once_all_gpus_passed_the_diagnosis_and_no_permit_is_taken() -> None:
    life = New(0, clients=IDLE)
    while not life.diagnoses:
        life.tick()
    assert (life.gate(), state(life)) == (True, "validating")
    life.run(60)
    assert (life.diagnoses, life.gate(), state(life), any(life.holders())) == ([BOTH], False, "healthy", False)
    life.gated()
    life.run(100)
    assert (life.diagnoses, life.gate()) == ([BOTH] * 2, False), "a taint that comes again asks for another one"


def test_a_node_that_fails_takes_no_pod_until_a_person_dismisses_that_and_the_test_is_named() -> None:
    life = New(0, clients=IDLE, ends="failed", said="memory failed on 0000:1b:00.0")
    life.run(100)
    life._begin()
    life.run(100)
    said = "DCGM's diagnosis, level 2: memory failed on 0000:1b:00.0"
    failed = f"the check before the startup taint's removal failed ({said})"
    assert (life.diagnoses, life.gate(), state(life)) == ([BOTH], True, "unhealthy")
    assert f"{failed}: a person must decide; check@node dismisses it" in life.waits
    assert stored(life.world, ASKED)["waits"] == [f"check, attempt 1 (DCGM): failed, {said}"]
    events = life.cluster("GET", "/api/v1/namespaces/default/events")[1]["items"]
    assert [e["message"] for e in events if e["reason"] == "CheckFailed"] == [
        f"the node stays out of service: {failed}"
    ]
    dismiss(life, "check@node")
    life.run(30)
    assert (life.gate(), state(life)) == (False, "healthy")


def test_an_engine_that_is_not_there_yet_is_asked_again_for_as_long_as_it_takes() -> None:
    short = ASKED.model_copy(update={"repair": CONFIG.repair.model_copy(update={"deadline_s": 120})})
    life = New(0, short, clients=IDLE, ends="undone", said="no DCGM engine answers")
    told = set[str]()
    for _ in range(60):
        life.tick()
        told |= {*life.waits}
    assert life.gate()
    assert "DCGM's diagnosis, level 2, can't be run yet: no DCGM engine answers" in told
    life.ends = "passed"
    life.run(60)
    assert not life.gate()


@pytest.mark.parametrize(
    ("clients", "effect", "why"),
    [
        ({**IDLE, f"GPU-{GPU}": {"4711": ""}}, "NoSchedule", "can't be run yet: processes hold the GPU"),
        (IDLE, "PreferNoSchedule", "is to run before the startup taint's removal"),
    ],
)
def test_no_gpu_is_taken_up_that_is_in_use_or_may_be(clients: dict[str, dict[str, str]], effect: str, why: str) -> None:
    life = New(0, clients=clients, effect=effect)
    life.run(200)
    assert (life.diagnoses, life.gate(), any(why in one for one in life.waits)) == ([], True, True)


@pytest.mark.parametrize("anew", [False, True])
def test_nothing_is_diagnosed_in_a_pause_whenever_that_begins(anew: bool) -> None:
    pause = {"metadata": {"name": "gpu-health-agent-pause"}, "data": {"paused": "true"}}
    life = New(0, clients={})
    life.run(30)
    life.clients = IDLE
    life.cluster._store("configmaps", "gpu-health-agent", pause)
    if anew:
        life.cluster("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, MERGE)
        life.run(30)
        life.gated()
    life.run(200)
    assert (life.diagnoses, life.gate()) == ([], True)
    life.cluster._store("configmaps", "gpu-health-agent", {**pause, "data": {"paused": "false"}})
    life.run(100)
    assert (life.diagnoses, life.gate()) == ([BOTH], False)


@pytest.mark.parametrize(("ends", "opens"), [("passed", True), ("failed", False)])
def test_an_agent_killed_in_the_middle_runs_it_anew_and_never_opens_the_gate_without(ends: str, opens: bool) -> None:
    plain = New(0, clients=IDLE, ends=ends)
    plain.run(200)
    for dies, kills in (((1,), ()), ((1, 2), ()), *(((), (kill,)) for kill in range(1, plain.writes + 1))):
        life = New(0, clients=IDLE, ends=ends, dies=dies, kills=kills)
        life.run(300)
        assert (life.gate(), 1 <= len(life.diagnoses) <= 3) == (not opens, True), (dies, kills, life.waits)


def test_a_fault_ends_it_and_after_the_cure_it_comes_again() -> None:
    life = New(0, clients=IDLE)
    while not life.diagnoses:
        life.tick()
    life.breaks(code=RESET)
    life.run(30)
    assert (life.records().validation, life.tainted(), life.gate()) == (None, True, True)
    life.run(400)
    assert (life.repairs, life.tainted(), life.gate(), len(life.diagnoses)) == (["reset_gpu"], False, False, 2)


def test_what_a_cured_node_passed_opens_no_gate() -> None:
    both = demanding().model_copy(update={"gate": ASKED.gate})
    life = New(RESET, both, clients=IDLE)
    life.run(500)
    assert (life.tainted(), life.gate(), life.diagnoses[-2:]) == (False, False, [(2, f"GPU-{GPU}"), BOTH])


def test_a_gate_that_is_switched_off_or_taken_away_leaves_no_record() -> None:
    life = New(0, clients={})
    life.run(50)
    check = life.records().validation
    assert check
    assert check.stage is Stage.RESERVED
    life.cluster("PATCH", "/api/v1/nodes/n1", {"spec": {"taints": []}}, MERGE)
    life.run(30)
    assert (life.records().validation, life.diagnoses, state(life)) == (None, [], "healthy")


def test_a_diagnosis_needs_the_gate_and_dcgm(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for text, said in (
        ("mode: evict\ngate: {diagnose: 2}", r"gate\.diagnose .*set gate\.enabled to true"),
        (
            "mode: evict\nsources: {dcgm: {enabled: false}}\ngate: {enabled: true, diagnose: 1}",
            r"gate\.diagnose needs DCGM",
        ),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load(path)


def test_an_agent_has_gpus_diagnosed_for_either_of_the_two() -> None:
    """Else its client of the cluster is one that can't."""
    assert [one.diagnoses for one in (CONFIG, ASKED, demanding())] == [False, True, True]
