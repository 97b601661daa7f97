"""Reading rollouts: Gristmill beside what one would otherwise use, on the same file in one run.

    python benchmarks/prepare.py [--mb 100] [--corpus FOLDER] [--only NAME …]

Makes a file of rows shaped like NeMo Gym's (about 14 kB each, three in four with tools; half are kept) in a
temporary folder, or repeats the rows of a folder of `.jsonl` files, then measures each way in a process of
its own: seconds of wall time, and peak memory of all its processes. The first is the limit: a plain read.

The tutorial's way is `filter_rollouts` and `process_sft_data` of NeMo Gym's offline training tutorial with
their bugs on real rows put right (read from `response`, converted to chat messages): json, two passes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MIN_REWARD = 0.5


# ---- the file


def synthetic_rows(seed: int = 0) -> Iterator[bytes]:
    """Endless rows: eight rollouts a task, rewards 0 and 1 in equal parts, expanded as NeMo Gym does."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgkqjxz", k=rng.randint(2, 9))) for _ in range(4000)]
    weights = [1 / (rank + 2) for rank in range(len(words))]
    pool = rng.choices(words, weights, k=200_000)

    def prose(count: int) -> str:
        start = rng.randrange(len(pool) - count)
        return " ".join(pool[start : start + count])

    tools = [
        {
            "type": "function",
            "name": name,
            "description": prose(25),
            "parameters": {
                "type": "object",
                "properties": {
                    key: {"type": "string", "description": prose(8)} for key in ("query", "source", "limit")
                },
                "required": ["query"],
                "additionalProperties": False,
            },
            "strict": True,
        }
        for name in ("search", "read_page", "run_code")
    ]
    nulls = ("background", "include", "max_output_tokens", "max_tool_calls", "model", "previous_response_id")
    task = 0
    while True:
        with_tools = task % 4 != 0
        params = dict.fromkeys(nulls) | {
            "input": [
                {"role": "system", "type": "message", "content": prose(120)},
                {"role": "user", "type": "message", "content": prose(150)},
            ],
            "instructions": None,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": tools if with_tools else [],
        }
        for repeat in range(8):
            params["metadata"] = {"extra_body": json.dumps({"seed": repeat})}
            output: list[dict[str, Any]] = []
            for _ in range(rng.randint(2, 4) if with_tools else 0):
                call = f"call_{rng.getrandbits(96):024x}"
                output += [
                    {
                        "type": "function_call",
                        "id": None,
                        "call_id": call,
                        "name": rng.choice(tools)["name"],
                        "arguments": json.dumps({"query": prose(6)}),
                        "status": None,
                    },
                    {
                        "type": "function_call_output",
                        "id": None,
                        "call_id": call,
                        "output": prose(400),
                        "status": None,
                    },
                ]
            answer = {"type": "output_text", "text": prose(250), "annotations": [], "logprobs": None}
            output.append(
                {
                    "type": "message",
                    "id": f"msg_{rng.getrandbits(128):032x}",
                    "role": "assistant",
                    "status": "completed",
                    "content": [answer],
                }
            )
            used = {"input_tokens": 900, "output_tokens": 400, "total_tokens": 1300}
            response = dict.fromkeys(nulls) | {
                "id": f"resp_{rng.getrandbits(128):032x}",
                "created_at": 1.76e9 + task,
                "error": None,
                "incomplete_details": None,
                "model": "policy",
                "object": "response",
                "output": output,
                "tools": params["tools"],
                "usage": used,
            }
            reward = float(rng.random() < 0.5)
            row = {
                "responses_create_params": params,
                "response": response,
                "reward": reward,
                "accuracy": reward,
                "expected_answer": prose(3),
                "judge": {"verdict": prose(40)},
                "_ng_task_index": task,
                "_ng_rollout_index": repeat,
                "agent_ref": {"type": "responses_api_agents", "name": "bench_agent"},
            }
            yield json.dumps(row, separators=(",", ":")).encode() + b"\n"
        task += 1


