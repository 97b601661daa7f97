"""What a person sees while a run works: one line a stage, alive in a terminal, plain in a log.

Draws the updates of `progress` and nothing else. Standard error is used, so that standard output holds only the
result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from gristmill.progress import Update

_MARKS = {"done": ("✓", "green"), "cached": ("✓", "cyan"), "failed": ("✗", "red")}


@dataclass
class _Row:
    update: Update
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class StageTable:
    """A listener for `progress.listening`. Use `shown()` around the run."""

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self.rows: dict[tuple[int, str], _Row] = {}
        self.live = False

    @property
    def cached(self) -> int:
        """Stages that were found in the cache."""
        return sum(row.update.state == "cached" for row in self.rows.values())

    def __call__(self, update: Update) -> None:
        key = (update.turn, update.stage)
        row = self.rows.setdefault(key, _Row(update))
        row.update = update
        if update.state != "running":
            row.ended = time.monotonic()
            if not self.console.is_terminal:
                self.console.print(self._plain(row), highlight=False, soft_wrap=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Draw until the block ends."""
        if not self.console.is_terminal:
            self.console.print(self.title, highlight=False, soft_wrap=True)
            yield
            return
        with Live(self, console=self.console, refresh_per_second=8) as live:
            self.live = True
            try:
                yield
            finally:
                self.live = False  # the last picture shows every stage, however long
                live.vertical_overflow = "visible"

    def __rich__(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1))
        table.add_column("turn", style="dim", no_wrap=True)
        table.add_column("stage", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("time", justify="right", no_wrap=True)
        table.add_column("what", overflow="ellipsis", no_wrap=True)
        turn = -1
        rows = list(self.rows.values())
        if self.live:  # a long loop: the latest stages that fit
            rows = rows[-max(1, self.console.height - 3) :]
        for row in rows:
            update = row.update
            label = "" if update.turn == turn else ("base" if update.turn == 0 else f"turn {update.turn}")
            turn = update.turn
            table.add_row(label, update.stage, _state(update), f"{row.seconds:.1f} s", _what(update))
        parts: list[RenderableType] = [Text(self.title, style="bold"), table]
        if self.live and not rows:
            parts.append(Spinner("dots", "starting Prefect", style="dim"))
        return Group(*parts)

    def _plain(self, row: _Row) -> str:
        update = row.update
        where = "base  " if update.turn == 0 else f"turn {update.turn}"
        return f"{where}  {update.stage:<17} {update.state:<7} {row.seconds:6.1f} s  {update.note}"


def _state(update: Update) -> RenderableType:
    if update.state == "running":
        if update.total:
            return ProgressBar(total=update.total, completed=update.done, width=12)
        return Spinner("dots")
    mark, colour = _MARKS[update.state]
    return Text(f"{mark} {update.state}", style=colour)


def _what(update: Update) -> Text:
    if update.state == "running" and update.total:
        return Text(f"{update.done:,} of {update.total:,} {update.note}", style="dim")
    return Text(update.note, style="dim" if update.state == "cached" else "")
