"""Remedies: what other settings would give, computed before they are proposed.

Curation and pairing are run again with one setting changed, by the functions that make the data, so the promised
number is what happens. Only further rollouts are an estimate: of each task, from its success rate so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from gristmill.checks.evidence import MoreRollouts, WhatIf
from gristmill.recipe import CurateRecipe, PairsRecipe

if TYPE_CHECKING:
    import numpy as np

_MOST_MORE = 64  # rollouts a task; whoever needs more, needs other tasks
# Filters that a recipe may set, and what leaves each off. Not here: what would let poor rows in (cut answers, repeats).
_FILTERS: tuple[tuple[str, object], ...] = (("where", ()), ("preset", ()), ("max_chars", None), ("per_task", None))


class TaskCounts(NamedTuple):
    """What became of a task's rollouts."""

    rollouts: int
    good: int
    """Rollouts that pass every filter, the repeated ones and those over the cap included."""
    chosen: int
    answers: int
    """Distinct answers among the good ones."""
    single: int
    """Of these, answers that were given once."""


def curation(
    choose: Callable[[CurateRecipe], int],
    recipe: CurateRecipe,
    rewards: Sequence[float],
    now: int,
    wanted: int,
    below: float = -math.inf,
) -> tuple[WhatIf, ...]:
    """Curation with one setting changed, where that gives more rows than `now`.

    Args:
        choose: how many rows a recipe chooses.
        rewards: distinct rewards that may be proposed as threshold, ascending.
        wanted: rows that are enough.
        below: the highest reward under all of these.
    """
    found: list[WhatIf] = []

    def ask(setting: str, new: object, text: float | int | str | None) -> int:
        rows = choose(recipe.model_copy(update={setting: new}))
        old = getattr(recipe, setting)
        shown = ", ".join(map(str, old)) if isinstance(old, tuple) else old
        if rows > now:
            found.append(WhatIf(setting=f"curate.{setting}", old=shown, new=text, rows=rows))
        return rows

    if recipe.min_reward is not None:
        lower = [reward for reward in rewards if reward < recipe.min_reward]
        if lower:
            at = _first_enough(lower, lambda reward: choose(recipe.model_copy(update={"min_reward": reward})), wanted)
            threshold = _plain_threshold(at, max((reward for reward in rewards if reward < at), default=below))
            ask("min_reward", threshold, threshold)
    for setting, off in _FILTERS:
        if getattr(recipe, setting, off) != off:
            ask(setting, off, "[]" if off == () else None)
    return tuple(sorted(found, key=lambda one: (-one.rows, one.setting)))


def _first_enough(lower: Sequence[float], rows: Callable[[float], int], wanted: int) -> float:
    """The highest threshold that gives enough, by bisection (a lower one never chooses fewer); else the lowest."""
    low, high = 0, len(lower) - 1
    if rows(lower[high]) >= wanted:
        return lower[high]
    if rows(lower[low]) < wanted:
        return lower[low]
    while high - low > 1:
        middle = (low + high) // 2
        if rows(lower[middle]) >= wanted:
            low = middle
        else:
            high = middle
    return lower[low]


def _plain_threshold(reward: float, below: float) -> float:
    """A round number that keeps what `reward` keeps: at most it, and above the next lower reward."""
    for digits in range(7):
        rounded: float = math.floor(reward * 10**digits) / 10**digits
        if below < rounded <= reward:
            return rounded
    return reward


def pairing(
    make: Callable[[PairsRecipe], int], recipe: PairsRecipe, gaps: Sequence[float], now: int, wanted: int
) -> tuple[WhatIf, ...]:
    """Pairing with one setting changed, where that gives more pairs than `now`.

    Args:
        make: how many pairs a recipe makes.
        gaps: distinct gaps between best and worst that are below `min_gap`, descending, as shares of the range.
        wanted: pairs that are enough.
    """
    found: list[WhatIf] = []

    def ask(setting: str, new: float | str) -> int:
        pairs = make(recipe.model_copy(update={setting: new}))
        if pairs > now:
            found.append(WhatIf(setting=f"format.pairs.{setting}", old=getattr(recipe, setting), new=new, rows=pairs))
        return pairs

    if gaps:
        at = _first_enough(
            sorted(gaps), lambda gap: make(recipe.model_copy(update={"min_gap": max(0.0, gap - 1e-9)})), wanted
        )
        below = max((gap for gap in gaps if gap < at - 1e-9), default=0.0)
        ask("min_gap", _plain_threshold(at, below))
    if recipe.strategy == "best_worst":
        ask("strategy", "all")
    return tuple(sorted(found, key=lambda one: (-one.rows, one.setting)))


class Beta(NamedTuple):
    """How a success rate varies over tasks: Beta(a, b)."""

    a: float
    b: float