def corpus_rows(folder: Path) -> Iterator[bytes]:
    """The rows of a folder again and again, each round under task indices of its own."""
    lines = [
        line
        for path in sorted(folder.rglob("*.jsonl"))
        if "_materialized" not in path.name and "_profiling" not in path.name
        for line in path.read_bytes().splitlines()
        if line.startswith(b"{")
    ]
    base = 0
    while True:
        for line in lines:
            row = json.loads(line)
            row["_ng_task_index"] = base + (row.get("_ng_task_index") or 0)
            yield json.dumps(row, separators=(",", ":")).encode() + b"\n"
        base += 1_000_000


def make_file(path: Path, size: int, rows: Iterator[bytes]) -> int:
    """Write rows until the file has `size` bytes; every row is one of its own. Returns the number of rows."""
    count = written = 0
    with path.open("wb") as file:
        while written < size:
            written += file.write(next(rows))
            count += 1
    return count


# ---- the ways, each run in a fresh process as `--way NAME FILE FOLDER`


def plain_read(file: Path, folder: Path) -> Any:
    size = 0
    buffer = bytearray(1 << 24)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            size += count
    return size


def tutorial(file: Path, folder: Path) -> Any:
    filtered = folder / "filtered.jsonl"
    kept = 0
    with file.open() as source, filtered.open("w") as out:
        for line in source:
            row = json.loads(line)
            if row.get("reward", 0) >= MIN_REWARD and row["response"]["output"]:
                out.write(json.dumps(row) + "\n")
                kept += 1
    with filtered.open() as source, (folder / "sft.jsonl").open("w") as out:
        for line in source:
            row = json.loads(line)
            example = {"messages": _messages(row), "reward": row["reward"], "task_type": "general"}
            out.write(json.dumps(example) + "\n")
    return kept


