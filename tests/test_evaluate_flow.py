"""`gristmill evaluate`, `compare --recipe` and the gate's second look, through the real engine on tiny random models.

The verifier tosses a coin on what was answered, so that two models that know nothing still differ from task to task.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from gristmill import evaluate_command, progress, smollm
from gristmill.artifact import ArtifactRef
from gristmill.compare_command import compare_evaluations, compare_sides
from gristmill.errors import UsageError
from gristmill.evaluate_command import arguments, request, run_files, stored
from gristmill.evaluation import Evaluation, read_evaluation
from gristmill.identity import digest
from gristmill.progress import Update
from gristmill.promotion import Decision, Verdict, read_decision
from gristmill.recipe import Recipe, build
from gristmill.statistics import paired_difference
from gristmill.workspace import Workspace

TASKS = 16


def coin(task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """The verifier: heads for half of all answers."""
    said = response["output"][0]["content"][0]["text"]
    return {"reward": float(int(digest({"question": task["question"], "answer": said})[:8], 16) % 2)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and a second model."""
    folder = tmp_path_factory.mktemp("place")
    for name, first in (("train", 0), ("heldout", 1000)):
        rows = [
            {"question": str(i), "responses_create_params": {"input": [{"role": "user", "content": f"Number {i}?"}]}}
            for i in range(first, first + TASKS)
        ]
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    smollm.tiny(folder / "other", seed=3)
    return folder


def recipe(place: Path, **changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "coin",
        "policy": {"model": "tiny-random", "device": "cpu"},
        "environment": {
            "name": f"{__name__}:coin",
            "tasks": 4,
            "heldout": TASKS,
            "train_file": str(place / "train.jsonl"),
            "heldout_file": str(place / "heldout.jsonl"),
        },
        "evaluate": {"samples": 2, "max_new_tokens": 3, "batch_size": 16},
        # Answers of a tiny model are always cut.
        "promote": {"max_failure_rise": None},
    }
    return build(values, [f"{key}={value}" for key, value in changes.items()])


def measure(
    what: Recipe, workspace: Path, *policies: ArtifactRef | str
) -> tuple[tuple[ArtifactRef, ...], dict[tuple[int, str], str]]:
    """Run the flow; evaluations, and how each stage ended."""
    from flows.evaluate import evaluate_policies

    ended: dict[tuple[int, str], str] = {}

    def listen(update: Update) -> None:
        if update.state != "running":
            ended[update.turn, update.stage] = update.state

    with progress.listening(listen):
        found = evaluate_policies(what, str(workspace), list(policies))
    return found, ended


def done(ended: dict[tuple[int, str], str]) -> list[tuple[int, str]]:
    return [key for key, state in ended.items() if state == "done"]


