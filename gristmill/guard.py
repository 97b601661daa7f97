"""Runs a command that must not outlive its parent: `python -m gristmill.guard SECONDS COMMAND…`.

The parent holds this process's standard input and starts it as the leader of a new process group. When the pipe closes,
because the parent closed it or died in whatever way, the command gets SIGTERM, some seconds to clean up, and then its
whole group is killed. Ends with the command's exit code.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time


def main() -> int:
    """Run the command of the command line."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    # Ours is the group that is signalled at the end; the order of things is ours too.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_default_signals)
    while child.poll() is None:
        ready, _, _ = select.select([sys.stdin], [], [], 0.2)
        if ready and not os.read(sys.stdin.fileno(), 1):
            break
    if child.poll() is None:
        child.terminate()
        until = time.monotonic() + grace
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    code = child.returncode
    if code is None or code < 0 or not _alone():
        os.killpg(0, signal.SIGKILL)  # this process too
    return code


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _alone() -> bool:
    """Whether nothing else is left of the group (SIGTERM is ignored here, so asking kills nothing of ours)."""
    time.sleep(0.1)
    me, group = os.getpid(), os.getpgid(0)
    for name in os.listdir("/proc") if os.path.isdir("/proc") else []:
        try:
            if name.isdigit() and int(name) != me and os.getpgid(int(name)) == group:
                return False
        except ProcessLookupError:
            continue
    return True


if __name__ == "__main__":
    raise SystemExit(main())
