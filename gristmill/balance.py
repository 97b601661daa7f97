"""Balance: how many rollouts each category gives."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from gristmill.errors import RecipeError
from gristmill.recipe import BalanceRecipe

DEFAULT = "_default"
NONE = "(none)"
"""The category of a rollout for which the balanced expression is null."""


def quotas(available: Mapping[str, int], recipe: BalanceRecipe) -> dict[str, int]:
    """Rollouts that each category may give at most.

    With weights, the largest numbers in these proportions that no category falls short of (rounded down each), so
    the scarcest category decides how many there are.

    Raises:
        RecipeError: a category has no weight, or a weight has no category: leaving either out would change the
            data without a word.
    """
    if recipe.cap is not None:
        return dict.fromkeys(available, recipe.cap)
    weights = recipe.weights or {}
    categories = ", ".join(f"{name} ({count})" for name, count in sorted(available.items()))
    if nameless := [name for name in available if name not in weights and DEFAULT not in weights]:
        raise RecipeError(
            f"curate.balance.weights has none for {', '.join(sorted(nameless))} of {recipe.by}; add it (0 leaves it "
            f"out), or `{DEFAULT}` for all others; categories: {categories}"
        )
    if absent := [name for name, weight in weights.items() if weight and name not in (DEFAULT, *available)]:
        raise RecipeError(
            f"curate.balance.weights names {', '.join(absent)}, which no rollout has for {recipe.by} after the other "
            f"rules; categories: {categories or 'none'}"
        )
    shares = {name: Fraction(str(weights.get(name, weights.get(DEFAULT, 0)))) for name in available}
    unit = min((Fraction(available[name]) / share for name, share in shares.items() if share), default=Fraction(0))
    return {name: int(share * unit) for name, share in shares.items()}