@pytest.fixture(scope="module")
def measured(prefect_server: str, place: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    workspace = tmp_path_factory.mktemp("measured")
    found, _ = measure(recipe(place), workspace, "tiny-random", str(place / "other"))
    return workspace, found


def test_two_policies_are_evaluated_alike_and_once(measured: tuple[Path, Any], place: Path) -> None:
    workspace, found = measured
    store = Workspace(workspace).store
    one, other = (read_evaluation(store, ref) for ref in found)
    assert one.collected == other.collected and one.tasks == other.tasks and one.policy != other.policy
    assert (one.collected[0].samples, one.collected[0].seed) == (2, 0)
    assert 0 < one.estimate.mean < 1 and one.failures.estimate.mean == 1, "every answer is cut"
    again, ended = measure(recipe(place), workspace, str(place / "other"), one.policy)
    assert again == (found[1], found[0]) and done(ended) == []
    _, ended = measure(recipe(place, **{"train.epochs": 1, "promote.min_effect": 0.1}), workspace, one.policy)
    assert done(ended) == [], "nothing of an evaluation depends on these"
    _, ended = measure(recipe(place, **{"evaluate.samples": 3}), workspace, one.policy)
    assert [label for _, label in done(ended)] == ["collect held-out", "ingest held-out", "evaluate"]


def test_compare_takes_like_evaluations_and_says_what_is_unlike(measured: tuple[Path, Any], place: Path) -> None:
    workspace, found = measured
    space = Workspace(workspace)
    names = ("tiny-random", str(place / "other"))
    whole = compare_evaluations(space, *found, names=names, confidence=0.95)
    assert (whole.a.policy, whole.tasks, whole.difference.remarks) == (
        read_evaluation(space.store, found[0]).policy,
        TASKS,
        (),
    )
    assert whole.better or (whole.difference.lift.high or 0) < 0 or whole.needed_tasks is not None
    (more,), _ = measure(recipe(place, **{"evaluate.samples": 3}), workspace, "tiny-random")
    unlike = compare_evaluations(space, more, found[1], names=names, confidence=0.95)
    assert "they have 2 and 3 samples a task" in unlike.difference.remarks[0]
    (fewer,), _ = measure(recipe(place, **{"environment.heldout": 6}), workspace, "tiny-random")
    with pytest.raises(UsageError, match="different tasks"):
        compare_evaluations(space, fewer, found[1], names=names, confidence=0.95)
    by_name = compare_sides(str(found[0]), str(found[1]), workspace=space, confidence=0.95, solved_at=None)
    assert by_name.difference == whole.difference


def judged(what: Recipe, workspace: Path, other: Path, turns: int = 1) -> tuple[list[Decision], list[Any], Any]:
    """The gate between the base and another model, `turns` times in a row."""
    from prefect import flow

    from flows.evaluate import base, evaluate, heldout_tasks, judge

    @flow(name="judging")
    def judging() -> list[Any]:
        space = Workspace(workspace)
        with space.locked(), space.entered():
            heldout = heldout_tasks(what)
            champion, challenger = base("tiny-random"), base(str(other))
            standing = evaluate(what, champion, heldout, 0).evaluation
            return [judge(what, challenger, champion, standing, heldout, turn + 1) for turn in range(turns)]

    ended: dict[tuple[int, str], str] = {}
    with progress.listening(lambda update: ended.update({(update.turn, update.stage): update.state})):
        found = judging()
    store = Workspace(workspace).store
    return [read_decision(store, one.decision) for one in found], found, ended


def unsure(place: Path, workspace: Path, evaluations: Any) -> dict[str, Any]:
    """A least effect that this pair's lift exceeds, though its interval does not."""
    one, other = (read_evaluation(Workspace(workspace).store, ref) for ref in evaluations)
    lift = paired_difference(other.rewards, one.rewards, 0.975)
    assert lift.low is not None and lift.low < lift.mean
    return {"promote.min_effect": lift.mean - 0.8 * (lift.mean - lift.low)}


def test_an_inconclusive_gate_holds_or_collects_more(measured: tuple[Path, Any], place: Path) -> None:
    workspace, evaluations = measured
    store = Workspace(workspace).store
    settings = unsure(place, workspace, evaluations)
    (held,), _, _ = judged(recipe(place, **settings), workspace, place / "other")
    assert held.look == 1 and held.confidence == 0.95

    settings |= {"promote.on_inconclusive": "collect_more", "promote.most_samples": 5}
    what = recipe(place, **settings)
    (first, second), (one, two), ended = judged(what, workspace, place / "other", turns=2)
    assert (first.look, first.confidence, first.lift.samples) == (2, 0.975, 2 * 5 * TASKS)
    assert first.verdict is not Verdict.PROMOTED or first.lift.low > first.min_effect  # type: ignore[operator]
    assert "second of at most two looks" in first.reason
    assert one.measured.evaluation == evaluations[1], "the next challenger is compared at the recipe's samples"
    challenger, champion = (read_evaluation(store, ref) for ref in store.manifest(one.decision).parents[:2])
    assert [c.samples for c in challenger.collected] == [2, 3] and challenger.collected == champion.collected
    assert challenger.collected[0].seed != challenger.collected[1].seed, "the same seed would give the same answers"
    assert _first(challenger, 2) == read_evaluation(store, evaluations[1]).rewards

    assert (second, two.decision) == (first, one.decision)
    fresh = [key for key, state in ended.items() if state == "done"]
    assert all(turn == 1 for turn, _ in fresh), "the champion's further samples are made once"
    assert [label for _, label in fresh] == [
        "promote",
        *("collect more of the challenger", "ingest more of the challenger", "evaluate all of the challenger"),
        *("collect more of the champion", "ingest more of the champion", "evaluate all of the champion"),
        "promote on all samples",
    ]


def _first(evaluation: Evaluation, count: int) -> dict[str, tuple[float, ...]]:
    return {task: rewards[:count] for task, rewards in evaluation.rewards.items()}


def test_a_settled_gate_does_not_look_again(measured: tuple[Path, Any], place: Path) -> None:
    workspace, _ = measured
    for floor, verdict in ((-1.0, Verdict.PROMOTED), (0.99, Verdict.REJECTED)):
        what = recipe(place, **{"promote.min_effect": floor, "promote.on_inconclusive": "collect_more"})
        (decision,), _, ended = judged(what, workspace, place / "other")
        assert (decision.verdict, decision.look, decision.confidence) == (verdict, 1, 0.975)
        assert not any("more" in label for _, label in ended)


def test_what_the_command_prints(measured: tuple[Path, Any], place: Path) -> None:
    workspace, (ref, _) = measured
    told = stored(Workspace(workspace), "base", ref)
    out = io.StringIO()
    evaluate_command.tell(told, 0.95, json=False, console=Console(file=out, width=100))
    for word in ("mean reward", "pass@2", "characters", "tokens", "missing or cut", "95% interval", str(ref)):
        assert word in out.getvalue()
    out = io.StringIO()
    evaluate_command.tell(told, 0.95, json=True, console=Console(file=out))
    value = json.loads(out.getvalue())
    assert value["tasks"] == TASKS and value["rollouts"] == 2 * TASKS and value["mean_reward"]["low"] is not None


def test_rollout_files_are_evaluated_the_same_way(measured: tuple[Path, Any]) -> None:
    workspace, (ref, _) = measured
    store = Workspace(workspace).store
    table = next(one for one in store.manifest(ref).parents if one.kind == "table")
    (rollouts,) = store.manifest(table).parents
    out = io.StringIO()
    file = store.path(rollouts) / "rollouts.jsonl"
    run_files([str(file)], confidence=0.95, solved_at=None, json=True, console=Console(file=out))
    value, told = json.loads(out.getvalue()), stored(Workspace(workspace), "base", ref)
    assert value["mean_reward"] == told.mean_reward.model_dump()
    assert (
        value["failures"] == told.failures.model_dump() and value["tokens"] == (told.tokens or told.chars).model_dump()
    )


def test_bad_use(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe(place).yaml())
    assert arguments(["champion", "evaluate.samples=1"]) == ("champion", ["evaluate.samples=1"])
    assert arguments([]) == ("base", [])
    with pytest.raises(UsageError, match="one policy at a time, found base, champion"):
        arguments(["base", "champion"])
    assert request(file, ["base"], [], tmp_path).policies == ("tiny-random",)
    assert request(file, [str(place / "other")], [], tmp_path).policies == (str(place / "other"),)
    with pytest.raises(UsageError, match="there is no champion"):
        request(file, ["champion"], [], tmp_path)
    with pytest.raises(UsageError, match="means nothing"):
        request(file, ["smolm"], [], tmp_path)
