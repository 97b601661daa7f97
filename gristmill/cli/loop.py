"""Commands that run the loop, and say how it stands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.app import DEFAULT_WORKSPACE, LOOP, Force, JsonOption, Overrides, RedoFrom, WorkspaceOption, app
from gristmill.cli.running import run_improve


def demo_recipe() -> Path:
    """The recipe of the demo: in the wheel beside this package, in a clone under `recipes/`."""
    here = Path(__file__).resolve().parents[1]
    packaged = here / "recipes" / "arithmetic.yaml"
    return packaged if packaged.exists() else here.parent / "recipes" / "arithmetic.yaml"


@app.command(rich_help_panel=LOOP)
def demo(
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Run the loop on the embedded environment and model: no GPU, key or network."""
    improve(demo_recipe(), overrides, redo_from, force, workspace, json)


@app.command(rich_help_panel=LOOP)
def improve(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Run the loop that a recipe describes; what is done already is not done again."""
    from gristmill.recipe import load
    from gristmill.refresh import Refresh

    again = Refresh(redo_from=redo_from, force=tuple(force or ()))
    run_improve(load(recipe, overrides or ()), workspace, json, again)


@app.command(rich_help_panel=LOOP)
def resume(
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Go on with the last unfinished run of the loop, by the recipe that it recorded."""
    from gristmill.refresh import Refresh
    from gristmill.resume_command import resumed
    from gristmill.workspace import Workspace

    asked = Refresh(redo_from=redo_from, force=tuple(force or ()))
    run, recipe, again = resumed(Workspace(workspace), overrides or (), asked)
    print(f"going on with run {run.number} ({run.outcome or 'unfinished'}, begun {run.started})", file=sys.stderr)
    run_improve(recipe, workspace, json, again)


@app.command(rich_help_panel=LOOP)
def status(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="What one would run; the last run's recipe if not."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what is done, what is stale and why, what runs now, and what to do next."""
    from rich.console import Console

    from gristmill.status_command import run

    run(arguments or (), workspace=workspace, json=json, console=Console())


@app.command(rich_help_panel=LOOP)
def plan(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE|FILE|KEY=VALUE", help="A recipe, or rollout files.")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what a recipe would do and what its evaluation could detect; spends nothing."""
    from gristmill.plan_command import run

    run(arguments, workspace=workspace, json=json)


@app.command("recipe", rich_help_panel=LOOP)
def show_recipe() -> None:
    """Print a recipe with every field, its default and what it means, to start from."""
    from gristmill.recipe import documented

    print(documented(), end="")
