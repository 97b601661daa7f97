"""Remote collection against a server that misbehaves: nothing lost, nothing doubled, nothing hangs, nothing guessed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.chat import convert, require_trainable
from gristmill.collect import COLLECTION, FAILURES, INPUTS, ROLLOUTS, Counts, collect, each
from gristmill.collect.failure import Failed, FailureClass, from_status, shortened
from gristmill.collect.gym import GymCollector, servers
from gristmill.collect.journal import Journal
from gristmill.collect.openai import Endpoint, OpenAICollector
from gristmill.collect.pace import Pace, Slot
from gristmill.collect.tasks import TaskFile, chosen
from gristmill.errors import CollectionError, GateError, InputError, UsageError
from gristmill.recipe import RequestsRecipe, SamplingRecipe
from tests.faults import FaultServer, task

SAMPLING = SamplingRecipe(samples=2, temperature=0.7, max_new_tokens=16)
PATIENT = RequestsRecipe(concurrency=4, timeout=0.5, rollout_timeout=5, attempts=3, patience=6)
QUICK = RequestsRecipe(concurrency=4, timeout=0.5, rollout_timeout=5, attempts=3, patience=0.4)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def keys(path: Path) -> list[tuple[int, int]]:
    return [(row["_ng_task_index"], row["_ng_rollout_index"]) for row in lines(path)]


def gym(
    server: FaultServer,
    tasks: Path,
    out: Path,
    *,
    sampling: SamplingRecipe = SAMPLING,
    requests: RequestsRecipe = QUICK,
    policy: str = "p",
    min_completion: float = 0.0,
    seed: int = 0,
    limit: int | None = None,
) -> Counts:
    with TaskFile(tasks) as file:
        collector = GymCollector(
            file.__getitem__, servers(server.url), agent=None, policy={"model": policy}, sampling=sampling, seed=seed
        )
        return collect(
            collector,
            out,
            tasks=file.identity,
            count=len(file),
            wanted=each(chosen(len(file), limit), sampling.samples),
            samples=sampling.samples,
            requests=requests,
            seed=seed,
            min_completion=min_completion,
        )


# ---- faults


def test_each_fault_is_a_class_and_none_is_a_reward(tmp_path: Path) -> None:
    faults = {
        "ok": None,
        "500 garbage ok": None,  # two passing failures, within three attempts
        "500": "server_error",
        "422": "rejected",
        "garbage": "invalid_reply",
        "half": "cut",
        "hang": "timeout",
        "noreward": "no_reward",
        "failed": "agent_failed",
        "503": "overloaded",
        "gzip": "invalid_reply",
    }
    tasks = write(tmp_path / "tasks.jsonl", [task(i, words) for i, words in enumerate(faults)])
    with FaultServer() as server:
        counts = gym(server, tasks, tmp_path / "out", requests=PATIENT)
        asked = server.asked
    good = [i for i, kind in enumerate(faults.values()) if kind is None]
    assert keys(tmp_path / "out" / ROLLOUTS) == [(i, r) for i in good for r in (0, 1)]
    failures = lines(tmp_path / "out" / FAILURES)
    assert [(f["_ng_task_index"], f["_ng_failure_class"]) for f in failures] == [
        (i, kind) for i, kind in enumerate(faults.values()) if kind for _ in (0, 1)
    ]
    assert all("reward" not in f and "response" not in f and f["cause"] for f in failures)
    assert counts.rollouts + sum(counts.failures.values()) == counts.expected == 22
    assert asked["task3 422"] == 2 and asked["task7 noreward"] == 2  # asking again would change nothing
    assert asked["task2 500"] == 6  # three attempts for each of two
    assert counts.tokens == 7 * counts.rollouts


def test_the_gate_says_no_and_the_next_run_asks_only_for_the_rest(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(0), task(1, "500 500 500 500 500 500 ok"), task(2)])
    with FaultServer() as server:
        with pytest.raises(GateError, match=r"4 of 6 rollouts were collected.*failed: 2 server_error"):
            gym(server, tasks, tmp_path / "out", min_completion=0.9)
        before = sum(server.asked.values())
        counts = gym(server, tasks, tmp_path / "out", min_completion=0.9)
        assert sum(server.asked.values()) == before + 2
    assert counts == Counts(3, 2, 6, 6, 4, 42, {})
    assert lines(tmp_path / "out" / FAILURES) == []


def test_a_dead_server_stops_the_run_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i) for i in range(30)])
    with FaultServer() as server:
        server.die_after = 17
        with pytest.raises(CollectionError, match=r"nothing succeeded for .* of 60 rollouts are kept") as caught:
            gym(server, tasks, tmp_path / "out")
    kept = len(keys(tmp_path / "out" / ROLLOUTS))
    assert 17 <= kept <= server.served and f"{kept} of 60" in str(caught.value)
    with FaultServer(server.port) as again:
        counts = gym(again, tasks, tmp_path / "out", min_completion=1)
        assert again.served == 60 - kept
    assert counts.resumed == kept
    assert keys(tmp_path / "out" / ROLLOUTS) == [(t, r) for t in range(30) for r in (0, 1)]


def test_a_last_few_impossible_rollouts_are_no_dead_endpoint(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(0), *(task(i, "500") for i in range(1, 30))])
    with FaultServer() as server:
        counts = gym(server, tasks, tmp_path / "out")
        again = gym(server, tasks, tmp_path / "out")
    assert counts.failures == again.failures == {"server_error": 58}


def test_a_short_outage_costs_no_rollout(tmp_path: Path) -> None:
    """Every attempt finds an overloaded server; the rollouts get their second round when it is well again."""
    tasks = write(tmp_path / "tasks.jsonl", [task(i, "503 503 503 ok") for i in range(3)])
    with FaultServer() as server:
        once = SAMPLING.model_copy(update={"samples": 1})
        counts = gym(server, tasks, tmp_path / "out", sampling=once, requests=PATIENT)
    assert counts.rollouts == 3 and counts.failures == {}


def test_a_rate_limit_is_waited_out(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i) for i in range(10)])
    with FaultServer() as server:
        server.limited_for = 0.6
        counts = gym(server, tasks, tmp_path / "out")
        # One refusal for each that was in flight; then all wait until the server's time is over.
        assert 1 <= server.limited <= 2 * QUICK.concurrency
        assert max(server.asked.values()) == 2  # no attempt was wasted: each task once a repeat
    assert counts.rollouts == 20 and counts.failures == {}


def test_a_rate_limit_without_end_opens_the_circuit(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i, "429") for i in range(6)])
    with FaultServer() as server, pytest.raises(CollectionError, match="rate_limited: HTTP 429"):
        gym(server, tasks, tmp_path / "out")


def test_a_request_that_is_always_refused_stops_early(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i, "422") for i in range(200)])
    with FaultServer() as server:
        with pytest.raises(CollectionError, match=r"every request is refused.*the server says 422"):
            gym(server, tasks, tmp_path / "out")
        assert sum(server.asked.values()) < 40


def test_a_server_that_hangs_for_all_is_given_up(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i, "hang") for i in range(40)])
    requests = QUICK.model_copy(update={"timeout": 0.2})
    with FaultServer() as server, pytest.raises(CollectionError, match=r"timeout: no answer within 0.2 s"):
        gym(server, tasks, tmp_path / "out", requests=requests)


CHILD = """
import sys
from pathlib import Path
from tests.test_collect_remote import gym
class At: url = sys.argv[1]
gym(At, Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_collector_owes_exactly_what_is_missing(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i) for i in range(400)])
    out = tmp_path / "out"
    with FaultServer() as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(tasks), str(out)], cwd=Path.cwd())
        try:
            deadline = time.monotonic() + 60
            while server.served < 200 and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        rows = out / ROLLOUTS
        kept = rows.read_bytes().count(b"\n")
        assert kept > 0
        with rows.open("ab") as file:  # as if the kill had come within a write
            file.write(b'{"_ng_task_index": 3, "_ng_rol')
        before = -1
        while before != server.served:  # it may still be busy with what the killed one had asked for
            before = server.served
            time.sleep(0.5)
        counts = gym(server, tasks, out, min_completion=1)
        assert server.served - before == 800 - kept
    assert counts.resumed == kept and counts.rollouts == 800
    assert keys(rows) == [(t, r) for t in range(400) for r in (0, 1)]
    assert Counter(keys(out / INPUTS)) == Counter(keys(rows))


