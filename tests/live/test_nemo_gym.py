"""Against real NeMo Gym 0.4.0 servers, started here in Gym's own Python 3.12 environment (kept in the test cache).

One stack serves all tests: reasoning_gym, and workplace_assistant with its tools. Its policy is at a fixed port, where
each test puts one: a stub that calls tools, or our served tiny model, for a whole turn of the loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from gristmill.chat import convert
from gristmill.collect import FAILURES, INPUTS, ROLLOUTS, Counts, collect, each
from gristmill.collect.gym import GymCollector, agents
from gristmill.collect.openai import Endpoint
from gristmill.collect.reverify import Reverifier
from gristmill.collect.stack import attached, started
from gristmill.collect.stored import Stored, completion
from gristmill.collect.tasks import TaskFile
from gristmill.recipe import EnvironmentRecipe, Recipe, RequestsRecipe, SamplingRecipe, build
from gristmill.serve import free_port
from tests.faults import FaultServer
from tests.test_chat_oracle import gym_python  # noqa: F401  # a fixture

pytestmark = pytest.mark.live

REQUESTS = RequestsRecipe(concurrency=4, timeout=60, patience=60, start_timeout=600)
SAMPLING = SamplingRecipe(samples=2, temperature=1.0, max_new_tokens=16)


class Stack(NamedTuple):
    """Running Gym servers, where their policy is expected, and where the wheel's data lies."""

    settings: EnvironmentRecipe
    policy: Endpoint
    data: Path


