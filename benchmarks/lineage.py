"""What a row's history costs: `gristmill trace` and `impact` on datasets of a hundred thousand rows.

    uv run python benchmarks/lineage.py [--rows 100000] [--turns 5]

Makes a workspace of so many turns, each with a table and a dataset of so many rows (every turn's dataset holds all rows
so far, up to that number), then times whole commands, the interpreter's start included: wall and user time, best of
three. `--help` is what every command costs before it does anything.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from gristmill.artifact import ArtifactRef
from gristmill.dataset.provenance import PROVENANCE, schema
from gristmill.identity import fingerprint
from gristmill.ingest import ingest
from gristmill.selection import SELECTION
from gristmill.workspace import Workspace


def line(turn: int, number: int) -> bytes:
    """A short rollout."""
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": f"{number}"}]}
    return orjson.dumps(
        {
            "responses_create_params": {"input": [{"role": "user", "content": f"turn {turn}, task {number // 8}?"}]},
            "response": {"model": "tester", "output": [message]},
            "reward": 1.0,
            "_ng_task_index": number // 8,
            "_ng_rollout_index": number % 8,
            "agent_ref": {"name": "agent"},
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def fill(place: Workspace, rows: int, turns: int) -> tuple[str, str]:
    """A rollout of the first turn, and one of its tasks."""
    store = place.store
    with store.draft("checkpoint") as draft:
        draft.write_json("pointer.json", {"model": "tester"})
        policy = draft.commit(stage="base", settings={"model": "tester"})
    tables: list[ArtifactRef] = []
    columns: list[pa.Table] = []
    for turn in range(1, turns + 1):
        with store.draft("rollouts") as draft:
            with (draft.path / "rollouts.jsonl").open("wb") as file:
                file.writelines(line(turn, number) for number in range(rows))
            rollouts = draft.commit(stage="collect", parents=[policy], counts={"rollouts": rows, "tokens": rows})
        with store.draft("table") as draft:
            ingest([store.path(rollouts) / "rollouts.jsonl"], draft.path)
            read = pq.read_table(
                draft.path, columns=["rollout_id", "task_key", "reward", "source", "line"], partitioning=None
            )
            columns.insert(0, read.slice(0, rows))
            tables.append(
                draft.commit(stage="ingest", parents=[rollouts], counts={"rows_read": rows, "rows_kept": rows})
            )
        share = rows // turn
        chosen = pa.concat_tables([one.slice(0, share) for one in columns])
        with store.draft("selection") as draft:
            reason = pa.nulls(len(chosen), pa.string())
            pq.write_table(chosen.append_column("reason", reason).append_column("rule", reason), draft.path / SELECTION)
            counts = {"rows_read": rows * turn, "rows_kept": len(chosen)}
            selection = draft.commit(stage="curate", parents=tables, counts=counts)
        with store.draft("dataset") as draft:
            size = len(chosen)
            told = {
                "split": pa.array(["train"] * size),
                "row": pa.array(range(size)),
                "role": pa.array(["only"] * size),
                **{name: chosen[name] for name in chosen.column_names},
            }
            pq.write_table(pa.table(told).select(schema().names), draft.path / PROVENANCE)
            dataset = draft.commit(stage="format", parents=[selection, *tables], counts={"examples": size})
        with store.draft("checkpoint") as draft:
            draft.write_json("model.json", {"turn": turn})
            counts = {"steps": 1, "losses": [1.0]}
            policy = draft.commit(stage="train", parents=[dataset, policy], counts=counts)
        for stage, ref in (("curate", selection), ("format", dataset), ("train", policy)):
            place.record({"turn": turn, "stage": stage, "cached": False, "result": str(ref)})
    first = line(1, 0).rstrip(b"\n")
    task = columns[-1]["task_key"][0].as_py()
    return fingerprint(first), task


def timed(*arguments: str) -> tuple[float, float, int]:
    """Wall and user seconds of a command, the best of three, and the bytes that it printed."""
    best = (float("inf"), float("inf"))
    printed = 0
    for _ in range(3):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, time.monotonic()
        done = subprocess.run([sys.executable, "-m", "gristmill", *arguments], capture_output=True, check=True)
        wall = time.monotonic() - began
        best = min(best, (wall, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before))
        printed = len(done.stdout)
    return (*best, printed)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=100_000)
    asked.add_argument("--turns", type=int, default=5)
    given = asked.parse_args()
    os.environ["COLUMNS"] = "120"
    with tempfile.TemporaryDirectory(prefix="gristmill-lineage-") as folder:
        rollout, task = fill(Workspace(folder), given.rows, given.turns)
        print(f"{given.turns} turns, {given.rows:,} rollouts and {given.rows:,} dataset rows each\n")
        print("| command | wall s | user s |\n|---|---|---|")
        for words in (
            ["--help"],
            ["trace", "model", f"v{given.turns}"],
            ["trace", f"data-v{given.turns}#{given.rows - given.rows // given.turns}"],
            ["trace", rollout[:12]],
            ["impact", rollout[:12]],
            ["impact", rollout],
            ["impact", task],
            ["impact", "data-v1"],
        ):
            wall, user, _ = timed(*words, *([] if words == ["--help"] else ["-w", folder]))
            print(f"| `{' '.join(words)}` | {wall:.2f} | {user:.2f} |")


if __name__ == "__main__":
    main()
