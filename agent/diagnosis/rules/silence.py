"""Sources and GPUs that can't be seen or don't speak. Blindness is reported; it alone never withdraws a node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from agent.config.limits import Limits
from agent.config.source_index import GPUS, SECOND_WITNESS, SOURCES, SourceRow
from agent.diagnosis.cards import silent
from agent.diagnosis.history import History
from agent.diagnosis.row import AT_ONCE, TABLE, Row
from agent.diagnosis.seen import heard_until, hung, unread
from agent.model.fault import Evidence, Finding, Reason, Unseen
from agent.model.observation import Failure, Observation
from agent.model.remedy import Remedy


def _silent(source: SourceRow) -> Row:
    meaning = f"the source {source.name} has finished no poll"
    return Row(
        source.silent,
        source.silence,
        Remedy.CONTACT_SUPPORT,
        meaning,
        clear=AT_ONCE,
        limits=("silent_s",),
        witnesses=(source.name,),
        scope=("node",),
    )


UNREAD = TABLE["gpu-silent"]
HUNG = TABLE["driver-hung"]
# What the driver says to the witness that reads it.
_FAILED: dict[str, Row] = {
    Failure.DRIVER_NOT_LOADED: TABLE["driver-not-loaded"],
    Failure.LIBRARY_MISMATCH: TABLE["driver-mismatch"],
    Failure.HUNG: HUNG,
}
ROWS = tuple(map(_silent, SOURCES.values()))
# A library that was never injected is this pod's configuration, not the node's health; nor is keeping off the GPUs.
_CONFIGURATION = (Failure.NO_LIBRARY, Failure.NO_PERMISSION, Failure.KEEP_OFF)
_NO_PERMISSION = "(NVML error 4)"  # the same, of one GPU
_REPEATED_S = 180.0  # a source says at least so often that it can't see: between two tries it waits two minutes at most


def find(history: History, limits: Limits) -> Iterator[Finding]:
    for source in {**dict.fromkeys(history.expected), **history.heard, **history.failed}:
        if source not in SOURCES:  # another version's, in a recording
            continue
        failed = _failure(history, source)
        if failed and failed.value in _CONFIGURATION:
            continue
        if failed and failed.value == Failure.ABSENT and source not in history.heard:
            continue  # it never was there
        silent_s = history.now - heard_until(history, source, limits.silent_s)
        hangs = failed is not None and failed.value == Failure.HUNG
        quiet = hangs or failed is None or failed.value == Failure.UNREACHED
        quiet = quiet or source == SECOND_WITNESS  # whose words change as its library gives up, and no driver is meant
        limit_s = 3 * limits.silent_s if quiet else limits.driver_confirm_s
        if silent_s > limit_s:
            row = _FAILED.get(str(failed.value)) if failed and source == GPUS else None
            row = row or _silent(SOURCES[source])
            message = failed.raw if failed and not hangs else f"{row.meaning} for over {limit_s:.0f} s"
            evidence = Evidence(failed.at if failed else 0.0, source, failed.raw if failed else message)
            yield Finding(row.rule, "", row.severity, row.remedy, message, evidence, history.now, "", clear_s=0.0)
    words = silent(history.alive.get(GPUS))
    for pci, word in hung(history):
        if history.now - word.arrived > 3 * limits.silent_s:
            message = _with(word.raw, f"{HUNG.meaning} for over {3 * limits.silent_s:.0f} s")
            evidence = Evidence(word.at, GPUS, word.raw)
            found = Finding(HUNG.rule, pci, HUNG.severity, HUNG.remedy, message, evidence, history.now, GPUS)
            yield replace(found, clear_s=limits.silent_s)
    for pci in unread(history, limits.silent_s):
        if pci in history.hung or _NO_PERMISSION in words.get(pci, ""):
            continue  # this container's configuration: the agent is blind there, and the GPU may be well
        message = _with(words.get(pci), f"{UNREAD.meaning} for over {3 * limits.silent_s:.0f} s")
        found = UNREAD.found(history.alive[GPUS], limits, message, pci=pci)
        yield replace(found, confirm_s=2 * limits.silent_s)  # which are three since its last word


def blind(history: History, expected: Iterable[str], silent_s: float) -> Iterator[tuple[str, Reason]]:
    """Every source that should speak and doesn't, and every GPU that isn't read, as ``Verdict.blind`` names them."""
    for source in expected:
        failed = _failure(history, source)
        if failed:
            what = next((one for one in Failure if one == failed.value), Failure.UNREADABLE)
            yield source, Reason(Unseen.FAILED, failed.raw or str(failed.value), what)
        elif source not in history.alive:  # which ends a poll: by then each GPU was read
            yield source, Reason(Unseen.UNHEARD, "not heard yet")
        elif history.now - heard_until(history, source, silent_s) > silent_s:
            yield source, Reason(Unseen.SILENT, f"no poll finished for over {silent_s:.0f} s")
    for pci, word in hung(history):
        yield f"GPU {pci}", Reason(Unseen.UNREAD, word.raw, Failure.HUNG, pci)
    if history.now - heard_until(history, GPUS, silent_s) <= silent_s:  # else its own words say enough
        words = silent(history.alive.get(GPUS))
        for pci in unread(history, silent_s):
            if pci in history.hung:
                continue
            why = _with(words.get(pci), f"not read for over {silent_s:.0f} s")
            yield f"GPU {pci}", Reason(Unseen.UNREAD, why, pci=pci)


def _with(words: str | None, sentence: str) -> str:
    """NVML's own words, where it said any, behind ours."""
    return f"{sentence}; {words}" if words else sentence


def _failure(history: History, source: str) -> Observation | None:
    """Why the source can't see, by its own word. Who keeps off or has no library says so again while it is true."""
    failed = history.failed.get(source)
    over = failed and failed.value in _CONFIGURATION and history.now - failed.arrived > _REPEATED_S
    return None if over else failed
