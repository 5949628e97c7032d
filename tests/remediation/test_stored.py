"""What the Node stores is read back as it was written, or not at all."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agent.actions.kube import KubeClient
from agent.diagnosis.judge import Memory, Orders, judge
from agent.diagnosis.resume import resumed
from agent.model.errors import MalformedError
from agent.model.fault import Card, Evidence, Fault, Finding, Identity, Severity, Status, Verdict
from agent.model.remedy import Remedy
from agent.model.steps import Wait
from agent.model.text import fault_ids
from agent.model.world import Local, World
from agent.remediation.case import Case
from agent.remediation.plan import plan
from agent.remediation.records import Attempt, Begun, Idle, Kind, Records, Stage, Validation
from agent.remediation.situation import Situation, situation
from agent.remediation.stored import MOST_BYTES, dump, load, restored
from tests.actions.test_kube import EVICT, MERGE, cluster, drive, fatal, healthy
from tests.life import Life
from tests.observe import GPU, OTHER, START, Judge, alive, reading, xid

ATTEMPT = Attempt(
    Remedy.RESET_GPU,
    1,
    "gpu-health-reset-gpu-0",
    ("GPU-1",),
    "boot-1",
    Stage.FAILED,
    START,
    int(START),
    "it failed",
    True,
    ("GPU-2",),
)
CHECK = Validation(Kind.DIAGNOSIS, "gpu-health-diagnosis-0", ("GPU-1",), "boot-1", 1, Stage.FAILED, START, 7, "no")
RECORDS = Records(
    (ATTEMPT,),
    True,
    Begun(Remedy.RESET_GPU, 7, {"research/Job/train": 2}),
    Idle(True, (7,), {f"xid-63@{GPU}": ATTEMPT}),
    CHECK,
)


def fault(rule: str = "xid-94", pci: str = GPU, severity: Severity = Severity.FATAL, words: str = "NVRM: Xid") -> Fault:
    seen = (Evidence(START, "kmsg", words), Evidence(START, "nvml", words))
    finding = Finding(rule, pci, severity, Remedy.RESET_GPU, words, seen[-1], 1.0, "kmsg", clear_s=600.0, instance=3)
    counters = {"energy_j": 7.0, "pcie_replays": 1.0}
    return Fault(
        finding,
        START,
        1.0,
        1.0,
        "GPU-1",
        "boot-1",
        confirmed=True,
        counters=counters,
        fell=("pcie_replays",),
        pre_start=True,
        witnesses=seen,
    )


def verdict(*faults: Fault) -> Verdict:
    who = Identity("0", "NVIDIA H100 80GB HBM3", "1650323000000", "580.65.06", "7")
    cards = {GPU: Card("GPU-1", 18, frozenset({OTHER}), "boot-1", who), OTHER: Card("GPU-2", 18, None)}
    return Verdict(
        START,
        Status.UNHEALTHY,
        Remedy.RESET_GPU,
        faults,
        {},
        "boot-1",
        7,
        faults,
        {GPU: (7, 8)},
        frozenset({f"xid-79@{GPU}"}),
        cards,
    )


WHOLE = json.loads(dump(verdict(fault()), 7, START, RECORDS))
DEEP: Any = None
for _ in range(900):
    DEEP = [DEEP]
NONSENSE: list[Any] = [
    float("inf"), float("-inf"), float("nan"), 10**400, -(10**400), -1, 1.5, 2**70, True, None, "", "nonsense",
    "a" * 20_000,
    "\ud800", [], [[]], {}, {"": None}, DEEP,
]  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of every value in it, containers too."""
    for key in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*path, key)
        yield from places(data[key], (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> str:
    whole = copy.deepcopy(WHOLE)
    at = whole
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(whole)


def no_nonsense(value: Any) -> bool:
    """Whether all of it is what an agent might have written."""
    if isinstance(value, dict):
        return all(no_nonsense(one) for one in value.values())
    if isinstance(value, list):
        return all(map(no_nonsense, value))
    return not isinstance(value, int | float) or abs(value) < 1e300


@pytest.mark.parametrize("path", places(WHOLE), ids=lambda path: ".".join(map(str, path)))
def test_whatever_nonsense_stands_in_a_field_it_is_read_as_such_or_the_agent_stops_by_name(
    path: tuple[Any, ...],
) -> None:
    for value in NONSENSE:
        text = changed(path, value)
        stored = restored(text, 0.0)
        if stored is None:
            now = situation(Case(healthy(), World("n1", "uid", stored=text), EVICT, Local()))
            assert now.situation in (Situation.MALFORMED, Situation.NEWER)
            assert len(now.stands[0].why) < 400
            continue
        assert isinstance(was(path), bool) or value is not True
        assert not isinstance(value, int | float) or abs(value) < 2**71, "a number that no clock and no GPU counts to"
        assert value != -1 or path == ("kernel_seq",), "nothing else is ever below zero"
        judged = verdict(*stored.faults)
        back = json.loads(dump(judged, stored.kernel_seq, stored.at, stored.records))
        assert no_nonsense(back)
        plan(judged, World("n1", "uid", stored=text, permits=(), pods=(), jobs=()), EVICT, Local())
        judge(resumed(Memory(), stored, EVICT.policy, {}), (), 1.0, START, EVICT.policy, ("nvml",), Orders())


def was(path: tuple[Any, ...]) -> Any:
    value = WHOLE
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "7", "[" * 100_000, '{"version":1}', '{"version":1e999}', "{}"]
)
def test_what_is_no_annotation_of_ours_at_all_stops_the_agent_by_name(text: str) -> None:
    assert restored(text, 0.0) is None
    now = situation(Case(healthy(), World("n1", "uid", stored=text), EVICT, Local()))
    assert now.situation is Situation.MALFORMED
    assert "remove it to let the agent act again" in now.stands[0].why


