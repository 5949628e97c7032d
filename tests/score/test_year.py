"""What the ledgers of a year say, and the figures made of them, is what was so."""

from __future__ import annotations

from tests.score.year import apart, year


def test_a_years_figures_are_what_was_so_within_one_in_a_hundred() -> None:
    truth, told = year(range(2), mean_days=20)
    assert sum(count for name, count in truth.found.items() if name.startswith("ended by ")) > 20, (
        "and some were folded"
    )
    assert max(apart(truth.found, told.found).values()) <= 0.01