# ---- resuming


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(0), task(1)])
    other = write(tmp_path / "other.jsonl", [task(0), task(2)])
    with FaultServer() as server:
        gym(server, tasks, tmp_path / "out")
        warmer = SAMPLING.model_copy(update={"temperature": 1.0})
        with pytest.raises(CollectionError, match=r"sampling.temperature was 0.7 and is 1.0"):
            gym(server, tasks, tmp_path / "out", sampling=warmer)
        with pytest.raises(CollectionError, match=r'policy.model was "p" and is "q"'):
            gym(server, tasks, tmp_path / "out", policy="q")
        with pytest.raises(CollectionError, match=r"tasks was .* and is"):
            gym(server, other, tmp_path / "out")
        with pytest.raises(CollectionError, match=r"seed was 0 and is 1"):
            gym(server, tasks, tmp_path / "out", seed=1)
        asked = sum(server.asked.values())
        gym(server, tasks, tmp_path / "out", requests=QUICK.model_copy(update={"concurrency": 1}), min_completion=1)
        assert sum(server.asked.values()) == asked == 4  # how it is asked is no setting, and nothing was missing
    assert orjson.loads((tmp_path / "out" / COLLECTION).read_bytes())["policy"] == {"model": "p"}


def test_a_limit_can_be_raised_and_shards_are_the_whole(tmp_path: Path) -> None:
    tasks = write(tmp_path / "tasks.jsonl", [task(i) for i in range(5)])
    with FaultServer() as server:
        gym(server, tasks, tmp_path / "out", limit=2)
        assert gym(server, tasks, tmp_path / "out").rollouts == 10
        assert gym(server, tasks, tmp_path / "out", limit=2).expected == 10  # what is there stays
        assert max(server.asked.values()) == 2
    shards = [set(chosen(11, 10, (i, 3))) for i in range(3)]
    assert set.union(*shards) == set(range(10)) and sum(map(len, shards)) == 10


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=12),
    st.integers(0, 400),
)
def test_a_torn_journal_holds_each_whole_row_once(tmp_path_factory: Any, done: list[tuple[int, int]], cut: int) -> None:
    folder = tmp_path_factory.mktemp("journal")
    rows = [{"_ng_task_index": t, "_ng_rollout_index": r, "n": n} for n, (t, r) in enumerate(dict.fromkeys(done))]
    with Journal(folder, {"a": 1}, tasks=4, samples=3) as journal:
        journal.append(rows)
    path = folder / ROLLOUTS
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = [orjson.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
    with Journal(folder, {"a": 1}, tasks=4, samples=3) as journal:
        assert journal.resumed == len(whole)
        journal.append([row for row in rows if not journal.has(row["_ng_task_index"], row["_ng_rollout_index"])])
        there = [orjson.loads(line) for line in journal.rows()]
    assert there == sorted(rows, key=lambda row: (row["_ng_task_index"], row["_ng_rollout_index"]))


# ---- what is sent and written


def test_gym_rows_are_stamped_and_seeded(tmp_path: Path) -> None:
    row = task(0)
    row["responses_create_params"]["metadata"] = {"kept": "yes", "extra_body": '{"top_k": 3}'}
    tasks = write(tmp_path / "tasks.jsonl", [row, task(1)])
    with FaultServer() as server:
        gym(server, tasks, tmp_path / "out")
        sent = {(b["_ng_task_index"], b["_ng_rollout_index"]): b for b in server.bodies}
    params = sent[0, 1]["responses_create_params"]
    assert (params["temperature"], params["max_output_tokens"]) == (0.7, 16)
    extra = orjson.loads(params["metadata"]["extra_body"])
    assert params["metadata"]["kept"] == "yes" and extra["top_k"] == 3
    seeds = {orjson.loads(b["responses_create_params"]["metadata"]["extra_body"])["seed"] for b in sent.values()}
    assert len(seeds) == 4 and all(0 <= seed < 2**31 for seed in seeds)
    assert sent[1, 0]["expected_answer"] == "1"  # task fields go to the verifier
    rows = lines(tmp_path / "out" / ROLLOUTS)
    assert all(row["agent_ref"] == {"type": "responses_api_agents", "name": "agent"} for row in rows)
    assert {r["expected_answer"] for r in lines(tmp_path / "out" / INPUTS)} == {"0", "1"}


def test_an_agent_that_does_not_run_is_named(tmp_path: Path) -> None:
    row = task(0)
    del row["agent_ref"]
    with FaultServer() as server:
        known = servers(server.url)

        def collector(agent: str | None) -> GymCollector:
            return GymCollector([row].__getitem__, known, agent=agent, policy={}, sampling=SAMPLING, seed=0)

        collector("agent").check([0])
        with pytest.raises(UsageError, match="'other', which is not running; running: agent"):
            collector("other").check([0])
        with pytest.raises(UsageError, match=r"name the agent with environment\.agent"):
            collector(None).check([0])
    with pytest.raises(CollectionError, match=r"no NeMo Gym head server answers.*gym env start"):
        servers(server.url)


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_an_endpoint_with_a_verifier_gives_rollouts(api: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(row: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
        if row["expected_answer"] == "2":
            raise KeyError("no answer")
        return {"reward": float("ok" in response["output"][-1]["content"][0]["text"]), "seen": True}

    monkeypatch.setenv("SOME_KEY", "k")
    out = tmp_path / "out"
    rows = [task(0), task(1), task(2)]
    with FaultServer() as server:
        endpoint = Endpoint(f"{server.url}/v1", "m", api=api, api_key_env="SOME_KEY")
        collector = OpenAICollector(
            rows.__getitem__, endpoint, verify, policy={}, environment="v", sampling=SAMPLING, seed=3
        )
        counts = collect(
            collector,
            out,
            tasks="t",
            count=3,
            wanted=each(range(3), 2),
            samples=2,
            requests=QUICK,
            seed=3,
            min_completion=0.5,
        )
        sent = server.bodies
    assert (counts.rollouts, counts.failures, counts.tokens) == (4, {"verifier": 2}, 28)
    assert lines(out / FAILURES)[0]["cause"] == "KeyError: 'no answer'"
    assert all(body["model"] == "m" and body["temperature"] == 0.7 for body in sent)
    assert all(("seed" in body) == (api == "chat") for body in sent)
    for row in lines(out / ROLLOUTS):
        conversation = convert(row)
        require_trainable(conversation)
        assert conversation.messages[-1]["content"] == f"answer to task{row['_ng_task_index']} ok"
        assert row["reward"] == 1.0 and row["seen"]
    monkeypatch.delenv("SOME_KEY")
    with pytest.raises(UsageError, match="SOME_KEY is not set"):
        endpoint.headers()


# ---- tasks


def test_equal_rows_are_one_task_and_stamps_are_none_of_it(tmp_path: Path) -> None:
    stamped = [{**task(0), "_ng_task_index": 7, "_ng_rollout_index": r} for r in (0, 1)]
    path = write(tmp_path / "tasks.jsonl", [*stamped, task(1), task(0)])
    with TaskFile(path) as file:
        assert list(file) == [task(0), task(1)] and file.repeated == 2
    (tmp_path / "bad.jsonl").write_text('{"question": 1}\n')
    with pytest.raises(InputError, match=r"bad.jsonl, row 1: no responses_create_params.input"):
        TaskFile(tmp_path / "bad.jsonl")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no tasks"):
        TaskFile(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="No such file"):
        TaskFile(tmp_path / "absent.jsonl")


# ---- pace and classes


@given(st.integers(1, 300), st.lists(st.sampled_from(["good", *FailureClass]), max_size=200))
def test_the_limit_stays_within_its_bounds(most: int, outcomes: list[str]) -> None:
    async def play() -> None:
        pace = Pace(most, 1000, 0)
        for outcome in outcomes:
            pace._paused_until = 0
            async with pace.slot() as slot:
                before = pace.limit
                if outcome == "good":
                    pace.good()
                    assert pace.limit >= before
                    continue
                try:
                    pace.bad(Failed(FailureClass(outcome), "x"), slot)
                except CollectionError:
                    return
                assert before / 2 <= pace.limit <= before or pace.limit == 1
            assert 1 <= pace.limit <= most

    asyncio.run(play())


def test_congestion_halves_the_limit_once_for_all_in_flight() -> None:
    async def play() -> None:
        pace = Pace(64, 1000, 0)
        async with pace.slot() as one, pace.slot() as two:
            pace.bad(Failed(FailureClass.OVERLOADED, "x", wait=0.0), one)
            pace.bad(Failed(FailureClass.OVERLOADED, "x", wait=0.0), two)
            assert pace.limit == 32
        for _ in range(2000):
            pace.good()
        assert pace.limit == 64

    asyncio.run(play())


def test_a_slow_rollout_in_flight_keeps_suspicion_away() -> None:
    async def play() -> None:
        pace = Pace(2, 0.05, 0)
        async with pace.slot():
            await asyncio.sleep(0.1)  # longer than our patience, and perhaps about to succeed
            for _ in range(30):
                pace.bad(Failed(FailureClass.SERVER_ERROR, "x"), Slot())
            assert pace.suspicious is None
        assert "nothing succeeded" in (pace.suspicious or "")
        pace.good()
        assert pace.suspicious is None

    asyncio.run(play())


def test_what_servers_ask_for_is_read() -> None:
    assert from_status(429, b"", "1.5").wait == 1.5
    assert from_status(503, b"", "Wed, 21 Oct 2015 07:28:00 GMT").wait == 0
    assert from_status(503, b"", "soon").wait is None
    assert from_status(500, b"x" * 9000, None).kind is FailureClass.SERVER_ERROR
    assert len(shortened("x" * 9000)) <= 500
