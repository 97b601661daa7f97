"""Start the processes of one training, follow them, and never leave one behind.

The first rank speaks one JSON object a line on its standard output; everything else goes to `trainer.log` in the job's
work folder. Whatever ends this one ends them: an exception here kills their groups, and each watches for its parent's
death. They are started here and not by torchrun, which puts them into sessions of their own, where neither reaches
them; `torchrun -m gristmill.trl JOB.json` works as well, for several machines.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gristmill.trainer import TrainJob
from gristmill.trl.process import OUT_OF_MEMORY
from gristmill.trl.rows import Share

LOG = "trainer.log"
_GRACE = 5.0  # seconds between SIGTERM and SIGKILL
_TAIL = 4000  # bytes of the log to look at for the cause


class Ended(NamedTuple):
    """How a training ended."""

    codes: tuple[int | None, ...]
    """Exit status of each rank; negative for a signal, None if it had to be ended."""
    done: dict[str, Any] | None
    """The final statistics, if it finished."""
    error: str | None
    """What it refused, in a sentence."""
    out_of_memory: bool
    killed: bool
    """By SIGKILL, and not from here: what the system does when memory is short."""


def run(job: TrainJob, share: Share, on_event: Callable[[dict[str, Any]], None]) -> Ended:
    """Run a job to its end, with `share.device` rows at once on each of `share.processes` devices."""
    job.work.mkdir(parents=True, exist_ok=True)
    config = job.work / "job.json"
    config.write_bytes(orjson.dumps(job.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
    done, error, memory = None, None, False
    processes: list[subprocess.Popen[bytes]] = []
    with (job.work / LOG).open("ab") as log:
        try:
            for rank, environment in enumerate(_environments(share.processes)):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "gristmill.trl", str(config), str(share.device)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL if rank else subprocess.PIPE,
                        stderr=log,
                        start_new_session=True,
                        env=environment,
                    )
                )
            first, others = processes[0], processes[1:]
            if others:
                threading.Thread(target=_end_together, args=(first, others), daemon=True).start()
            assert first.stdout is not None
            with first.stdout:
                for line in first.stdout:
                    event = _event(line)
                    match event.get("event"):
                        case "done":
                            done = {key: value for key, value in event.items() if key != "event"}
                        case "error":
                            error = str(event["message"])
                        case "oom":
                            memory = True
                        case str():
                            on_event(event)
            first.wait()
            codes = tuple(process.poll() for process in processes)
        finally:
            for process in processes:
                _end_group(process)
    return Ended(codes, done, error, memory or OUT_OF_MEMORY in codes, -signal.SIGKILL in codes)


def last_words(log: Path) -> str:
    """The last line that looks like an error, or the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:400]


def devices() -> int:
    """GPUs that this process may use; 0 without any. Asks torch only where there is a driver."""
    if not any(Path("/dev").glob("nvidia[0-9]*")) or os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return 0
    import torch

    return torch.cuda.device_count()


def _environments(processes: int) -> list[dict[str, str]]:
    """Environment variables of each rank, as torchrun would set them."""
    plain = dict(os.environ)
    if processes == 1:
        if devices() > 1:  # TRL refuses to spread one process over several
            plain["CUDA_VISIBLE_DEVICES"] = plain.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
        return [plain]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [plain | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _end_together(first: subprocess.Popen[bytes], others: list[subprocess.Popen[bytes]]) -> None:
    """End the first rank when another has failed: it might wait for it for half an hour."""
    while first.poll() is None:
        if any(process.poll() for process in others):
            try:
                first.wait(_GRACE)
            except subprocess.TimeoutExpired:
                first.terminate()
            return
        time.sleep(0.2)


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
