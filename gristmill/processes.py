"""Processes that work for a workspace: found by where their output goes, ended politely and then surely.

A trainer or a server of ours is one whose command names a file of the workspace's work folder, or whose standard output
or error goes to one. Whoever merely reads such a file is none.
"""

from __future__ import annotations

import os
import signal
from typing import Any

from gristmill.workspace import Workspace

_GRACE = 5.0  # seconds between SIGTERM and SIGKILL


def left_behind(workspace: Workspace) -> list[Any]:
    """Processes whose output or command is of this workspace's work folder (`psutil.Process`), less this one."""
    import psutil

    work = str(workspace.root / "work") + os.sep
    found = []
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        if process.pid == os.getpid():
            continue
        try:
            command = process.info["cmdline"] or []
            named = any(word.startswith(work) and word.endswith(".json") for word in command)
            if named or any(o.fd in (1, 2) and o.path.startswith(work) for o in process.open_files()):
                found.append(process)
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return found


def end(process: Any) -> None:
    """End a process of `left_behind`."""
    import psutil

    try:
        for sign in (signal.SIGTERM, signal.SIGKILL):
            process.send_signal(sign)
            try:
                process.wait(_GRACE)
                return
            except psutil.TimeoutExpired:
                continue
    except psutil.NoSuchProcess:
        return
