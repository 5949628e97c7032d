"""The history after one more round of observations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from agent.config.source_index import GPUS, KERNEL_LOG, SECOND_WITNESS, TRACE
from agent.diagnosis import trace
from agent.diagnosis.cards import card_of, given_away
from agent.diagnosis.epoch import any_fell, began_anew, counters, fell, sober
from agent.diagnosis.history import (
    LOOKED_AGAIN_S,
    NVLINK4_XID,
    NVLINK5_XIDS,
    SAME_EVENT_S,
    SECOND_LATE_S,
    SECOND_WORD_S,
    TREND,
    UNCORRECTABLE_XID,
    Blame,
    Epoch,
    History,
    Sample,
    Tally,
    elsewhere,
    number,
    settled,
)
from agent.model.observation import DECISIVE, Failure, Observation, Signal, Value, Words

_TREND_EVERY_S, _TREND_SAMPLES = 60.0, 121
_MOST_REPEATS = 10_000_000  # of one error in one second: more is no count
_MOST_BLAMES, _MOST_PIDS = 512, 1024
_WINDOW_EVENTS = 64  # per GPU and code: enough for any count that a rule asks for, bounded in a storm
_MOST_AWAITED = 1024
_DETAILS = ("place", "engine", "registers", "fatal", "recovery_action")  # an Xid's line with one of these says more


def updated(history: History, seen: Iterable[Observation], now: float, workloads: Mapping[str, str]) -> History:
    """The history after one more round. A clock that goes backwards is taken as standing still."""
    draft = _Draft(history)
    for observation in seen:
        draft.add(observation)
    return draft.finish(max(now, history.now), workloads)


class _Draft:
    """The next history while it is made: mutable for one round, so that a storm costs no copies."""

    def __init__(self, old: History) -> None:
        self._old = old
        self._boots, self._seq = dict(old.boots), old.kernel_seq
        self._fresh: list[Observation] = []
        self._past, self._readings, self._first = dict(old.past), dict(old.readings), dict(old.first)
        self._before, self._cards = dict(old.before), dict(old.cards)
        self._resets, self._uncorrectable = dict(old.resets), dict(old.uncorrectable)
        self._lost, self._alive, self._failed = dict(old.lost), dict(old.alive), dict(old.failed)
        self._hung, self._slow = dict(old.hung), dict(old.slow)
        self._heard, self._epochs, self._tallies = dict(old.heard), dict(old.epochs), dict(old.tallies)
        self._trends, self._blames, self._pods = dict(old.trends), list(old.blames), dict(old.pods)
        self._detailed, self._awaiting = dict(old.detailed), dict(old.awaiting)
        self._witnessed, self._incidents = dict(old.witnessed), dict(old.incidents)
        self._fallen: dict[str, set[str]] = {}
        self._replaced: dict[str, str] = {}
        self._loaded = old.loaded
        self._heard_of, self._trusted, self._trace_gap = dict(old.heard_of), old.trusted, old.trace_gap
        self._waiting = list(old.waiting)

    def add(self, o: Observation) -> None:
        if o.boot_id and o.boot_id != self._boots.get(o.source):
            self._boots[o.source] = o.boot_id
            if o.source == KERNEL_LOG:
                self._seq = None  # each boot counts its records anew
        if o.signal is Signal.FAILED:
            if o.pci and o.value == Failure.HUNG:
                self._hung.setdefault(o.pci, o)  # the first word names the call
            else:
                self._failed[o.source] = o
            return
        self._heard.setdefault(o.source, o.arrived)
        second, event = o.source == SECOND_WITNESS, o.signal in (Signal.XID, Signal.SXID)
        if second and event and elsewhere(self._readings, self._witnessed):
            return  # of another node
        if o.past:
            said = o.signal, o.pci, o.value
            if o.signal is Signal.XID or said not in self._past:  # of the driver's words the first say the most
                self._past[said] = o
            return
        if o.seq is not None and o.signal is not Signal.ALIVE and o.source == KERNEL_LOG:
            self._seq = o.seq if self._seq is None else max(self._seq, o.seq)
        if trace.told(o):
            if trace.confirms(o, self._heard_of):
                self._trusted = self._boots.get(KERNEL_LOG, "")
            self._heard_of[o.source, trace.said(o)] = o.arrived
            if o.source == KERNEL_LOG and self._trusted:  # judged by what this whole round tells
                self._waiting.append(o)
                return
        self._take(o)

    def _take(self, o: Observation) -> None:
        second = o.source == SECOND_WITNESS
        match o.signal:
            case Signal.ALIVE:  # only a whole poll is one: a library that crashes at GPU 4 has read those before it
                self._alive[o.source] = o
                self._heard[o.source] = o.arrived
                self._failed.pop(o.source, None)
                self._slow.pop(o.source, None)
                for pci in given_away(o):
                    self._cards.pop(pci, None)
                    self._hung.pop(pci, None)
                if self._seq is None and o.source == KERNEL_LOG:
                    self._seq = o.seq  # what was there when the log was opened is taken in
                if "check" in o.values:  # a health check that counts is over: what it did not name has ended
                    same = o.values["check"]
                    self._incidents = {k: i for k, i in self._incidents.items() if i.values.get("check") == same}
            case Signal.SLOW:
                self._slow[o.source] = o
            case Signal.READING if second:
                self._witnessed[o.pci] = o
            case Signal.READING if o.source == GPUS:
                self._read(o)
            case Signal.HEALTH:
                self._incidents[o.pci, o.value, o.values.get("gpu_instance")] = o
            case Signal.XID if isinstance(o.value, int):
                self._xid(o, o.value)
            case Signal.LOST | Signal.RESET_REQUIRED | Signal.SXID | Signal.DRIVER:
                if o.signal is Signal.LOST and o.source == GPUS:
                    self._lost[o.pci] = o
                if o.source == GPUS:
                    self._hung.pop(o.pci, None)  # it answered
                if o.signal is Signal.RESET_REQUIRED:
                    self._resets[o.pci] = o
                self._fresh.append(o)
                if o.value == Words.LOADED and o.source == KERNEL_LOG:
                    self._loaded = o
            case Signal.GAP if o.source == TRACE:
                self._trace_gap = o.arrived

    def _waited(self, now: float) -> dict[trace.Word, list[Observation]]:
        """The kernel log's errors that waited for the trace, by what became of them; what is believed is taken in."""
        became: dict[trace.Word, list[Observation]] = {word: [] for word in trace.Word}
        seen = replace(
            self._old,
            now=now,
            boots=self._boots,
            alive=self._alive,
            failed=self._failed,
            lost=self._lost,
            resets=self._resets,
            heard_of=self._heard_of,
            trusted=self._trusted,
            trace_gap=self._trace_gap,
        )
        for o in self._waiting:
            became[trace.word(o, seen)].append(o)
        for o in became[trace.Word.BELIEVED]:
            self._take(o)
        return became

    def _read(self, o: Observation) -> None:
        before = self._readings.get(o.pci)
        silent = (self._lost.pop(o.pci, None), self._resets.pop(o.pci, None))
        self._hung.pop(o.pci, None)
        for pid, pod in _pods(o):
            self._pods.pop(pid, None)  # the youngest last
            self._pods[pid] = pod
        known = self._cards.get(o.pci)
        if card := card_of(o, known, self._boots.get(GPUS, ""), self._alive.get(GPUS)):
            if known and known.uuid != card.uuid:
                self._replaced[o.pci] = known.uuid
            self._cards[o.pci] = card
        earlier = self._before.get(o.pci)
        self._before[o.pci] = before or o
        if before is None:
            self._first[o.pci] = o
        elif any_fell(before, o):
            had, now = counters(before), counters(o)
            if began_anew(sober(had, counters(earlier)), now, o.arrived - before.arrived):
                self._epochs[o.pci] = Epoch(max(old.arrived for old in (before, *silent) if old), before, o.arrived)
                # The second witness keeps its word past a reset, and for ever once its engine was stopped for one.
                self._incidents = {key: one for key, one in self._incidents.items() if one.pci != o.pci}
            self._fallen.setdefault(o.pci, set()).update(fell(had, now))
            self._first[o.pci] = o
            self._before[o.pci] = o
            self._trends[o.pci] = ()  # what fell can't be subtracted from
        self._readings[o.pci] = o
        trend = self._trends.get(o.pci, ())
        if not trend or o.arrived - trend[-1].arrived >= _TREND_EVERY_S:
            sample = Sample(o.arrived, tuple(number(o, name) for name in TREND))
            self._trends[o.pci] = (*trend[-_TREND_SAMPLES + 1 :], sample)

    def _xid(self, o: Observation, code: int) -> None:
        if o.drill:  # counts nowhere
            self._fresh.append(o)
            return
        if (pid := number(o, "pid")) is not None:
            place = str(o.values.get("place") or "")
            blame = Blame(o.arrived, o.pci, code, int(pid), self._pods.get(int(pid), ""), place)
            self._blames = [*self._blames[-_MOST_BLAMES + 1 :], blame]
        old = self._tallies.get((o.pci, code)) or Tally(0, o.at, (), {})
        repeats = min(max(int(number(o, "repeats") or 1), 1), _MOST_REPEATS)
        by = {**old.by, o.source: old.by.get(o.source, 0) + repeats}
        within_s = SECOND_LATE_S if o.source == SECOND_WITNESS else SAME_EVENT_S
        counted = bool(old.times) and by[o.source] <= old.count and o.arrived - old.times[-1] <= within_s
        fresh = replace(o, arrived=old.times[-1]) if counted else o  # who tells it later saw it no later
        self._fresh.append(fresh)
        self._words(fresh, code)
        if code == UNCORRECTABLE_XID and not (counted and o.source == SECOND_WITNESS):
            self._uncorrectable[o.pci] = o
        if counted:  # the other witness of an error that is counted already
            self._tallies[o.pci, code] = replace(old, by=by)
        else:
            count = max(by[o.source], old.count + 1)
            by[o.source] = count
            times = (*old.times, *(o.arrived for _ in range(min(count - old.count, _WINDOW_EVENTS))))[-_WINDOW_EVENTS:]
            self._tallies[o.pci, code] = Tally(count, o.at, times, by)

    def _words(self, o: Observation, code: int) -> None:
        """What the line says beyond its code, and whether a second word is due: the kernel's line, or a 154."""
        if o.source == KERNEL_LOG and any(name in o.values for name in _DETAILS):
            self._detailed[o.pci, code] = (*self._detailed.get((o.pci, code), ())[-_WINDOW_EVENTS + 1 :], o)
        due = ("fatal" in o.values) is (o.source == KERNEL_LOG)
        if due and (code == NVLINK4_XID or code in NVLINK5_XIDS) and len(self._awaiting) < _MOST_AWAITED:
            key = (o.pci, code, o.source, *(o.values.get(name) for name in DECISIVE))
            first = self._awaiting.get(key)
            # A storm of repeats must not put the end of the wait off.
            if first is None or o.arrived - first.arrived > SECOND_WORD_S + LOOKED_AGAIN_S / 2:
                self._awaiting[key] = o

    def _awaited(self, now: float) -> dict[tuple[Value, ...], Observation]:
        lately = SECOND_WORD_S + LOOKED_AGAIN_S
        return {key: o for key, o in self._awaiting.items() if now - o.arrived <= lately} if self._awaiting else {}

    def _named(self, blame: Blame, now: float) -> Blame:
        """A process younger than the last poll is told by the next, if it still runs."""
        recent = not blame.pod and now - blame.arrived <= SAME_EVENT_S
        return replace(blame, pod=self._pods.get(blame.pid, "")) if recent else blame

    def finish(self, now: float, workloads: Mapping[str, str]) -> History:
        became = self._waited(now) if self._waiting else {}
        return History(
            now,
            self._boots,
            self._seq,
            tuple(self._fresh),
            self._past,
            self._readings,
            self._before,
            self._first,
            self._old.well,
            {pci: o for pci, o in self._readings.items() if self._old.well.get(pci) != settled(o)},
            self._cards,
            self._lost,
            self._resets,
            self._witnessed,
            self._incidents,
            self._alive,
            self._failed,
            self._slow,
            self._hung,
            self._heard,
            self._epochs,
            self._fallen,
            self._replaced,
            self._heard_of,
            self._trusted,
            self._trace_gap,
            tuple(became.get(trace.Word.WAITS, ())),
            tuple(became.get(trace.Word.VETOED, ())),
            self._loaded,
            self._tallies,
            self._trends,
            self._uncorrectable,
            self._detailed,
            self._awaited(now),
            tuple(self._named(blame, now) for blame in self._blames),
            dict(list(self._pods.items())[-_MOST_PIDS:]) if len(self._pods) > _MOST_PIDS else self._pods,
            workloads,
            self._old.began or now,
        )


def _pods(reading: Observation) -> Iterator[tuple[int, str]]:
    for entry in str(reading.values.get("pods") or "").split(","):
        pid, _, pod = entry.partition("=")
        if pid.isdecimal() and pod:
            yield int(pid), pod
