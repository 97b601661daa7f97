"""`gristmill status [RECIPE] [KEY=VALUE…]`: what is done, what is stale and why, what runs, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gristmill.errors import RecipeError
from gristmill.recipe import load
from gristmill.runs import EVALUATE
from gristmill.status import StageStatus, Status, by_turn, status
from gristmill.words import duration, interval, size
from gristmill.workspace import Workspace, called

_MARKS = {
    "fresh": ("✓", "green"),
    "stale": ("~", "yellow"),
    "missing": ("!", "red"),
    "owed": ("·", "dim"),
    "running": ("▸", "cyan"),
}
_WHY = 3  # reasons shown of one stage; --json has all


def run(arguments: Sequence[str], *, workspace: Path | str, json: bool, console: Console) -> Status:
    """Look and print.

    Raises:
        RecipeError: overrides without a recipe, or one that is wrong.
    """
    recipe = None
    if arguments:
        first, *overrides = arguments
        if "=" in first and not Path(first).exists():
            raise RecipeError(f"status: {first!r} changes a recipe, and none is named before it")
        recipe = load(Path(first), overrides)
    place = Workspace(workspace)
    found = status(place, recipe)
    if json:
        console.file.write(orjson.dumps(found.model_dump(mode="json")).decode() + "\n")
    else:
        _print(found, called(workspace), list(arguments), console)
    return found


def _print(found: Status, workspace: str, arguments: list[str], console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    if found.last is None and not found.stages:
        say(f"nothing has run in {workspace} yet; begin with `gristmill demo` or `gristmill improve RECIPE`")
        return
    if found.last is not None:
        last = found.last
        title = f"run {last.run} ({last.command}), {last.outcome}"
        say(f"{title}, begun {last.began}" + (f", ended {last.ended}" if last.ended else ""), "bold")
        if last.error and last.outcome != "done":
            say(f"  {last.error}", "red")
    if found.now is not None:
        say(_now(found), "cyan")
    if found.changed:
        say(f"\n{found.recipe}, against run {found.compared_with}: {'; '.join(found.changed)}")
    elif found.recipe:
        say(
            f"\n{found.recipe}, as run {found.compared_with} had it"
            if found.compared_with
            else f"\n{found.recipe}: new"
        )
    for turn, stages in by_turn(found.stages).items():
        _turn(turn, stages, console)
    say("")
    if found.champion:
        held = found.champion
        where = f"{held.recipe} turn {held.turn}, since {held.since}"
        say(f"champion: {held.checkpoint}, {where}, lift {held.lift:+.3f}{interval(held.low, held.high, '+')}")
    else:
        say("champion: none yet")
    sizes = sorted(found.disk.items(), key=lambda one: (-one[1], one[0]))
    total = sum(found.disk.values())
    shown = ", ".join(f"{name} {size(count)}" for name, count in sizes[:6])
    say(f"disk: {size(total)} ({shown}); {size(found.free)} free")
    say(_next(found, workspace, arguments))


def _turn(turn: int, stages: list[StageStatus], console: Console) -> None:
    name = "base" if turn == 0 else f"turn {turn}"
    states = {one.state for one in stages}
    if states in ({"fresh"}, {"owed"}):
        state = states.pop()
        mark, style = _MARKS[state]
        words = ", ".join(one.stage for one in stages)
        console.print(Text(f"{name:<7} {mark} all {len(stages)} stages {state}", style) + Text(f"  {words}", "dim"))
        return
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
    table.add_column(width=7, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row, one in enumerate(stages):
        mark, style = _MARKS[one.state]
        why = list(one.why[:_WHY]) + ([f"and {len(one.why) - _WHY} more"] if len(one.why) > _WHY else [])
        table.add_row(name if row == 0 else "", one.stage, Text(f"{mark} {one.state}", style), "; ".join(why))
    console.print(table)


def _now(found: Status) -> str:
    now = found.now
    assert now is not None
    if now.stage is None:
        return f"  process {now.pid or 'unknown'} holds the workspace"
    where = "base" if now.turn == 0 else f"turn {now.turn}"
    much = f": {now.done:,} of {now.total:,} {now.note}" if now.total else ""
    since = ""
    if now.since:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(now.since)).total_seconds()
        since = f", for {duration(max(0.0, seconds))}"
    return f"  now: {where} {now.stage}{much.rstrip()} (process {now.pid}{since})"


def _next(found: Status, workspace: str, arguments: list[str]) -> str:
    """What to do, in one line."""
    place = ["-w", workspace]
    if found.now is not None:
        return "next: wait for the run, or interrupt it; what it finished is kept"
    if found.last is not None and found.last.command.startswith("prepare"):
        return "next: the same `gristmill prepare` command goes on from here" if found.owed else "nothing is owed"
    if found.recipe is None and found.last is not None and found.last.command.startswith(EVALUATE):
        return "nothing is owed: what ran here are evaluations; `gristmill improve RECIPE` begins a loop"
    command = shlex.join(["gristmill", *(["improve", *arguments] if arguments else ["resume"]), *place])
    if not found.owed:
        return f"nothing is owed; `{command}` would find everything cached"
    took = "" if found.owed_seconds is None else f", which took {duration(found.owed_seconds)} before"
    return f"next: `{command}` does {found.owed} stage{'s' if found.owed > 1 else ''}{took}"
