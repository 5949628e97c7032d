"""The page ``/``: what /state says as one HTML page that a tired person can't misread. No script, nothing from outside.

Every text passes through ``_text``: kernel lines, process names and annotations are hostile input.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from agent.model.fault import Identity
from agent.model.text import printable, unix_s

_REFRESH_S = 5
_STALE_S = 30.0  # the judge loop turns every second
_RANK = {"healthy": 0, "notice": 0, "unknown": 1, "degraded": 2, "fatal": 3}
_SIGNS = {"healthy": "✓", "unknown": "?", "degraded": "▲", "unhealthy": "✖", "notice": "•"}
_STATE_OF = {"fatal": "unhealthy", "degraded": "degraded", "notice": "notice"}
_STAGES = {
    "draining": "The node is withdrawn: {new}, and the pods that must leave are being moved.",
    "drained": "The node is withdrawn, and the pods that had to leave have left.",
    "repairing": "The node is withdrawn and drained, and a repair is under way.",
    "validating": "The GPUs are checked, or must stay well for a while, before the node takes pods.",
}
_STATUS = {"healthy": "Every GPU is well.", "unknown": "The agent can't see everything. This does not mean healthy."}

_CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
_HASH = base64.b64encode(hashlib.sha256(_CSS.encode()).digest()).decode()
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page(state: Mapping[str, Any], now: float, refreshing: bool = True) -> str:
    """The whole page; ``now`` is Unix seconds, by which an old verdict is told as old."""
    faults, status = state["faults"], str(state["status"])
    node = _text(state.get("node") or "this node")
    title = f"{_SIGNS.get(status, '?')} {_text(status)}: {node}"
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH_S}">' if refreshing else ""
    hold = (
        f'It refreshes itself every {_REFRESH_S} s (<a href="/?hold">hold it</a>).'
        if refreshing
        else 'It is held: it does not refresh itself (<a href="/">refresh it</a>).'
    )
    body = "".join(
        (
            f'<a class="skip" href="#faults">Skip to the faults</a><header><h1>GPUs of node {node}</h1>',
            _banner(state, now),
            f'<p class="soft">As of <time>{_time(state.get("at"))}</time>. {hold}{_who(state)}</p></header><main>',
            _waits(state.get("waits", ())),
            f'<section id="faults"><h2>Faults ({len(faults)})</h2>',
            "".join(_fault(fault, state.get("gpus", {})) for fault in faults) or "<p>No fault stands.</p>",
            "</section>",
            _gpus(state),
            _sources(state),
            _list("Done last", state.get("steps", ())),
            '</main><footer><p class="soft">The same as text: <code>gpu-health-agent explain</code>; as data: '
            '<a href="/state">/state</a>, <a href="/metrics">/metrics</a>.</p></footer>',
        )
    )
    return document(title, body, refresh)


def document(title: str, body: str, head: str = "") -> str:
    """A whole HTML document; what is given is HTML already."""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{head}'
        f'<meta name="viewport" content="width=device-width"><style>{_CSS}</style></head><body>{body}</body></html>\n'
    )


def _who(state: Mapping[str, Any]) -> str:
    version, mode = state.get("version"), state.get("mode")
    return f" gpu-health-agent {_text(version)}, mode {_text(mode)}." if version and mode else ""


def _banner(state: Mapping[str, Any], now: float) -> str:
    status = str(state["status"])
    lines = [_sentence(state)]
    if since := state.get("withdrawn_since"):
        lines.append(f"Withdrawn since {_time(since)}.")
    lines += [f"Blind: {_text(why)}." for why in state.get("blind", ())]
    if keep_off := state.get("aside"):
        lines.append(f"The agent keeps off the GPUs: {_text(keep_off)}.")
    shown = status
    if (old_s := _age_s(state.get("at"), now)) > _STALE_S:
        shown = "unknown"
        lines.insert(0, f"This is {old_s:.0f} s old: the agent no longer judges. What it says may be wrong by now.")
    paragraphs = "".join(f"<p>{line}</p>" for line in lines)
    word = _text(status) if shown == status else f"{_text(status)}, but old"
    return (
        f'<div class="banner {_class(shown)}" role="status"><p class="word">{_sign(shown)} {word}</p>{paragraphs}</div>'
    )


_NEW_PODS = {"PreferNoSchedule": "; new ones prefer other nodes", "NoSchedule": "; no new ones come"}


def _sentence(state: Mapping[str, Any]) -> str:
    status = str(state["status"])
    if status == "healthy" and not state["faults"]:
        return f"{_STATUS[status]} There is nothing to do."
    if status not in ("degraded", "unhealthy"):
        return _STATUS.get(status, _STATUS["unknown"])
    severity, word = ("fatal", "broken") if status == "unhealthy" else ("degraded", "degraded")
    worst = _worst(state)
    bad = sum(one == severity for one in worst.values())
    known = len(state.get("gpus", {}).keys() | worst.keys() | _unread(state))
    broken = f"{bad} of {known} GPUs {'is' if bad == 1 else 'are'} {word}." if bad else f"The node itself is {word}."
    if status == "degraded":
        return f"{broken} Running pods stay{_NEW_PODS.get(str(state.get('degraded_effect')), '')}."
    if state.get("mode") == "observe" and not state.get("withdrawn"):
        return f"{broken} The agent only observes (mode observe): nothing keeps pods away."
    if not state.get("withdrawn_since") and state.get("stage") not in _STAGES:
        return f"{broken} The node is not withdrawn yet: see what is waited for."
    new = "new pods come to its other GPUs only" if state.get("fences") else "new pods stay away"
    return f"{broken} {_STAGES.get(str(state.get('stage')), 'The node is withdrawn: {new}.').format(new=new)}"


def _waits(waits: Iterable[str]) -> str:
    return _list("Waiting for", waits, "Nothing is waited for.")


def _fault(fault: Mapping[str, Any], gpus: Mapping[str, Any]) -> str:
    state = _STATE_OF.get(str(fault["severity"]), "unknown")
    card = Identity(**fault.get("card", {}))
    where = _gpu_name(str(fault["pci"]), gpus, card) if fault["pci"] else "the node itself"
    times = "once" if fault["count"] == 1 else f"{int(fault['count'])} times"
    evidence = "".join(
        f"<li>{_time(one['at'])} {_text(one['source'])}: <code>{_text(one['raw'])}</code></li>"
        for one in fault["evidence"]
    )
    rows = [
        *((("Card", _text(card.words)),) if card else ()),
        ("Happens next", _text(fault["next"])),
        ("Ends by", _text(fault["clears"])),
        *(("To paste", f"<code>{_text(command)}</code>") for command in fault.get("commands", ())),
        ("Seen", f"{times}, first {_time(fault['since'])}, last {_time(fault['last'])}"),
        ("Evidence", f"<ul>{evidence}</ul>"),
        *(("But", _text(doubt)) for doubt in fault["doubts"]),
        *(("Reset together with", f"<code>{_text(other)}</code>") for other in fault.get("reset_together_with", ())),
        *(("Explains", f"<code>{_text(other)}</code>") for other in fault["explains"]),
        ("Fault id", f"<code>{_text(fault['id'])}</code>, remedy {_text(fault['remedy'])}"),
    ]
    entries = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in rows)
    heading = f"{_badge(state, str(fault['severity']))} {_text(where)}: {_text(fault['message'])}"
    return f'<article class="{state}"><h3>{heading}</h3><dl>{entries}</dl></article>'


def _gpus(state: Mapping[str, Any]) -> str:
    gpus, worst = state.get("gpus", {}), _worst(state)
    uuids = {fault["pci"]: fault["uuid"] for fault in state["faults"]}
    rows, unread = [], _unread(state)
    sourceless = len(state.get("unseen", ())) > len(unread)  # what is said of one GPU says nothing of another
    for pci in sorted(gpus.keys() | worst.keys() | unread):
        values = gpus.get(pci, {})
        severity = worst.get(pci, "unknown" if sourceless or pci not in gpus else "healthy")
        shown = _STATE_OF.get(severity, severity)
        said = "" if pci in gpus else " does not answer"
        cells = "".join(
            f'<td class="number">{_number(values.get(name))}</td>'
            for name in ("temperature_c", "margin_c", "power_w", "ecc_uncorrected_volatile")
        )
        badge = _badge(shown, "healthy, with a notice" if shown == "notice" else shown)
        uuid = _text(values.get("uuid") or uuids.get(pci, ""))
        rows.append(
            f'<tr><th scope="row">{_number(values.get("index"))}</th><td><code>{_text(pci)}</code></td>'
            f"<td>{badge}{said}</td>{cells}<td><code>{uuid}</code></td></tr>"
        )
    if not rows:
        return "<section><h2>GPUs</h2><p>No GPU was read lately: the agent can't see them.</p></section>"
    heads = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            ("GPU", ""),
            ("PCI address", ""),
            ("State", ""),
            ("°C", ' class="number"'),
            ("°C to limit", ' class="number"'),
            ("W", ' class="number"'),
            ("ECC uncorrectable", ' class="number"'),
            ("UUID", ""),
        )
    )
    return (
        f'<section><h2>GPUs ({len(rows)})</h2><div class="table" tabindex="0" role="region" aria-label="GPUs"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _sources(state: Mapping[str, Any]) -> str:
    items, unseen = [], state.get("unseen", ())
    for one in state.get("sources", ()):
        # A second witness that isn't there makes nobody blind.
        down = ("unknown", "blind") if one["name"] in unseen else ("notice", "absent")
        badge = ("healthy", "sees") if one["up"] else down
        items.append(f"{_badge(*badge)} <code>{_text(one['name'])}</code> {_text(one['trouble'] or '')}")
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f"<section><h2>Sources</h2><ul>{listed}</ul></section>" if items else ""


def _list(title: str, texts: Iterable[str], otherwise: str = "") -> str:
    items = "".join(f"<li>{_text(text)}</li>" for text in texts)
    body = f"<ul>{items}</ul>" if items else f"<p>{otherwise}</p>"
    return f"<section><h2>{title}</h2>{body}</section>" if items or otherwise else ""


def _worst(state: Mapping[str, Any]) -> dict[str, str]:
    """The worst severity that stands on each GPU."""
    worst: dict[str, str] = {}
    for fault in state["faults"]:
        if fault["pci"] and _RANK[fault["severity"]] >= _RANK[worst.get(fault["pci"], "healthy")]:
            worst[fault["pci"]] = fault["severity"]
    return worst


def _unread(state: Mapping[str, Any]) -> set[str]:
    """The GPUs that are blind spots of their own, as the verdict names them."""
    return {reason["pci"] for reason in state.get("unseen", {}).values() if reason["pci"]}


def _gpu_name(pci: str, gpus: Mapping[str, Any], card: Identity) -> str:
    index = gpus.get(pci, {}).get("index", card.index)
    return f"GPU {pci}" if index == "" else f"GPU {index} ({pci})"


def _badge(state: str, word: str) -> str:
    return f'<span class="state {_class(state)}">{_sign(state)} {_text(word)}</span>'


def _sign(state: str) -> str:
    return f'<span aria-hidden="true">{_SIGNS.get(state, "?")}</span>'


def _class(state: str) -> str:
    return state if state in _SIGNS else "unknown"


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else "n/a"


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _time(at: object) -> str:
    """To the second: more only hides what matters."""
    return _text(at or "never").partition(".")[0].replace("T", " ") + (" UTC" if at else "")


def _age_s(at: object, now: float) -> float:
    then = unix_s(at)
    return 0.0 if then is None else now - then