def test_a_fault_that_stands_in_it_twice_and_one_that_nobody_saw_stop_the_agent() -> None:
    one = WHOLE["faults"][0]
    for faults in ([one, one], [{**one, "seen_by": []}]):
        with pytest.raises(MalformedError):
            load(json.dumps({**WHOLE, "faults": faults}), 0.0)


def test_whatever_the_clock_reads_what_is_written_is_read_again() -> None:
    for wall in (-5.0, 0.0, 1e12):
        seen = (Evidence(wall, "kmsg", "NVRM: Xid"),)
        one = replace(fault(), since=wall, witnesses=seen)
        assert load(dump(replace(verdict(one), at=wall), 7, wall, RECORDS), 0.0).faults[0].finding.rule == "xid-94"


def test_of_a_persons_words_only_faults_ids_are_obeyed_and_not_150_kilobytes_of_them() -> None:
    many = ",".join(f"xid-{number}@{GPU}" for number in range(6_000))
    ids, others = fault_ids(f"xid-79@{GPU},check@node  {many}, nonsense\n\u202e {'x' * 70_000}@node")
    assert len(ids) == 64
    assert others > 5_900
    assert {f"xid-79@{GPU}", "check@node"} <= ids
    assert fault_ids(f"xid-94@{GPU}/gi5 xid-74@{GPU}/drill") == (
        frozenset({f"xid-94@{GPU}/gi5", f"xid-74@{GPU}/drill"}),
        0,
    )
    waits = [s for s in plan(healthy(), World("n1", "uid", unread=others), EVICT, Local()).steps if isinstance(s, Wait)]
    assert any("gpu-health-agent/dismiss" in wait.why for wait in waits)


@pytest.mark.parametrize("value", ["false", "False", "NO", "off", "0"])
def test_a_node_is_opted_out_by_every_word_for_no(value: str) -> None:
    made = cluster()
    made("PATCH", "/api/v1/nodes/n1", {"metadata": {"labels": {"gpu-health-agent/managed": value}}}, MERGE)
    client = KubeClient(made, "n1", EVICT)
    assert not [step for step in drive(client, fatal()) if not isinstance(step, Wait)]
    [wait] = plan(fatal(), client.look(closely=True), EVICT, Local()).steps
    assert isinstance(wait, Wait)
    assert f"gpu-health-agent/managed={value} opts it out" in wait.why


HOSTILE = '"\\' * 150 + "\U0001f480" * 300 + "\x1b[2J"


def crowd(gpus: int, each: int, words: str = "NVRM: Xid") -> Verdict:
    """So many GPUs with so many fatal faults each, and the last GPU with a degraded one alone."""
    pcis = [f"0000:{0x10 + gpu:02x}:00.0" for gpu in range(gpus)]
    bad = [fault(f"xid-{90 + number}", pci, words=words) for pci in pcis[:-1] for number in range(each)]
    bad.append(fault("xid-63", pcis[-1], Severity.DEGRADED, words))
    who = Identity("7", words[:64], words[:64], words[:64], words[:64])
    cards = {
        pci: Card(f"GPU-{pci}-0000-0000-0000-000000000000", 18, frozenset(pcis) - {pci}, identity=who) for pci in pcis
    }
    return replace(verdict(*bad), cards=cards)


