"""What a killed training resumes from: checkpoints that are whole, of this very job, used by one process at a time.

TRL writes a checkpoint file by file, so one counts only with the mark `whole` in it, which is written last. Checkpoints
of another job (other data, model or settings) are removed, never continued.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import IO, Any

from gristmill.errors import TrainingError

WHOLE = "whole"
_DONE = "done.json"
_OWNER = "identity.json"


def number(checkpoint: Path) -> int:
    """The optimiser step after which it was written."""
    return int(checkpoint.name.partition("-")[2])


def last(work: Path) -> Path | None:
    """The latest whole checkpoint."""
    whole = [folder for folder in work.glob("checkpoint-*") if (folder / WHOLE).is_file()]
    return max(whole, key=number, default=None)


def remove_torn(work: Path) -> None:
    """Remove what is not whole, so that the trainer can write it again."""
    for folder in work.glob("checkpoint-*"):
        if not (folder / WHOLE).is_file():
            shutil.rmtree(folder)


def keep_only(work: Path, identity: str) -> None:
    """Remove checkpoints from `work` unless they are of the job `identity`."""
    owner = work / _OWNER
    if owner.is_file() and json.loads(owner.read_text()) == {"identity": identity}:
        return
    # By name: `work` may be a folder that holds other things as well.
    for folder in [*work.glob("checkpoint-*"), work / "cache"]:
        shutil.rmtree(folder, ignore_errors=True)
    (work / _DONE).unlink(missing_ok=True)
    write(owner, {"identity": identity})


def recorded(work: Path, identity: str) -> dict[str, Any] | None:
    """The statistics of the job, if it was finished here."""
    record = work / _DONE
    if not record.is_file():
        return None
    found = json.loads(record.read_text())
    stats: dict[str, Any] = found["stats"]
    return stats if found["identity"] == identity else None


def record(work: Path, identity: str, stats: dict[str, Any]) -> None:
    """Note that the job is done, before its output gets its name."""
    write(work / _DONE, {"identity": identity, "stats": stats})


def write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON under a temporary name and rename it."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        file.write(json.dumps(value))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def acquire(lock: IO[str], work: Path, patience: float = 10.0) -> None:
    """Wait up to `patience` seconds: the twin of a killed parent needs a moment to notice.

    Raises:
        TrainingError: another process trains here.
    """
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                break
            time.sleep(0.2)
    raise TrainingError(f"Another process trains in {work}: wait for it to end, or end it, then run again.")
