"""A courier delivers while a run works: a process of its own, so that no sink can slow, crash or hang the run.

`python -m gristmill.sinks.courier WORKSPACE SETTINGS` looks for news whenever the workspace's files grew, each sink in
its own thread. Its standard input is held open by the run: when that ends, however it ends, the courier delivers what
is left for at most `sinks.patience` seconds, and goes. One courier at a time works in a workspace.
"""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from gristmill.recipe import SinksRecipe
from gristmill.sinks import configured
from gristmill.sinks.delivery import deliver, owes, standing
from gristmill.workspace import Workspace

_LOOK = 2.0  # seconds between two looks at the files
_RETRY = 30.0  # seconds before a sink that failed is asked again, while the run goes on
_SPARE = 5.0  # seconds that the courier gets to end by itself
LOG = "sinks/courier.log"
LOCK = "sinks/lock"


class Delivered(NamedTuple):
    """What a sink got during a run."""

    sink: str
    sent: int
    owed: int
    error: str | None

    def __str__(self) -> str:
        if not self.owed:
            return f"{self.sink} {self.sent} sent" if self.sent else f"{self.sink} up to date"
        return f"{self.sink} owed {self.owed} ({self.error or 'no answer in time'})"


@contextmanager
def couriering(workspace: Workspace, recipe: SinksRecipe) -> Iterator[list[Delivered]]:
    """Deliver while the block works, and for a bounded time after it; the list is filled at the end.

    Never raises for a sink's sake. With no sink on, nothing is started.
    """
    delivered: list[Delivered] = []
    names = configured(recipe)
    if not names:
        yield delivered
        return
    before = {name: standing(workspace, name).sent for name in names}
    folder = workspace.root / "sinks"
    folder.mkdir(parents=True, exist_ok=True)
    with (workspace.root / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gristmill.sinks.courier", workspace.location, recipe.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C ends the run; what it left is still told
            env=_environment(recipe),
        )
    try:
        yield delivered
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(recipe.patience + _SPARE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for name in names:
            now = standing(workspace, name)
            delivered.append(Delivered(name, now.sent - before[name], owes(workspace, name), now.error))


@contextmanager
def occupied(workspace: Workspace) -> Iterator[bool]:
    """Be the one who delivers, for the block. False: a courier is at work."""
    path = workspace.root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _locked(handle)
    finally:
        os.close(handle)


def _environment(recipe: SinksRecipe) -> dict[str, str]:
    """The run's, but the hub may be reached if a sink is for it, and MLflow sends no telemetry."""
    changed = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1", "PYTHONWARNINGS": "ignore"}
    if recipe.hub is not None or recipe.trackio is not None:
        changed["HF_HUB_OFFLINE"] = "0"
    return {**os.environ, **changed}


class _Round:
    """One sink's thread: delivers when woken, asks a sink that failed again after a while."""

    def __init__(self, workspace: Workspace, name: str, recipe: SinksRecipe) -> None:
        self.workspace, self.name, self.recipe = workspace, name, recipe
        self.news, self.last = threading.Event(), threading.Event()
        self.deadline = float("inf")
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            self.news.wait()
            self.news.clear()
            last = self.last.is_set()
            ended = deliver(self.workspace, self.name, self.recipe, stop=lambda: time.monotonic() > self.deadline)
            if last:
                return
            if ended.error:
                print(f"{self.name}: {ended.error}", file=sys.stderr, flush=True)
                self.last.wait(_RETRY)
                self.news.set()


def main(location: str, settings: str) -> None:
    """Deliver until standard input ends, and a bounded time longer."""
    os.nice(10)
    recipe = SinksRecipe.model_validate_json(settings)
    workspace = Workspace(location)
    lock = os.open(workspace.root / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    rounds: list[_Round] = []
    seen: object = None
    parent = True
    deadline = float("inf")
    while parent or not rounds:
        if not rounds and _locked(lock):
            rounds = [_Round(workspace, name, recipe) for name in configured(recipe)]
        if rounds and (now := _size(workspace)) != seen:
            seen = now
            for one in rounds:
                one.news.set()
        if not parent and time.monotonic() > deadline:
            return  # another courier is at work, and will tell of this too
        ready, _, _ = select.select([sys.stdin], [], [], _LOOK if parent else 0.2)
        if parent and ready and not os.read(sys.stdin.fileno(), 1024):
            parent = False
            deadline = time.monotonic() + recipe.patience
    for one in rounds:
        one.deadline = deadline
        one.last.set()
        one.news.set()
    for one in rounds:
        one.thread.join(max(0.0, deadline - time.monotonic()))
    os._exit(0)  # a sink that hangs does not hold this process


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _size(workspace: Workspace) -> tuple[int, ...]:
    """Grows whenever there is news."""
    files = [workspace.root / name for name in ("runs.jsonl", "journal.jsonl", "champions.jsonl")]
    return tuple(path.stat().st_size if path.exists() else 0 for path in files)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
