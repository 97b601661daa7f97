"""Histograms: no value is lost, whatever the edges' rounding, and what does not fit is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.histogram import Histogram, histogram

small = st.floats(min_value=-10, max_value=10, allow_subnormal=False)


@given(st.lists(small, max_size=60), st.integers(1, 20))
def test_no_value_is_left_out(rewards: list[float], bins: int) -> None:
    found = histogram(rewards, bins)
    assert sum(found.counts) == len(rewards)
    assert all(found.edges[0] - 1e-7 <= r <= found.edges[-1] + 1e-7 for r in rewards)


def test_the_last_bin_is_closed_and_the_others_are_half_open() -> None:
    found = histogram([0.0, 0.1, 1.0, 1.0], 10)
    assert found.edges == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert found.counts == (1, 1, 0, 0, 0, 0, 0, 0, 0, 2)  # 0.1 opens the second bin; 1.0 has no eleventh bin


def test_values_outside_0_to_1_and_one_value_and_none() -> None:
    assert histogram([-7.5, 12.0]).edges[0] <= -7.5
    assert sum(histogram([0.0] * 5).counts) == 5
    assert histogram([]).counts == (0,) * 10
    assert histogram([0.4], low=0, high=1).edges == histogram([0.0, 1.0]).edges


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        histogram([0.0, bad])
    with pytest.raises(ValidationError):
        Histogram(edges=(0.0, bad), counts=(1,))


@pytest.mark.parametrize(
    "edges, counts, why",
    [
        ((0.0, 1.0), (1, 2), "one edge more"),
        ((1.0, 0.0), (1,), "rising edges"),
        ((0.0,), (), "at least 2"),
        ((0.0, 1.0), (-1,), "greater than or equal to 0"),
    ],
)
def test_bins_that_do_not_fit_are_refused(edges: tuple[float, ...], counts: tuple[int, ...], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Histogram(edges=edges, counts=counts)
