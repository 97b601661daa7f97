"""Collecting, measured: against `gym eval run --no-serve`, and the collector's own cost.

python benchmarks/collect.py cost [ROLLOUTS] [CONCURRENCY]
    Rollouts from a stub of Gym's servers in another process: CPU a rollout here, and memory at a tenth, and at all.

python benchmarks/collect.py gym TASKS GYM [--head URL] [--repeats N] [--concurrency N]
    The same tasks through running NeMo Gym servers (docs/collect.md) twice each, alternating: `GYM eval run
    --no-serve` and ours. GYM is Gym's command. The servers' policy decides how long an answer takes; a stub
    answers at once, so that collecting is what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STUB = """
import asyncio, json
ROW = {"response": {"id": "r", "object": "response", "model": "m", "output": [{"type": "message", "role": "assistant",
       "id": "x", "status": "completed", "content": [{"type": "output_text", "text": "4 " * 1500, "annotations": []}]}],
       "usage": {"input_tokens": 50, "output_tokens": 1500, "total_tokens": 1550}}, "reward": 1.0}

async def one(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
            length = int(next((h[15:] for h in head.lower().splitlines() if h.startswith("content-length:")), 0))
            body = json.loads(await reader.readexactly(length)) if length else None
            if body is None:
                at = writer.get_extra_info("sockname")[1]
                url = f"http://127.0.0.1:{at}"
                agents = [{"process_name": "agent", "server_type": "responses_api_agents", "url": url}]
                reply = agents if "server_instances" in head else "agent: {}"
            else:
                await asyncio.sleep(0.2)
                reply = {"responses_create_params": body["responses_create_params"], **ROW}
            data = json.dumps(reply).encode()
            writer.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: %d\\r\\n\\r\\n" % len(data) + data)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(one, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def collect(tasks: Path, out: Path, head: str, agent: str, repeats: int, concurrency: int, limit: int | None) -> float:
    """Our collector on running servers; seconds of this process's CPU."""
    from gristmill.collect import collect, each
    from gristmill.collect.gym import GymCollector, servers
    from gristmill.collect.tasks import TaskFile, chosen
    from gristmill.recipe import RequestsRecipe, SamplingRecipe

    sampling = SamplingRecipe(samples=repeats)
    started = time.process_time()
    with TaskFile(tasks) as file:
        collector = GymCollector(file.__getitem__, servers(head), agent=agent, policy={}, sampling=sampling, seed=0)
        counts = collect(
            collector,
            out,
            tasks=file.identity,
            count=len(file),
            wanted=each(chosen(len(file), limit), repeats),
            samples=repeats,
            requests=RequestsRecipe(concurrency=concurrency),
            seed=0,
            min_completion=1.0,
        )
    assert counts.rollouts == counts.expected
    return time.process_time() - started


def cost(rollouts: int, concurrency: int) -> None:
    """CPU a rollout and peak memory."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        stub = subprocess.Popen([sys.executable, "-c", STUB], stdout=subprocess.PIPE, text=True)
        stack.callback(stub.wait)
        stack.callback(stub.kill)
        assert stub.stdout is not None
        head = f"http://127.0.0.1:{stub.stdout.readline().strip()}"
        tasks = folder / "tasks.jsonl"
        prompt = "What is 2 + 2? Think about it. " * 60
        with tasks.open("w") as file:
            for number in range(rollouts // 4):
                params = {"input": [{"role": "user", "content": f"{number}: {prompt}"}]}
                file.write(json.dumps({"responses_create_params": params, "answer": "4"}) + "\n")
        for share in (10, 1):
            begun = time.monotonic()
            cpu = collect(tasks, folder / f"out{share}", head, "agent", 4, concurrency, rollouts // 4 // share)
            count = rollouts // share // 4 * 4
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(
                f"{count:>7} rollouts, {concurrency} in flight: {time.monotonic() - begun:6.1f} s, "
                f"{1000 * cpu / count:.2f} ms CPU a rollout, peak {peak:.0f} MiB"
            )


def gym(tasks: Path, command: str, head: str, agent: str, repeats: int, concurrency: int) -> None:
    """Wall time of both, alternating, in fresh processes."""
    from urllib.parse import urlsplit

    place = urlsplit(head)
    ours = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
    seconds: dict[str, list[float]] = {"gym eval run": [], "gristmill": []}
    with tempfile.TemporaryDirectory() as name:
        for turn in range(2):
            theirs = Path(name) / f"gym{turn}"
            theirs.mkdir()
            run = [command, "eval", "run", "--no-serve", "--agent", agent, "--input", str(tasks)]
            run += ["--output", str(theirs / "rollouts.jsonl"), "--num-repeats", str(repeats)]
            run += ["--concurrency", str(concurrency), "--temperature", "1.0"]
            run += [f"+head_server.host={place.hostname}", f"+head_server.port={place.port}"]
            own = (
                f"from collect import collect; collect(Path({str(tasks)!r}), Path({str(Path(name) / f'own{turn}')!r}), "
            )
            own += f"{head!r}, {agent!r}, {repeats}, {concurrency}, None)"
            for label, what in (("gym eval run", run), ("gristmill", [sys.executable, "-c", ours + own])):
                begun = time.monotonic()
                path = str(Path(command).parent) + os.pathsep + os.environ["PATH"]
                subprocess.run(what, check=True, capture_output=True, cwd=name, env=os.environ | {"PATH": path})
                seconds[label].append(time.monotonic() - begun)
    for label, values in seconds.items():
        print(f"{label:>13}: {statistics.mean(values):6.1f} s ({', '.join(f'{value:.1f}' for value in values)})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_subparsers(required=True, dest="which")
    alone = which.add_parser("cost")
    alone.add_argument("rollouts", nargs="?", type=int, default=8000)
    alone.add_argument("concurrency", nargs="?", type=int, default=256)
    against = which.add_parser("gym")
    against.add_argument("tasks", type=Path)
    against.add_argument("gym")
    against.add_argument("--head", default="http://127.0.0.1:11000")
    against.add_argument("--agent", default="reasoning_gym_simple_agent")
    against.add_argument("--repeats", type=int, default=4)
    against.add_argument("--concurrency", type=int, default=16)
    given = parser.parse_args()
    if given.which == "cost":
        cost(given.rollouts, given.concurrency)
    else:
        gym(given.tasks.resolve(), given.gym, given.head, given.agent, given.repeats, given.concurrency)


if __name__ == "__main__":
    main()
