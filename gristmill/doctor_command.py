"""`gristmill doctor`: what is wrong with a workspace, one line each, with its mend."""

from __future__ import annotations

from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from gristmill.doctor import Engine, Finding, examine
from gristmill.workspace import Workspace

_MARKS = {"ok": ("✓", "green"), "note": ("·", "yellow"), "wrong": ("✗", "red")}


def run(
    *, workspace: Path | str, deep: bool, mend: bool, json: bool, engine: Engine | None, console: Console
) -> list[Finding]:
    """Examine and print.

    Raises:
        WorkspaceBusy: `mend`, and a run is going on.
    """
    place = Workspace(workspace)
    err = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not (deep and err.is_terminal),
    ) as bar:
        task = bar.add_task("hashing again", total=None)
        findings = examine(
            place,
            deep=deep,
            mend=mend,
            engine=engine,
            progress=lambda done, total, _: bar.update(task, completed=done, total=total),
        )
    if json:
        told = [one.model_dump(mode="json") for one in findings]
        console.file.write(orjson.dumps({"findings": told, "wrong": len(still_wrong(findings))}).decode() + "\n")
        return findings
    for one in findings:
        mark, style = ("✓", "cyan") if one.mended else _MARKS[one.level]
        line = Text(f"{mark} {one.check:<10} ", style) + Text(one.what)
        if one.mend:
            line += Text(f" → {one.mend}", "bold" if one.level == "wrong" else "dim")
        console.print(line, soft_wrap=True)
    wrong, mended = len(still_wrong(findings)), sum(one.mended for one in findings)
    done = f"; {mended} mended" if mended else ""
    console.print(Text(f"{wrong} wrong{done}" if wrong else f"nothing is wrong{done}", "bold"))
    return findings


def still_wrong(findings: list[Finding]) -> list[Finding]:
    """What is wrong and was not mended."""
    return [one for one in findings if one.level == "wrong" and not one.mended]
