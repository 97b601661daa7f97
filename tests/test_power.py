"""The power formula against simulated gates, and its parts against known variances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.power import Variance, assumed, detectable, of_one, of_two, split_variance, standard_error, tasks_needed
from gristmill.statistics import paired_difference

Rewards = dict[str, list[float]]


def collect(rng: np.random.Generator, p: np.ndarray, samples: int) -> Rewards:
    """Rewards of 0 and 1 from each task's solve rate."""
    said = rng.random((len(p), samples)) < p[:, None]
    return {str(i): [float(x) for x in row] for i, row in enumerate(said)}


def policies(rng: np.random.Generator, tasks: int, lift: float, scatter: float) -> tuple[np.ndarray, np.ndarray]:
    """Solve rates of two policies: the second is better by `lift` on average, by more or less on each task."""
    old = rng.uniform(0.25, 0.65, tasks)
    gain = rng.uniform(-1, 1, tasks) * scatter * math.sqrt(3) + lift
    return old, np.clip(old + gain, 0, 1)


@pytest.mark.parametrize(("tasks", "samples", "scatter"), [(60, 4, 0.1), (30, 1, 0.0), (200, 2, 0.05)])
def test_a_lift_of_the_detectable_size_is_promoted_in_four_of_five_runs(
    tasks: int, samples: int, scatter: float
) -> None:
    rng = np.random.default_rng(5)
    within = float(np.mean([p * (1 - p) for p in rng.uniform(0.25, 0.65, 100_000)]))
    lift = detectable(Variance(within=within, difference=scatter**2, source=""), tasks, samples)
    assert lift is not None
    runs = 600
    promoted = 0
    for _ in range(runs):
        old, new = policies(rng, tasks, lift, scatter)
        interval = paired_difference(collect(rng, new, samples), collect(rng, old, samples)).low
        promoted += interval is not None and interval > 0
    # the better policy's own within-task variance differs a little from the one assumed
    assert promoted / runs == pytest.approx(0.8, abs=0.06)


def test_no_lift_is_promoted_as_seldom_as_the_confidence_says() -> None:
    rng = np.random.default_rng(6)
    promoted = 0
    for _ in range(600):
        old, _ = policies(rng, 50, 0.0, 0.0)
        low = paired_difference(collect(rng, old, 4), collect(rng, old, 4)).low
        promoted += low is not None and low > 0
    assert promoted / 600 == pytest.approx(0.025, abs=0.015)


def test_variance_is_split_as_it_was_made() -> None:
    rng = np.random.default_rng(2)
    means = rng.normal(0, 2, 3000)
    found = split_variance({str(i): rng.normal(m, 3, 5).tolist() for i, m in enumerate(means)})
    assert found is not None
    assert found.within == pytest.approx(9, rel=0.05)
    assert found.between == pytest.approx(4, rel=0.1)


def test_the_difference_of_two_policies_is_split_too() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0, 5, 3000)
    gain = rng.normal(1, 0.5, 3000)
    first = {str(i): rng.normal(b + g, 1, 4).tolist() for i, (b, g) in enumerate(zip(base, gain, strict=True))}
    second = {str(i): rng.normal(b, 1, 4).tolist() for i, b in enumerate(base)}
    found = of_two(first, second, "a test")
    assert found is not None
    assert found.difference == pytest.approx(0.25, abs=0.05)
    assert found.within == pytest.approx(1, rel=0.05)
    # and the standard error is that of the estimate itself
    estimate = paired_difference(first, second)
    assert estimate.standard_error == pytest.approx(standard_error(found, 3000, 4), rel=0.03)


def test_one_policy_alone_needs_an_assumption_and_says_so() -> None:
    rng = np.random.default_rng(4)
    found = of_one(collect(rng, rng.uniform(0, 1, 5000), 8), "5000 tasks")
    assert found is not None
    assert "correlation of 0.5 is assumed" in found.source
    assert (found.within, found.difference) == (pytest.approx(1 / 6, rel=0.05), pytest.approx(1 / 12, rel=0.1))
    assert (assumed().within, assumed().difference) == (pytest.approx(1 / 6), pytest.approx(1 / 12))


@pytest.mark.parametrize("rewards", [{}, {"a": [1.0, 0.0]}, {"a": [1.0], "b": [0.0]}])
def test_too_little_to_tell_chance_from_difficulty(rewards: Rewards) -> None:
    assert split_variance(rewards) is None
    assert of_one(rewards, "") is None


def test_one_task_detects_nothing() -> None:
    assert detectable(assumed(), 1, 8) is None


@given(
    st.floats(0.001, 100),
    st.floats(0, 100),
    st.floats(0.01, 10),
    st.integers(1, 64),
    st.sampled_from([0.9, 0.95, 0.99]),
)
@settings(max_examples=60, deadline=None)
def test_the_tasks_needed_are_the_fewest_that_suffice(
    within: float, difference: float, lift: float, samples: int, confidence: float
) -> None:
    variance = Variance(within=within, difference=difference, source="")
    needed = tasks_needed(variance, lift, samples, confidence=confidence)
    if needed is None:
        return
    reached = detectable(variance, needed, samples, confidence=confidence)
    assert reached is not None
    assert reached <= lift
    if needed > 2:
        before = detectable(variance, needed - 1, samples, confidence=confidence)
        assert before is not None
        assert before > lift


def test_more_rollouts_a_task_help_only_so_far() -> None:
    variance = assumed()
    few, many, endless = (detectable(variance, 64, samples) for samples in (1, 64, math.inf))
    assert few is not None and many is not None and endless is not None
    assert few > many > endless > 0


def test_a_lift_to_detect_is_above_zero() -> None:
    with pytest.raises(ValueError, match="above 0"):
        tasks_needed(assumed(), 0.0, 4)
