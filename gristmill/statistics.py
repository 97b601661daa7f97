"""Estimates of a policy's reward, and paired differences, clustered by task.

Rollouts of one task share its difficulty, so tasks, not rollouts, are the independent units. With the task
means as observations, the mean and its standard error are those of a cluster sample; a difference between two
policies on the same tasks is taken task by task, which removes the variance between tasks.

Source: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640: §2.2 (clustered standard errors) and §4.2
(paired differences). Intervals use Student's t with (tasks − 1) degrees of freedom; those of a ratio of two paired
means are Fieller's (1954, "Some Problems in Interval Estimation", J. R. Stat. Soc. B 16(2)).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np


class Estimate(BaseModel):
    """A mean with its interval. `low` and `high` are None where fewer than two tasks allow no interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    standard_error: float | None
    tasks: int
    samples: int


class Ratio(BaseModel):
    """A ratio of two paired means. `low` and `high` are None where the tasks bound it on no side."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None
    high: float | None
    tasks: int


def mean_reward(rewards: Mapping[str, Sequence[float]], confidence: float = 0.95) -> Estimate:
    """Mean over tasks of the mean reward over a task's samples.

    Args:
        rewards: task key → rewards of its samples (each at least one).
        confidence: two-sided, in (0.5, 1).

    Raises:
        ValueError: no tasks, or a task without samples.
    """
    import numpy as np

    _require(rewards)
    means = np.array([np.mean(rewards[key]) for key in sorted(rewards)])
    return _interval(means, sum(len(v) for v in rewards.values()), confidence)


def paired_difference(
    challenger: Mapping[str, Sequence[float]],
    champion: Mapping[str, Sequence[float]],
    confidence: float = 0.95,
) -> Estimate:
    """Mean over the common tasks of (challenger's task mean − champion's task mean).

    Tasks that only one side has (its samples failed) cannot be paired and are left out; `tasks` says how many
    were used.

    Raises:
        ValueError: no common task.
    """
    import numpy as np

    common = sorted(challenger.keys() & champion.keys())
    if not common:
        raise ValueError("the two policies have no task in common; evaluate both on the same held-out tasks")
    differences = np.array([np.mean(challenger[k]) - np.mean(champion[k]) for k in common])
    samples = sum(len(challenger[k]) + len(champion[k]) for k in common)
    return _interval(differences, samples, confidence)


def paired_ratio(
    challenger: Mapping[str, float], champion: Mapping[str, float], confidence: float = 0.95
) -> Ratio | None:
    """Mean of the challenger's values over that of the champion's, over the tasks that both have.

    The interval holds every ratio r that the tasks do not refute, those for which mean(challenger − r · champion) does
    not differ from 0 by the paired t test: Fieller's theorem. Values are 0 or more.

    Returns:
        None if they share no task, or the champion's mean is 0.
    """
    import numpy as np

    common = sorted(challenger.keys() & champion.keys())
    ours, theirs = (np.array([side[key] for key in common], np.float64) for side in (challenger, champion))
    if not common or theirs.mean() == 0:
        return None
    n, a, b = len(common), float(ours.mean()), float(theirs.mean())
    if n < 2:
        return Ratio(value=a / b, low=None, high=None, tasks=n)
    from scipy.special import stdtrit

    covariance = np.cov(ours, theirs) / n * float(stdtrit(n - 1, 0.5 + confidence / 2)) ** 2
    square, middle, rest = b * b - covariance[1, 1], a * b - covariance[0, 1], a * a - covariance[0, 0]
    if square <= 0:  # the champion's mean may be 0: no ratio is refuted on at least one side
        return Ratio(value=a / b, low=None, high=None, tasks=n)
    width = math.sqrt(max(0.0, middle * middle - square * rest))
    return Ratio(value=a / b, low=float((middle - width) / square), high=float((middle + width) / square), tasks=n)


def bootstrap_difference(
    challenger: Mapping[str, Sequence[float]],
    champion: Mapping[str, Sequence[float]],
    confidence: float = 0.95,
    *,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The interval of `paired_difference` by resampling tasks: a check on the analytic one that assumes no shape.

    Bias-corrected and accelerated, 9,999 resamples, as scipy does it (Efron 1987, "Better Bootstrap Confidence
    Intervals"). None for fewer than two tasks.

    Raises:
        ValueError: no common task.
    """
    import numpy as np
    from scipy.stats import bootstrap

    common = sorted(challenger.keys() & champion.keys())
    if not common:
        raise ValueError("the two policies have no task in common; evaluate both on the same held-out tasks")
    values = np.array([np.mean(challenger[k]) - np.mean(champion[k]) for k in common])
    if len(values) < 2:
        return None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    found = bootstrap((values,), np.mean, confidence_level=confidence, batch=1000, rng=rng).confidence_interval
    return float(found.low), float(found.high)


def _interval(values: np.ndarray, samples: int, confidence: float) -> Estimate:
    import numpy as np

    n = len(values)
    mean = float(values.mean())
    if n < 2:
        return Estimate(mean=mean, low=None, high=None, standard_error=None, tasks=n, samples=samples)
    from scipy.special import stdtrit  # the t quantile alone; scipy.stats takes seconds to import

    error = float(values.std(ddof=1) / np.sqrt(n))
    margin = float(stdtrit(n - 1, 0.5 + confidence / 2)) * error
    return Estimate(mean=mean, low=mean - margin, high=mean + margin, standard_error=error, tasks=n, samples=samples)


def _require(rewards: Mapping[str, Sequence[float]]) -> None:
    if not rewards:
        raise ValueError("there are no tasks to average over")
    for key, values in rewards.items():
        if not len(values):
            raise ValueError(f"task {key} has no samples")
