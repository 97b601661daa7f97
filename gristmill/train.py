"""Launch a trainer in its own process group, follow it, and never leave it behind.

The trainer (`python -m gristmill.train_trl job.json`) speaks one JSON object a line on standard output and writes
everything else to `trainer.log` in its work folder. Whatever ends the launcher ends the trainer: an exception here
kills its group, and the trainer itself watches for its parent's death.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gristmill.errors import TrainingError

if TYPE_CHECKING:
    from gristmill.train_trl import TrlJob

LOG = "trainer.log"
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_TAIL = 4000  # bytes of the log to look at for the cause


def train(job: TrlJob, *, on_step: Callable[[int, int, float], None] | None = None) -> dict[str, Any]:
    """Run a TRL job to its end.

    Args:
        job: folders and settings; `job.output` exists only if this very job made it.
        on_step: called with (step, steps in all, loss).

    Returns:
        The trainer's final statistics (steps, train_loss, tokens, seconds, losses: one a step).

    Raises:
        TrainingError: the trainer ended without a model; names the log and its last words.
    """
    work = job.work
    work.mkdir(parents=True, exist_ok=True)
    config = work / "job.json"
    config.write_bytes(orjson.dumps(job.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
    final: dict[str, Any] | None = None
    with (work / LOG).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gristmill.train_trl", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    event = _event(line)
                    if event.get("event") == "step" and on_step:
                        on_step(event["step"], event["of"], event["loss"])
                    elif event.get("event") == "done":
                        final = event
            code = process.wait()
        finally:
            _end_group(process)
    if code != 0 or final is None or not job.output.is_dir():
        raise TrainingError(
            f"the {job.method} trainer ended with code {code} and no model: {_last_words(work / LOG)} "
            f"(whole log: {LOG} in {work}); fix the cause and run the same command again, it resumes"
        )
    return final


def _event(line: bytes) -> dict[str, Any]:
    """Standard output is the protocol; a library that prints there anyway is ignored."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the process group: politely, then surely."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            break
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def _last_words(log: Path) -> str:
    """The last line that looks like an error, or the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:400]
