"""Rules: what a recipe asks of each rollout by itself, one after another, each with the reason it drops for.

A `where` of several conditions is several rules, and a preset stands for the conditions that it is made of, so a
selection says exactly what was asked and which rule dropped each rollout.
"""

from __future__ import annotations

from typing import NamedTuple

from gristmill.condition import Names
from gristmill.errors import RecipeError
from gristmill.presets import PRESETS
from gristmill.reasons import DropReason
from gristmill.recipe import CurateRecipe

MOST = 60
"""Rules fail or hold in the bits of one 64-bit number a row."""


class Rule(NamedTuple):
    """A rollout stays if `sql` is true."""

    reason: DropReason
    text: str
    origin: str
    """The recipe's field, with a preset's name: `where`, `preset sft-strict`, …"""
    label: str
    """Where it stands, for a message."""
    sql: str
    """Over `Names.source()`."""


def rules(recipe: CurateRecipe, names: Names, *, reviewed: bool, tainted: bool = False) -> list[Rule]:
    """The rules of a recipe in order; `reviewed` adds that of a review, `tainted` that of marks.

    Raises:
        RecipeError: a condition cannot be used, or there are more than `MOST`.
    """
    found: list[Rule] = []

    def add(reason: DropReason, sql: str, origin: str, text: str | None = None) -> None:
        found.append(Rule(reason, text or sql, origin, f"curate.{origin}", f"({sql})"))

    def read(text: str, origin: str) -> None:
        label = f"curate.{origin}"
        for condition in names.conditions(text, label):
            found.append(Rule(DropReason.FILTERED, condition.text, origin, label, condition.sql))

    if tainted:
        add(DropReason.TAINTED, names.value("decision IS DISTINCT FROM 'taint'", "taint"), "taint", "not marked as bad")
    if not recipe.keep_truncated:
        add(DropReason.TRUNCATED, "NOT truncated", "keep_truncated", "not truncated")
    if reviewed:
        sql = names.value("decision IS DISTINCT FROM 'reject'", "review")
        add(DropReason.REVIEW_REJECTED, sql, "review", "not rejected in review")
    if recipe.min_reward is not None:
        add(DropReason.BELOW_REWARD, f"reward >= {recipe.min_reward!r}", "min_reward")
    for name in recipe.preset:
        for text in PRESETS[name]:
            read(text, f"preset {name}")
    for text in recipe.where:
        read(text, "where")
    if recipe.max_chars is not None:
        add(DropReason.OVER_LENGTH, f"prompt_chars + answer_chars <= {recipe.max_chars}", "max_chars")
    if len(found) > MOST:
        raise RecipeError(f"curate asks {len(found)} conditions; {MOST} are the most: join some with OR or parentheses")
    return found
