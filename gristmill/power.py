"""Power: how small a lift an evaluation can detect, and what it takes to see a given one.

A policy is evaluated on n tasks with K rollouts each, and compared with another on the same tasks. The mean of the
tasks' differences then has the variance

    (ω² + σ_A² / K_A + σ_B² / K_B) / n

where σ² is the variance of rewards within a task (chance) and ω² the variance over tasks of the true difference (the
law of total variance splits what is observed into the two). More rollouts a task shrink the first part only: with
K → ∞ the evaluation still needs n tasks. The gate asks that the interval of the lift lies above its least effect, so
with probability `power` it detects

    δ = (t(1 − α/2) + t(power)) · √variance,   n − 1 degrees of freedom.

Of a comparison that was made and settled nothing, `needed` says how large it must be to settle it, if the lift and both
variances are what they seem: where the interval's expected lower end meets the least effect, which is `power` = 0.5.

Source: Miller 2024, "Adding Error Bars to Evals", arXiv:2411.00640, §3.1 (resampling), §4.2 (pairing), §5 (power).
tests/test_power.py checks it against simulated gates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

CORRELATION = 0.5
"""Of two policies' true means over tasks, where only one policy was observed. Miller 2024 (§4.2) finds 0.3 to 0.7
between frontier models; a policy and its own descendant tend to agree more, which makes this cautious."""

_MOST_TASKS = 10**7


class Variance(BaseModel):
    """Where the variance of a paired comparison comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    within: float = Field(description="σ²: variance of rewards within a task, mean over the two policies.")
    difference: float = Field(description="ω²: variance over tasks of the true difference.")
    source: str = Field(description="What it was measured on, or assumed from.")


class Needed(NamedTuple):
    """What would settle an inconclusive comparison: either of the two, in all (not in addition)."""

    tasks: int | None
    """Held-out tasks, at the same samples; None if the lift that was seen is not above the least effect."""
    samples: int | None
    """Rollouts of each policy a task, on the same tasks; None also where no number of them would do, or where one
    sample a task does not tell chance from difference."""


class Spread(NamedTuple):
    """One policy's rewards: variance within tasks, and of the true task means."""

    within: float
    between: float


def split_variance(rewards: Mapping[str, Sequence[float]]) -> Spread | None:
    """Variance within and between tasks, both unbiased; None unless two tasks exist and one has two rollouts.

    The tasks' observed means scatter by the true means and by chance, σ²/K; what chance explains is taken off, and a
    negative rest counts as 0.
    """
    values = [np.asarray(rewards[key], np.float64) for key in sorted(rewards) if len(rewards[key])]
    freedom = sum(len(v) - 1 for v in values)
    if len(values) < 2 or not freedom:
        return None
    within = float(sum(((v - v.mean()) ** 2).sum() for v in values) / freedom)
    means = np.array([v.mean() for v in values])
    chance = within * float(np.mean([1 / len(v) for v in values]))
    return Spread(within, max(0.0, float(means.var(ddof=1)) - chance))


def of_one(rewards: Mapping[str, Sequence[float]], what: str) -> Variance | None:
    """What a comparison may be expected to vary by, when one policy was observed: ω² = 2 (1 − ρ) σ_between²."""
    found = split_variance(rewards)
    if found is None:
        return None
    return Variance(
        within=found.within,
        difference=2 * (1 - CORRELATION) * found.between,
        source=f"observed on {what}; of two policies' task means a correlation of {CORRELATION:g} is assumed",
    )


def of_two(first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], what: str) -> Variance | None:
    """What a comparison varied by: both parts observed on the tasks that two policies share."""
    common = sorted(first.keys() & second.keys())
    a = split_variance({key: first[key] for key in common})
    b = split_variance({key: second[key] for key in common})
    if a is None or b is None:
        return None
    gaps = np.array([np.mean(first[key]) - np.mean(second[key]) for key in common])
    chance = float(np.mean([a.within / len(first[key]) + b.within / len(second[key]) for key in common]))
    return Variance(
        within=(a.within + b.within) / 2,
        difference=max(0.0, float(gaps.var(ddof=1)) - chance),
        source=f"observed on {what}",
    )