class Policy(FaultServer):
    """Calls the first tool that is offered, once; then, or without tools, answers 7."""

    async def _act(self, word: str, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        called = any(message["role"] == "tool" for message in body["messages"])
        message: dict[str, Any] = {"role": "assistant", "content": "<answer>7</answer>"}
        if body.get("tools") and not called:
            call = {"name": body["tools"][0]["function"]["name"], "arguments": "{}"}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function"}]}
            message["tool_calls"][0]["function"] = call
        finish = "tool_calls" if "tool_calls" in message else "stop"
        reply = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "policy",
            "choices": [{"index": 0, "message": message, "finish_reason": finish}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
        return await self._reply(writer, 200, reply)


@pytest.fixture(scope="module")
def stack(gym_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # noqa: F811
    packages = subprocess.run(
        [gym_python, "-c", "import nemo_gym, os; print(os.path.dirname(os.path.dirname(nemo_gym.__file__)))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    low = 20100 + os.getpid() % 100 * 100  # below the ports that the kernel hands to clients
    start = ["--config", "environments/reasoning_gym/config.yaml"]
    start += ["--config", "environments/workplace_assistant/config.yaml", "--model-type", "vllm_model"]
    start += ["+skip_venv_if_present=true", f"+uv_venv_dir={gym_python.parents[2] / 'gym-servers'}"]
    start += [f"+port_range_low={low}", f"+port_range_high={low + 99}"]
    settings = EnvironmentRecipe(
        name="nemo-gym",
        head=f"http://127.0.0.1:{free_port()}",
        gym=str(gym_python.parent / "gym"),
        start=tuple(start),
        agent="reasoning_gym_simple_agent",
    )
    policy = Endpoint(f"http://127.0.0.1:{free_port()}/v1", "policy")
    log = tmp_path_factory.mktemp("gym") / "gym.log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UV_PYTHON_DOWNLOADS", "never")
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        with started(settings, policy, log=log, start_timeout=600) as known:
            assert "reasoning_gym_simple_agent" in agents(known)
            yield Stack(settings.model_copy(update={"start": ()}), policy, Path(packages))


def gather(stack: Stack, tasks: Path, out: Path, agent: str, limit: int) -> Counts:
    with TaskFile(tasks) as file:
        collector = GymCollector(
            file.__getitem__,
            attached(stack.settings, stack.policy),
            agent=agent,
            policy={"model": "stub"},
            sampling=SAMPLING,
            seed=0,
        )
        collector.check(range(limit))
        return collect(
            collector,
            out,
            tasks=file.identity,
            count=len(file),
            wanted=each(range(limit), SAMPLING.samples),
            samples=SAMPLING.samples,
            requests=REQUESTS,
            seed=0,
            min_completion=1.0,
        )


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def port(stack: Stack) -> int:
    return int(stack.policy.base_url.removesuffix("/v1").rsplit(":", 1)[1])


def test_tools_are_run_and_several_agents_share_an_input(stack: Stack, tmp_path: Path) -> None:
    examples = [
        [
            {**row, "agent_ref": {"type": "responses_api_agents", "name": f"{name}_simple_agent"}}
            for row in lines(stack.data / "environments" / name / "data" / "example.jsonl")[:2]
        ]
        for name in ("workplace_assistant", "reasoning_gym")
    ]
    tasks = tmp_path / "tasks.jsonl"
    mixed = [row for pair in zip(*examples, strict=True) for row in pair]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    with Policy(port(stack)) as policy:
        counts = gather(stack, tasks, tmp_path / "out", "reasoning_gym_simple_agent", 4)
        sent = [body for body in policy.bodies if not any(m["role"] == "tool" for m in body["messages"])]
    assert (counts.rollouts, counts.failures) == (8, {})
    rows = lines(tmp_path / "out" / ROLLOUTS)
    assert {row["agent_ref"]["name"] for row in rows} == {
        "workplace_assistant_simple_agent",
        "reasoning_gym_simple_agent",
    }
    roles = [[m["role"] for m in convert(row).messages[-3:]] for row in rows if row["_ng_task_index"] == 0]
    assert roles == [["assistant", "tool", "assistant"]] * 2
    # Each repeat of each task has a seed of its own, and Gym's vllm_model passes it on.
    assert len({body["seed"] for body in sent}) == 8
    assert lines(tmp_path / "out" / FAILURES) == []
    assert completion(tmp_path / "out" / ROLLOUTS) == {"expected": 8, "succeeded": 8, "failed": 0, "missing": 0}


def test_a_dead_policy_is_bounded_where_gym_would_wait_for_ever(stack: Stack, tmp_path: Path) -> None:
    tasks = stack.data / "environments" / "reasoning_gym" / "data" / "example.jsonl"
    with TaskFile(tasks) as file:
        collector = GymCollector(
            file.__getitem__,
            attached(stack.settings, stack.policy),
            agent="reasoning_gym_simple_agent",
            policy={},
            sampling=SAMPLING,
            seed=0,
        )
        counts = collect(
            collector,
            tmp_path / "out",
            tasks=file.identity,
            count=len(file),
            wanted=[(0, 0), (1, 0)],
            samples=2,
            requests=REQUESTS.model_copy(update={"timeout": 1, "attempts": 1}),
            seed=0,
            min_completion=0.0,
        )
    assert counts.failures == {"timeout": 2}


def test_stored_rollouts_are_scored_again_without_the_policy(stack: Stack, tmp_path: Path) -> None:
    tasks = stack.data / "environments" / "reasoning_gym" / "data" / "example.jsonl"
    with Policy(port(stack)):
        gather(stack, tasks, tmp_path / "out", "reasoning_gym_simple_agent", 3)
    with Stored(tmp_path / "out" / ROLLOUTS) as stored:
        counts = collect(
            Reverifier(stored, attached(stack.settings, None), name="nemo-gym"),
            tmp_path / "again",
            tasks=stored.identity,
            count=3,
            wanted=stored.known,
            samples=2,
            requests=REQUESTS,
            seed=0,
            min_completion=1.0,
        )
    assert counts.rollouts == 6
    before, after = lines(tmp_path / "out" / ROLLOUTS), lines(tmp_path / "again" / ROLLOUTS)
    assert [row["reward"] for row in before] == [row["reward"] for row in after]
    assert [row["response"]["output"] for row in before] == [row["response"]["output"] for row in after]
    assert len(lines(tmp_path / "again" / INPUTS)) == 6


def loop_recipe(stack: Stack, tasks: Path) -> Recipe:
    return build(
        {
            "name": "live",
            "turns": 1,
            "policy": {"model": "tiny-random", "kind": "serve", "server": "transformers", "device": "cpu"}
            | {"port": port(stack)},
            "environment": {"name": "nemo-gym", "head": stack.settings.head, "agent": stack.settings.agent}
            | {"train_file": str(tasks), "tasks": 6, "heldout": 2},
            "collect": {"samples": 2, "max_new_tokens": 8},
            "curate": {"min_reward": None, "keep_truncated": True},
            "checks": {"min_examples": 1, "max_truncated": 1.0},
            "train": {"epochs": 1, "max_length": 512, "lora_rank": 0, "batch_size": 4},
            "evaluate": {"samples": 2, "max_new_tokens": 8},
            "requests": {"concurrency": 4, "timeout": 60},
        }
    )


def test_one_turn_of_the_loop_on_a_served_policy(stack: Stack, tmp_path: Path, prefect_server: str) -> None:
    from flows.improve import improve
    from gristmill.workspace import Workspace

    example = lines(stack.data / "environments" / "reasoning_gym" / "data" / "example.jsonl")[0]
    rows = []
    for number in range(16):
        row = json.loads(json.dumps(example))
        row["responses_create_params"]["input"][-1]["content"] += f" ({number})"
        rows.append(row)
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = improve(loop_recipe(stack, tasks), str(tmp_path / "workspace"))
    turn = outcome.turns[0]
    store = Workspace(tmp_path / "workspace").store
    counts = store.manifest(turn.rollouts).counts
    assert (counts["expected"], counts["rollouts"], counts["failures"]) == (12, 12, {})
    rollouts = lines(store.path(turn.rollouts) / ROLLOUTS)
    assert all(row["response"]["output"] for row in rollouts)
    assert store.manifest(turn.checkpoint).parents
    assert store.read_json(turn.evaluation, "evaluation.json")["expected"] == 4
