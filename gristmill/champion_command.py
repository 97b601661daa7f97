"""`gristmill champion`: who is champion, since when, on what evidence; rollback, aliases, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from gristmill import names
from gristmill.artifact import ArtifactRef
from gristmill.champions import Champion, champions, registry, roll_back
from gristmill.errors import StoreError
from gristmill.statistics import Estimate
from gristmill.workspace import Workspace
from gristmill.workspace import called as as_asked

if TYPE_CHECKING:
    from rich.console import Console


def show(workspace: Path, *, json: bool, console: Console) -> None:
    """The champion with its evidence, the aliases, and every promotion and rollback before."""
    from rich.text import Text

    from gristmill.promotion import read_decision

    place = Workspace(workspace)
    entries, holding = registry(place), champions(place)
    said = names.labels(place)
    if json:
        lines = [
            entry.model_dump(mode="json")
            | {"names": list(said.get(entry.checkpoint, ())), "champion": bool(holding) and entry == holding[-1]}
            for entry in entries
        ]
        console.file.write(orjson.dumps(lines).decode() + "\n")
        return

    def called(ref: ArtifactRef) -> str:
        labels = [label for label in said.get(ref, ()) if label != "champion"]
        return f"{', '.join(labels)} ({ref})" if labels else str(ref)

    if not entries:
        console.print(Text(f"no champion in {as_asked(workspace)}: nothing has been promoted yet"))
    elif not holding:
        console.print(Text("no champion: every promotion was rolled back"))
    else:
        now = holding[-1]
        console.print(Text.assemble((called(now.checkpoint), "bold"), f" is champion since {now.time}"))
        console.print(Text(f"{now.recipe}, turn {now.turn}; it replaced {called(now.replaced)}"))
        try:
            decision = read_decision(place.store, now.decision)
            console.print(Text(f"evidence {now.decision}: {decision.reason}"))
            held = sum(guard.passed for guard in decision.guards)
            if decision.guards:
                console.print(Text(f"guards: {held} of {len(decision.guards)} held"))
        except (StoreError, OSError):  # deleted since; the registry has the lift
            console.print(Text(f"evidence {now.decision} (not in the store any more): lift {_lift(now.lift)}"))
    if entries:
        console.print()
    for entry in entries:
        if isinstance(entry, Champion):
            mark = "*" if holding and entry == holding[-1] else " "
            where = f"{entry.recipe} turn {entry.turn}"
            line = f"{mark} {entry.time}  {where}  {called(entry.checkpoint)}  lift {_lift(entry.lift)}"
        else:
            why = f": {entry.reason}" if entry.reason else ""
            line = f"  {entry.time}  {called(entry.checkpoint)} rolled back to {called(entry.back_to)}{why}"
        console.print(Text(line))
    aliases = [one for one in names.names(place).values() if one.what == "alias"]
    if aliases:
        console.print()
    for one in aliases:
        assert one.ref is not None
        console.print(Text(f"alias {one.name}: {called(one.ref)}, since {one.time} by {one.by}"))


def step_back(workspace: Path, reason: str, *, json: bool, console: Console) -> None:
    """Take the last promotion back."""
    taken = roll_back(Workspace(workspace), reason)
    if json:
        console.file.write(taken.model_dump_json() + "\n")
    else:
        console.print(
            f"{taken.checkpoint} is rolled back; {taken.back_to} is champion again, for the next run too",
            soft_wrap=True,
        )


def alias(workspace: Path, name: str, what: str | None, *, remove: bool, json: bool, console: Console) -> None:
    """Point an alias at a model (the champion, if none is named), or take it away."""
    place = Workspace(workspace)
    before = names.names(place).get(name)
    ref = None if remove else names.resolve(place, what or "champion")
    made = names.give(place, name, ref, "alias")
    if json:
        console.file.write(made.model_dump_json() + "\n")
        return
    moved = f" (before: {before.ref})" if before is not None else ""
    console.print(f"{name} {'is taken away' if made.ref is None else f'is {made.ref}'}{moved}")


def export(workspace: Path, what: str | None, out: Path, *, force: bool, json: bool, console: Console) -> None:
    """Write a model with its card to a folder."""
    from gristmill.model_export import export as write

    place = Workspace(workspace)
    made = write(place, names.resolve(place, what or "champion"), out, force=force)
    if json:
        console.file.write(made.model_dump_json() + "\n")
        return
    console.print(f"{made.model} ({made.digest[:12]}) in {made.folder}: {', '.join(made.files)}")
    if not made.promoted:
        console.print("the gate did not promote this model, or it was rolled back; the card says so", style="yellow")


def _lift(lift: Estimate) -> str:
    interval = f" [{lift.low:+.3f}, {lift.high:+.3f}]" if lift.low is not None and lift.high is not None else ""
    return f"{lift.mean:+.3f}{interval}"
