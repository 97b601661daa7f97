"""The gate under simulation: what it lets through when nothing is better, and what it finds when something is.

    python benchmarks/gate.py [--runs 2000] [--seed 0] [--only power turns guards coverage]

Tasks have their own difficulty: the champion solves task i with probability p_i ~ Beta(0.5, 0.5), many nearly always or
nearly never, as agents' tasks are. The challenger solves it with p_i moved by a shift of its own, of standard deviation
0.1, so that no two policies are good at the same tasks, and by the lift that the row names. Both attempt the same tasks
k times. The gate's arithmetic is repeated here for all runs at once, and held against `gristmill.promotion.weigh` on
some runs of every row.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

from gristmill.artifact import ArtifactRef
from gristmill.comparison import guards as checked_guards
from gristmill.evaluation import Evaluation, Scored, evaluate
from gristmill.promotion import Verdict, weigh
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import bootstrap_difference, paired_difference

SHIFT = 0.1  # standard deviation of what a policy is better or worse at, task by task
TYPES = 3
MORE = 4  # collect_more: samples in all, as a multiple of the first look's
HOLD, COLLECT = PromoteRecipe(), PromoteRecipe(on_inconclusive="collect_more")
CHECKED = 3  # runs of each row that go through the gate itself
TASKS = ArtifactRef(kind="tasks", digest="0" * 64)
POLICY = ArtifactRef(kind="checkpoint", digest="0" * 64)


def skills(rng: np.random.Generator, shape: tuple[int, int], added: float) -> tuple[np.ndarray, np.ndarray]:
    """Both policies' chance at each task, runs × tasks."""
    champion = rng.beta(0.5, 0.5, shape)
    return champion, moved(rng, champion, added)


def moved(rng: np.random.Generator, champion: np.ndarray, added: float) -> np.ndarray:
    return np.clip(np.clip(champion + rng.normal(0, SHIFT, champion.shape), 0, 1) + added, 0, 1)


def to_add(lift: float) -> float:
    """What must be added for the lift to hold in the population, where chances are cut at 0 and 1."""
    low, high = -0.5, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        champion, challenger = skills(np.random.default_rng(7), (1, 200_000), middle)
        low, high = (middle, high) if challenger.mean() - champion.mean() < lift else (low, middle)
    return low


class Look(NamedTuple):
    """One look of many runs at wins of k attempts; arrays over the runs."""

    promoted: np.ndarray
    worth_more: np.ndarray
    refused: np.ndarray
    """By a guard (pass@k or a task type), though the lift would promote."""


def look(ours: np.ndarray, theirs: np.ndarray, k: int, confidence: float) -> Look:
    gaps = (ours - theirs) / k
    mean, error, t = interval(gaps, confidence)
    low, high = mean - t * error, mean + t * error
    within = ((ours * (k - ours) + theirs * (k - theirs)).sum(1)) / (k * max(k - 1, 1) * gaps.shape[1])  # σ_A² + σ_B²
    difference = np.maximum(0, gaps.var(1, ddof=1) - within / k)
    reachable = mean > t * np.sqrt(difference / gaps.shape[1]) if k > 1 else mean > 0
    worth = (low <= 0) & (high > 0) & (mean > 0) & reachable
    refused = shown_drop((ours > 0).astype(float) - (theirs > 0), confidence)
    for kind in range(TYPES):
        refused |= shown_drop(gaps[:, kind::TYPES], 1 - (1 - confidence) / TYPES)
    return Look((low > 0) & ~refused, worth, (low > 0) & refused)


def interval(gaps: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray, float]:
    n = gaps.shape[1]
    return gaps.mean(1), gaps.std(1, ddof=1) / np.sqrt(n), float(stdtrit(n - 1, 0.5 + confidence / 2))


def shown_drop(gaps: np.ndarray, confidence: float) -> np.ndarray:
    mean, error, t = interval(gaps, confidence)
    return np.asarray(mean + t * error < 0)


def evaluation(wins: np.ndarray, k: int) -> Evaluation:
    rollouts = [Scored(i, float(j < won), False, 10) for i, won in enumerate(wins) for j in range(k)]
    rows = [{"task_type": str(i % TYPES)} for i in range(len(wins))]
    return evaluate(POLICY, TASKS, rows, rollouts, samples=k, confidence=0.95)