def rates(successes: np.ndarray, trials: np.ndarray) -> Beta:
    """Fit success rates by moments.

    Source: Kleinman 1973, "Proportions with extraneous variance: single and independent samples", JASA 68: the
    variance of observed rates is what binomial noise leaves plus ρ p (1 − p), with ρ = 1 / (a + b + 1).
    """
    weights = trials / trials.sum()
    p = float(successes.sum() / trials.sum())
    if p in (0.0, 1.0):
        return Beta(0.5 + float(successes.sum()), 0.5 + float((trials - successes).sum()))
    spread = float((weights * (successes / trials - p) ** 2).sum())
    noise = float((weights * (1 - weights) / trials).sum())
    between = float((weights * (1 - weights) * (1 - 1 / trials)).sum())
    rho = (spread / (p * (1 - p)) - noise) / between if between > 0 else 0.0
    total = 1 / min(max(rho, 0.01), 0.99) - 1
    return Beta(p * total, (1 - p) * total)


def more_rows(tasks: Sequence[TaskCounts], more: int, cap: int | None, *, distinct: bool) -> float:
    """Expected rows chosen after `more` further rollouts of every task.

    A task's further good rollouts are beta-binomial given those it has (empirical Bayes, with `rates` as prior). With
    `distinct`, a good one counts if its answer is new, which the share of answers given once tells (Good 1953,
    "The population frequencies of species", on tasks with at least two good rollouts). At most `cap` rows a task.
    """
    import numpy as np
    from scipy.special import betaln, gammaln

    counts = np.array(tasks, np.float64).reshape(-1, 5)
    n, good, chosen = counts[:, 0], counts[:, 1], counts[:, 2]
    a, b = rates(good, n)
    several = counts[good >= 2]
    new = float(several[:, 4].sum() / several[:, 1].sum()) if distinct and len(several) else 1.0
    k = np.arange(more + 1)
    choose = gammaln(more + 1) - gammaln(k + 1) - gammaln(more - k + 1)
    # P(k further good | task): beta-binomial; then each is new with probability `new`
    after_a, after_b = (a + good)[:, None], (b + n - good)[:, None]
    log = choose + betaln(k + after_a, more - k + after_b) - betaln(after_a, after_b)
    further = np.exp(log)
    room = np.full(len(n), np.inf) if cap is None else np.maximum(cap - chosen, 0)
    first = chosen == 0  # a task's first good answer is always new
    gain = np.zeros(len(n))
    for count in range(1, more + 1):
        at_first = 1 + _thinned(count - 1, new, room - 1)
        gain += further[:, count] * np.where(first, at_first, _thinned(count, new, room))
    return float((chosen + gain).sum())


def _thinned(count: int, keep: float, room: np.ndarray) -> np.ndarray:
    """E[min(room, Binomial(count, keep))], for each room."""
    import numpy as np
    from scipy.special import gammaln

    k = np.arange(count + 1)
    log = gammaln(count + 1) - gammaln(k + 1) - gammaln(count - k + 1)
    log += k * math.log(max(keep, 1e-300)) + (count - k) * math.log(max(1 - keep, 1e-300))
    return np.asarray((np.minimum(k, np.maximum(room, 0)[:, None]) * np.exp(log)).sum(axis=1))


def more_pairs(tasks: Sequence[tuple[int, int, bool]], more: int) -> float:
    """Expected tasks with a pair after `more` further rollouts of every task.

    Args:
        tasks: of each task its rollouts, how many are solved, and whether it gives a pair now. One that does not gets
            one as soon as a rollout ends otherwise than those it has.
    """
    import numpy as np
    from scipy.special import betaln

    counts = np.array([task[:2] for task in tasks], np.float64).reshape(-1, 2)
    paired = np.array([task[2] for task in tasks], bool)
    n, solved = counts[:, 0], counts[:, 1]
    a, b = rates(solved, n)
    none_solved = np.exp(betaln(a + solved, b + n - solved + more) - betaln(a + solved, b + n - solved))
    all_solved = np.exp(betaln(a + solved + more, b + n - solved) - betaln(a + solved, b + n - solved))
    chance = np.where(solved == 0, 1 - none_solved, np.where(solved == n, 1 - all_solved, 0.0))
    return float(np.where(paired, 1.0, chance).sum())


def enough(expected: Callable[[int], float], samples: int, wanted: int) -> MoreRollouts | None:
    """The fewest further rollouts a task that are expected to give enough.

    Where not even 64 are, as many as there are already; None if these do not gain a row.
    """
    more = _MOST_MORE
    if expected(more) < wanted:
        more = min(samples, _MOST_MORE)
        return (
            MoreRollouts(samples=samples, more=more, rows=rows) if (rows := expected(more)) >= expected(0) + 1 else None
        )
    low = 0
    while more - low > 1:
        middle = (low + more) // 2
        low, more = (low, middle) if expected(middle) >= wanted else (middle, more)
    return MoreRollouts(samples=samples, more=more, rows=expected(more))
