"""Work on other machines: the shards of a stage, run by a cluster that sees the same files.

A `Fleet` runs a named function on a job, somewhere, perhaps more than once: processes and machines die. So that this
changes nothing, a job says all that its result depends on, and one that writes files names their folder in its field
`folder`: what it writes appears there whole, or not at all. Results come in the order of the jobs. Which cluster it is
(tasks/cluster.py has Ray) is not known here.
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import itertools
import shutil
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol


class Running(Protocol):
    """A job that was begun."""

    def result(self) -> Any:
        """Wait for it.

        Raises:
            GristmillError: the cluster lost it, each time that it was tried.
            Exception: whatever the function raised.
        """

    def cancel(self) -> None:
        """Its result is not wanted."""


class Fleet(Protocol):
    """Processes of a cluster."""

    @property
    def width(self) -> int:
        """Jobs of one thread that it runs at a time, now; clusters grow and shrink."""

    def submit(self, function: str, job: Any, *, threads: int = 1, generates: bool = False) -> Running:
        """Begin `package.module:name` on a job; both travel.

        Args:
            threads: processors that it takes.
            generates: whether a model is run: what accelerators the recipe asks for go to these jobs.
        """


_current: contextvars.ContextVar[Fleet | None] = contextvars.ContextVar("fleet", default=None)


def current() -> Fleet | None:
    """The cluster that shards go to; None where they stay on this machine."""
    return _current.get()


@contextlib.contextmanager
def sent_to(fleet: Fleet) -> Iterator[None]:
    """In this block, shards go to a cluster."""
    token = _current.set(fleet)
    try:
        yield
    finally:
        _current.reset(token)


def map_on(
    fleet: Fleet,
    function: str,
    jobs: Iterable[Any],
    *,
    threads: int = 1,
    generates: bool = False,
    ahead: int | None = None,
) -> Iterator[Any]:
    """`function(job)` for each job, in the order of the jobs.

    Args:
        threads, generates: as `Fleet.submit` takes them.
        ahead: jobs that are begun ahead of the one whose result is awaited; if not given two for each that the cluster
            can run: enough for an autoscaler to see that more is wanted, and bounded in memory.

    Raises:
        GristmillError: the cluster lost a job for good.
        Exception: whatever the function raised first, in the order of the jobs.
    """
    source = iter(jobs)
    first = list(itertools.islice(source, 2))
    if len(first) == 1 and not generates:  # not worth the way
        yield resolve(function)(first[0])
        return
    waiting: deque[Running] = deque()
    scratch = f".{uuid.uuid4().hex}"
    folders: set[str] = set()
    try:
        for job in itertools.chain(first, source):
            if folder := getattr(job, "folder", None):
                folders.add(folder)
            waiting.append(
                fleet.submit("gristmill.fleet:run", (function, job, scratch), threads=threads, generates=generates)
            )
            if len(waiting) >= (ahead or 2 * max(1, fleet.width // threads)):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for running in waiting:
            running.cancel()
        for folder in folders:  # what died in mid-job left something there
            shutil.rmtree(Path(folder, scratch), ignore_errors=True)


def run(task: tuple[str, Any, str]) -> Any:
    """What a cluster's process does: the job, its files whole."""
    function, job, scratch = task
    call = resolve(function)
    if not (folder := getattr(job, "folder", None)):
        return call(job)
    Path(folder, scratch).mkdir(exist_ok=True)
    mine = Path(folder, scratch, uuid.uuid4().hex)
    mine.mkdir()
    result = call(job._replace(folder=str(mine)))
    for file in mine.iterdir():
        file.replace(Path(folder, file.name))
    return result


def resolve(function: str) -> Callable[..., Any]:
    """The function that `package.module:name` names."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found
