"""Estimates against closed forms, scipy and a bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.statistics import bootstrap_difference, mean_reward, paired_difference, paired_ratio

task_rewards = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=4),
    st.lists(st.floats(-100, 100, allow_nan=False), min_size=1, max_size=5),
    min_size=2,
    max_size=12,
)


def test_interval_is_students_t_over_task_means() -> None:
    rewards = {"a": [1, 1, 0, 0], "b": [1, 1, 1, 1], "c": [0, 0, 0, 1], "d": [0, 0, 0, 0]}
    found = mean_reward(rewards, 0.95)
    means = [0.5, 1.0, 0.25, 0.0]
    error = np.std(means, ddof=1) / 2
    assert found.mean == pytest.approx(0.4375)
    assert found.standard_error == pytest.approx(error)
    assert found.high is not None
    assert found.high - found.mean == pytest.approx(3.182446 * error, rel=1e-5)  # t(0.975, 3 degrees of freedom)
    assert (found.tasks, found.samples) == (4, 16)


def test_pairing_removes_what_the_tasks_have_in_common() -> None:
    champion = {str(i): [float(i)] * 2 for i in range(20)}
    challenger = {k: [v[0] + 0.5] * 2 for k, v in champion.items()}
    found = paired_difference(challenger, champion)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))


@given(task_rewards)
def test_a_policy_does_not_differ_from_itself(rewards: dict[str, list[float]]) -> None:
    found = paired_difference(rewards, rewards)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


@given(task_rewards, task_rewards)
def test_exchanging_the_policies_mirrors_the_interval(a: dict[str, list[float]], b: dict[str, list[float]]) -> None:
    b = {key: b.get(key, [0.0]) for key in a}
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert one.low is not None
    assert other.high is not None
    assert one.low == pytest.approx(-other.high, abs=1e-9)


def test_the_bootstrap_agrees() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0.2, 0.4, 80)
    champion = {str(i): [0.0] for i in range(80)}
    challenger = {str(i): [float(d)] for i, d in enumerate(differences)}
    found = paired_difference(challenger, champion)
    resampled = [rng.choice(differences, 80).mean() for _ in range(4000)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


def test_one_task_gives_no_interval() -> None:
    found = mean_reward({"a": [1.0, 0.0]})
    assert (found.mean, found.low, found.high, found.standard_error) == (0.5, None, None, None)


def test_only_common_tasks_are_paired() -> None:
    found = paired_difference({"a": [1], "b": [1], "c": [9]}, {"a": [0], "b": [0], "d": [9]})
    assert (found.mean, found.tasks) == (1.0, 2)
    with pytest.raises(ValueError, match="no task in common"):
        paired_difference({"a": [1]}, {"b": [1]})


def test_nothing_to_average_is_refused() -> None:
    with pytest.raises(ValueError, match="no tasks"):
        mean_reward({})
    with pytest.raises(ValueError, match="task a has no samples"):
        mean_reward({"a": []})


@pytest.mark.parametrize(("tasks", "seed"), [(20, 0), (64, 1), (200, 2)])
def test_the_bootstrap_agrees_with_the_analytic_interval(tasks: int, seed: int) -> None:
    """Two ways that share no formula: ends within a fifth of the interval's half."""
    rng = np.random.default_rng(seed)
    skill = rng.beta(1, 2, tasks)
    champion = {str(i): list((rng.random(8) < p).astype(float)) for i, p in enumerate(skill)}
    challenger = {str(i): list((rng.random(8) < min(1, p + 0.1)).astype(float)) for i, p in enumerate(skill)}
    one = paired_difference(challenger, champion)
    other = bootstrap_difference(challenger, champion, seed=seed)
    assert one.low is not None and one.high is not None and other is not None
    half = (one.high - one.low) / 2
    assert abs(other[0] - one.low) < half / 5 and abs(other[1] - one.high) < half / 5


def test_the_bootstrap_of_few_or_equal_tasks() -> None:
    assert bootstrap_difference({"a": [1.0]}, {"a": [0.0]}) is None
    assert bootstrap_difference({"a": [1.0], "b": [1.0]}, {"a": [0.0], "b": [0.0]}) == (1.0, 1.0)


@pytest.mark.parametrize(("tasks", "most", "seed"), [(12, 6, 3), (30, 8, 4), (150, 3, 5)])
def test_the_bootstrap_agrees_where_samples_are_unbalanced_and_values_tied(tasks: int, most: int, seed: int) -> None:
    """Samples come in any number and rewards are 0 and 1. With few tasks the percentile ends are narrower, as they are
    known to be (Efron and Tibshirani 1993, "An Introduction to the Bootstrap", §14.5): they may differ by a quarter."""
    rng = np.random.default_rng(seed)

    def rewards(lift: float) -> dict[str, list[float]]:
        return {
            str(i): [float(x) for x in rng.random(rng.integers(1, most + 1)) < min(1, p + lift)]
            for i, p in enumerate(skill)
        }

    skill = rng.beta(0.5, 0.5, tasks)
    champion, challenger = rewards(0.0), rewards(0.1)
    one, other = paired_difference(challenger, champion), bootstrap_difference(challenger, champion)
    assert one.low is not None and one.high is not None and other is not None
    half = (one.high - one.low) / 2
    allowed = half / 4 if tasks > 20 else half / 2
    assert abs(other[0] - one.low) < allowed and abs(other[1] - one.high) < allowed


def test_a_ratio_of_means_has_fiellers_interval() -> None:
    """Its ends are the ratios at which the paired t test turns: there the interval of ours − r · theirs touches 0."""
    rng = np.random.default_rng(1)
    theirs = {str(i): float(x) for i, x in enumerate(rng.lognormal(3, 0.5, 40))}
    ours = {key: 1.5 * x * float(rng.lognormal(0, 0.3)) for key, x in theirs.items()}
    found = paired_ratio(ours, theirs)
    assert found is not None and found.low is not None and found.high is not None
    assert found.low < found.value < found.high
    for end, side in ((found.low, "low"), (found.high, "high")):
        contrast = paired_difference({k: [ours[k]] for k in ours}, {k: [end * theirs[k]] for k in ours})
        assert getattr(contrast, side) == pytest.approx(0, abs=1e-9)


def test_a_ratio_without_bounds() -> None:
    assert paired_ratio({"a": 1.0}, {"b": 1.0}) is None and paired_ratio({"a": 1.0}, {"a": 0.0}) is None
    one = paired_ratio({"a": 3.0}, {"a": 2.0})
    assert one is not None and (one.value, one.low, one.high) == (1.5, None, None)
    unsure = paired_ratio({"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 0.0, "b": 0.0, "c": 9.0})
    assert unsure is not None and unsure.low is None, "the champion's mean may be 0"
    same = paired_ratio({"a": 2.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert same is not None and (same.low, same.high) == (2.0, 2.0)