def remembers(text: str) -> set[str]:
    return {one.finding.pci for one in load(text, 0.0).faults}


@pytest.mark.parametrize("each", [2, 3, 6, 20])
@pytest.mark.parametrize(
    "words", ["NVRM: Xid (PCI:0000:1b:00): 95, pid=4711, name=python" * 4, HOSTILE], ids=["words", "hostile"]
)
def test_however_many_faults_stand_every_gpu_keeps_its_worst_within_32_kib(each: int, words: str) -> None:
    there = crowd(16, each, words)
    text = dump(there, 7, START, Records())
    assert len(text.encode()) <= MOST_BYTES < 32 * 1024
    assert remembers(text) == set(there.cards)
    kept = load(text, 0.0)
    assert kept.left_out == len(there.standing) - len(kept.faults)
    assert (kept.left_out > 0) is (each > 3)
    assert dump(there, 7, START, Records()) == text, "nothing changes while the node stays as it is"


def test_beside_all_else_that_others_write_into_it_every_gpu_keeps_its_worst() -> None:
    said = replace(ATTEMPT, said=HOSTILE, uuids=tuple(f"GPU-{'0' * 36}" for _ in range(4)))
    records = Records(
        (said,) * 8,
        True,
        Begun(Remedy.RESET_GPU, 7, {f"{'n' * 63}/Job/{number}{'j' * 240}": number for number in range(110)}),
        Idle(True, tuple(range(30)), {f"xid-63@0000:{number:02x}:00.0": said for number in range(8)}),
        None,
    )
    there = crowd(16, 20, HOSTILE)
    there = replace(there, dismissed=fault_ids(" ".join(f"{n:024}@{'1' * 28}" for n in range(200)))[0])
    text = dump(there, 7, START, records)
    assert len(text.encode()) <= MOST_BYTES
    assert remembers(text) == set(there.cards)
    back = load(text, 0.0).records
    assert len(back.attempts) == 8
    assert back.drain
    assert f"{'n' * 63}/Job/109{'j' * 240}" in back.drain.returns, "those that came back most often"


def test_thirty_three_faults_outlive_the_agent_and_what_found_no_room_is_told() -> None:
    text = dump(crowd(16, 20), 7, START, Records())
    world = World("n1", "uid", stored=text, permits=(), pods=(), jobs=())
    waits = [step.why for step in plan(crowd(16, 20), world, EVICT, Local()).steps if isinstance(step, Wait)]
    assert any(f"{load(text, 0.0).left_out} faults found no room in it" in why for why in waits)
    life = Judge()
    life.after(0, alive(), reading())
    life.after(1, *(xid(code, f"0000:{bus:02x}:00.0") for bus in range(0x10, 0x21) for code in (119, 95, 120)))
    life.after(1, xid(95, OTHER))
    before = life.after(1)
    again = resumed(Memory(), load(dump(before, 7, START, Records()), 0.0), EVICT.policy, {})
    assert {one.finding.id for one in before.standing} == set(again.faults)
    assert len(before.standing) > 33


def test_what_a_tenant_calls_a_pods_controller_pushes_no_fault_out() -> None:
    life = Life(95)
    refused = {"message": "no", "details": {"causes": [{"reason": "DisruptionBudget", "message": "budget"}]}}

    def api(method: str, path: str, *rest: Any, **more: Any) -> tuple[int, Any]:
        return (429, refused) if path.endswith("/eviction") else life.cluster(method, path, *rest, **more)

    life.api = api
    life.run(50)
    for number in range(6):  # each comes although the node is tainted
        life.cluster.add_pod("tenant", f"pod-{number}", "n1", owner=f"{number}{'K' * 60_000}")
    life.run(50)
    text = life.node()["metadata"]["annotations"]["gpu-health-agent/faults"]
    stored = load(text, 0.0)
    assert (len(stored.faults) > 0, stored.left_out) == (True, 0)
    assert stored.records.drain
    assert len(stored.records.drain.returns) == 6
    assert len(text) < 8192
