"""`gristmill validate` and `gristmill plan`, as users run them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from gristmill import plan_command, validate_command
from gristmill.errors import GateError, InputError, RecipeError, UsageError
from tests.rows import rollout, write


def rows(tasks: int = 20, samples: int = 4) -> list[dict[str, Any]]:
    return [
        rollout(f"answer {task} {repeat}", task=task, repeat=repeat, reward=float(repeat <= task % samples))
        for task in range(tasks)
        for repeat in range(samples)
    ]


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    return write(tmp_path / "rollouts.jsonl", rows())


def said(call: Any, *arguments: str, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    call(arguments, console=console, **options)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def validated(*arguments: str, **options: Any) -> str:
    return said(validate_command.run, *arguments, **options)


def planned(*arguments: str, workspace: Path = Path("nowhere"), **options: Any) -> str:
    return said(plan_command.run, *arguments, workspace=workspace, **options)


def test_good_rollouts_pass(rollouts: Path) -> None:
    text = validated(str(rollouts))
    assert text.startswith("50 rows for sft: 1 note (")
    assert "· GM503 no evaluation tasks were given" in text


def test_json_is_one_object_with_findings_and_evidence(rollouts: Path) -> None:
    found = orjson.loads(validated(str(rollouts), json=True))
    assert found["evidence"]["rows_read"] == 80
    assert [finding["id"] for finding in found["findings"]] == ["GM503"]


def test_errors_are_printed_and_end_with_three(rollouts: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(GateError, match=r"1 error \(GM102\)") as stopped:
        validate_command.run([str(rollouts), "checks.min_examples=60"], console=console)
    assert stopped.value.exit_code == 3
    assert isinstance(console.file, io.StringIO)
    assert "✗ GM102 too few examples: 50 < 60" in console.file.getvalue()
    assert "→ collect.samples: 4 → " in console.file.getvalue()


def test_strict(tmp_path: Path) -> None:
    path = write(tmp_path / "flat.jsonl", [rollout(f"a {n}", task=n) for n in range(20)])
    validated(str(path))
    with pytest.raises(GateError, match="GM104"):
        validated(str(path), strict=True)


def test_evaluation_tasks_are_looked_for(rollouts: Path, tmp_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_bytes(orjson.dumps({"responses_create_params": {"input": "question 3?"}}) + b"\n")
    with pytest.raises(GateError, match="GM501"):
        validated(str(rollouts), against=[heldout])
    clean = tmp_path / "clean.jsonl"
    clean.write_bytes(orjson.dumps({"responses_create_params": {"input": "something else?"}}) + b"\n")
    assert "nothing to object to" in validated(str(rollouts), against=[clean])


@pytest.mark.parametrize(("line", "said"), [(b"[1]", "1: expected an evaluation task"), (b"{}", "responses_create")])
def test_what_is_no_evaluation_task_is_named(rollouts: Path, tmp_path: Path, line: bytes, said: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(InputError, match=said):
        validated(str(rollouts), against=[path])
    with pytest.raises(InputError, match="No such file"):
        validated(str(rollouts), against=[tmp_path / "absent.jsonl"])


def test_the_page_needs_nothing_else_and_escapes_what_models_said(rollouts: Path, tmp_path: Path) -> None:
    hostile = rows()
    for row in hostile:
        row["agent_ref"] = {"name": "<script>alert(1)</script>"}
    page = tmp_path / "checks.html"
    validated(str(write(tmp_path / "hostile.jsonl", hostile)), html=page)
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text == (validated(str(tmp_path / "hostile.jsonl"), html=page), page.read_text())[1]


def test_wrong_use(rollouts: Path) -> None:
    with pytest.raises(UsageError, match="no rollout files were given"):
        validated("checks.strict=true")
    with pytest.raises(RecipeError, match="did you mean `min_examples`"):
        validated(str(rollouts), "checks.min_example=3")
    with pytest.raises(InputError):
        validated("absent.jsonl")


def test_a_file_may_look_like_an_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run=1.jsonl", rows())
    assert validated("run=1.jsonl", "checks.min_examples=1").startswith("50 rows")


RECIPE = """
name: small
turns: 3
environment: {tasks: 10, heldout: 20}
collect: {samples: 4, max_new_tokens: 100}
evaluate: {samples: 2, max_new_tokens: 50}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_plan_counts_what_would_be_spent(recipe: Path) -> None:
    plan = orjson.loads(planned(str(recipe), json=True))
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert (stages["collect"]["times"], stages["collect"]["rows"], stages["collect"]["tokens"]) == (3, 40, 4000)
    assert (stages["evaluate"]["times"], stages["evaluate"]["rows"], stages["evaluate"]["tokens"]) == (4, 40, 2000)
    assert (plan["rollouts"], plan["tokens"]) == (280, 20_000)
    assert (plan["power"][0]["tasks"], plan["power"][0]["samples"]) == (20, 2)
    assert plan["recipe"]["seed"] == 0


