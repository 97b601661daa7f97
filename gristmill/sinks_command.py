"""`gristmill sinks`: what each sink got and is owed; send it now, send everything again, or give one event up.

Which sinks there are is what the workspace's last run was given, changed by dotted overrides: a sink may be added to a
workspace whose runs are over (`gristmill sinks replay sinks.mlflow={}`). Exit code 1: something is owed still.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from gristmill.errors import UsageError, WorkspaceBusy
from gristmill.recipe import Recipe, SinksRecipe, build
from gristmill.runs import RUNS
from gristmill.sinks import check, configured
from gristmill.sinks.courier import occupied
from gristmill.sinks.delivery import deliver, owes, skip, standing, start_again
from gristmill.workspace import Workspace

Action = Literal["status", "replay", "again", "skip"]


def run(action: Action, arguments: Sequence[str], *, workspace: Path | str, json: bool) -> None:
    """Do what was asked for, for the sinks named or for all, and tell where each stands.

    Raises:
        UsageError: no sink is on, or none of that name.
        WorkspaceBusy: a run delivers at this moment.
    """
    place = Workspace(workspace)
    recipe = settings(place, [one for one in arguments if "=" in one])
    known = configured(recipe)
    named = [one for one in arguments if "=" not in one]
    for name in named:
        if name not in known:
            there = f"there are {', '.join(known)}" if known else "none is on"
            raise UsageError(f"no sink {name} is on in {place}; {there}; turn it on with sinks.{name}={{}}")
    if not known:
        raise UsageError(f"no sink is on in {place}; turn one on, such as sinks.mlflow={{}}, here or in the recipe")
    names = named or list(known)
    if action != "status":
        check(recipe)
        if action == "skip" and not named:
            raise UsageError("`skip` gives up the event that a sink refuses: name the sink")
        _act(place, recipe, action, names, quiet=json)
    standings = [_standing(place, name) for name in names]
    if json:
        import orjson

        print(orjson.dumps(standings).decode())
    else:
        for one in standings:
            print(_sentence(one))
    if action in ("replay", "again") and any(one["owed"] for one in standings):
        sys.exit(1)


def settings(workspace: Workspace, overrides: Sequence[str] = ()) -> SinksRecipe:
    """The sinks of the workspace's last run, with overrides.

    Raises:
        RecipeError: an override is none, or not one of sinks.
    """
    last: dict[str, Any] = {}
    for line in workspace.read(RUNS):
        if line["event"] == "start":
            last = {name: value for name, value in line["recipe"].get("sinks", {}).items() if value is not None}
    if other := next((one for one in overrides if not one.startswith("sinks.")), None):
        raise UsageError(f"{other!r}: only fields of `sinks` can be given here, such as sinks.mlflow={{}}")
    built: Recipe = build({"sinks": last}, overrides)
    return built.sinks


def _act(workspace: Workspace, recipe: SinksRecipe, action: Action, names: Sequence[str], *, quiet: bool) -> None:
    with occupied(workspace) as free:
        if not free:
            raise WorkspaceBusy(f"a run delivers for {workspace} at this moment; ask again when it is over")
        for name in names:
            if action == "again":
                start_again(workspace, name)
            if action == "skip":
                skip(workspace, name)
            else:
                deliver(workspace, name, recipe, on_sent=None if quiet else _counter(name))
    if not quiet and sys.stderr.isatty():
        print(file=sys.stderr)


def _counter(name: str) -> Callable[[int], None]:
    def tell(sent: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {sent} sent", end="", file=sys.stderr, flush=True)

    return tell


def _standing(workspace: Workspace, name: str) -> dict[str, Any]:
    now = standing(workspace, name)
    return {"sink": name, "sent": now.sent, "owed": owes(workspace, name), "error": now.error, "last": now.time}


def _sentence(one: dict[str, Any]) -> str:
    when = f", last {one['last']}" if one["last"] else ""
    why = f": {one['error']}" if one["error"] else ""
    return f"{one['sink']:<12} {one['sent']} sent{when}; " + (
        f"{one['owed']} owed{why}" if one["owed"] else "up to date"
    )