def _messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What the tutorial leaves out, as short as it can be."""
    messages = [{"role": m["role"], "content": m["content"]} for m in row["responses_create_params"]["input"]]
    for item in row["response"]["output"]:
        if item["type"] == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item["call_id"], "type": "function", "function": function}
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif item["type"] == "function_call_output":
            messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]})
        elif item["type"] == "message":
            text = "".join(part["text"] for part in item["content"])
            messages.append({"role": "assistant", "content": text})
    return messages


def hf_datasets(file: Path, folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    loaded = datasets.load_dataset("json", data_files=str(file), cache_dir=str(folder / "cache"), split="train")
    kept = loaded.filter(lambda reward: reward >= MIN_REWARD, input_columns="reward")
    chats = kept.map(lambda row: {"messages": _messages(row)}, remove_columns=kept.column_names)
    chats.to_json(folder / "sft.jsonl")
    return len(kept)


def polars_read(file: Path, folder: Path) -> Any:
    import polars

    return polars.scan_ndjson(file).filter(polars.col("reward") >= MIN_REWARD).select("response").collect().height


def duckdb_read(file: Path, folder: Path) -> Any:
    import duckdb

    query = "SELECT count(response) FROM read_json(?, format='newline_delimited') WHERE reward >= ?"
    return duckdb.execute(query, [str(file), MIN_REWARD]).fetchone()


def floor(file: Path, folder: Path) -> Any:
    """What is left if all logic is free: split lines, decode the reward, parse kept rows whole, dump and write their
    messages; one process a core, the shards put together. No reading of ours on these libraries can be faster."""
    import multiprocessing
    import shutil

    cores = len(os.sched_getaffinity(0))
    size = file.stat().st_size
    edges = [size * n // cores for n in range(cores + 1)]
    jobs = [(file, folder / f"floor-{n}", edges[n], edges[n + 1]) for n in range(cores)]
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        kept = sum(pool.map(_floor, jobs))
    with (folder / "floor.jsonl").open("wb") as out:
        for _, part, _, _ in jobs:
            with part.open("rb") as shard:
                shutil.copyfileobj(shard, out, 1 << 24)
    return kept


def _floor(job: tuple[Path, Path, int, int]) -> int:
    import msgspec
    import orjson

    class Row(msgspec.Struct):
        reward: float

    file, part, start, end = job
    decode = msgspec.json.Decoder(Row).decode
    kept = 0
    with file.open("rb", buffering=1 << 22) as source, part.open("wb", buffering=1 << 22) as out:
        source.seek(max(0, start - 1))
        if start:
            source.readline()
        while source.tell() < end and (line := source.readline()):
            if decode(line).reward >= MIN_REWARD:
                row = orjson.loads(line)
                example = {"messages": row["responses_create_params"]["input"] + row["response"]["output"]}
                out.write(orjson.dumps(example) + b"\n")
                kept += 1
    return kept


def ours_ingest(file: Path, folder: Path) -> Any:
    from gristmill.ingest import ingest

    (folder / "table").mkdir()
    return ingest([file], folder / "table").rows_kept


def ours_prepare(file: Path, folder: Path) -> Any:
    """Read, choose and write in one go, as `gristmill prepare FILES` does, whose checks and hashes come on top."""
    from gristmill.curate import SELECTION, curate
    from gristmill.dataset import write_dataset
    from gristmill.ingest import ingest
    from gristmill.recipe import FormatRecipe
    from gristmill.workers import crew

    work, out = folder / "work", folder / "prepared"
    work.mkdir()
    out.mkdir()
    with crew():
        read = ingest([file], work / "table", copy=False)
        counted = {"rows_read": read.rows_read, "rows_kept": read.rows_kept, "dropped": dict(read.dropped)}
        counts = curate([read.tables], [counted], _choice(), work)
        recipe = FormatRecipe(target="trl-jsonl")
        return write_dataset(work / SELECTION, [read.tables], counts, recipe, out)["examples"]


def ours_command(file: Path, folder: Path) -> Any:
    """The command, with its checks and the sha256 of all that it read and wrote."""
    command = [sys.executable, "-m", "gristmill", "prepare", str(file), "--target", "trl-jsonl", "--json"]
    options = ["--min-reward", str(MIN_REWARD), "curate.deduplicate=false", "curate.per_task=null"]
    told = subprocess.run(
        [*command, *options, "--out", str(folder / "exported")], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(told.stdout.splitlines()[-1])["examples"]


def ours_select(file: Path, folder: Path) -> Any:
    return _select(folder)["rows_kept"]


def ours_format(file: Path, folder: Path) -> Any:
    from gristmill.curate import SELECTION
    from gristmill.dataset import write_dataset
    from gristmill.recipe import FormatRecipe
    from gristmill.table import parts

    counts = json.loads((folder / "counts.json").read_bytes())
    out = folder / "export"
    out.mkdir()
    recipe = FormatRecipe(target="trl-jsonl")
    return write_dataset(folder / SELECTION, [parts(folder / "table")], counts, recipe, out)["examples"]


def ours_core(file: Path, folder: Path) -> Any:
    """What one core formats: the same from rows that stay in their file, in this process alone, after `prepare`.

    Returns MB of chosen rows per second of CPU, without what it takes to load the libraries.
    """
    import duckdb
    import pyarrow.compute  # noqa: F401
    import pyarrow.parquet as pq

    import gristmill.dataset.writer  # noqa: F401
    from gristmill import targets
    from gristmill.curate import SELECTION
    from gristmill.dataset import write_dataset
    from gristmill.recipe import FormatRecipe
    from gristmill.table import parts

    # What is loaded late is loaded before the clock starts.
    duckdb.connect().close()
    targets.get("trl-jsonl")
    work, out = folder / "work", folder / "core"
    out.mkdir()
    counts = {"rows_read": 0, "rows_kept": 0, "dropped": {}}
    table = parts(work / "table")
    chosen = pq.ParquetFile(work / SELECTION).read(columns=["at_file", "at_row", "reason"]).to_pylist()
    sizes = [pq.ParquetFile(part).read(columns=["row_bytes"])["row_bytes"].to_pylist() for part in table]
    size = sum(sizes[row["at_file"]][row["at_row"]] for row in chosen if row["reason"] is None)
    loaded = time.process_time()
    recipe = FormatRecipe(target="trl-jsonl")
    rows = write_dataset(work / SELECTION, [table], counts, recipe, out, workers=1)["examples"]
    spent = time.process_time() - loaded
    return f"{rows} rows of {size / 1e6:.0f} MB: {size / 1e6 / spent:.0f} MB per second of CPU"


def _select(folder: Path) -> dict[str, Any]:
    from gristmill.curate import curate
    from gristmill.table import parts

    counted = [{"rows_read": 0, "rows_kept": 0, "dropped": {}}]
    counts = curate([parts(folder / "table")], counted, _choice(), folder)
    (folder / "counts.json").write_text(json.dumps(counts))
    return counts


def _choice() -> Any:
    from gristmill.recipe import CurateRecipe

    return CurateRecipe(min_reward=MIN_REWARD, deduplicate=False, per_task=None)


WAYS: dict[str, tuple[str, Callable[[Path, Path], Any], str | None]] = {
    "read": ("plain read of the file", plain_read, None),
    "tutorial": ("tutorial: json, two passes → SFT", tutorial, None),
    "datasets": ("datasets: load, filter, map → SFT", hf_datasets, "datasets"),
    "polars": ("polars: read, filter", polars_read, "polars"),
    "duckdb": ("duckdb: read_json, filter", duckdb_read, "duckdb"),
    "floor": ("floor: decode, parse kept rows, dump, write", floor, None),
    "prepare": ("gristmill: read, select, write → SFT", ours_prepare, None),
    "command": ("gristmill prepare, with its checks → SFT", ours_command, None),
    "ingest": ("gristmill: ingest into a table of its own", ours_ingest, None),
    "select": ("gristmill: select from the table", ours_select, None),
    "core": ("gristmill: the same on one core, after prepare", ours_core, None),
    "format": ("gristmill: format what is selected → SFT", ours_format, None),
}


# ---- measuring


def measure(name: str, file: Path, folder: Path) -> tuple[float, float, str]:
    """Run a way in a fresh interpreter: (seconds without its start, peak MB of all processes, result)."""
    command = [sys.executable, __file__, "--way", name, str(file), str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, _memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    told, _ = process.communicate()
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{name} failed with exit code {process.returncode}")
    seconds, result = json.loads(told.splitlines()[-1])
    return seconds, peak / 1e6, str(result)


def _memory(pid: int) -> int:
    """Resident bytes of a process and those below it (Linux), pages that they share counted once each."""
    total = 0
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            pss = next(line for line in rollup if line.startswith("Pss:"))
            total += int(pss.split()[1]) * 1024
            for thread in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (thread / "children").read_text().split())
        except (OSError, StopIteration):
            continue
    return total


def main() -> None:
    if sys.argv[1:2] == ["--way"]:
        name, file, folder = sys.argv[2:]
        start = time.perf_counter()
        result = WAYS[name][1](Path(file), Path(folder))
        print(json.dumps([time.perf_counter() - start, result]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=100, help="size of the file in MB (1400 for the full measurement)")
    parser.add_argument("--corpus", type=Path, help="repeat the rows of this folder instead of made ones")
    parser.add_argument("--only", nargs="+", choices=list(WAYS), default=list(WAYS), help="ways to measure")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rollouts.jsonl"
        rows = make_file(file, chosen.mb * 1_000_000, corpus_rows(chosen.corpus) if chosen.corpus else synthetic_rows())
        size = file.stat().st_size
        print(f"{rows} rows, {size / 1e6:.0f} MB, {len(os.sched_getaffinity(0))} cores")
        for name in chosen.only:
            title, _, package = WAYS[name]
            if package and importlib.util.find_spec(package) is None:
                print(f"{title:44} skipped: {package} is not installed")
                continue
            seconds, peak, result = measure(name, file, Path(folder))
            print(f"{title:44} {seconds:8.2f} s {size / seconds / 1e6:8.0f} MB/s {peak:8.0f} MB peak   {result}")


if __name__ == "__main__":
    main()
