"""What is told of two commits beside each other."""

from typing import Any

import pytest

from bench.before import _row, interval


@pytest.mark.parametrize(
    ("count", "place"),
    [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (15, 3), (20, 5)],
)
def test_the_interval_lies_between_the_order_statistics_of_the_binomial_distribution(count: int, place: int) -> None:
    assert interval(list(range(count))) == (place, count - 1 - place)


def test_a_figure_that_was_nothing_has_no_ratio() -> None:
    pairs: Any = [(0.0, 0.0)]
    assert _row("idle", lambda one: one, pairs) == ("idle", "0.000", "0.000", "–", "–")  # type: ignore[arg-type, return-value]
