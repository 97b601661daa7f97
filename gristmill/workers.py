"""Worker processes on one machine: plain Python children on pipes.

A child is started as a fresh interpreter, so the caller's threads, `__main__` and state do not matter. It runs
named functions, which may ask their caller questions while they run. It ends when the pipe closes, so it never
outlives its parent, however that ended.

What is computed never depends on how many children there are: callers cut their work by content, not by workers.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from gristmill import fleet
from gristmill.errors import GristmillError

Ask = Callable[[Any], Any]
"""How a running function asks its caller something: question in, answer out."""

_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Worker:
    """One child. Not thread-safe: one thread drives it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            start = (
                f"import sys; sys.path[:] = {sys.path!r}; from gristmill.workers import serve; serve({theirs.fileno()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", start], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        self._pipe = Connection(ours.detach())
        self.closed = False

    def run(self, function: str, job: Any, answer: Ask | None = None) -> Any:
        """Have the child run `module:function`, as `function(job)`, or as `function(job, ask)` if `answer` is given.

        Raises:
            GristmillError: the child died.
            Exception: whatever the function raised, or `answer`.
        """
        try:
            self._pipe.send((function, job, answer is not None))
            while True:
                kind, value = self._pipe.recv()
                if kind == "ask":
                    assert answer is not None
                    try:
                        told = answer(value)
                    except BaseException:
                        self.close()  # it waits for an answer that will not come
                        raise
                    self._pipe.send(told)
                elif kind == "raised":
                    raise value
                else:
                    return value
        except _GONE:
            code = self._process.wait()
            self.close()
            raise GristmillError(
                f"a worker process died with exit code {code}, most likely for want of memory; "
                "close other programs and run again"
            ) from None

    def close(self) -> None:
        """End the child at once."""
        if self.closed:
            return
        self.closed = True
        self._process.kill()
        self._process.wait()
        self._pipe.close()


class Crew:
    """Children that several pieces of work share, each started when it is first needed."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or cores()
        """Processes, this one counted."""
        self._children: list[Worker] = []

    def children(self, count: int) -> list[Worker]:
        """At most `count` children, fewer if the crew is smaller."""
        self._children = [child for child in self._children if not child.closed]
        while len(self._children) < min(count, self.workers - 1):
            self._children.append(Worker())
        return self._children[: max(0, count)]

    def close(self) -> None:
        while self._children:
            self._children.pop().close()


_current: contextvars.ContextVar[Crew | None] = contextvars.ContextVar("crew", default=None)


@contextlib.contextmanager
def crew(workers: int | None = None) -> Iterator[Crew]:
    """The crew of the enclosing block, or one for this block: nested work shares one set of children.

    Args:
        workers: processes, this one counted; all cores if not given. A different number makes a crew of its own.
    """
    current = _current.get()
    if current is not None and workers in (None, current.workers):
        yield current
        return
    made = Crew(workers)
    token = _current.set(made)
    try:
        yield made
    finally:
        _current.reset(token)
        made.close()


def map_ordered(function: str, jobs: Iterable[Any], workers: int | None = None) -> Iterator[Any]:
    """`function(job)` for each job, in this process and in children; results come in the order of the jobs.

    At most two jobs a process are begun ahead of the one whose result is awaited, so memory stays bounded.

    Args:
        function: `package.module:name`; jobs and results must pickle.
        workers: processes, this one counted; if not given a cluster's (gristmill/fleet.py), or those of the current
            crew.

    Raises:
        GristmillError: a child died.
        Exception: whatever the function raised first, in the order of the jobs.
    """
    if workers is None and (cluster := fleet.current()):
        yield from fleet.map_on(cluster, function, jobs)
        return
    here = fleet.resolve(function)
    current = _current.get()
    if current is not None and workers in (None, current.workers):
        yield from _map(function, here, iter(jobs), current)
    else:
        # not by `crew`: a generator must not set its caller's context
        with contextlib.closing(Crew(workers)) as made:
            yield from _map(function, here, iter(jobs), made)


def _map(function: str, here: Callable[[Any], Any], jobs: Iterator[Any], shared: Crew) -> Iterator[Any]:
    ahead = 2 * shared.workers
    changed = threading.Condition()
    results: dict[int, tuple[bool, Any]] = {}
    begun = given = 0
    ended = False

    def take(*, wait: bool) -> tuple[int, Any] | None:
        """The next job; None if there is none, or none that may be begun yet and we do not wait."""
        nonlocal begun, ended
        with changed:
            if wait:
                changed.wait_for(lambda: ended or begun < given + ahead)
            if ended or begun >= given + ahead:
                return None
            try:
                job = next(jobs)
            except StopIteration:
                ended = True
                changed.notify_all()
                return None
            begun += 1
            return begun - 1, job

    def work(number: int, call: Callable[[Any], Any], job: Any) -> None:
        try:
            result = (True, call(job))
        except BaseException as error:
            result = (False, error)
        with changed:
            results[number] = result
            changed.notify_all()

    def drive(child: Worker) -> None:
        while taken := take(wait=True):
            work(taken[0], functools.partial(child.run, function), taken[1])

    first = [taken for _ in range(2) if (taken := take(wait=False))]
    # one job needs no child
    children = shared.children(shared.workers - 1) if len(first) > 1 else []
    threads = [
        threading.Thread(target=contextvars.copy_context().run, args=(drive, child), daemon=True) for child in children
    ]
    for thread in threads:
        thread.start()
    try:
        while True:
            while given not in results and (taken := first.pop(0) if first else take(wait=False)):
                work(taken[0], here, taken[1])
            with changed:
                if given == begun and ended:
                    return
                while given not in results:
                    changed.wait()
                done, value = results.pop(given)
                given += 1
                changed.notify_all()
            if not done:
                raise value
            yield value
    finally:
        with changed:
            ended = True
            changed.notify_all()
        for thread in threads:
            thread.join()


def serve(descriptor: int) -> None:
    """A child's life: run what the pipe asks for until it closes."""
    # Ctrl-C reaches the whole process group; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)

    def ask(question: Any) -> Any:
        pipe.send(("ask", question))
        return pipe.recv()

    with contextlib.suppress(*_GONE):
        while True:
            function, job, asks = pipe.recv()
            try:
                call = fleet.resolve(function)
                result = call(job, ask) if asks else call(job)
            except _GONE:
                raise
            except Exception as error:
                pipe.send(("raised", error))
            else:
                pipe.send(("done", result))
    os._exit(0)
