"""What a run tells whoever watches it: one update a stage, with how much is done.

Library code and tasks call `advance`; the command line listens and draws. Without a listener (a worker, a test)
updates go nowhere. Nothing here affects results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple

State = Literal["running", "done", "cached", "failed"]


class Update(NamedTuple):
    """One stage of one turn (turn 0: before the first). `done` of `total` in the stage's own unit; 0 of 0: unknown."""

    turn: int
    stage: str
    state: State
    done: int = 0
    total: int = 0
    note: str = ""


Listener = Callable[[Update], None]

_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
_stage: ContextVar[tuple[int, str]] = ContextVar("progress_stage", default=(0, ""))


@contextmanager
def listening(listener: Listener, *, also: bool = False) -> Iterator[None]:
    """Send updates to `listener` inside the block; `also`: besides whoever listens already."""
    earlier = _listener.get() if also else None

    def both(update: Update) -> None:
        listener(update)
        if earlier:
            earlier(update)

    token = _listener.set(both)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage(turn: int, name: str) -> Iterator[None]:
    """Updates inside the block belong to this stage."""
    token = _stage.set((turn, name))
    try:
        yield
    finally:
        _stage.reset(token)


def emit(state: State, done: int = 0, total: int = 0, note: str = "") -> None:
    """Report on the current stage."""
    if listener := _listener.get():
        turn, name = _stage.get()
        listener(Update(turn, name, state, done, total, note))


def advance(done: int, total: int, note: str = "") -> None:
    """The current stage has `done` of `total`."""
    emit("running", done, total, note)
