"""Send each sink what it is owed: at least once, in order, each sink on its own.

    sinks/<name>.jsonl    {"time", "position", "sent", "error"}: where delivery stands; it only grows

A sink that raises is left alone until the next attempt and goes on from the event that it refused; another sink does
not notice. Delivery may be killed at any time: at most `_STEP` events are then sent again, under the same ids.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import now
from gristmill.recipe import SinksRecipe
from gristmill.sinks import open_sink
from gristmill.sinks.events import Position, events, owed
from gristmill.workspace import Workspace

_STEP = 16  # events between two lines of the sink's file


class Standing(BaseModel):
    """Where a sink stands: the last line of its file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: str | None = None
    position: Position = Position()
    sent: int = 0
    """Events, since the first."""
    error: str | None = None
    """Why the last attempt stopped."""


def standing(workspace: Workspace, name: str) -> Standing:
    """Where a sink stands; a new one stands at the beginning."""
    lines = workspace.read(_file(name))
    return Standing.model_validate(lines[-1]) if lines else Standing()


def owes(workspace: Workspace, name: str) -> int:
    """Lines that a sink was not told of."""
    return owed(workspace, standing(workspace, name).position)


def deliver(
    workspace: Workspace,
    name: str,
    recipe: SinksRecipe,
    *,
    on_sent: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Standing:
    """Tell one sink all that it is owed now, or as much as it takes.

    Args:
        on_sent: called with the number of events sent so far, in this call.
        stop: asked before each event.
    """
    began = standing(workspace, name)
    position, sent, written = began.position, 0, 0
    error: str | None = None
    sink = None
    try:
        for told in events(workspace, position):
            if stop():
                break
            if told.event is not None:
                sink = sink or open_sink(name, recipe, workspace)
                sink.send(told.event)
                sent += 1
                if on_sent:
                    on_sent(sent)
            position = told.after
            if sent - written >= _STEP:
                written = sent
                _write(workspace, name, Standing(time=now(), position=position, sent=began.sent + sent))
    except Exception as problem:  # a sink is somebody else's code: whatever it raises is its own trouble
        error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:500]
    finally:
        if sink is not None:
            with suppress(Exception):  # all that was taken is told; closing has nothing to add
                sink.close()
    ended = Standing(time=now(), position=position, sent=began.sent + sent, error=error)
    if ended.model_dump(exclude={"time"}) != began.model_dump(exclude={"time"}):
        _write(workspace, name, ended)
    return ended


def start_again(workspace: Workspace, name: str) -> None:
    """Owe a sink everything, as if it were new."""
    _write(workspace, name, Standing(time=now()))


def skip(workspace: Workspace, name: str) -> bool:
    """Give up the event that a sink refuses. False: nothing is owed."""
    began = standing(workspace, name)
    for told in events(workspace, began.position):
        if told.event is not None:
            _write(workspace, name, Standing(time=now(), position=told.after, sent=began.sent))
            return True
    return False


def _write(workspace: Workspace, name: str, line: Standing) -> None:
    workspace.append(_file(name), line.model_dump(mode="json"))


def _file(name: str) -> str:
    return f"sinks/{name}.jsonl"
