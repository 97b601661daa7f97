"""`gristmill plan RECIPE|FILES…`: what would happen, and what an evaluation could detect; spends nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gristmill.charts import number
from gristmill.errors import UsageError
from gristmill.planner import Plan, Power, Stage, plan_files, plan_recipe
from gristmill.recipe import Recipe, load
from gristmill.validate_command import split
from gristmill.words import percent
from gristmill.workspace import Workspace

_STYLES = {"new": "", "again": "yellow", "base": "yellow", "cached": "cyan"}


def run(
    arguments: Sequence[str],
    *,
    workspace: Path,
    json: bool = False,
    console: Console | None = None,
) -> Plan:
    """Print a plan to standard output.

    Args:
        arguments: one YAML recipe and overrides, or rollout files.
        workspace: where earlier work is looked up; it need not exist.
        json: print one JSON object instead of text.

    Raises:
        RecipeError: the recipe or an override does not validate.
        InputError: rollout files cannot be read.
        UsageError: neither, or both.
    """
    files, overrides = split(arguments)
    recipes = [one for one in files if one.endswith((".yaml", ".yml"))]
    if not files or (recipes and len(files) > 1):
        raise UsageError("plan expects one recipe (.yaml) with overrides, or rollout files")
    recipe = None
    if recipes:
        recipe = load(Path(recipes[0]), overrides)
        place = Workspace.found(workspace)
        store = place.store if place else None
        plan = plan_recipe(recipe, store)
    elif overrides:
        raise UsageError(f"{overrides[0]} is a recipe's field, but no recipe was given; rollout files take none")
    else:
        plan = plan_files(files)
    console = console or Console()
    if json:
        console.file.write(plan.model_dump_json() + "\n")
    else:
        for part in _parts(plan, recipe):
            console.print(part)
    return plan


def _parts(plan: Plan, recipe: Recipe | None) -> list[RenderableType]:
    parts: list[RenderableType] = []
    if recipe is not None:
        parts += [Text(f"# {recipe.name}, as resolved", style="bold"), Text(recipe.yaml().rstrip(), style="dim")]
        parts += [_title("What would be done"), _stages(plan.stages)]
        if plan.changed:
            parts.append(Text(f"the nearest run that ended here differs in {', '.join(plan.changed)}"))
        most = "at most " if plan.looks > 1 else ""
        spent = f"{most}{plan.rollouts:,} rollouts, {_about(plan)}{plan.tokens:,} tokens generated"
        parts.append(Text(f"in all {spent}, less what is cached"))
    for one in plan.power:
        parts += [_title(f"What an evaluation could detect{f': {one.name}' if one.name else ''}"), *_power(one)]
    for note in plan.notes:
        parts.append(Text(f"note: {note}", style="dim"))
    return parts


def _about(plan: Plan) -> str:
    return "at most " if any(stage.bound and stage.tokens for stage in plan.stages) else "about "


def _title(text: str) -> RenderableType:
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def _stages(stages: Sequence[Stage]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("times", "rows", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold", max_width=44)
    table.add_column("what", overflow="fold")
    for one in stages:
        sign = "≤ " if one.bound else ""
        rows = "" if one.rows is None else f"{sign}{one.rows:,}"
        tokens = "" if one.tokens is None else f"{sign}{one.tokens:,}"
        state = Text(one.state, style=_STYLES[one.state.split(" ")[0].removesuffix(":")])
        table.add_row(one.stage, f"{one.times} ×" if one.times > 1 else "", rows, tokens, state, one.what)
    return table


def _power(one: Power) -> list[RenderableType]:
    points = _points(one.wanted, one)
    can = Text()
    setting = f"{one.tasks:,} tasks × {one.samples} rollouts, {percent(one.confidence)} interval"
    if one.detectable is None:
        can.append(f"{setting}: nothing, since one task allows no interval")
    else:
        can.append(f"{setting}: a lift of {_points(one.detectable, one)} or more", style="bold")
        can.append(f", in {one.power:.0%} of the runs (standard error {_points(one.standard_error, one)})")
    if one.tasks_wanted is None:
        can.append(f"\n{points} are out of reach")
    else:
        can.append(f"\nto see {points}: {one.tasks_wanted:,} tasks × {one.samples} rollouts")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("rollouts a task", f"tasks for {points}", "rollouts of a policy"):
        table.add_column(name, justify="right")
    for choice in one.choices:
        table.add_row(
            str(choice.samples),
            "" if choice.tasks is None else f"{choice.tasks:,}",
            "" if choice.rollouts is None else f"{choice.rollouts:,}",
        )
    variance = one.variance
    why = (
        f"variance within a task {number(variance.within)}, of the difference between tasks "
        f"{number(variance.difference)}; {variance.source}"
    )
    return [can, table, Text(why, style="dim")]


def _points(value: float, one: Power) -> str:
    """A reward difference in points of the reward's range, and as it is where the range is not 0 to 1."""
    points = f"{100 * value / one.unit:.1f}".removesuffix(".0")
    return f"{points} points" + ("" if one.unit == 1 else f" ({number(value)} of a range of {number(one.unit)})")