def agrees(found: Look, ours: np.ndarray, theirs: np.ndarray, k: int, recipe: PromoteRecipe) -> None:
    """The arithmetic above is the gate's."""
    for run in range(CHECKED):
        decision = weigh(evaluation(ours[run], k), evaluation(theirs[run], k), recipe).decision
        same = (decision.verdict is Verdict.PROMOTED) == found.promoted[run]
        if not same or decision.worth_more_samples != found.worth_more[run]:
            raise AssertionError(f"the simulation and the gate disagree: {decision.reason}")


def power(rng: np.random.Generator, runs: int) -> None:
    print("Share of runs that promote\n")
    print(
        f"| true lift | tasks | k | gate | its guards refuse | collect_more | samples it takes | gate at {MORE}k "
        "| mean is higher | mean, other tasks |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for lift in (0.0, 0.02, 0.05, 0.10):
        added = to_add(lift)
        for tasks, k in ((64, 4), (200, 1), (200, 4), (200, 8), (500, 4)):
            champion, challenger = skills(rng, (runs, tasks), added)
            theirs, ours = rng.binomial(k, champion), rng.binomial(k, challenger)
            all_of = [one + rng.binomial((MORE - 1) * k, p) for one, p in ((ours, challenger), (theirs, champion))]
            once = look(ours, theirs, k, HOLD.look_confidence)
            agrees(once, ours, theirs, k, HOLD)
            first = look(ours, theirs, k, COLLECT.look_confidence)
            agrees(first, ours, theirs, k, COLLECT)
            second = look(*all_of, MORE * k, COLLECT.look_confidence)
            either = first.promoted | (first.worth_more & second.promoted)
            at_once = look(*all_of, MORE * k, HOLD.look_confidence)
            elsewhere = rng.binomial(k, rng.beta(0.5, 0.5, (runs, tasks)))
            print(
                f"| {lift:.2f} | {tasks} | {k} | {once.promoted.mean():.1%} | {once.refused.mean():.1%} "
                f"| {either.mean():.1%} | × {1 + (MORE - 1) * first.worth_more.mean():.2f} "
                f"| {at_once.promoted.mean():.1%} | {(ours.sum(1) > theirs.sum(1)).mean():.1%} "
                f"| {(ours.sum(1) > elsewhere.sum(1)).mean():.1%} |",
                flush=True,
            )


def turns(rng: np.random.Generator, runs: int, count: int = 10, k: int = 4) -> None:
    """Turns of which none is better, all judged on one held-out set; the champion keeps its evaluation."""
    print(f"\n{count} turns, none better, on one held-out set ({k} samples)\n")
    print(
        "| tasks | collect_more | promotions a turn | runs with one | champion looks better than the base by "
        "| shown to be better | shown again on fresh tasks |\n|---|---|---|---|---|---|---|"
    )
    added = to_add(0.0)
    for tasks in (64, 200):
        for recipe in (HOLD, COLLECT):
            base = rng.beta(0.5, 0.5, (runs, tasks))
            first = rng.binomial(k, base)
            champion, seen, seen_all = base.copy(), first.copy(), first + rng.binomial((MORE - 1) * k, base)
            promotions = np.zeros(runs)
            for _ in range(count):
                challenger = moved(rng, base, added)
                ours = rng.binomial(k, challenger)
                ours_all = ours + rng.binomial((MORE - 1) * k, challenger)
                found = look(ours, seen, k, recipe.look_confidence)
                taken = found.promoted
                if recipe is COLLECT:
                    again = look(ours_all, seen_all, MORE * k, recipe.look_confidence)
                    taken = taken | (found.worth_more & again.promoted)
                promotions += taken
                champion[taken], seen[taken], seen_all[taken] = challenger[taken], ours[taken], ours_all[taken]
            gaps = (seen - first) / k
            mean, error, t = interval(gaps, 0.95)
            shown = mean - t * error > 0
            fresh = rng.beta(0.5, 0.5, (runs, tasks))
            gaps = (rng.binomial(k, moved(rng, fresh, added)) - rng.binomial(k, fresh)) / k
            again_mean, again_error, _ = interval(gaps, 0.95)
            held = shown & (again_mean - t * again_error > 0)
            some = promotions > 0
            print(
                f"| {tasks} | {'yes' if recipe is COLLECT else 'no'} | {promotions.mean() / count:.1%} "
                f"| {some.mean():.1%} | {mean[some].mean():+.3f} | {shown.mean():.1%} | {held.mean():.2%} |",
                flush=True,
            )


def guards(rng: np.random.Generator, runs: int, tasks: int = 64, k: int = 4) -> None:
    """Each guard, through the gate itself: a better policy that is no worse elsewhere, and one that is."""
    worse: dict[str, dict[str, float]] = {
        "no worse in anything": {},
        "answers 2.5 times as long": {"longer": 2.5},
        "10 points more are cut": {"cut": 0.1},
        "wrong answers nearly all alike": {"alike": 0.95},
        "one type of three 20 points down": {"type": -0.3},
        "a third of the tasks are lost": {"lost": 1 / 3},
    }
    print(f"\nGuards: a lift of about 0.10, {tasks} tasks, {k} samples; share of runs in which each fails\n")
    names = ("pass@", "category", "length", "failures", "diversity")
    print(f"| challenger | {' | '.join(names)} | any |\n|---|{'---|' * (len(names) + 1)}")
    added = to_add(0.10)
    for what, how in worse.items():
        failed = dict.fromkeys((*names, "any"), 0)
        for _ in range(runs):
            champion, challenger = (side[0] for side in skills(rng, (1, tasks), added))
            if how.get("type"):
                challenger[::TYPES] = np.clip(champion[::TYPES] + how["type"], 0, 1)
            if how.get("lost"):
                challenger[rng.random(tasks) < how["lost"]] = 0
            ours = attempts(
                rng, challenger, k, **{name: how[name] for name in ("longer", "cut", "alike") if name in how}
            )
            found = weigh(ours, attempts(rng, champion, k), HOLD).comparison
            bad = [guard.name for guard in checked_guards(found, HOLD) if not guard.passed]
            for name in names:
                failed[name] += any(one.startswith(name) for one in bad)
            failed["any"] += bool(bad)
        print(f"| {what} | {' | '.join(f'{count / runs:.1%}' for count in failed.values())} |", flush=True)


def attempts(
    rng: np.random.Generator, skill: np.ndarray, k: int, longer: float = 1, cut: float = 0, alike: float = 0
) -> Evaluation:
    """Rollouts with lengths that differ by task and by chance (log-normal), a tenth of them cut."""
    rollouts = [
        Scored(
            i,
            float(rng.random() < p),
            bool(rng.random() < 0.1 + cut),
            int(longer * 100 * rng.lognormal(0, 0.7)),
            "same" if rng.random() < alike else f"answer {rng.integers(8)}",
            int(longer * 25 * rng.lognormal(0, 0.7)),
        )
        for i, p in enumerate(skill)
        for _ in range(k)
    ]
    rows = [{"task_type": str(i % TYPES)} for i in range(len(skill))]
    return evaluate(POLICY, TASKS, rows, rollouts, samples=k, confidence=0.95)


def coverage(rng: np.random.Generator, runs: int) -> None:
    """How often the two 95 % intervals hold the true lift of 0.05, and how far their ends differ."""
    print("\nThe 95 % interval holds the true lift (0.05) in so many runs\n")
    print("| tasks | samples | analytic | bootstrap | ends differ by, of its half width |\n|---|---|---|---|---|")
    added = to_add(0.05)
    for tasks, k, what in ((8, 4, "4"), (20, 4, "4"), (64, 4, "4"), (64, 4, "1 to 8, by chance"), (200, 1, "1, ties")):
        held = [0, 0]
        apart = []
        for _ in range(runs):
            champion, challenger = (side[0] for side in skills(rng, (1, tasks), added))
            sides = []
            for skill in (challenger, champion):
                counts = rng.integers(1, 9, tasks) if "chance" in what else np.full(tasks, k)
                sides.append({str(i): list(map(float, rng.random(n) < skill[i])) for i, n in enumerate(counts)})
            one, other = paired_difference(*sides), bootstrap_difference(*sides)
            assert one.low is not None and one.high is not None and other is not None
            held[0] += one.low <= 0.05 <= one.high
            held[1] += other[0] <= 0.05 <= other[1]
            if one.high > one.low:
                apart.append((abs(one.low - other[0]) + abs(one.high - other[1])) / (one.high - one.low))
        print(
            f"| {tasks} | {what} | {held[0] / runs:.1%} | {held[1] / runs:.1%} | {np.median(apart):.1%} |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=("power", "turns", "guards", "coverage"))
    chosen = parser.parse_args()
    few = max(1, chosen.runs // 10)  # of what is not computed for all runs at once
    parts = {
        "power": lambda rng: power(rng, chosen.runs),
        "turns": lambda rng: turns(rng, chosen.runs),
        "guards": lambda rng: guards(rng, few),
        "coverage": lambda rng: coverage(rng, few),
    }
    for number, (name, part) in enumerate(parts.items()):
        if not chosen.only or name in chosen.only:
            part(np.random.default_rng([chosen.seed, number]))


if __name__ == "__main__":
    main()
