"""Sinks during a flow: a courier delivers beside it, and what it owes at the end is said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from gristmill import progress
from gristmill.recipe import Recipe
from gristmill.sinks import check, configured
from gristmill.sinks.courier import Delivered, couriering
from gristmill.workspace import Workspace


@contextmanager
def delivering(workspace: Workspace, recipe: Recipe, last: int | None = None) -> Iterator[None]:
    """Tell the recipe's sinks of the block, beside it; afterwards say what they got and what they are owed.

    Args:
        last: the turn at which that is said, where it is not the recipe's last.

    Raises:
        RecipeError: before the block, a sink that could not be opened here. Nothing for a sink's sake afterwards.
    """
    check(recipe.sinks)
    if not configured(recipe.sinks):
        yield
        return
    turn = recipe.turns if last is None else last
    delivered: list[Delivered] = []
    try:
        with couriering(workspace, recipe.sinks) as delivered:
            try:
                yield
            finally:
                with progress.stage(turn, "sinks"):
                    progress.emit("running", note="delivering")
    finally:
        _say(turn, delivered)


def _say(turn: int, delivered: list[Delivered]) -> None:
    words = "; ".join(map(str, delivered))
    owed = any(one.owed for one in delivered)
    with progress.stage(turn, "sinks"):
        progress.emit("failed" if owed else "done" if any(one.sent for one in delivered) else "cached", note=words)
    if owed:
        words += ". The next run sends it, or `gristmill sinks replay`."
        get_run_logger().warning(words)
    create_markdown_artifact(words, key="sinks")
