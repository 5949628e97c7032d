"""The page /: what it says in each state, to whom, and that hostile text stays text."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from agent import __version__
from agent.config.limits import Limits
from agent.config.settings import Http
from agent.model.fault import Status
from agent.model.steps import Wait
from agent.status.page import HEADERS, page
from agent.status.server import Server
from agent.status.state import state
from tests.observe import GPU, OTHER, Judge, alive, lost, reading, xid
from tests.status.test_metrics import snapshot

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e&lt;'


class Outline(HTMLParser):
    """The tags in order, each with its attributes, and the text; raises for tags that don't nest."""

    VOID = {"meta", "!doctype"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data + " "


def told(**changes: Any) -> dict[str, Any]:
    return state(replace(snapshot(), **changes), Limits())


def healthy() -> dict[str, Any]:
    judge = Judge()
    verdict = judge.after(0, alive(), reading(index=0, temperature_c=41), reading(OTHER, index=1))
    return told(
        verdict=verdict,
        readings=judge.memory.history.readings,
        withdrawn_since=None,
        stage="healthy",
        waits=(),
        sources=(),
    )


def unseen(source: str) -> dict[str, Any]:
    return {source: {"kind": "silent", "failure": None, "pci": ""}}


def seen(said: dict[str, Any], **how: Any) -> Outline:
    return Outline(page(said, datetime.fromisoformat(said["at"]).timestamp(), **how))


def words(outline: Outline) -> str:
    return " ".join(outline.text.split())


def test_a_broken_gpu_is_named_with_evidence_what_is_next_and_what_is_waited_for() -> None:
    text = words(seen(told()))
    assert "✖ unhealthy" in text
    assert f"gpu-health-agent {__version__}, mode evict." in text
    assert "1 of 2 GPUs is broken. The node is withdrawn: new pods stay away, and the pods that must leave" in text
    fenced = words(seen(told(fences=("device gpu-0 of gpu.nvidia.com, effect NoSchedule",))))
    assert "The node is withdrawn: new pods come to its other GPUs only, and the pods that must leave" in fenced
    assert "GPU 0 (0000:1b:00.0): " in text
    assert "Happens next the node is withdrawn under a permit" in text
    assert "Waiting for pod a/b may not be evicted yet" in text
    assert "NVRM: Xid (PCI:0000:1b:00.0): 79" in text
    assert "xid-79@0000:1b:00.0" in text
    node = told()["node"]
    assert f"To paste kubectl annotate node {node} gpu-health-agent/dismiss=xid-79@{GPU}" in text


def test_every_gpu_has_its_state_in_words_and_a_sign_not_by_colour_alone() -> None:
    text = words(seen(told()))
    assert f"0 {GPU} ✖ unhealthy" in text
    assert f"1 {OTHER} ✓ healthy" in text


def test_blind_is_never_shown_as_healthy() -> None:
    said = healthy()
    said |= {"status": str(Status.UNKNOWN), "blind": ["nvml: silent"], "unseen": unseen("nvml")}
    text = words(seen(said))
    assert "? unknown" in text
    assert "This does not mean healthy" in text
    assert "Blind: nvml: silent." in text
    assert "✓ healthy" not in text


def test_one_gpu_that_is_not_read_is_unknown_and_makes_no_other_unknown() -> None:
    said = healthy()
    said |= {"status": str(Status.UNKNOWN), "blind": [f"GPU {OTHER}: not read for over 60 s"]}
    said["unseen"] = {f"GPU {OTHER}": {"kind": "unread", "failure": None, "pci": OTHER}}
    del said["gpus"][OTHER]
    text = words(seen(said))
    assert f"0 {GPU} ✓ healthy" in text
    assert f"n/a {OTHER} ? unknown does not answer" in text
    assert f"Blind: GPU {OTHER}: not read for over 60 s." in text


def test_a_witness_that_is_not_needed_is_absent_and_one_that_is_blind() -> None:
    said = told()  # its source kmsg is down
    assert "• absent kmsg gone" in words(seen(said))
    said |= {"blind": ["kmsg: gone"], "unseen": unseen("kmsg")}
    assert "? blind kmsg gone" in words(seen(said))


def test_a_gpu_that_no_longer_answers_stays_on_the_page() -> None:
    said = told()
    del said["gpus"][GPU]
    assert f"n/a {GPU} ✖ unhealthy does not answer" in words(seen(said))


def test_an_old_verdict_is_told_as_old_and_not_as_healthy() -> None:
    said = healthy()
    text = words(Outline(page(said, datetime.fromisoformat(said["at"]).timestamp() + 95)))
    assert "? healthy, but old This is 95 s old: the agent no longer judges." in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "observe", "withdrawn": False}, "only observes (mode observe): nothing keeps pods away"),
        (
            {"mode": "observe", "withdrawn": True, "stage": "unhealthy"},
            "is broken. The node is withdrawn: new pods stay away",
        ),
        ({"stage": "unhealthy", "withdrawn_since": None}, "not withdrawn yet: see what is waited for"),
        ({"stage": "drained"}, "the pods that had to leave have left"),
        ({"stage": "repairing"}, "a repair is under way"),
        ({"stage": "validating"}, "must stay well for a while, before the node takes pods"),
        ({"keep_off": "the GPU is being reset"}, "The agent keeps off the GPUs: the GPU is being reset."),
    ],
)
def test_the_banner_says_how_far_it_is(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in words(seen(told(**changes)))


def test_an_observing_agent_promises_no_withdrawal_and_no_eviction() -> None:
    text = words(seen(told(mode="observe", withdrawn_since=None, waits=())))
    assert "Happens next mode observe: it is only reported, and nothing keeps pods away; when its pods" in text
    assert "evicted" not in text


def test_hostile_text_stays_text() -> None:
    judge = Judge()
    judge.after(0, alive(), reading(index=0))
    shot = snapshot()
    verdict = judge.after(1, replace(xid(79), raw=HOSTILE), lost())
    sources = tuple(replace(source, trouble=HOSTILE) for source in shot.sources)
    said = told(
        verdict=verdict,
        node=HOSTILE,
        stage=HOSTILE,
        keep_off=HOSTILE,
        waits=(Wait(HOSTILE),),
        steps=(HOSTILE,),
        sources=sources,
    )
    said["gpus"][HOSTILE] = {"uuid": HOSTILE, "index": HOSTILE}
    for fault in said["faults"]:
        fault.update(
            {
                "doubts": [HOSTILE],
                "explains": [HOSTILE],
                "message": HOSTILE,
                "id": HOSTILE,
                "next": HOSTILE,
                "clears": HOSTILE,
                "since": HOSTILE,
                "last": HOSTILE,
                "reset_together_with": [HOSTILE],
            }
        )
    outline = seen(said)
    assert not {"script", "img"} & {tag for tag, _ in outline.tags}
    assert not [a for _, attributes in outline.tags for a in attributes if a.startswith("on")]
    assert "<script>alert(1)</script>" in outline.text
    assert "\x1b" not in page(said, 0)


def test_it_needs_no_script_and_nothing_from_outside_and_can_be_held() -> None:
    text = page(told(), 0)
    outline = Outline(text)
    assert [a["href"] for tag, a in outline.tags if tag == "a"] == ["#faults", "/?hold", "/state", "/metrics"]
    assert not {"script", "link", "img", "iframe", "form", "button"} & {tag for tag, _ in outline.tags}
    assert not re.search(r"https?:|url\(|@import| style=", text)
    assert any(a.get("http-equiv") == "refresh" for _, a in outline.tags)
    assert not any(a.get("http-equiv") == "refresh" for _, a in seen(told(), refreshing=False).tags)


def test_its_outline_serves_a_screen_reader() -> None:
    outline = Outline(page(told(), 0))
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
    tags = [tag for tag, _ in outline.tags]
    assert {"header", "main", "footer"} <= set(tags)
    assert all(a.get("scope") for tag, a in outline.tags if tag == "th")
    assert dict(outline.tags)["html"]["lang"] == "en"


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    digits = colour if len(colour) == 6 else "".join(2 * c for c in colour)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_good_by_day_and_by_night() -> None:
    css = (Path(__file__).parents[2] / "agent" / "status" / "page.css").read_text(encoding="utf-8")
    for theme in re.findall(r":root\{([^}]*)\}", css):
        colours = dict(re.findall(r"--(\w+):#(\w+)", theme))
        for text in ("fg", "soft", "link"):
            assert contrast(colours[text], colours["bg"]) >= 7, text
        for badge in ("healthy", "degraded", "unhealthy", "unknown", "notice"):
            assert contrast("ffffff", colours[badge]) >= 5, badge


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(Http(address="127.0.0.1", port=0), CollectorRegistry(), told, lambda: True, lambda: True)
    made.start()
    yield made
    made.shutdown()


def test_it_is_served_with_a_strict_policy(server: Server) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/") as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert dict(answer.headers).items() >= HEADERS.items()
        assert "unhealthy" in answer.read().decode()


def test_before_the_first_verdict_it_says_that_there_is_none() -> None:
    said = {"status": "unknown", "faults": [], "waits": ["no verdict yet"]}  # as the daemon says it
    text = words(Outline(page(said, 0)))
    assert "? unknown" in text
    assert "no verdict yet" in text
    assert "the agent can't see them" in text


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ("PreferNoSchedule", "Running pods stay; new ones prefer other nodes."),
        ("NoSchedule", "Running pods stay; no new ones come."),
        ("", "Running pods stay."),
    ],
)
def test_a_degraded_nodes_page_says_what_its_taint_does(effect: str, words: str) -> None:
    judge = Judge()
    judge.after(0, alive(), reading(index=0))
    assert words in seen(told(verdict=judge.after(1, xid(63)), degraded_effect=effect)).text
