"""Each sentence of the documents on waiting, the budget or a clock is kept by tests, as sentences.yaml has them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.documents import DOCUMENTS, ROOT

TABLE: dict[str, list[Any]] = yaml.safe_load((ROOT / "tests" / "sentences.yaml").read_text(encoding="utf-8"))
ABOUT = re.compile(r"\b(waits?|waited|waiting|permits?|budgets?|clocks?|deadlines?|pauses?|minutes)\b", re.IGNORECASE)
_MOST_WORDS = 35
_UNTOLD = ("tests/", "CHANGELOG.md")  # these tell of tests, and of what was
KEPT = {one["says"]: one["tests"] for one in TABLE["promises"]}


def sentences(text: str) -> Iterator[str]:
    """The sentences of a document without their markup; of no heading, block or table."""
    text = re.sub(r"^ *```.*?^ *```|<!--.*?-->", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n(?=[-#|<] ?|\d+\. )", text):
        if not paragraph.lstrip().startswith(("|", "#", "<")):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(paragraph.split()).removeprefix("- "))
            for sentence in re.split(r"(?<=[.!?])\)?\**\s+(?=[A-Z`*(])", words):
                yield re.sub(r"[`*]", "", sentence).strip("() ")


SAID = {sentence for name, text in DOCUMENTS.items() if not name.startswith(_UNTOLD) for sentence in sentences(text)}


def test_each_sentence_on_waiting_the_budget_and_clocks_has_its_tests() -> None:
    promises = {sentence for sentence in SAID if ABOUT.search(sentence)}
    others = tuple(TABLE["others"])
    untested = {one for one in promises - KEPT.keys() if not one.startswith(others)}
    assert not untested, "name the tests that keep it in tests/sentences.yaml"


def test_each_sentence_of_the_table_is_still_said_word_for_word() -> None:
    assert KEPT.keys() <= SAID
    assert not [one for one in TABLE["others"] if not any(sentence.startswith(one) for sentence in SAID)]


def test_each_test_that_keeps_a_sentence_is_there() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^ *def test_(\w+)", code, re.MULTILINE))
    there |= {path.stem for path in (ROOT / "tests" / "incidents").iterdir()}
    named = {name for tests in KEPT.values() for name in tests}
    assert named <= there
    assert all(KEPT.values())


def test_no_sentence_must_be_read_twice_for_its_length() -> None:
    told = {name: text for name, text in DOCUMENTS.items() if name != "CHANGELOG.md"}
    assert not [(name, one) for name, text in told.items() for one in sentences(text) if len(one.split()) > _MOST_WORDS]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "## The budget\n\nNobody **waits**.\nA `b` [does](#x). (For ever.)",
            ["Nobody waits.", "A b does.", "For ever."],
        ),
        ("- One waits\n  long.\n- Two.\n\n| a | waits |\n\n```sh\nwait\n```\n", ["One waits long.", "Two."]),
    ],
)
def test_a_document_is_read_sentence_by_sentence(text: str, said: list[str]) -> None:
    assert [one for one in sentences(text) if one] == said
