"""Shards on Ray: one node against two, what a shard costs, and what the driver itself does.

    uv run --extra ray python benchmarks/cluster.py [--mb 700] [--shards 300]

Starts a real cluster on this machine, of nodes with one processor each, and prepares the same file (rows as
benchmarks/prepare.py makes them) by the flow with `execution: ray`: on the head alone, then with a second node; both
after one small run that starts the nodes' processes. Prints the seconds of the two stages that are shards, and those of
the stages that are the driver's. On a machine with two hyper-threads the second node is half a processor.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import orjson
import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.prepare import make_file, synthetic_rows  # noqa: E402
from tests.ray_cluster import Cluster  # noqa: E402

_EMPTY = """
import sys, time
from pathlib import Path
from flows.server import prefect_api

workspace, address, count = sys.argv[1:]
with prefect_api(Path(workspace) / "prefect") as server:
    from prefect import flow
    from gristmill.fleet import current, map_on
    from gristmill.recipe import ExecutionRecipe
    from gristmill.workspace import Workspace
    from tasks.cluster import executing

    @flow
    def work():
        with executing(ExecutionRecipe(kind="ray", address=address), Workspace(workspace)):
            list(map_on(current(), "math:sqrt", range(8)))
            began = time.monotonic()
            list(map_on(current(), "math:sqrt", range(int(count))))
            print((time.monotonic() - began) / int(count))

    server.wait()
    work()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=700)
    parser.add_argument("--shards", type=int, default=300, help="empty shards, to see what one costs")
    parser.add_argument("--driver", action="store_true", help="measure only what the driver does for each row")
    options = parser.parse_args()
    if options.driver:
        driver()
        return
    told = subprocess.run([sys.executable, __file__, "--driver"], check=True, capture_output=True, text=True, cwd=ROOT)
    print(told.stdout)
    cluster = Cluster()
    try:
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            rows = make_file(work / "rollouts.jsonl", options.mb * 1_000_000, synthetic_rows())
            print(f"{rows} rows, {options.mb} MB\n")
            print("| nodes | read s | format s | both | the driver's stages s | an empty shard ms |")
            print("|---|---|---|---|---|---|")
            first = None
            for nodes in (1, 2):
                if nodes == 2:
                    cluster.add()
                each = empty(cluster, work, options.shards)
                spent = prepare(cluster, work, f"{nodes}")
                shards = spent["read"] + spent["format"]
                first = first or shards
                rest = sum(spent.values()) - shards
                print(
                    f"| {nodes} | {spent['read']:.1f} | {spent['format']:.1f} | {shards:.1f} ({first / shards:.2f}×) | "
                    f"{rest:.1f} | {1000 * each:.0f} |",
                    flush=True,
                )
    finally:
        cluster.close()


def driver() -> None:
    """What one process does for every row of every shard, and so what a larger cluster does not make quicker."""
    import hashlib
    import time

    from gristmill import ingest as module
    from gristmill.table import parts

    spent = [0.0]
    ledgers: list[module._Ledger] = []
    settle = module._Ledger.settle

    def timed(self, part, claim):
        began = time.process_time()
        settled = settle(self, part, claim)
        ledgers[:] = [self]
        spent[0] += time.process_time() - began
        return settled

    module._Ledger.settle = timed
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder, "small.jsonl"), Path(folder, "table")
        count = 400_000
        with file.open("wb") as rows:
            for number in range(count):
                row = {"reward": number % 2, "_ng_task_index": number // 8, "_ng_rollout_index": number % 8}
                rows.write(orjson.dumps({**row, **_ROW, "agent_ref": {"name": "a"}}) + b"\n")
        module.ingest([file], out, workers=1, copy=False)
        seen = ledgers[0]._seen
        held = sys.getsizeof(seen) + sum(map(sys.getsizeof, seen))
        size = sum(path.stat().st_size for path in parts(out))
        data = file.read_bytes()
        began = time.process_time()
        hashlib.sha256(data).digest()
        hashed = len(data) / (time.process_time() - began) / 1e6
    print(
        f"of each row, in the driver: {1e6 * spent[0] / count:.1f} µs to settle lines and duplicates, and "
        f"{held / count:.0f} bytes of memory; {size / count:.0f} bytes of table beside its line; "
        f"sha256 {hashed:.0f} MB/s"
    )


_ROW = {
    "responses_create_params": {"input": [{"role": "user", "content": "6 * 7?"}]},
    "response": {
        "id": "r",
        "object": "response",
        "model": "m",
        "output": [
            {
                "type": "message",
                "id": "m",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "42", "annotations": []}],
            }
        ],
    },
}


def prepare(cluster: Cluster, work: Path, name: str) -> dict[str, float]:
    """Seconds of each stage."""
    recipe = {"name": "prep", "rollouts": [str(work / "rollouts.jsonl")], "format": {"target": "trl-jsonl"}}
    recipe |= {"execution": {"kind": "ray", "address": cluster.address}}
    (work / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "gristmill", "prepare", str(work / f"{name}.yaml")]
    place = work / f"w-{name}"
    subprocess.run(
        [*command, "--out", str(work / f"out-{name}"), "-w", str(place)],
        env=cluster.env,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    lines = map(orjson.loads, (place / "journal.jsonl").read_bytes().splitlines())
    return {line["stage"]: line["seconds"] for line in lines}


def empty(cluster: Cluster, work: Path, count: int) -> float:
    """Seconds a shard that does nothing."""
    place = work / "empty"
    place.mkdir(exist_ok=True)
    command = [sys.executable, "-c", _EMPTY, str(place), cluster.address, str(count)]
    told = subprocess.run(command, env=cluster.env, check=True, capture_output=True, text=True, cwd=ROOT)
    return float(told.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
