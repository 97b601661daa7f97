"""Worker processes for ingest: plain Python children on pipes.

A child is started as a fresh interpreter, so the caller's threads, `__main__` and state do not matter.
It takes parts, writes them, and asks its parent to settle each. It ends when the pipe closes, so it never
outlives its parent, however that ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection

from gristmill.errors import GristmillError
from gristmill.part import Claim, Part, PartWriter, Settled


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

    def write(self, part: Part, settle: Callable[[Claim], Settled]) -> None:
        """Have the child write a part.

        Raises:
            InputError: as `PartWriter.write`.
            GristmillError: the child died.
        """
        try:
            self._pipe.send(part)
            claim = self._pipe.recv()
            if isinstance(claim, Exception):
                raise claim
            self._pipe.send(settle(claim))
            done = self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise GristmillError(
                f"an ingest worker died with exit code {self._process.wait()}, most likely for want of "
                "memory; close other programs and run again"
            ) from None
        if isinstance(done, Exception):
            raise done

    def close(self) -> None:
        """End the child at once."""
        self._process.kill()
        self._process.wait()
        self._pipe.close()


def serve(descriptor: int) -> None:
    """A child's life: take parts from the pipe until it closes."""
    # Ctrl-C reaches the whole process group; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe = Connection(descriptor)
    writer = PartWriter()

    def settle(claim: Claim) -> Settled:
        pipe.send(claim)
        settled = pipe.recv()
        assert isinstance(settled, Settled)
        return settled

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            part = pipe.recv()
            try:
                writer.write(part, settle)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                pipe.send(error)
            else:
                pipe.send(None)
    os._exit(0)
