"""The gate under simulation: how often a challenger is promoted, by how much better it truly is.

    python benchmarks/gate.py [--runs 1000] [--seed 0]

Tasks have their own difficulty: the champion solves task i with probability p_i ~ Beta(0.5, 0.5), many nearly always or
nearly never, as agents' tasks are. The challenger solves it with p_i moved by a shift of its own, of standard deviation
0.1, so that no two policies are good at the same tasks, and by the lift that the row names. Both attempt the same tasks
k times. `gate` is what `gristmill.promotion.decide` says of the paired interval; `mean` promotes whoever has the higher
mean on the same tasks; `other tasks` does so with tasks drawn anew for each, as where every evaluation samples its own.
"""

from __future__ import annotations

import argparse

import numpy as np

from gristmill.promotion import decide
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import paired_difference

SHIFT = 0.1  # standard deviation of what a policy is better or worse at, task by task


def skills(rng: np.random.Generator, tasks: int, lift: float) -> tuple[np.ndarray, np.ndarray]:
    """Both policies' chance at each task; their true means differ by `lift` over this very task set's population."""
    champion = rng.beta(0.5, 0.5, tasks)
    challenger = np.clip(champion + rng.normal(0, SHIFT, tasks), 0, 1)
    return champion, challenger + lift


def population_lift(lift: float) -> float:
    """What must be added for the lift to hold in the population, where chances are cut at 0 and 1."""
    champion, challenger = skills(np.random.default_rng(7), 200_000, 0.0)
    low, high = -0.5, 0.5
    for _ in range(40):
        middle = (low + high) / 2
        if np.clip(challenger + middle, 0, 1).mean() - champion.mean() < lift:
            low = middle
        else:
            high = middle
    return low


def simulate(rng: np.random.Generator, tasks: int, k: int, added: float, runs: int) -> tuple[float, float, float]:
    """Shares of runs that the gate, the mean, and the mean over other tasks promote."""
    recipe = PromoteRecipe()
    promoted = higher = elsewhere = 0
    for _ in range(runs):
        champion, challenger = skills(rng, tasks, added)
        theirs = rng.binomial(k, champion) / k
        ours = rng.binomial(k, np.clip(challenger, 0, 1)) / k
        lift = paired_difference(
            {str(i): [value] for i, value in enumerate(ours)}, {str(i): [value] for i, value in enumerate(theirs)}
        )
        promoted += decide(lift, recipe).promoted
        higher += bool(ours.mean() > theirs.mean())
        again = rng.binomial(k, rng.beta(0.5, 0.5, tasks)) / k
        elsewhere += bool(ours.mean() > again.mean())
    return promoted / runs, higher / runs, elsewhere / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    rng = np.random.default_rng(chosen.seed)
    print(
        f"{'true lift':>9} {'tasks':>6} {'k':>3} {'gate':>7} {'mean':>7} {'other tasks':>12}"
        f"   ({chosen.runs} runs each)"
    )
    for lift in (0.0, 0.02, 0.05, 0.10):
        added = population_lift(lift)
        for tasks in (64, 200, 500):
            for k in (1, 4, 8):
                gate, mean, other = simulate(rng, tasks, k, added, chosen.runs)
                print(f"{lift:9.2f} {tasks:6} {k:3} {gate:7.1%} {mean:7.1%} {other:12.1%}", flush=True)


if __name__ == "__main__":
    main()
