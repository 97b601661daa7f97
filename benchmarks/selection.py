"""Selecting from a rollout table: what it takes to choose again, with other conditions.

    python benchmarks/selection.py [--rows 1000000] [--row-bytes 14000] [--only NAME …]

Makes a table in a temporary folder: columns as ingest writes them, cut into parts and row groups as rows of
`--row-bytes` would be (many small ones), without the payload, which selection never reads; and the same rows as
JSONL, also without the payload, for the tutorial's way: json, one row at a time, filter, sets and counters, which
would else read the payload too. Each way runs in a fresh process, start included: wall seconds, processor
seconds (all threads), peak memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PER_TASK = 8
AGENTS = 6
CAP = 20_000
WHERE = "accuracy = 1 and turns between 2 and 8"


def make_table(folder: Path, rows: int, row_bytes: int) -> None:
    """Write `table/part-*.parquet` and `rows.jsonl`, the same rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from gristmill.segments import PART_BYTES
    from gristmill.table import schema

    (folder / "table").mkdir()
    rng = np.random.default_rng(0)
    per_part = max(1, PART_BYTES // row_bytes)
    group = max(1, (8 << 20) // row_bytes)

    def key(kind: str, number: int) -> str:
        return hashlib.md5(f"{kind} {number}".encode()).hexdigest()

    with (folder / "rows.jsonl").open("w") as lines:
        for part, start in enumerate(range(0, rows, per_part)):
            count = min(per_part, rows - start)
            number = np.arange(start, start + count)
            task = number // PER_TASK
            answer = task * 10 + rng.integers(0, 5, count)
            columns: dict[str, list[Any]] = {
                "rollout_id": [key("rollout", n) for n in number],
                "source": ["rollouts.jsonl"] * count,
                "line": (number + 1).tolist(),
                "run": [key("run", 0)] * count,
                "agent": [f"agent_{n}" for n in task % AGENTS],
                "task_index": task.tolist(),
                "rollout_index": (number % PER_TASK).tolist(),
                "task_key": [key("task", n) for n in task],
                "prompt_key": [key("prompt", n) for n in task],
                "reward": (rng.random(count) < 0.5).astype(float).tolist(),
                "turns": rng.integers(1, 10, count).tolist(),
                "tool_calls": rng.integers(0, 9, count).tolist(),
                "tools_called": [["search", "read_page"]] * count,
                "answer_key": [key("answer", n) for n in answer],
                "answer_chars": (500 + answer % 3000).tolist(),
                "prompt_chars": (1000 + task % 500).tolist(),
                "output_tokens": rng.integers(100, 900, count).tolist(),
                "row_bytes": [row_bytes] * count,
                "truncated": (rng.random(count) < 0.02).tolist(),
                "masked": [False] * count,
            }
            scores = zip(columns["reward"], columns["turns"], strict=True)
            metrics = [{"accuracy": reward, "steps": float(turns)} for reward, turns in scores]
            columns["metrics"] = [list(one.items()) for one in metrics]
            columns["labels"] = [[("level", "hard")]] * count
            for at, one in enumerate(metrics):
                line = {name: columns[name][at] for name in ("rollout_id", "agent", "task_key", "reward", "turns")}
                line |= {name: columns[name][at] for name in ("answer_key", "answer_chars", "truncated")}
                lines.write(json.dumps(line | one) + "\n")
            arrays = [
                pa.array(columns.get(field.name, [None] * count), field.type)
                if field.name != "raw"
                else pa.array([b"{}"] * count, pa.binary())
                for field in schema()
            ]
            pq.write_table(
                pa.Table.from_arrays(arrays, schema=schema()),
                folder / "table" / f"part-{part:05d}.parquet",
                compression="zstd",
                use_dictionary=[n for n in schema().names if n not in ("raw", "rollout_id", "answer_key")],
                row_group_size=group,
            )


# ---- the ways, each run in a fresh process as `--way NAME FOLDER`


def tutorial(folder: Path) -> Any:
    """What the tutorials' functions do one after another, with their bugs put right: filter, deduplicate, balance."""
    kept = []
    with (folder / "rows.jsonl").open() as lines:
        for line in lines:
            row = json.loads(line)
            if row["reward"] >= 1 and not row["truncated"] and row["accuracy"] == 1 and 2 <= row["turns"] <= 8:
                kept.append(row)
    kept.sort(key=lambda row: (row["answer_chars"], row["rollout_id"]))
    seen: set[tuple[str, str]] = set()
    tasks: Counter[str] = Counter()
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in kept:
        same = row["task_key"], row["answer_key"]
        if same not in seen and tasks[row["task_key"]] < 4:
            seen.add(same)
            tasks[row["task_key"]] += 1
            groups.setdefault(row["agent"], []).append(row)
    draw = random.Random(0)
    chosen = [row for rows in groups.values() for row in draw.sample(rows, min(CAP, len(rows)))]
    with (folder / "chosen.jsonl").open("w") as out:
        out.writelines(json.dumps(row) + "\n" for row in chosen)
    return len(chosen)


def ours(**recipe: Any) -> Callable[[Path], Any]:
    def way(folder: Path) -> Any:
        from gristmill.curate import curate
        from gristmill.recipe import CurateRecipe
        from gristmill.table import parts

        counted = {"rows_read": 0, "rows_kept": 0, "dropped": {}}
        return curate([parts(folder / "table")], [counted], CurateRecipe(**recipe), folder)["rows_kept"]

    return way


def ours_explain(folder: Path) -> Any:
    from gristmill.explain import explain
    from gristmill.recipe import CurateRecipe
    from gristmill.table import parts

    recipe = CurateRecipe(where=WHERE, balance={"by": "agent", "cap": CAP})
    return explain([parts(folder / "table")], recipe).chosen


WAYS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "tutorial": ("tutorial: json → filter, deduplicate, cap, balance", tutorial),
    "threshold": ("gristmill: another threshold", ours(min_reward=0.5, deduplicate=False, per_task=None)),
    "default": ("gristmill: reward, deduplicate, cap", ours()),
    "full": ("gristmill: filter, deduplicate, cap, balance", ours(where=WHERE, balance={"by": "agent", "cap": CAP})),
    "tasks": ("gristmill: the same, and conditions on tasks", ours(where=[WHERE, "0 < task_mean and task_mean < 1"])),
    "explain": ("gristmill: explain it, rule by rule", ours_explain),
}


def main() -> None:
    if sys.argv[1:2] == ["--way"]:
        print(json.dumps(WAYS[sys.argv[2]][1](Path(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--row-bytes", type=int, default=14_000, help="of a real row; sets the table's layout")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), help="ways to measure")
    parser.add_argument("--repeat", type=int, default=3, help="the fastest of so many runs is told")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_table(folder, chosen.rows, chosen.row_bytes)
        parts = len(list((folder / "table").iterdir()))
        print(f"{chosen.rows} rows in {parts} parts, {len(os.sched_getaffinity(0))} cores")
        for way in chosen.only:
            runs = [_measure(way, folder) for _ in range(chosen.repeat)]
            seconds, used, peak, result = min(runs)
            print(f"{WAYS[way][0]:52} {seconds:7.2f} s {used:7.2f} s cpu {peak:6.0f} MB   {result}")


def _measure(way: str, folder: Path) -> tuple[float, float, float, str]:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, __file__, "--way", way, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        told = process.stdout.read().decode().strip()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{way} failed with exit code {process.returncode}")
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3, told


if __name__ == "__main__":
    main()
