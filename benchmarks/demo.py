"""What the demo costs on this machine: wall time and peak memory of all its processes, first run and rerun.

    uv run python benchmarks/demo.py [--seed N]

Targets (two CPU cores, quiet): demo 4 minutes, at most 7; rerun with nothing changed 20 s; peak resident memory of all
processes together 3 GB; `gristmill --help` 0.5 s. Pages that processes share are counted once (PSS) where the kernel
tells, else resident sets are added.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil


class Cost(NamedTuple):
    """Of one command: wall seconds, and the peak over time of the memory of its process tree, in MB."""

    seconds: float
    megabytes: float
    output: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    helped = [run("--help") for _ in range(3)]
    print(f"--help        {min(h.seconds for h in helped):7.2f} s   (best of 3)")
    with tempfile.TemporaryDirectory() as folder:
        demo = ("demo", f"seed={seed}", "--json", "-w", folder)
        for name in ("demo", "nothing new"):
            cost = run(*demo)
            result: dict[str, Any] = json.loads(cost.output.splitlines()[-1])
            print(
                f"{name:<12}  {cost.seconds:7.1f} s   peak {cost.megabytes:,.0f} MB   "
                f"{result['cached']} stages cached, lift {result['lift']['mean']:+.3f} "
                f"[{result['lift']['low']:+.3f}, {result['lift']['high']:+.3f}]",
                flush=True,
            )


def run(*arguments: str) -> Cost:
    """Run gristmill and watch its process tree."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "gristmill", *arguments], stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    peak = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.25):
            peak = max(peak, memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    seconds = time.monotonic() - began
    ended.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(process.returncode)
    return Cost(seconds, peak, output)


def memory(pid: int) -> float:
    """Memory of a process and all that descend from it, in MB."""
    total = 0
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    for one in tree:
        try:
            total += proportional(one.pid) or one.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6


def proportional(pid: int) -> int:
    """Proportional set size in bytes; 0 where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
