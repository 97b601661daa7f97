"""Stop rules: when the loop ends before its last turn.

Reads what the turns so far made and what it took, all of it from the store, so that a repeated or resumed run stops
where the first one did. A budget is compared with what was spent and what the next turn is expected to take: its
rollouts by the recipe where they are known, else as many as the last turn took.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.loop import Turn
from gristmill.recipe import Recipe
from gristmill.store import Store


class Spent(NamedTuple):
    """What collections and stages took."""

    rollouts: int = 0
    tokens: int = 0
    """Generated."""
    seconds: float = 0.0
    """Sum over stages, of when each was made."""

    def since(self, before: Spent) -> Spent:
        return Spent(self.rollouts - before.rollouts, self.tokens - before.tokens, self.seconds - before.seconds)


def spent(store: Store, made: Iterable[ArtifactRef]) -> Spent:
    """What it took to make these artifacts and all that they were made of, each counted once."""
    seen: set[ArtifactRef] = set()
    owed = list(made)
    total = Spent()
    while owed:
        ref = owed.pop()
        if ref in seen:
            continue
        seen.add(ref)
        manifest = store.manifest(ref)
        owed += manifest.parents
        rollouts, tokens = (manifest.counts.get(n, 0) if ref.kind == "rollouts" else 0 for n in ("rollouts", "tokens"))
        total = Spent(total.rollouts + rollouts, total.tokens + tokens, total.seconds + manifest.seconds)
    return total


def stop(recipe: Recipe, turns: Sequence[Turn], before: Spent, now: Spent) -> str | None:
    """Why the next turn is not begun; None if it is.

    Args:
        turns: those that were taken.
        before: spent when the last of them began; nothing where there was none.
        now: spent so far.
    """
    rules = recipe.stop
    k = rules.without_promotion
    if k is not None and len(turns) >= k and not any(turn.promoted for turn in turns[-k:]):
        return f"{k} turn{'s' if k > 1 else ''} in a row promoted nothing (stop.without_promotion)"
    last = now.since(before) if turns else Spent()
    planned = _rollouts(recipe)
    for name, budget, used, next_one, unit in (
        ("rollouts", rules.rollouts, now.rollouts, last.rollouts if planned is None else planned, "rollouts"),
        ("tokens", rules.tokens, now.tokens, last.tokens, "tokens"),
        ("hours", rules.hours, now.seconds / 3600, last.seconds / 3600, "hours"),
    ):
        if budget is not None and used + next_one > budget:
            return (
                f"{_count(used)} {unit} are spent and another turn takes about {_count(next_one)}, of a budget of "
                f"{_count(budget)} (stop.{name})"
            )
    return None


def nothing_left(store: Store, tasks: ArtifactRef) -> str | None:
    """Why a turn on these tasks would be in vain: the curriculum lets every one of them rest."""
    counts = store.manifest(tasks).counts
    if counts["tasks"]:
        return None
    why = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in sorted(counts["resting"].items()))
    return f"every training task rests ({why}): take harder or further ones, or set environment.curriculum to false"


def _rollouts(recipe: Recipe) -> int | None:
    """Of a turn at most, as the recipe asks for them; None where the task files decide.

    A gate that may look twice is counted with its second look, of challenger and champion.
    """
    tasks, heldout = recipe.environment.tasks, recipe.environment.heldout
    if tasks is None or heldout is None:
        return None
    once = recipe.evaluate.samples
    again = recipe.promote.samples_in_all(once) - once if recipe.promote.on_inconclusive == "collect_more" else 0
    return tasks * recipe.collect.samples + heldout * (once + 2 * again)


def _count(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