def assumed() -> Variance:
    """Rewards of 0 and 1 whose solve rates are spread evenly over tasks: σ² = 1/6, between tasks 1/12."""
    return Variance(
        within=1 / 6,
        difference=2 * (1 - CORRELATION) / 12,
        source="assumed: rewards of 0 and 1, solve rates spread evenly over tasks, and a correlation of "
        f"{CORRELATION:g} between the two policies' task means",
    )


def standard_error(variance: Variance, tasks: int, samples: float) -> float:
    """Of the mean paired difference on `tasks` tasks with `samples` rollouts of each policy (may be infinite)."""
    return math.sqrt((variance.difference + 2 * variance.within / samples) / tasks)


def detectable(
    variance: Variance, tasks: int, samples: float, *, confidence: float = 0.95, power: float = 0.8
) -> float | None:
    """The least true lift, beyond the gate's least effect, that is promoted with probability `power`.

    None for fewer than two tasks, which allow no interval.
    """
    if tasks < 2:
        return None
    from scipy.special import stdtrit

    quantiles = float(stdtrit(tasks - 1, 0.5 + confidence / 2)) + float(stdtrit(tasks - 1, power))
    return quantiles * standard_error(variance, tasks, samples)


def samples_needed(
    variance: Variance, lift: float, tasks: int, *, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """The fewest rollouts a task with which `lift` is detected on `tasks` tasks; None where no number suffices.

    Raises:
        ValueError: `lift` is not above 0.
    """
    if lift <= 0:
        raise ValueError(f"a lift to detect is above 0, found {lift}")
    bound = detectable(variance, tasks, math.inf, confidence=confidence, power=power)
    if bound is None or bound >= lift:
        return None
    one = detectable(variance, tasks, 1, confidence=confidence, power=power)
    assert one is not None
    # both squared are linear in 1 / samples
    return max(1, math.ceil((one * one - bound * bound) / (lift * lift - bound * bound) - 1e-9))


def needed(
    challenger: Mapping[str, Sequence[float]],
    champion: Mapping[str, Sequence[float]],
    *,
    min_effect: float,
    confidence: float,
) -> Needed:
    """What would bring the lower end of the paired interval above `min_effect`, if all is as it seems.

    Both are more than what there was: chance that was kind or unkind to the variances is no reason to ask for less.
    """
    common = sorted(challenger.keys() & champion.keys())
    gaps = np.array([np.mean(challenger[key]) - np.mean(champion[key]) for key in common])
    n = len(common)
    beyond = float(gaps.mean()) - min_effect if n else 0.0
    if n < 2 or beyond <= 0:
        return Needed(None, None)
    each = 2 * n / sum(1 / len(challenger[key]) + 1 / len(champion[key]) for key in common)
    found = of_two(challenger, champion, "this comparison")
    whole = found or Variance(within=0, difference=float(gaps.var(ddof=1)), source="one sample a task")
    tasks = tasks_needed(whole, beyond, each, confidence=confidence, power=0.5)
    samples = None if found is None else samples_needed(found, beyond, n, confidence=confidence, power=0.5)
    return Needed(
        None if tasks is None else max(tasks, n + 1),
        None if samples is None else max(samples, math.floor(each + 1e-9) + 1),
    )


def tasks_needed(
    variance: Variance, lift: float, samples: float, *, confidence: float = 0.95, power: float = 0.8
) -> int | None:
    """The fewest tasks with which `lift` is detected; None above ten million.

    Raises:
        ValueError: `lift` is not above 0.
    """
    if lift <= 0:
        raise ValueError(f"a lift to detect is above 0, found {lift}")

    def enough(tasks: int) -> bool:
        least = detectable(variance, tasks, samples, confidence=confidence, power=power)
        return least is not None and least <= lift

    high = 2
    while not enough(high):
        high *= 2
        if high > _MOST_TASKS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
