"""What breaks again: held for longer, checked harder, watched, and replaced rather than reset a third time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.actions.fleet import read_fleet
from agent.config.settings import Budget, Config, Mode, Recurrence
from agent.model.names import HISTORY_ANNOTATION, OUT_LABEL, SOFT_TAINT
from agent.remediation.ledger import DRILL, End, Entry, Moment, Suspect
from agent.remediation.ledger_json import load
from agent.remediation.recurrence import Care, care, coming
from agent.status.fleet_view import fleet_state
from tests.life import CONFIG, POLL_S, TEMPLATES, Life
from tests.observe import GPU, OTHER, START
from tests.remediation.test_idle_reset import IDLE, idle
from tests.remediation.test_repair import RESET
from tests.remediation.test_validation import Diagnosed, demanding, dismiss

DAY = 86_400
LEASES = "/apis/coordination.k8s.io/v1/namespaces/gpu-health-agent/leases"
SETTINGS = Recurrence()
OWN = Suspect(GPU, "GPU-a", "165")
HOLD_S, WATCH_S = 400, 600
RECURRING = {
    "recurrence": Recurrence(first_hold_s=0, hold_s=HOLD_S, most_hold_s=2 * HOLD_S, watch_s=WATCH_S),
    "budget": Budget(max_withdrawn=2, max_draining=2),
}


def incident(day: float, *suspects: Suspect, by: End | None = End.PROOF, rule: str = "xid-95@x") -> Entry:
    onset = int(START + day * DAY)
    ended = {Moment.PROVED: onset + 60, Moment.ENDED: onset + 60} if by else {}
    return Entry({Moment.ONSET: onset, Moment.TAINT: onset, **ended}, (rule,), suspects, 8, (), by)


def after(*earlier: Entry, last: Entry | None = None, settings: Recurrence = SETTINGS) -> Care:
    return care((*earlier, last or incident(10, OWN, by=None)), settings)


def first(what: str, settings: Recurrence = SETTINGS) -> Care:
    days = settings.window_s / DAY
    return Care(why=f"{what} broke for the first time in {days:g} days", hold_s=settings.first_hold_s)


OWN_FIRST = first(f"GPU {GPU} (GPU-a, serial 165)")


def test_after_the_first_of_a_kind_a_node_is_held_and_nothing_else() -> None:
    others = incident(1, Suspect(OTHER, "GPU-b", "166")), incident(2)
    assert after() == after(*others) == OWN_FIRST
    assert OWN_FIRST.hold_s == 28_800, "as shipped"
    at_once = Recurrence(first_hold_s=0)
    assert after(*others, settings=at_once).hold_s == 0
    assert after(last=replace(incident(10, OWN, by=None), idle=True)).hold_s == 0, "nothing broke"


@pytest.mark.parametrize("again", [2000, 10**12, 2**64])
def test_however_often_it_came_back_by_what_is_written_it_is_held_for_the_longest_time(again: int) -> None:
    """Whoever may change a Node may write any number there; a power of two that large ends the agent."""
    last = replace(incident(10, OWN, by=None), again=again)
    assert after(last=last).hold_s == SETTINGS.most_hold_s


def test_a_node_is_never_held_for_less_than_the_first_time() -> None:
    assert after(incident(1, OWN), settings=Recurrence(first_hold_s=100, hold_s=0)).hold_s == 100


@pytest.mark.parametrize(
    ("earlier", "what"),
    [
        (incident(1, Suspect(OTHER, "GPU-a", "165")), "GPU"),  # the card was in another slot then
        (incident(1, Suspect(OTHER, "GPU-of-before", "165")), "GPU"),  # its UUID is another one now
        (incident(1, Suspect(OTHER, "GPU-b"), OWN), "GPU"),
        (incident(1, Suspect(GPU, "GPU-b", "166"), by=End.CARD), "2 cards broke in the slot"),
        (incident(1, Suspect(GPU, "GPU-b", "166")), "2 cards broke in the slot"),
    ],
)
def test_a_card_takes_its_history_along_and_a_slot_that_breaks_each_card_is_the_slot(earlier: Entry, what: str) -> None:
    told = after(earlier)
    assert (told.times, told.hold_s, told.watch_s, told.replaces) == (1, 28_800, DAY, False)
    assert told.why.startswith(what)
    assert told.why.endswith(" in 60 days")


def test_a_new_card_does_not_inherit_how_often_the_last_one_broke_in_its_slot() -> None:
    last = [incident(day, Suspect(GPU, "GPU-b", "166")) for day in range(5)]
    assert after(*last).times == 1
    assert after(*last, incident(6, Suspect(GPU, "GPU-c", "167"))).replaces


def test_the_node_itself_recurs_by_faults_that_are_no_cards() -> None:
    assert after(incident(1), last=incident(10, by=None)).times == 1
    assert after(incident(1, OWN), last=incident(10, by=None)) == first("the node itself")


@pytest.mark.parametrize(
    "earlier",
    [
        incident(1, OWN, by=End.PERSON),  # it was none
        incident(1, OWN, rule=f"{DRILL}@x/drill"),
        incident(-51, OWN),  # two months ago
        Entry(incident(1, OWN).times, (), (OWN,)),  # it has no end
    ],
)
def test_what_was_dismissed_or_a_drill_or_is_long_ago_does_not_count(earlier: Entry) -> None:
    assert after(earlier) == OWN_FIRST


def test_the_hold_doubles_up_to_its_bound_and_the_third_time_is_for_a_replacement() -> None:
    earlier = [incident(day, OWN) for day in range(6)]
    told = [after(*earlier[:times]) for times in range(1, 6)]
    assert [one.hold_s / 3600 for one in told] == [8, 16, 24, 24, 24]
    assert [one.replaces for one in told] == [False, True, True, True, True]
    assert [one.level(1) for one in told] == [2, 3, 3, 3, 3]
    assert told[0].level(4) == 4
    assert not after(*earlier, settings=Recurrence(replace_after=0)).replaces
    assert after(*earlier, settings=Recurrence(enabled=False)) == Care()


def soft(life: Life) -> bool:
    return any(taint["key"] == SOFT_TAINT for taint in life.node()["spec"].get("taints") or ())


def until(life: Life, tainted: bool, most_s: float = 600) -> float:
    """How long it took."""
    began = life.now
    while life.tainted() is not tainted:
        life.tick()
        assert life.now - began <= most_s, life.waits
    return life.now - began


def twice(config: Config = CONFIG, life: Life | None = None) -> Life:
    """A node whose GPU breaks again, and is cured again."""
    life = life or Life(RESET, config=config.model_copy(update=RECURRING))
    until(life, True)
    until(life, False)
    life.run(100)
    life.breaks()
    until(life, True)
    while not held(life):
        life.tick()
    return life


def asked(life: Life) -> list[str]:
    """What ``nodes`` says of it."""
    told = fleet_state(read_fleet(life.cluster, life.config.budget), life.config, life._wall())
    return [why for one in told["nodes"] if one["node"] == "n1" for why in one["waits"] if "broke 2 times" in why]


def held(life: Life) -> list[str]:
    return [why for why in life.waits if "it stays out of service, with its permit, until " in why]


def test_a_node_whose_gpu_broke_again_is_held_with_its_permit_and_watched_after_its_return() -> None:
    life = twice()
    (why,) = held(life)
    assert why.startswith(f"GPU {GPU} (GPU-{GPU}) broke 2 times in 60 days: cured")
    assert (life.node()["metadata"]["labels"]["gpu-health-agent/state"], any(life.holders())) == ("validating", True)
    writes = life.writes
    life.run(HOLD_S - 60)
    assert life.tainted()
    assert life.writes - writes <= 4  # its permit alone is confirmed
    until(life, False, 120)
    life.run(100)
    assert (soft(life), any(life.holders()), life.repairs) == (True, False, ["reset_gpu", "reset_gpu"])
    assert any("it is only second choice for new pods until " in why for why in life.waits)
    life.run(WATCH_S)
    assert (soft(life), life.waits) == (False, ())
    assert len(load(life.node()["metadata"]["annotations"][HISTORY_ANNOTATION]).entries) == 2


def test_a_node_whose_gpu_broke_for_the_first_time_is_held_while_a_permit_is_free_and_not_watched() -> None:
    settings = Recurrence(first_hold_s=HOLD_S)
    for permits, longest in ((2, HOLD_S + 60), (1, HOLD_S / 2)):
        update = {"recurrence": settings, "budget": Budget(max_withdrawn=permits)}
        life = Life(RESET, config=CONFIG.model_copy(update=update))
        until(life, True)
        took = until(life, False)
        assert (took >= HOLD_S, took <= longest) == (permits == 2, True)
        life.run(30)
        assert not soft(life)


def test_that_a_node_will_be_held_is_told_before_its_cure_where_it_will_be() -> None:
    def told(permits: int, mode: Mode = Mode.EVICT) -> tuple[str, ...]:
        life = Life(
            RESET, config=CONFIG.model_copy(update={"recurrence": Recurrence(), "budget": Budget(max_withdrawn=2)})
        )
        until(life, True)
        found = coming(
            life.world, life.config.model_copy(update={"mode": mode, "budget": Budget(max_withdrawn=permits)})
        )
        while not held(life):
            life.tick()
        assert not coming(life.world, life.config), "now it is waited for"
        return found

    (why,) = told(2)
    assert why.startswith(f"GPU {GPU} (GPU-{GPU}) broke for the first time in 60 days: once it is cured it stays out")
    assert (
        "for 8 h more, while another withdrawn permit of the pool is free; annotation gpu-health-agent/dismiss=" in why
    )
    assert told(1) == told(2, Mode.OBSERVE) == ()


def test_an_idle_gpu_that_was_reset_comes_back_at_once() -> None:
    life = idle(IDLE.model_copy(update={"recurrence": Recurrence(), "budget": Budget(max_withdrawn=3)}))
    until(life, True)
    until(life, False, 200)
    (entry,) = load(life.node()["metadata"]["annotations"][HISTORY_ANNOTATION]).entries
    assert entry.idle


def test_the_third_time_a_replacement_is_asked_for_and_nothing_is_reset() -> None:
    life = twice()
    until(life, False)
    life.breaks()
    life.run(300)
    assert (life.repairs[:3], life.tainted()) == (["reset_gpu", "reset_gpu", "replace_node"], True)
    assert life.repairs.count("reset_gpu") == 2
    assert any("a replacement is asked for instead of another reset or reboot" in why for why in life.waits)


@pytest.mark.parametrize("why", ["no replacement is configured", "a person wants none of it"])
def test_without_a_replacement_it_is_reset_as_ever(why: str) -> None:
    templates = {**TEMPLATES, "replace_node": None} if why.startswith("no") else TEMPLATES
    policy = CONFIG.policy.model_copy(update={"relapses": 9})
    config = CONFIG.model_copy(update={"repair": CONFIG.repair.model_copy(update=templates), "policy": policy})
    life = twice(config)
    if not why.startswith("no"):
        dismiss(life, "recurrence@node")
        assert until(life, False) == POLL_S, "the word ends a hold at once"
    until(life, False)
    life.breaks()
    life.run(300)
    assert life.repairs == ["reset_gpu"] * 3


def test_one_setting_turns_it_off() -> None:
    life = Life(RESET, config=CONFIG.model_copy(update={"recurrence": Recurrence(enabled=False)}))
    for _ in range(2):
        until(life, True)
        until(life, False, 200)
        life.run(100)
        assert not soft(life)
        life.breaks()


def test_a_fault_that_comes_back_while_it_is_held_is_the_same_incident() -> None:
    life = twice(CONFIG.model_copy(update={"policy": CONFIG.policy.model_copy(update={"relapses": 9})}))
    life.breaks()
    life.run(30)
    assert life.repairs == ["reset_gpu", "reset_gpu", "replace_node"], "but another time that it broke"
    assert len(load(life.node()["metadata"]["annotations"][HISTORY_ANNOTATION]).entries) == 2
    assert life.tainted()


def test_a_fault_that_a_person_dismissed_holds_no_node() -> None:
    life = twice()
    dismiss(life, f"xid-{RESET}@{GPU}")
    assert until(life, False) <= 2 * POLL_S


def test_a_node_that_lost_its_permit_is_not_held() -> None:
    life = twice()
    (name,) = (
        lease["metadata"]["name"]
        for lease in life.cluster("GET", LEASES)[1]["items"]
        if lease["spec"]["holderIdentity"]
    )
    life.cluster("DELETE", f"{LEASES}/{name}", None)
    assert until(life, False) <= 2 * POLL_S


def test_a_held_node_gives_way_when_another_would_find_no_permit() -> None:
    life = twice()
    life.run(POLL_S * 3)
    assert life.tainted()
    out = {"metadata": {"labels": {OUT_LABEL: "true"}}}
    life.cluster("PATCH", "/api/v1/nodes/n2", out, "application/merge-patch+json")
    assert until(life, False) < HOLD_S / 2
    assert soft(life), "it is watched all the same"


def test_a_pool_with_a_single_permit_holds_no_node() -> None:
    life = Life(RESET, config=CONFIG.model_copy(update={**RECURRING, "budget": Budget(max_withdrawn=1)}))
    for _ in range(2):
        until(life, True)
        assert until(life, False, 300)
        life.run(100)
        life.breaks()


def test_every_consequence_is_told_on_the_node_and_to_whoever_asks() -> None:
    life = twice()
    assert asked(life)[0] == held(life)[0]
    until(life, False)
    life.tick()
    (why,) = asked(life)
    assert "it is only second choice for new pods until " in why
    life.breaks()
    life.run(300)
    said = {
        event["message"]
        for event in life.cluster("GET", "/api/v1/namespaces/default/events")[1]["items"]
        if event["reason"] in ("OnProbation", "Recurred")
    }
    assert [sum(part in one for one in said) for part in ("with its permit", "second choice", "a replacement")] == [
        1
    ] * 3


@pytest.mark.parametrize("by_s", [-10_800, 10_800])
def test_no_clock_and_no_reboot_holds_a_node_for_longer(by_s: float) -> None:
    life = twice()
    life.stepped_s = by_s
    assert until(life, False) >= HOLD_S - 30  # within a boot by its own clock
    life = twice()
    life.stepped_s = by_s
    life.reboots()
    until(life, False, HOLD_S + 120)


def test_killed_after_any_write_the_node_is_held_all_the_same() -> None:
    whole = twice()
    until(whole, False)
    for write in range(1, whole.writes + 1, 3):
        life = Life(RESET, config=CONFIG.model_copy(update=RECURRING), kills=(write,))
        twice(life=life)
        assert until(life, False) >= HOLD_S - 60, write


def test_the_check_is_a_level_harder_for_what_broke_again() -> None:
    config = demanding(1).model_copy(update=RECURRING)
    life = Diagnosed(RESET, config, clients={f"GPU-{GPU}": {}})
    twice(life=life)
    assert [level for level, *_ in life.diagnoses] == [1, 2]
