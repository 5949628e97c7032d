"""What the ledgers of a year say, and the metrics made of them, is what was so."""

from __future__ import annotations

from tests.score.year import year


def test_a_years_figures_are_what_was_so_within_one_in_a_hundred() -> None:
    found = year(range(2), mean_days=30)
    assert sum(count for name, count in found.truth.items() if name.startswith("ended by ")) > 20, (
        "and some were folded"
    )
    assert all(found.truth[f"{phase}: seconds"] for phase in ("detect", "wait", "drain", "repair", "prove", "out"))
    assert found.apart <= 0.01
    assert {name for name, *_ in found.rows()} > {"days between two incidents of a card"}
