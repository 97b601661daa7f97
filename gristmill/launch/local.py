"""Local launcher: the job's processes on this machine, which end with the caller whatever ends it.

A keeper process (`watch.py`) runs the job's scripts one after the other and ends all that they started when the caller
dies or asks for it. There is nothing to attach to: a local job does not outlive its caller.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gristmill.launch import Handle, LaunchJob, Phase, Status, watch
from gristmill.recipe import LaunchRecipe


class Local:
    """This machine."""

    name = "local"
    poll = 0.5

    def __init__(self, recipe: LaunchRecipe) -> None:
        self.recipe = recipe
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def check(self) -> None:
        """Nothing is needed but a shell."""

    def find(self, job: LaunchJob, attempt: int, id: str | None) -> Handle | None:
        return None

    def submit(self, job: LaunchJob, attempt: int) -> Handle:
        scripts = [job.train, *([job.finish] if job.finish else [])]
        lock = job.work / "launch.lock"
        # -I: the job's environment is its own affair; the keeper is nothing but the standard library.
        keeper = [sys.executable, "-I", str(Path(watch.__file__)), str(os.getpid()), str(lock)]
        shell = ["bash", "-c", 'for script; do bash "$script" || exit; done', "job", *map(str, scripts)]
        with job.log.open("ab") as log:
            process = subprocess.Popen(
                [*keeper, *shell],
                cwd=job.work,
                env={**os.environ, **self.recipe.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it
            )
        self._processes[str(process.pid)] = process
        return Handle(job, str(process.pid), attempt)

    def status(self, handle: Handle) -> Status:
        code = self._processes[handle.id].poll()
        if code is None:
            return Status(Phase.RUNNING)
        if code == 0:
            return Status(Phase.DONE)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"code {code}"
        return Status(Phase.FAILED, f"it ended with {how}")

    def cancel(self, handle: Handle) -> None:
        process = self._processes[handle.id]
        if process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(2 * watch.GRACE)
        except subprocess.TimeoutExpired:
            # The keeper itself hangs; what it keeps in its own session goes with it.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
