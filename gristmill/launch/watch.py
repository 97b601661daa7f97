"""Keeper of a local job, a program without imports of ours: `python watch.py PARENT_PID LOCK COMMAND…`.

Runs the command and ends with its exit code. If the parent dies, or this process gets SIGTERM or SIGINT, everything
that the command started is ended first, also what has left for a session of its own (torchrun's workers, Ray's
daemons): on Linux such processes become children of this one. `LOCK` is held meanwhile, so that a job which is
started again waits until the last of its earlier processes is gone.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time

GRACE = 5.0  # seconds between SIGTERM and SIGKILL
PATIENCE = 30.0  # seconds to wait for an earlier job's end
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, linux/prctl.h


def main(parent: int, lock: str, command: list[str]) -> int:
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopped.append(number))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    with open(lock, "w") as held:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until or os.getppid() != parent or stopped:
                    print("another process of this job is still running", file=sys.stderr)
                    return 75  # EX_TEMPFAIL
                time.sleep(0.1)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        code = None
        # Polled: PR_SET_PDEATHSIG fires when the parent's thread ends, and parents start us from worker threads.
        while code is None and not stopped and os.getppid() == parent:
            try:
                code = child.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        end_all()
        return code if code is not None else 128 + signal.SIGTERM


def end_all() -> None:
    """End all descendants: politely, then surely."""
    until = time.monotonic() + GRACE
    sign = signal.SIGTERM
    told: set[int] = set()
    while left := descendants():
        if sign is signal.SIGTERM and time.monotonic() > until:
            sign, told = signal.SIGKILL, set()
        for pid in left - told:
            try:
                os.kill(pid, sign)
            except ProcessLookupError:
                continue
        told |= left
        reap()
        time.sleep(0.05)
    reap()  # a zombie still answers `kill -0`, and whoever waits for the lock may ask


def descendants() -> set[int]:
    """Every live process under this one; zombies are none."""
    parents: dict[int, int] = {}
    if sys.platform != "linux":
        listed = subprocess.run(["ps", "-axo", "pid=,ppid=,stat="], capture_output=True, text=True).stdout
        rows = [line.split() for line in listed.splitlines()]
        parents = {int(row[0]): int(row[1]) for row in rows if not row[2].startswith("Z")}
    else:
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    state, above = file.read().rpartition(b")")[2].split()[:2]
            except OSError:
                continue
            if state != b"Z":
                parents[int(name)] = int(above)
    found: set[int] = set()
    level = {os.getpid()}
    while level:
        level = {pid for pid, above in parents.items() if above in level} - found
        found |= level
    return found


def reap() -> None:
    """Collect whatever has died as our child, so that it is no zombie."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