def test_a_plan_says_what_the_evaluation_detects(recipe: Path) -> None:
    text = planned(str(recipe), "environment.heldout=64", "evaluate.samples=4")
    assert "64 tasks × 4 rollouts, 95% interval: a lift of 14.5 points or more" in text
    assert "to see 5 points: 526 tasks × 4 rollouts" in text
    assert "assumed: rewards of 0 and 1" in text


def test_a_plan_of_rollouts_uses_their_variance(rollouts: Path) -> None:
    text = planned(str(rollouts))
    assert "What an evaluation could detect: agent" in text
    assert "observed on 20 tasks, 80 rollouts" in text


def test_a_plan_of_rewards_on_another_scale_speaks_of_its_range(tmp_path: Path) -> None:
    wide = rows()
    for row in wide:
        row["reward"] = row["reward"] * 120 - 100
    text = planned(str(write(tmp_path / "wide.jsonl", wide)))
    assert "to see 5 points (6.00 of a range of 120)" in text
    narrow = planned(str(write(tmp_path / "narrow.jsonl", rows())))

    def tasks(said: str) -> str:
        return said.split("to see")[1].split("tasks")[0].split(":")[1]

    assert tasks(text) == tasks(narrow)


def test_too_few_rollouts_to_plan_with_are_named(tmp_path: Path) -> None:
    single = write(tmp_path / "single.jsonl", [rollout(str(n), task=n) for n in range(3)])
    assert "agent: needs two tasks, and one with two rollouts" in planned(str(single))


def test_a_plan_needs_one_recipe_or_files(recipe: Path, rollouts: Path) -> None:
    for wrong in ([], [str(recipe), str(rollouts)], [str(rollouts), "turns=2"]):
        with pytest.raises(UsageError):
            planned(*wrong)


def test_a_plan_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned(str(recipe), workspace=tmp_path / "workspace")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_plan_uses_what_the_workspace_measured(recipe: Path, tmp_path: Path) -> None:
    """Two evaluations, a collection and a finished run: variance, lengths and solve rates are observed."""
    import numpy as np

    from gristmill.evaluation import FILE, Scored, evaluate
    from gristmill.recipe import load
    from gristmill.workspace import Workspace

    store = Workspace(tmp_path / "workspace").store
    with store.draft("tasks") as draft:
        draft.write_json("tasks.jsonl", [])
        tasks = draft.commit(stage="make-tasks", settings={"split": "heldout"}, counts={"tasks": 20})
    with store.draft("rollouts") as draft:
        draft.write_json("rollouts.jsonl", [])
        draft.commit(stage="collect", parents=[tasks], counts={"rollouts": 40, "tokens": 600})
    rng = np.random.default_rng(0)
    for number in range(2):
        with store.draft("checkpoint") as draft:
            draft.write_json("model.json", number)
            policy = draft.commit(stage="train")
        rollouts = [Scored(t, float(rng.random() < 0.5), False, 3, f"{t} {n}") for t in range(20) for n in range(2)]
        found = evaluate(policy, tasks, [{}] * 20, rollouts, samples=2, confidence=0.95)
        with store.draft("evaluation") as draft:
            draft.write_json(FILE, found)
            draft.commit(stage="evaluate", parents=[policy, tasks])
    with store.draft("report") as draft:
        draft.write_json("summary.json", {})
        draft.commit(stage="report", settings=load(recipe).resolved())

    plan = orjson.loads(planned(str(recipe), "train.epochs=1", json=True, workspace=tmp_path / "workspace"))
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert "observed on the two latest policies evaluated" in plan["power"][0]["variance"]["source"]
    assert (stages["evaluate"]["tokens"], stages["evaluate"]["bound"]) == (40 * 15, False)
    assert stages["collect"]["bound"]
    assert 10 < stages["curate"]["rows"] < 30
    assert stages["train"]["state"] == "again: train.epochs: 2.0 → 1.0"
    assert plan["changed"] == ["train.epochs: 2.0 → 1.0"]
