"""Several files at once, to a bucket or from it, with progress where that takes a while."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from gristmill import progress

S = TypeVar("S")
T = TypeVar("T")

THREADS = 8
_TOLD = 16 * 1024 * 1024  # bytes from which on a transfer shows its progress
_TICK = 0.2  # seconds


def each(entries: Sequence[S], act: Callable[[S], T], tell: Callable[[], None] | None = None) -> list[T]:
    """Act on every file, several at a time; results in order. `tell` is called from this thread now and then."""
    if tell:
        tell()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(act, entry) for entry in entries]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, _TICK if tell else None, FIRST_EXCEPTION)
            if tell:
                tell()
            if any(future.exception() for future in finished):
                pool.shutdown(cancel_futures=True)
                break
        for future in futures:
            if not future.cancelled() and (error := future.exception()):
                raise error
        return [future.result() for future in futures]


class Counter:
    """A number that several threads add to."""

    def __init__(self) -> None:
        self.value = 0
        self._lock = threading.Lock()

    def add(self, amount: int) -> None:
        with self._lock:
            self.value += amount

    def telling(self, total: int, note: str) -> Callable[[], None] | None:
        """What shows the progress of a large transfer; None for one that is over before anybody looks."""
        return (lambda: progress.advance(self.value, total, note)) if total >= _TOLD else None


def write_whole(path: Path, data: bytes) -> None:
    """All or nothing, for files that other processes may read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    temporary.write_bytes(data)
    temporary.replace(path)
