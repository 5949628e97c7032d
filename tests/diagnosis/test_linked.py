"""GPUs that can only be reset together leave, are asked after, are reset and are proved together, through any crash."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pynvml as nv
import pytest

from agent.commands.explain import in_words, stored
from agent.config.settings import Config
from agent.diagnosis.judge import Orders, judge
from agent.diagnosis.linked import linked
from agent.model.fault import Card, Verdict
from agent.model.observation import Missing, Observation
from agent.model.remedy import Remedy
from agent.model.world import Pod, World
from agent.remediation.case import Treatment, treated
from agent.remediation.drain import leaving
from agent.remediation.ladder import in_force
from agent.remediation.records import Attempt, Records, Stage
from agent.remediation.stored import dump, load
from agent.simulation.gpu import SimulatedGpu, h100_8, v100_8
from agent.simulation.library import Library
from agent.sources.nvml.session import Nvml
from agent.status.state import fault
from tests.life import CONFIG, Life, lives
from tests.observe import GPU, OTHER, START, Judge, alive, lost, reading, xid
from tests.remediation.test_repair import returned

THIRD = "0000:52:00.0"
A, B, C = (f"GPU-{pci}" for pci in (GPU, OTHER, THIRD))
RESET = 95


def bound(pci: str, peers: str | Missing | None, architecture: int = 5, **values: Any) -> Observation:
    return reading(pci, architecture=architecture, nvlink_peers=peers, **values)


def sets(*readings: Observation) -> dict[str, frozenset[str]]:
    return dict(Judge().after(0, alive(), *readings).linked)


def each(*uuids: str) -> dict[str, frozenset[str]]:
    return {uuid: frozenset(uuids) - {uuid} for uuid in uuids}


@pytest.mark.parametrize(
    ("peers", "together"),
    [
        ((OTHER, GPU, ""), each(A, B)),
        ((OTHER, "", ""), each(A, B)),  # one end knows
        ((OTHER, THIRD, ""), each(A, B, C)),  # each with each, over any number of links
        (("0000:05:00.0", "0000:05:00.0", ""), each(A, B)),  # through a switch
        ((Missing.UNREADABLE, "", OTHER), each(A, B, C)),  # unknown: any that could be linked
        ((Missing.UNREADABLE, Missing.UNSUPPORTED, ""), {}),  # there is none
        ((Missing.UNSUPPORTED,) * 3, {}),
        ((None,) * 3, {}),
    ],
)
def test_before_ampere_what_nvlink_joins_is_reset_together(
    peers: tuple[str | Missing | None, ...], together: dict[str, frozenset[str]]
) -> None:
    assert sets(*(bound(pci, told) for pci, told in zip((GPU, OTHER, THIRD), peers, strict=True))) == together


@pytest.mark.parametrize("architecture", [7, 9, 0xFFFFFFFF, Missing.UNREADABLE])
def test_from_ampere_on_each_gpu_is_reset_alone(architecture: int) -> None:
    assert sets(bound(GPU, OTHER, architecture), bound(OTHER, Missing.UNREADABLE, architecture)) == {}


@pytest.mark.parametrize(
    ("states", "together"),
    [
        ((3, 3), {}),
        ((1, 3), {}),  # one that is sick says nothing of fabric manager
        ((1, 2), each(A, B)),
        ((0, 0), {}),
        ((Missing.UNSUPPORTED,) * 2, {}),  # A100: a refused reset harms nobody, eight evictions for each do
    ],
)
def test_on_a_switch_all_are_reset_together_only_where_no_gpu_has_joined_the_fabric(
    states: tuple[int, int], together: dict[str, frozenset[str]]
) -> None:
    assert sets(bound(GPU, "", 9, fabric_state=states[0]), bound(OTHER, "", 9, fabric_state=states[1])) == together


def test_a_link_that_is_down_by_now_still_joins_and_a_restart_remembers_it() -> None:
    judged = Judge()
    judged.after(0, alive(), bound(GPU, OTHER), bound(OTHER, GPU))
    verdict = judged.after(5, alive(), bound(GPU, ""), bound(OTHER, Missing.UNREADABLE))
    assert verdict.linked == each(A, B)
    kept = load(dump(verdict, 1, 0.0, Records()), 0.0).cards
    assert linked(kept, {}) == each(A, B)
    unknown = {GPU: Card(A, 6, None), OTHER: Card(B, 6, frozenset({THIRD}))}
    assert load(dump(replace(verdict, cards=unknown), 1, 0.0, Records()), 0.0).cards == unknown


@pytest.fixture
def installed() -> Iterator[Callable[[list[SimulatedGpu]], None]]:
    yield lambda gpus: Library(gpus).install()
    nv.nvmlLib = None
    nv._nvmlGetFunctionPointer_cache.clear()


def test_the_boards_that_are_simulated_are_bound_as_their_links_are(
    installed: Callable[[list[SimulatedGpu]], None],
) -> None:
    gpus = v100_8()
    installed(gpus)
    quads = each(*(gpu.uuid for gpu in gpus[:4])) | each(*(gpu.uuid for gpu in gpus[4:]))
    assert sets(*(o for o in Nvml().poll() if o.pci)) == quads
    installed(h100_8())
    assert sets(*(o for o in Nvml().poll() if o.pci)) == {}


def fatal(code: int = RESET) -> Verdict:
    judged = Judge()
    judged.after(0, alive(), bound(GPU, OTHER), bound(OTHER, GPU), reading(THIRD))
    return judged.after(1, xid(code))


def treatment() -> Treatment:
    meant = treated(fatal())
    assert meant
    return meant


def pods() -> tuple[Pod, ...]:
    return tuple(
        Pod("ml", name, name, "Job", gpu=True, gpus=frozenset({uuid})) for name, uuid in (("a", A), ("b", B), ("c", C))
    )


def test_a_resets_pods_are_those_of_the_whole_set_and_another_remedys_are_not() -> None:
    assert [pod.name for pod in leaving(pods(), treatment())] == ["a", "b"]
    assert [pod.name for pod in leaving(pods(), replace(treatment(), remedy=Remedy.CONTACT_SUPPORT))] == ["a"]


def test_where_no_reset_is_configured_no_linked_gpus_pods_make_way_and_a_reserved_one_keeps_its_set() -> None:
    assert in_force(each(A, B), None, None) == {}
    assert in_force(each(A, B), None, "reset") == each(A, B)
    live = Attempt(Remedy.RESET_GPU, 1, "job", (A,), "boot", Stage.RESERVED, along=(B,))
    assert in_force({}, live, "reset")[A] == frozenset({B})


def test_the_set_is_reserved_reset_by_one_job_and_returned() -> None:
    life = Life(RESET, linked=True)
    while not life.records().attempts:
        life.tick()
    assert (life.records().attempts[0].uuids, life.records().attempts[0].along) == ((A,), (B,))
    life.run(200)
    assert (life.reset, returned(life)) == ([f"{A},{B}"], True)


def test_killed_after_every_single_write_the_set_is_reset_once() -> None:
    for life in lives(Life(RESET, linked=True), 600, killed=lambda writes: len(writes) == 1):
        assert (life.reset, returned(life)) == ([f"{A},{B}"], True), f"killed after writes {life.kills}: {life.waits}"


def test_no_reset_while_a_process_holds_any_gpu_of_the_set() -> None:
    life = Life(RESET, linked=True, clients={B: {"4711": ""}})
    life.run(200)
    assert (life.repairs, life.waits) == ([], (f"no reset while processes hold the GPU: pids 4711 on {B}",))
    life.clients = {}
    life.run(200)
    assert returned(life)


def test_a_linked_gpu_that_fails_after_the_reset_gets_one_of_its_own_and_counts_for_nothing_before() -> None:
    life = Life(RESET, linked=True)
    while not any("proved:" in why for why in life.waits):
        life.tick()
    life.breaks(OTHER)
    life.run(400)
    assert (life.reset, returned(life)) == ([f"{A},{B}", f"{B},{A}"], True)


def test_gpus_that_are_bad_and_linked_are_cured_by_one_reset() -> None:
    life = Life(RESET, linked=True)
    life.breaks(OTHER)
    life.run(400)
    assert (life.reset, returned(life)) == ([f"{A},{B}"], True)


def test_a_reset_is_proved_by_every_gpu_of_its_set() -> None:
    judged, reset = Judge(), START + 1100.0
    judged.after(0, alive(), bound(GPU, OTHER), bound(OTHER, GPU))
    judged.after(1, xid(RESET))

    def after(seconds: float, *seen: Observation) -> Verdict:
        judged.now += seconds
        stamped = [replace(o, arrived=judged.now, at=START + judged.now) for o in seen]
        judged.memory, verdict = judge(
            judged.memory,
            stamped,
            judged.now,
            START + judged.now,
            CONFIG.policy,
            ("nvml",),
            Orders(resets=dict.fromkeys((A, B), (reset, reset + 5))),
        )
        return verdict

    back = bound(GPU, OTHER, energy_j=1.0)
    assert not after(200, alive(), back).faults[0].proved, "the other one was not read since"
    assert not next(f for f in after(5, alive(), back, lost(OTHER)).standing if f.finding.pci == GPU).proved
    verdict = after(5, alive(), back, bound(OTHER, GPU, energy_j=1.0))
    assert next(f for f in verdict.standing if f.finding.pci == GPU).proved


def test_explain_and_state_name_the_gpus_that_a_reset_must_name() -> None:
    verdict = fatal()
    told = fault(verdict.faults[0], CONFIG.policy, "evict", verdict.linked)
    assert (told["reset_together_with"], f"nvidia-smi --gpu-reset -i {A},{B}" in told["next"]) == ([B], True)
    kept = World("n", "uid", stored=dump(verdict, 1, verdict.at, Records()))
    assert f"reset:     together with {B}, which is linked to it" in in_words(stored(kept, Config()), None)
    rebooted = fatal(79)
    assert fault(rebooted.faults[0], CONFIG.policy, "evict", rebooted.linked)["reset_together_with"] == []
