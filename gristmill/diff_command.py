"""`gristmill diff A B`: two runs of a workspace, by number; or two selections, each a digest (or its start) in the
workspace, a folder or a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gristmill import selection
from gristmill.diff import Diff, diff
from gristmill.errors import UsageError
from gristmill.run_diff import RunDiff, Turned, diff_runs
from gristmill.runs import find
from gristmill.selection import RULES
from gristmill.statistics import Estimate
from gristmill.words import interval
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    import pyarrow as pa

_SHOWN = 10
_RUN = re.compile(r"(run)?[ :#-]*\d{1,5}|last", re.IGNORECASE)


class _Side(NamedTuple):
    name: str
    rows: pa.Table
    settings: dict[str, Any] | None


def run(a: str, b: str, *, workspace: Path, json: bool, console: Console) -> Diff | RunDiff:
    """Compare and print.

    Raises:
        UsageError: there is no such run or selection, or several selections begin with these characters.
    """
    if all(_RUN.fullmatch(given.strip()) and not Path(given).exists() for given in (a, b)):
        place = Workspace(workspace)
        between = diff_runs(place, find(place, a), find(place, b))
        if json:
            console.file.write(orjson.dumps(between.model_dump(mode="json"), option=orjson.OPT_NON_STR_KEYS).decode())
            console.file.write("\n")
        else:
            _print_runs(between, console)
        return between
    one, two = _side(a, workspace), _side(b, workspace)
    settings = (one.settings, two.settings) if one.settings is not None and two.settings is not None else None
    found = diff(one.rows, two.rows, names=(one.name, two.name), settings=settings)
    if json:
        console.file.write(orjson.dumps(found.model_dump(mode="json")).decode() + "\n")
        return found
    _print(found, console)
    return found


def _side(given: str, workspace: Path) -> _Side:
    path = Path(given)
    name = given
    if not path.exists():
        store = Workspace(workspace).store
        start = given.removeprefix("selection:").rstrip("…")
        refs = [ref for ref in store.refs() if ref.kind == "selection" and ref.digest.startswith(start)]
        if len(refs) != 1:
            every = sorted(
                (ref for ref in store.refs() if ref.kind == "selection"),
                key=lambda ref: store.manifest(ref).created,
                reverse=True,
            )
            there = ", ".join(f"{ref.short} ({store.manifest(ref).created})" for ref in every[:_SHOWN]) or "none"
            problem = f"{len(refs)} selections begin with {start}" if refs else f"no selection {given}"
            raise UsageError(f"{problem} here or in workspace {workspace}; its selections, newest first: {there}")
        path, name = store.path(refs[0]), refs[0].short
    rows = selection.read(path)
    asked = (path if path.is_dir() else path.parent) / RULES
    if not asked.is_file():
        return _Side(name, rows, None)
    told = orjson.loads(asked.read_bytes())
    return _Side(name, rows, {**told["settings"], "seed": told["seed"], "decisions": told["decisions"]["count"]})


def _print(found: Diff, console: Console) -> None:
    console.print(Text(f"{found.a} → {found.b}", "bold"))
    for field, (before, after) in found.settings.items():
        console.print(Text(f"{field}: {_plain(before)} → {_plain(after)}"))
    console.print(
        Text(
            f"{found.stayed:,} chosen in both, {len(found.came):,} came, {len(found.went):,} went "
            f"({found.chosen_in_a:,} → {found.chosen_in_b:,})"
        )
    )
    for title, counts, rows in (
        ("came, dropped before by", found.came_by, found.came),
        ("went, dropped now by", found.went_by, found.went),
    ):
        if not rows:
            continue
        console.print(Text(f"\n{title}", "bold"))
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        for rule, count in counts.items():
            table.add_row(f"{count:,}", Text(rule))
        console.print(table)
        for row in rows[:_SHOWN]:
            console.print(Text(f"  {row.rollout_id}  reward {row.reward:g}  {row.rule}", "dim"))
        if len(rows) > _SHOWN:
            console.print(Text(f"  … and {len(rows) - _SHOWN:,} more (--json has all)", "dim"))


def _print_runs(found: RunDiff, console: Console) -> None:
    def say(text: str, style: str = "") -> None:
        console.print(Text(text, style), soft_wrap=True)

    say(f"run {found.a.run} → run {found.b.run}", "bold")
    for side in (found.a, found.b):
        say(
            f"run {side.run}: {side.command}, {side.outcome}, begun {side.began}, gristmill {side.gristmill or '?'}",
            "dim",
        )
    for field, (before, after) in found.recipe.items():
        say(f"{field}: {_plain(before)} → {_plain(after)}")
    if not found.recipe:
        say("the same recipe")
    say("every stage has the same result" if found.parted is None else f"they part at {found.parted}")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("", f"run {found.a.run}", f"run {found.b.run}"):
        table.add_column(title, no_wrap=True)
    table.add_row("base, mean reward", _scored(found.a.base), _scored(found.b.base))
    for turn in sorted(found.a.turns.keys() | found.b.turns.keys()):
        one, two = found.a.turns.get(turn, Turned()), found.b.turns.get(turn, Turned())
        table.add_row(Text(f"turn {turn}" if turn else "prepare", "bold"))
        for name, left, right in (
            ("rollouts collected", one.collected, two.collected),
            ("rows to choose from", one.read, two.read),
            ("chosen", one.chosen, two.chosen),
            *(
                (f"  dropped: {reason}", one.dropped.get(reason, 0), two.dropped.get(reason, 0))
                for reason in sorted(one.dropped.keys() | two.dropped.keys())
            ),
            ("examples", one.examples, two.examples),
            ("mean reward", _scored(one.mean_reward), _scored(two.mean_reward)),
            ("lift over champion", _scored(one.lift, sign="+"), _scored(two.lift, sign="+")),
            ("gate", one.verdict, two.verdict),
            ("checkpoint", one.checkpoint, two.checkpoint),
        ):
            if (left, right) != (None, None):
                style = "" if left == right else "yellow"
                table.add_row(f"  {name}", Text(_cell(left), style), Text(_cell(right), style))
    console.print(table)


def _scored(estimate: Estimate | None, sign: str = "") -> str | None:
    if estimate is None:
        return None
    return f"{estimate.mean:{sign}.3f}{interval(estimate.low, estimate.high, sign)}"


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
