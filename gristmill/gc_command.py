"""`gristmill gc`: what a workspace can spare, by kind; removed only with `--delete`."""

from __future__ import annotations

import shlex
from pathlib import Path

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gristmill.gc import Sweep, collect
from gristmill.words import size
from gristmill.workspace import Workspace, called


def run(
    *, workspace: Path | str, keep_runs: int, days: float | None, delete: bool, json: bool, console: Console
) -> Sweep:
    """Collect and print.

    Raises:
        WorkspaceBusy: `delete`, and a run is going on.
    """
    found = collect(Workspace(workspace), keep_runs=keep_runs, days=days, delete=delete)
    if json:
        console.file.write(orjson.dumps(found.model_dump(mode="json")).decode() + "\n")
        return found
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("", "keep", "", "removed" if delete else "spare", ""):
        table.add_column(title, justify="left" if not table.columns else "right", no_wrap=True)
    for one in found.shares:
        table.add_row(one.kind, f"{one.kept:,}", size(one.kept_bytes), f"{one.swept:,}", size(one.swept_bytes))
    if found.shares:
        console.print(table)
    kept = ", ".join(f"{reason} {count:,}" for reason, count in found.why.items()) or "nothing"
    console.print(Text(f"kept, with all they were made of: {kept}", "dim"), soft_wrap=True)
    if delete:
        console.print(Text(f"{size(found.bytes)} removed"), soft_wrap=True)
    elif found.bytes:
        command = ["gristmill", "gc", "-w", called(workspace), "--keep-runs", str(keep_runs)]
        command += [] if days is None else ["--days", f"{days:g}"]
        console.print(
            Text(f"{size(found.bytes)} can go; nothing was removed. `{shlex.join([*command, '--delete'])}` does"),
            soft_wrap=True,
        )
    else:
        console.print(Text("nothing to remove"), soft_wrap=True)
    return found
