"""The ledger on the Node: what befell it, with its times, whatever the agent and the clocks went through."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.settings import Config, Mode
from agent.model.names import FAULTS_ANNOTATION, HISTORY_ANNOTATION
from agent.model.remedy import Remedy
from agent.remediation.ledger import BUCKETS_S, DRILL, MOST_ENTRIES, OTHERS, End, Entry, Ledger, Moment, Repair, Suspect
from agent.remediation.ledger_json import MOST_BYTES, dump, load
from agent.remediation.records import Stage
from agent.remediation.stored import MOST_BYTES as MOST_FAULT_BYTES
from tests.life import CONFIG, POLL_S, Life
from tests.observe import GPU, OTHER, START
from tests.remediation.test_repair import CONTACT_SUPPORT, MERGE, REBOOT, RESET

NODE = "/api/v1/nodes/n1"
WITHDRAWN = (Moment.ONSET, Moment.VERDICT, Moment.PERMIT, Moment.TAINT, Moment.DRAINED, Moment.PROVED, Moment.ENDED)


def ledger(life: Life) -> Ledger:
    return load((life.node()["metadata"].get("annotations") or {}).get(HISTORY_ANNOTATION))


def returned(life: Life) -> Entry:
    """Its one incident, once the node is back."""
    life.run(600, rests=True)
    (entry,) = ledger(life).entries
    return entry


def test_an_incident_is_noted_with_its_times_its_card_its_repairs_and_what_ended_it() -> None:
    life = Life(RESET)
    begun = START + life.now
    entry = returned(life)
    assert tuple(entry.times) == WITHDRAWN
    assert list(entry.times.values()) == sorted(entry.times.values())
    assert (entry.faults, entry.by, entry.gpus) == ((f"xid-{RESET}@{GPU}",), End.PROOF, 2)
    assert [one.uuid for one in entry.suspects] == [f"GPU-{GPU}"]
    assert [(one.remedy, one.number, one.stage) for one in entry.repairs] == [(Remedy.RESET_GPU, 1, Stage.DONE)]
    assert abs(entry.times[Moment.ONSET] - begun) <= POLL_S
    assert entry.times[Moment.ENDED] == int(START + life.now) - 40  # four polls after the last write
    assert entry.phases["out"] == entry.times[Moment.ENDED] - entry.times[Moment.TAINT]
    assert entry.lost_gpu_s(0.0) == 2 * entry.phases["out"]


@pytest.mark.parametrize("fault", [RESET, 79, 48])
def test_it_is_written_with_writes_that_happen_anyway(fault: int) -> None:
    life, alone = Life(fault), []

    def watched(method: str, path: str, body: Any = None, *rest: Any, **more: Any) -> Any:
        if method == "PATCH" and path.startswith(NODE) and HISTORY_ANNOTATION.replace("/", "~1") in json.dumps(body):
            alone.append(body)
        if method == "PATCH" and path.startswith(NODE) and isinstance(body, dict):
            patched = body.get("metadata", {}).get("annotations", {})
            if set(patched) == {HISTORY_ANNOTATION} and not body.get("status") and not body["metadata"].get("labels"):
                raise AssertionError(f"a write of its own: {body}")
        return life.cluster(method, path, body, *rest, **more)

    life.api = watched
    assert returned(life).by is End.PROOF
    assert len(alone) == 2  # the taint's two writes


def test_killed_after_any_write_it_still_notes_one_incident() -> None:
    whole = Life(RESET)
    returned(whole)
    for write in range(2, whole.writes + 1, 2):
        entry = returned(Life(RESET, kills=(write,)))
        assert (tuple(entry.times), entry.by) == (WITHDRAWN, End.PROOF), f"after write {write}"
        assert list(entry.times.values()) == sorted(entry.times.values())


@pytest.mark.parametrize("by_s", [-10_800, 10_800])
def test_a_clock_that_is_set_makes_no_incident_longer_or_shorter(by_s: float) -> None:
    plain = returned(Life(RESET)).phases
    for write in (4, 6, 9, 13):
        life = Life(RESET)

        def steps(writes: int, life: Life = life, at: int = write) -> None:
            life.stepped_s = by_s if writes >= at else 0.0

        life.after = steps
        phases = returned(life).phases
        # What waits by the permit's age may come a poll later, and is noted so.
        assert all(abs(phases[name] - plain[name]) <= 2 * POLL_S for name in plain), f"after write {write}: {phases}"


def test_a_repair_that_ended_before_its_onset_by_a_clock_that_was_set_back_is_written_once() -> None:
    plain, life = Life(RESET), Life(RESET)
    for one in (plain, life):
        one.run(20)
        one.stepped_s = -10_800 if one is life else 0.0
        returned(one)
    assert life.writes <= plain.writes + 2  # the permit's age is by the wall clock as well


def dismissed(life: Life) -> None:
    word = {"metadata": {"annotations": {"gpu-health-agent/dismiss": f"xid-{life.fault}@{GPU}"}}}
    life.cluster("PATCH", NODE, word, MERGE)


def another_card(life: Life) -> None:
    life.uuids[GPU] = "GPU-new"
    life.reboots()


@pytest.mark.parametrize(("ends", "by"), [(dismissed, End.PERSON), (another_card, End.CARD)])
def test_it_names_who_ended_it_and_no_proof_where_there_was_none(ends: Callable[[Life], None], by: End) -> None:
    config = CONFIG.model_copy(update={"repair": Config().repair})  # nothing is repaired
    life = Life(79, config=config)
    life.run(100)
    ends(life)
    life.run(600)
    (entry,) = ledger(life).entries
    assert (entry.by, Moment.PROVED in entry.times) == (by, False)
    assert not life.tainted()


def test_what_is_only_observed_is_noted_and_costs_no_gpu_hour() -> None:
    life = Life(79, config=CONFIG.model_copy(update={"mode": Mode.OBSERVE}))
    life.run(100)
    (entry,) = ledger(life).entries
    assert (set(entry.times), entry.by, entry.lost_gpu_s(9e9)) == ({Moment.ONSET, Moment.VERDICT}, None, 0)
    dismissed(life)
    life.run(600)
    (entry,) = ledger(life).entries
    assert (set(entry.times), entry.by) == ({Moment.ONSET, Moment.VERDICT, Moment.ENDED}, End.PERSON)


def test_a_second_fault_is_noted_with_the_first_and_a_later_one_apart() -> None:
    life = Life(RESET)
    life.run(20)
    life.breaks(OTHER, 79)
    life.run(800, rests=True)
    (both,) = ledger(life).entries
    assert [one.pci for one in both.suspects] == [GPU, OTHER]
    life.breaks()
    life.run(600, rests=True)
    assert [one.faults for one in ledger(life).entries][1:] == [(f"xid-{RESET}@{GPU}",)]


ENDLESS = '{"onset":1000,"after":{"verdict":1},"faults":["xid-79@x"],"gpus":8,"by":"proof"}'  # ended, and not when


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"version":2}',
        '{"version":1,"incidents":[{"onset":1e999}]}',
        f'{{"version":1,"incidents":[{ENDLESS}]}}',
        "x" * 9000,
        '{"version":1,"incidents":['
        + '{"onset":1,"after":{},"faults":[],"gpus":0},' * 999
        + '{"onset":1,"after":{},"faults":[],"gpus":0}]}',
    ],
    ids=lambda text: text[:40],
)
def test_one_that_nobody_can_read_is_told_and_left_and_stops_nothing(text: str) -> None:
    life = Life(RESET)
    life.cluster("PATCH", NODE, {"metadata": {"annotations": {HISTORY_ANNOTATION: text}}}, MERGE)
    life.run(30)
    assert life.tainted()
    assert any(HISTORY_ANNOTATION in why for why in life.waits)
    life.run(600, rests=True)
    assert life.node()["metadata"]["annotations"][HISTORY_ANNOTATION] == text
    assert not life.tainted()


def test_a_fault_for_which_an_incident_has_no_room_is_noted_once_though_it_comes_after_the_cure() -> None:
    life = Life(REBOOT)
    for pci, code in ((OTHER, REBOOT), (GPU, RESET), (OTHER, RESET)):
        life.breaks(pci, code)
    life.gathered = False
    life.run(30)
    life.reboots()
    life.tick()
    while not all(fault.proved for fault in life.verdict.fatal):
        life.tick()
    assert life.tainted()
    life.breaks(OTHER, CONTACT_SUPPORT)
    life.run(30)
    writes = life.writes
    life.run(100)
    (entry,) = ledger(life).entries
    assert (len(entry.faults), entry.again <= 1, life.writes - writes <= 2) == (4, True, True)


def test_a_drill_is_counted_as_one() -> None:
    assert Entry({Moment.ONSET: 1}, (f"xid-79@{GPU}/drill",)).rule == DRILL


def entries() -> st.SearchStrategy[Entry]:
    def one(onset: int, spans: list[int], rule: int, card: int, by: End) -> Entry:
        times, at = {Moment.ONSET: onset}, onset
        for moment, span in zip(tuple(Moment)[1:], spans, strict=True):
            times[moment] = at = at + span
        suspect = Suspect(GPU, f"GPU-{card:08}-0000-0000-0000-000000000000", f"{card:013}", "7")
        repairs = (Repair(Remedy.RESET_GPU, 1, Stage.DONE, at),)
        return Entry(times, (f"xid-{rule}@{GPU}",), (suspect,), 8, repairs, by)

    spans = st.lists(st.integers(0, 10**6), min_size=6, max_size=6)
    return st.builds(
        one, st.integers(10**9, 2 * 10**9), spans, st.integers(1, 200), st.integers(0, 99), st.sampled_from(End)
    )


@settings(max_examples=8, deadline=None)
@given(st.lists(entries(), min_size=1, max_size=80))
def test_whatever_befalls_the_node_it_stays_small_and_its_sums_lose_nothing(befell: list[Entry]) -> None:
    book = Ledger()
    for entry in befell:
        book = load(dump(Ledger((*book.entries, entry), book.older)))
    assert len(dump(book)) <= MOST_BYTES
    assert book.entries[-1] == befell[-1]
    sums = book.sums(0.0)
    assert sum(sums.ends.values()) == sum(sums.cards.values()) == len(befell)
    assert sum(sums.lost_gpu_s.values()) == sum(entry.lost_gpu_s(0.0) for entry in befell)
    for phase in ("detect", "out"):
        took = [entry.phases[phase] for entry in befell]
        one = sums.lasted[phase]
        assert (one.count, one.seconds) == (len(took), sum(took))
        assert one.within == tuple(sum(seconds <= most for seconds in took) for most in BUCKETS_S)
    assert len({rule for rule, _ in sums.ends} - {OTHERS}) <= len({entry.rule for entry in befell})


def test_the_largest_incident_after_the_largest_sums_fits_and_is_written_once() -> None:
    book, times = Ledger(), {moment: 1_760_000_000 + 10**5 * number for number, moment in enumerate(Moment)}
    for number in range(60):
        faults = tuple(f"recovery-action-unknown-{number}-{gpu}@0000:{gpu:02x}:00.0" for gpu in range(4))
        cards = tuple(
            Suspect(f"0000:{gpu:02x}:00.0", f"GPU-{number:08}-0000-0000-0000-{gpu:012}", "1" * 64, "7" * 64)
            for gpu in range(8)
        )
        repairs = tuple(Repair(Remedy.RESET_GPU, attempt, Stage.FAILED, times[Moment.ENDED]) for attempt in range(1, 7))
        by, job = (*End,)[number % 3], "gpu-health-collect-0123456789"
        text = dump(Ledger((*book.entries, Entry(times, faults, cards, 16, repairs, by, job, 3)), book.older))
        assert len(text) <= MOST_BYTES
        book = load(text)
        assert dump(book) == text
        assert len(book.entries[-1].suspects) == 8


def test_all_that_the_agent_writes_into_annotations_stays_within_32_kib() -> None:
    assert MOST_FAULT_BYTES + MOST_BYTES + len(FAULTS_ANNOTATION + HISTORY_ANNOTATION) <= 32 * 1024
    assert MOST_ENTRIES >= 4
