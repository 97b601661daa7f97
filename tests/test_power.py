"""The power formula against simulated gates, and its parts against known variances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.power import (
    Variance,
    assumed,
    detectable,
    needed,
    of_one,
    of_two,
    samples_needed,
    split_variance,
    standard_error,
    tasks_needed,
)
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
@settings(max_examples=60)
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


@given(
    within=st.floats(0.001, 0.3),
    difference=st.floats(0, 0.2),
    lift=st.floats(0.01, 0.5),
    tasks=st.integers(2, 2000),
    power=st.sampled_from([0.5, 0.8]),
)
def test_samples_needed_is_the_least_number_that_detects(
    within: float, difference: float, lift: float, tasks: int, power: float
) -> None:
    variance = Variance(within=within, difference=difference, source="")
    found = samples_needed(variance, lift, tasks, power=power)
    ever = detectable(variance, tasks, math.inf, power=power)
    assert ever is not None
    if found is None:
        assert ever >= lift, "no number of samples would do"
        return
    least = detectable(variance, tasks, found, power=power)
    assert least is not None and least <= lift * (1 + 1e-6)
    if found > 1:
        fewer = detectable(variance, tasks, found - 1, power=power)
        assert fewer is not None and fewer > lift * (1 - 1e-6)


def test_what_is_needed_settles_it_every_other_time() -> None:
    """With the true variances and lift, the tasks, or the samples, that `needed` would name promote in half of runs."""
    rng = np.random.default_rng(8)
    scatter, lift = 0.05, 0.06
    old, new = policies(rng, 40, lift, scatter)
    within = float(np.mean([p * (1 - p) for p in rng.uniform(0.25, 0.65, 100_000)]))
    seems = Variance(within=within, difference=scatter**2, source="")
    tasks = tasks_needed(seems, lift, 4, power=0.5)
    samples = samples_needed(seems, lift, 40, power=0.5)
    assert tasks is not None and samples is not None and (tasks, samples) > (40, 4)
    for n, k in ((tasks, 4), (40, samples)):
        promoted = 0
        for _ in range(400):
            old, new = policies(rng, n, lift, scatter)
            low = paired_difference(collect(rng, new, k), collect(rng, old, k)).low
            promoted += low is not None and low > 0
        assert promoted / 400 == pytest.approx(0.5, abs=0.08)


def test_more_samples_do_not_settle_what_tasks_disagree_about() -> None:
    """The tasks differ among themselves by far more than the lift: on these, no number of samples is enough."""
    gains = {str(i): 0.5 if i % 2 else -0.4 for i in range(20)}
    champion = {key: [0.5, 0.5] for key in gains}
    challenger = {key: [0.5 + gain] * 2 for key, gain in gains.items()}
    more = needed(challenger, champion, min_effect=0.0, confidence=0.95)
    assert more.samples is None and more.tasks is not None and more.tasks > 100
    assert needed(challenger, champion, min_effect=0.1, confidence=0.95) == (None, None), "nothing suggests as much"
    once = {key: values[:1] for key, values in challenger.items()}
    alone = needed(once, {key: [0.5] for key in once}, min_effect=0.0, confidence=0.95)
    assert alone.samples is None and alone.tasks == pytest.approx(more.tasks, rel=0.05), "tasks are known all the same"


@given(st.integers(0, 10**6), st.integers(2, 40), st.integers(1, 6))
@settings(max_examples=50)
def test_what_is_needed_is_more_than_there_was(seed: int, tasks: int, samples: int) -> None:
    rng = np.random.default_rng(seed)
    old, new = policies(rng, tasks, 0.05, 0.1)
    a, b = collect(rng, new, samples), collect(rng, old, samples)
    more = needed(a, b, min_effect=0.0, confidence=0.95)
    lift = paired_difference(a, b)
    assert more.tasks is not None if lift.mean > 1e-3 else lift.mean > 0 or more.tasks is None
    assert more.tasks is None or more.tasks > tasks
    assert more.samples is None or more.samples > samples
