"""How commands print: what is for people, what is for programs, and what libraries may say."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gristmill import progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_ANY_WIDTH = 100_000  # columns of what is no terminal


def console() -> Console:
    """Standard output; lines are broken, and what has columns is cut to fit, for people only."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=_ANY_WIDTH if piped else None)


def print_json(value: Any) -> None:
    import orjson

    print(orjson.dumps(value).decode())


@contextmanager
def showing() -> Iterator[None]:
    """What is under way in the block is one line on standard error, in a terminal; a run that draws its own replaces
    it."""
    bar = _Bar()
    try:
        with progress.listening(bar):
            yield
    finally:
        bar.close()


class _Bar:
    """A listener. Nothing is imported for it before there is something to show."""

    def __init__(self) -> None:
        self._shown: Progress | None = None

    def __call__(self, update: progress.Update) -> None:
        if update.state != "running" or update.done >= update.total or not sys.stderr.isatty():
            self.close()
            return
        note = f"{update.done:,} of {update.total:,} {update.note}"
        if self._shown is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (BarColumn(), TextColumn("{task.description}"))
            self._shown = Progress(*columns, console=Console(stderr=True), transient=True)
            self._shown.add_task(note, total=update.total)
            self._shown.start()
        self._shown.update(self._shown.task_ids[0], description=note, completed=update.done, total=update.total)

    def close(self) -> None:
        if self._shown is not None:
            self._shown.stop()
            self._shown = None


def quiet_libraries() -> None:
    """No telemetry, no hub, no wall of warnings; whoever sets these variables keeps what they set."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its terminal log; what goes to the API stays
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
