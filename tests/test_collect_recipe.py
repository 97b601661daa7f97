"""What a recipe means for collecting: tasks from files, who fits whom, the command, and scoring again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from gristmill.cli import app
from gristmill.collect import FAILURES, INPUTS, ROLLOUTS
from gristmill.collect.responses import from_chat
from gristmill.collect.run import check
from gristmill.collect.stored import Stored, completion
from gristmill.environment import make_tasks, source, verifier
from gristmill.errors import CollectionError, GateError, InputError, RecipeError, UsageError
from gristmill.recipe import EnvironmentRecipe, PolicyRecipe, build, load
from gristmill.serve import Process, last_words, require_free, running, server_command
from tests.faults import FaultServer, task


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def starts_with_answer(row: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """A verifier for the tests."""
    text = response["output"][-1]["content"][0]["text"]
    return {"reward": float(text.startswith("answer") and row["expected_answer"] != "1"), "kind": "mine"}


VERIFIER = f"{__name__}:starts_with_answer"


# ---- tasks


def of_files(folder: Path, **fields: Any) -> EnvironmentRecipe:
    values = {"name": VERIFIER, "train_file": str(folder / "train.jsonl"), "tasks": 4, "heldout": 2, **fields}
    return EnvironmentRecipe.model_validate(values)


def prompts(rows: list[dict[str, Any]]) -> set[str]:
    return {row["responses_create_params"]["input"][0]["content"] for row in rows}


def test_turns_and_splits_of_a_file_share_no_task(tmp_path: Path) -> None:
    rows = [task(i) for i in range(40)]
    write(tmp_path / "train.jsonl", rows)
    recipe = of_files(tmp_path)
    drawn = [make_tasks(recipe, "train", 0, turn) for turn in (1, 2, 3)] + [make_tasks(recipe, "heldout", 0, 0)]
    assert [len(part) for part in drawn] == [4, 4, 4, 2]
    assert len(set.union(*map(prompts, drawn))) == 14
    write(tmp_path / "train.jsonl", rows[::-1])  # the order of the file is nothing
    assert [make_tasks(recipe, "train", 0, turn) for turn in (1, 2, 3)] == drawn[:3]
    assert make_tasks(recipe, "train", 1, 1) != drawn[0]
    everything = of_files(tmp_path, tasks=None, heldout=None)
    both = [make_tasks(everything, "train", 0, 1), make_tasks(everything, "heldout", 0, 0)]
    assert (
        sorted(len(part) for part in both) == sorted({len(both[0]), len(both[1])}) and len(both[0]) + len(both[1]) == 40
    )


def test_held_out_prompts_are_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [task(i) for i in range(10)])
    same_prompt = {**task(3), "expected_answer": "another"}
    write(tmp_path / "heldout.jsonl", [same_prompt, task(20)])
    recipe = of_files(tmp_path, tasks=None, heldout_file=str(tmp_path / "heldout.jsonl"))
    assert prompts(make_tasks(recipe, "train", 0, 1)) == {f"task{i} ok" for i in range(10) if i != 3}
    assert len(make_tasks(recipe, "heldout", 0, 0)) == 2
    before = source(recipe)
    write(tmp_path / "heldout.jsonl", [task(21), task(20)])
    assert source(recipe) != before
    with pytest.raises(UsageError, match=r"turn 3 needs 15: lower environment.tasks or turns"):
        make_tasks(of_files(tmp_path, tasks=5), "train", 0, 3)


def test_what_an_environment_lacks_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"environment.train_file: nemo-gym has no tasks of its own"):
        source(EnvironmentRecipe(name="nemo-gym"))
    with pytest.raises(RecipeError, match="'chess' is not known"):
        source(EnvironmentRecipe(name="chess"))
    with pytest.raises(RecipeError, match="cannot be imported"):
        verifier("no_such_module:f")
    with pytest.raises(RecipeError, match="is a str, expected a function"):
        verifier("gristmill.collect:ROLLOUTS")
    with pytest.raises(RecipeError, match="null means all of a file"):
        make_tasks(EnvironmentRecipe(tasks=None), "train", 0, 1)
    with pytest.raises(InputError, match="No such file"):
        source(of_files(tmp_path))


@pytest.mark.parametrize(
    ("policy", "environment", "trains", "message"),
    [
        ({"kind": "endpoint"}, {}, True, "cannot serve what is trained"),
        ({"kind": "endpoint"}, {}, False, r"policy.base_url: an endpoint needs one"),
        ({}, {"name": "nemo-gym"}, True, "asks the policy over HTTP; use `serve`"),
        ({"kind": "serve"}, {"name": "nemo-gym"}, True, "need a policy at a fixed port"),
    ],
)
def test_what_does_not_go_together_is_refused(policy: Any, environment: Any, trains: bool, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(PolicyRecipe(**policy), EnvironmentRecipe(**environment), trains=trains)


def test_how_it_is_asked_for_is_no_part_of_what_is_collected() -> None:
    from gristmill.artifact import ArtifactRef
    from tasks.caching import key_of
    from tasks.collect import content

    def key(**changed: Any) -> str:
        recipe = build({}, [f"{name}={value}" for name, value in changed.items()])
        policy, tasks = (ArtifactRef.model_validate({"kind": k, "digest": "0" * 64}) for k in ("checkpoint", "tasks"))
        inputs = content(policy, tasks, recipe.policy, recipe.environment, recipe.collect, recipe.requests, recipe.seed)
        return key_of("collect", "1", inputs)

    same = ("requests.concurrency=3", "collect.min_completion=0.5", "policy.port=9", "environment.head=x")
    other = ("collect.temperature=0.5", "environment.agent=a", "policy.kind=serve", "seed=4", "collect.seeds=false")
    assert {key(**dict([c.split("=")])) for c in same} == {key()}
    assert len({key(**dict([c.split("=")])) for c in other} | {key()}) == 6


def test_the_recipe_for_nemo_gym_is_one() -> None:
    recipe = load(Path(__file__).parents[1] / "recipes" / "nemo-gym.yaml")
    check(recipe.policy, recipe.environment, trains=True)
    assert recipe.environment.name == "nemo-gym" and recipe.policy.port == 8900


# ---- the command


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["collect", *arguments])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    write(tmp_path / "train.jsonl", [task(0), task(1), task(2, "500")])
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"policy: {{kind: endpoint}}\nenvironment: {{name: '{VERIFIER}', train_file: {tmp_path}/train.jsonl, "
        f"heldout_file: {tmp_path}/train.jsonl, heldout: null}}\n"
        "evaluate: {samples: 2, min_completion: 0.5}\nrequests: {concurrency: 2, attempts: 1, patience: 5}\n"
    )
    return path


def test_the_command_collects_and_scores_again(recipe: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    with FaultServer() as server:
        result = command(str(recipe), f"policy.base_url={server.url}/v1", "--heldout", "--out", str(out), "--json")
        assert result.exit_code == 0, result.exception
        told = orjson.loads(result.stdout.splitlines()[-1])
        assert (told["expected"], told["rollouts"], told["failures"]) == (6, 4, {"server_error": 2})
        short = command(
            str(recipe),
            f"policy.base_url={server.url}/v1",
            "evaluate.min_completion=0.9",
            "--heldout",
            "--out",
            str(out),
        )
        assert isinstance(short.exception, GateError) and short.exception.exit_code == 3
    assert completion(out / ROLLOUTS) == {"expected": 6, "succeeded": 4, "failed": 2, "missing": 0}
    assert len(lines(out / INPUTS)) == 6 and len(lines(out / FAILURES)) == 2
    rewards = [row["reward"] for row in lines(out / ROLLOUTS)]
    stale = [{**row, "reward": 0.5} for row in lines(out / ROLLOUTS)]
    write(out / ROLLOUTS, stale)
    result = command(str(recipe), "--reverify", str(out / ROLLOUTS), "--out", str(again), "--json")
    assert result.exit_code == 0, result.exception
    assert orjson.loads(result.stdout.splitlines()[-1])["reward_changed"] == 4
    assert [row["reward"] for row in lines(again / ROLLOUTS)] == rewards
    assert [row["response"] for row in lines(again / ROLLOUTS)] == [row["response"] for row in stale]


def test_shards_are_named_from_one(recipe: Path, tmp_path: Path) -> None:
    for wrong in ("0/2", "3/2", "x"):
        result = command(
            str(recipe), "policy.base_url=http://127.0.0.1:9/v1", "--shard", wrong, "-o", str(tmp_path / "o")
        )
        assert isinstance(result.exception, UsageError) and "expected I/N" in str(result.exception)


def test_what_gyms_own_command_left_is_read(tmp_path: Path) -> None:
    row = {"_ng_task_index": 0, "_ng_rollout_index": 0, "response": {"output": []}, "reward": 1.0}
    rollouts = write(tmp_path / "r.jsonl", [row])
    with rollouts.open("ab") as file:
        file.write(b'\n{"_ng_task')
    with pytest.raises(InputError, match=r"r_materialized_inputs.jsonl is not there"):
        Stored(rollouts)
    inputs = [{**task(t), "_ng_task_index": t, "_ng_rollout_index": 0} for t in (0, 1, 2)]
    write(tmp_path / "r_materialized_inputs.jsonl", inputs)
    write(tmp_path / "r_failures.jsonl", [{"_ng_task_index": 1, "_ng_rollout_index": 0}])
    assert completion(rollouts) == {"expected": 3, "succeeded": 1, "failed": 1, "missing": 1}
    with Stored(rollouts) as stored:
        assert stored.skipped == 1 and stored.task((0, 0))["expected_answer"] == "0"


def test_what_gyms_own_command_owed_is_asked_for_as_it_would(recipe: Path, tmp_path: Path) -> None:
    inputs = [
        {**task(t, "ok" if t else "500"), "_ng_task_index": t, "_ng_rollout_index": r, "own": t}
        for t in range(4)
        for r in (0, 1)
    ]
    write(tmp_path / "r_materialized_inputs.jsonl", inputs)
    there = [
        {**{k: v for k, v in row.items() if k != "own"}, "response": {"output": [], "id": "old"}, "reward": 0.25}
        for row in inputs[5:2:-1]
    ]
    rollouts = write(tmp_path / "r.jsonl", [*there, {**there[0], "reward": 9.0}])
    out = tmp_path / "out"
    with FaultServer() as server:
        arguments = (
            str(recipe),
            f"environment.head={server.url}",
            "collect.min_completion=0.5",
            "-o",
            str(out),
            "--json",
        )
        result = command(*arguments, "--finish", str(rollouts))
        assert result.exit_code == 0, result.exception
        assert sum(server.asked.values()) == 5 and all("own" in body for body in server.bodies)
    told = orjson.loads(result.stdout.splitlines()[-1])
    assert (told["expected"], told["rollouts"], told["resumed"]) == (8, 6, 3)
    assert told["failures"] == {"server_error": 2}
    rows = lines(out / ROLLOUTS)
    assert [row["reward"] for row in rows] == [1.0, 0.25, 0.25, 0.25, 1.0, 1.0]
    write(
        rollouts,
        [
            {**row, "_ng_task_index": i["_ng_task_index"], "_ng_rollout_index": i["_ng_rollout_index"]}
            for row, i in zip([there[0]] * 8, inputs, strict=True)
        ],
    )
    result = command(str(recipe), "-o", str(tmp_path / "whole"), "--finish", str(rollouts))  # needs no server
    assert result.exit_code == 0 and "8 of 8 rollouts" in result.stdout


def test_real_collections_are_read(shared: Path) -> None:
    for name in ("rg", "mcqa"):
        for path in sorted((shared / "live" / name).rglob("rollouts.jsonl")):
            counts = completion(path)
            assert counts["succeeded"] + counts["failed"] + counts["missing"] == counts["expected"] > 0


# ---- replies


@given(st.text(max_size=30), st.lists(st.text(max_size=10), max_size=2))
def test_chat_replies_become_items_in_gyms_order(text: str, thoughts: list[str]) -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    content = "".join(f"<think>{t.replace('<', '')}</think>" for t in thoughts) + text.replace("<", "")
    reply = {"choices": [{"message": {"content": content, "tool_calls": calls}, "finish_reason": "length"}]}
    response = from_chat(reply, "m")
    kinds = [item["type"] for item in response["output"]]
    expected = ["reasoning"] * bool(thoughts) + ["message"] * bool(text.replace("<", "")) + ["function_call"]
    assert kinds == expected
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert from_chat(reply, "m") == response  # ids come from the content


# ---- processes


def test_a_process_that_dies_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "print('loading'); raise ValueError('no weights here')"
    with (
        pytest.raises(CollectionError, match=r"thing ended with code 1: ValueError: no weights here \(whole log"),
        running([sys.executable, "-c", code], tmp_path / "log", "thing") as process,
    ):
        while True:
            process.require_alive()
    assert last_words(tmp_path / "log") == "ValueError: no weights here"


def test_a_process_ends_with_its_block(tmp_path: Path) -> None:
    process = Process([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "log", "sleeper")
    process.require_alive()
    process.stop()
    with pytest.raises(CollectionError, match="sleeper ended"):
        process.require_alive()


def test_server_commands_name_the_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    command, what = server_command(tmp_path, PolicyRecipe(server="transformers", device="cpu"), 1234)
    assert what == "transformers serve" and command[-6:] == ["--port", "1234", "--dtype", "bfloat16", "--device", "cpu"]
    vllm = tmp_path / "bin" / "vllm"
    vllm.parent.mkdir()
    vllm.write_text("#!/bin/sh\n")
    vllm.chmod(0o755)
    monkeypatch.setenv("PATH", str(vllm.parent))
    policy = PolicyRecipe(server="vllm", served_name="p", server_args=("--x",))
    command, what = server_command(tmp_path, policy, 1)
    assert what == "vllm serve" and command[1:3] == ["serve", str(tmp_path)] and command[-1] == "--x"
    assert command[command.index("--served-model-name") + 1] == "p"
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "base/model", "r": 24}')
    command, _ = server_command(adapter, policy, 1)
    assert command[2] == "base/model" and f"p={adapter}" in command
    assert command[command.index("--max-lora-rank") + 1] == "32"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no `vllm` command"):
        server_command(tmp_path, policy, 1)
    with FaultServer() as server, pytest.raises(UsageError, match=f"port {server.port} is taken"):
        require_free(server.port)
