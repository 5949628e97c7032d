"""A drill's report as text and as one HTML page that needs nothing else: no script, no colour, no network."""

from __future__ import annotations

import time
from collections import Counter
from html import escape
from importlib.resources import files

from agent.drill.outcome import Moment, Outcome, Part
from agent.model.text import rfc3339

_WIDTH, _HEIGHT, _LEFT, _TOP = 900.0, 150.0, 40.0, 90.0
_LEVELS, _APART = 4, 18.0
_ABOUT_TICKS = 8
_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)
_LEGEND = (
    "The bars are the requests of each second; those that failed are hatched, with a cross above. "
    "The numbers are the moments of the list below the picture."
)


def text(outcome: Outcome) -> str:
    """For a terminal."""
    met, *missed = outcome.verdict
    lines = [f"drill of {outcome.cluster}: {'passed' if outcome.passed else 'FAILED'}, {met}"]
    lines += [*(f"  MISSED  {one}" for one in missed), outcome.played]
    for part in outcome.parts:
        lines += ["", f"{part.name}: {part.title}"]
        lines += [f"  {moment.at - part.began:7.2f} s  {moment.text}" for moment in _ordered(part)]
        lines += [
            f"  {'ok    ' if one.met else 'MISSED'}  {one.name}: {one.text} (at most {one.most})"
            for one in part.figures
        ]
        lines += [f"          {note}" for note in _notes(part)]
    lines += ["", *(f"Left out: {one}" for one in outcome.left_out)] if outcome.left_out else []
    if outcome.trouble:
        lines += ["", f"It ended early: {outcome.trouble}"]
    lines += ["", *outcome.cleaned, f"It took {took(outcome)}"]
    return "\n".join(lines) + "\n"


def took(outcome: Outcome) -> str:
    return ", ".join(f"{seconds:.0f} s ({name})" for name, seconds in outcome.phases)


def page(outcome: Outcome) -> str:
    """The HTML page."""
    style = files("agent.drill").joinpath("report.css").read_text(encoding="utf-8")
    verdict = "passed" if outcome.passed else "failed"
    facts = {
        "Cluster": f"{outcome.cluster} (Kubernetes {outcome.version})",
        "Namespace": outcome.namespace,
        "Nodes withdrawn": ", ".join(outcome.drilled) or "none",
        "Nodes with an agent": str(outcome.nodes),
        "What was real": outcome.played,
        "Client": outcome.client,
        "Took": took(outcome),
        "Began": rfc3339(outcome.began, "seconds"),
        "Ended": rfc3339(outcome.ended or time.time(), "seconds"),
    }
    met, *missed = outcome.verdict
    body = [f"<h1>Drill: {verdict}, {met}</h1>"]
    body += [f'<p class="trouble">Missed: {escape(one)}</p>' for one in missed]
    if outcome.trouble:
        body.append(f'<p class="trouble">It ended early: {escape(outcome.trouble)}</p>')
    body.append("<dl>" + "".join(f"<dt>{k}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>")
    body.append(f"<p>{_LEGEND}</p>")
    body += [_part(part) for part in outcome.parts]
    body += [f"<p>Left out: {escape(one)}</p>" for one in outcome.left_out]
    if outcome.cleaned:
        body.append("<h2>Afterwards</h2><ul>" + "".join(f"<li>{escape(one)}</li>" for one in outcome.cleaned) + "</ul>")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Drill: {verdict}</title>'
        '<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; style-src 'unsafe-inline'\"><style>{style}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _part(part: Part) -> str:
    moments = "".join(f"<li>{moment.at - part.began:.2f} s: {escape(moment.text)}</li>" for moment in _ordered(part))
    figures = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.text)}</td><td>{one.most}</td>"
        f"<td>{'met' if one.met else '<strong>missed</strong>'}</td></tr>"
        for one in part.figures
    )
    said = "".join(f"<li>{escape(note)}</li>" for note in _notes(part))
    return (
        f"<h2>{escape(part.name)}: {escape(part.title)}</h2>{picture(part)}<ol>{moments}</ol>"
        f"<table><thead><tr><th>measured</th><th>value</th><th>at most</th><th></th></tr></thead>"
        f"<tbody>{figures}</tbody></table>" + (f"<ul>{said}</ul>" if said else "")
    )


def _notes(part: Part) -> list[str]:
    """What is said beside the figures; of the first requests that failed, those that failed alike as one."""
    whys = Counter(str(one["why"]) for one in part.requests.get("failures", ()))
    notes = [*part.notes, *(f"{count} failed: {why}" for why, count in whys.items())]
    if part.requests.get("p99_s") is not None:
        notes.append(f"answers took {part.requests['p50_s']:.3f} s (median), {part.requests['p99_s']:.3f} s (p99)")
    return notes


def picture(part: Part) -> str:
    """Requests per second as bars, failed ones hatched with a cross above; the moments as numbered lines."""
    ended = max([part.ended, part.began + 1, *(moment.at for moment in part.moments)])
    span = ended - part.began
    shift = part.requests["began"] - part.began if part.requests else 0.0
    seconds = [(at + shift, good, bad) for at, good, bad in part.requests.get("seconds", ())]
    most = max([1, *(good + bad for _, good, bad in seconds)])

    def x(at_s: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - 10) * min(max(at_s, 0.0), span) / span

    base, marks = _TOP + _HEIGHT, []
    for at, good, bad in seconds:
        left, width = x(at), max(1.0, x(at + 1) - x(at) - 1)
        top = _HEIGHT * good / most
        marks.append(f'<rect class="good" x="{left:.1f}" y="{base - top:.1f}" width="{width:.1f}" height="{top:.1f}"/>')
        if bad:
            high = max(4.0, _HEIGHT * bad / most)
            y = base - top - high
            marks.append(
                f'<rect class="bad" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{high:.1f}"/>'
                f'<text class="cross" x="{left + width / 2:.1f}" y="{y - 2:.1f}">x</text>'
            )
    step = next((s for s in _STEPS_S if span / s <= _ABOUT_TICKS), _STEPS_S[-1])
    marks += [
        f'<text class="tick" x="{x(tick):.1f}" y="{base + 16:.1f}">{tick} s</text>'
        for tick in range(0, int(span) + 1, step)
    ]
    last = [-_APART] * _LEVELS  # the right-most number on each level
    for number, moment in enumerate(_ordered(part), 1):
        at = x(moment.at - part.began)
        level = next((i for i, right in enumerate(last) if at - right >= _APART), last.index(min(last)))
        last[level] = at
        up = 10 + _APART * level
        marks.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{up + 8:.1f}" y2="{base:.1f}"/>'
            f'<circle cx="{at:.1f}" cy="{up:.1f}" r="8"/>'
            f'<text class="number" x="{at:.1f}" y="{up + 4:.1f}">{number}</text>'
        )
    title = escape(f"{part.title}: requests a second, at most {most}, and the moments listed below by number")
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {base + 24:g}" role="img"><title>{title}</title><defs><pattern id="hatch" '
        'width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path d="M0 0V5" '
        f'class="hatch"/></pattern></defs><text class="most" x="{_LEFT - 4:g}" y="{_TOP + 10:g}">{most}/s</text>'
        f'<line x1="{_LEFT:g}" x2="{_WIDTH - 10:g}" y1="{base:g}" y2="{base:g}"/>{"".join(marks)}</svg>'
    )


def _ordered(part: Part) -> list[Moment]:
    return sorted(part.moments, key=lambda moment: moment.at)
