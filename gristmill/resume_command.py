"""`gristmill resume`: go on with the last unfinished run of the loop, or the last one, from what was recorded of it.

No recipe file is read: the run that is taken up has its recipe in `runs.jsonl`. Stages that it was told to do again
(`--from`, `--force`) and did not get to are done again now. Also here: the command to print when a run ends early.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from typing import NamedTuple

from gristmill.errors import UsageError
from gristmill.recipe import Recipe, build
from gristmill.refresh import Refresh
from gristmill.runs import Run, owed, resolve, runs, unfinished
from gristmill.workspace import Workspace

_AGAIN = ("--from", "--force")


class Resumed(NamedTuple):
    """What goes on."""

    run: Run
    recipe: Recipe
    refresh: Refresh


def resumed(workspace: Workspace, overrides: Sequence[str] = (), refresh: Refresh | None = None) -> Resumed:
    """The run to go on with, its recipe, and what it still has to do again.

    Raises:
        UsageError: the workspace has no run of the loop.
        RecipeError: its recipe is no longer valid, or an override is not.
    """
    known = runs(workspace)
    loops = [run for run in known if run.flow == "improve" and run.recipe is not None]
    if not loops:
        raise UsageError(
            f"no run of the loop is recorded in {workspace}; begin one with `gristmill improve RECIPE -w "
            f"{shlex.quote(str(workspace))}`"
        )
    run = (unfinished(loops) or loops)[-1]
    assert run.recipe is not None
    recipe = build(run.recipe, overrides, source=f"the recipe of run {run.number}")
    return Resumed(run, recipe, refresh_of(workspace, recipe, refresh) if refresh else owed(run))


def refresh_of(workspace: Workspace, recipe: Recipe, refresh: Refresh) -> Refresh:
    """`--from` and `--force`, checked before anything starts.

    Raises:
        UsageError: there is no such stage or turn.
    """
    return resolve(refresh, recipe, runs(workspace) if workspace.root.exists() else [])


def go_on(arguments: Sequence[str], workspace: str) -> str:
    """The command that goes on with what these arguments began.

    A run that was told to do stages again goes on by `resume`, which knows what of that is still owed.
    """
    words = list(arguments)
    if any(word.partition("=")[0] in _AGAIN for word in words):
        words = ["resume", "-w", workspace, *(["--json"] if "--json" in words else [])]
    runner = ["uv", "run"] if "UV_RUN_RECURSION_DEPTH" in os.environ else []
    return shlex.join([*runner, "gristmill", *words])
