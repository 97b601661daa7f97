"""`gristmill compare`: tasks are matched by what they are, and bad use is one sentence."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gristmill.artifact import ArtifactRef
from gristmill.compare_command import compare_sides, run
from gristmill.errors import InputError, UsageError
from gristmill.evaluation import FILE, Collected, Scored, evaluate
from gristmill.model import POINTER
from gristmill.workspace import Workspace
from tests.rows import rollout, write


def rows(wins: list[int], *, shift: int = 0, samples: int = 4, **more: Any) -> list[dict[str, Any]]:
    """Task i, whose index is i + shift, has `wins[i]` solved samples."""
    return [
        rollout(f"answer {n}", task=i + shift, repeat=n, reward=float(n < won), question=f"question {i}", **more)
        for i, won in enumerate(wins)
        for n in range(samples)
    ]


def sides(a: Path, b: Path, **more: Any) -> Any:
    return compare_sides(str(a), str(b), workspace=None, confidence=0.95, solved_at=more.get("solved_at"))


def test_tasks_are_matched_by_prompt_where_prompts_tell_them_apart(tmp_path: Path) -> None:
    """The second file holds more tasks, in another order, so no index agrees."""
    a = write(tmp_path / "a.jsonl", rows([1, 2, 3, 0] * 5))
    b = write(tmp_path / "b.jsonl", list(reversed(rows([2, 3, 4, 1] * 5 + [4, 4], shift=7))))
    found = sides(a, b)
    assert (found.tasks, found.a.tasks, found.b.tasks) == (20, 20, 22)
    assert found.difference.lift.mean == pytest.approx(0.25) and found.better
    assert found.a.pass_at[4].mean == pytest.approx(0.75)
    low, high = found.bootstrap
    assert low == high == pytest.approx(0.25), "every task gained the same"
    assert sides(b, a).difference.lift.mean == pytest.approx(-0.25) and not sides(b, a).better


def test_tasks_are_matched_by_index_where_the_prompt_is_one(tmp_path: Path) -> None:
    """The task lies in the environment: all rows carry one prompt."""
    files = []
    for name, wins in (("a", [0, 4, 0]), ("b", [0, 4, 4])):
        made = rows(wins)
        for row in made:
            row["responses_create_params"]["input"][0]["content"] = "play"
        files.append(write(tmp_path / f"{name}.jsonl", made))
    found = sides(*files)
    assert found.tasks == 3 and found.difference.lift.mean == pytest.approx(1 / 3)


def test_a_failure_is_missing_and_not_a_zero(tmp_path: Path) -> None:
    made = rows([4, 4, 4])
    made[0] |= {"reward": 0.0, "_ng_failure_class": "agent_run_error"}
    a, b = write(tmp_path / "a.jsonl", rows([4, 4, 4])), write(tmp_path / "b.jsonl", made)
    found = sides(a, b)
    assert found.difference.lift.mean == 0
    assert found.difference.failure_rise.mean == pytest.approx(1 / 12)


def test_the_scale_says_what_solved_means(tmp_path: Path) -> None:
    made = rows([2, 2])
    for row in made:
        row["reward"] = row["reward"] * 20 - 10
    a = write(tmp_path / "a.jsonl", made)
    assert sides(a, a).solved_at == 0 and sides(a, a).a.pass_at[1].mean == 0.5
    assert sides(a, a, solved_at=11).a.pass_at[1].mean == 0


def test_output_for_people_and_for_programs(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows([1, 2] * 8)), write(tmp_path / "b.jsonl", rows([2, 3] * 8))
    told = io.StringIO()
    common: dict[str, Any] = {"workspace": tmp_path / "none", "confidence": 0.95, "solved_at": None}
    run(str(a), str(b), json=False, console=Console(file=told, width=100), **common)
    assert "B is better: +0.250" in told.getvalue() and "pass@4" in told.getvalue()
    told = io.StringIO()
    run(str(a), str(b), json=True, console=Console(file=told), **common)
    value = json.loads(told.getvalue())
    assert value["better"] is True and value["difference"]["lift"]["tasks"] == 16


def test_bad_use(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows([1]))
    other = write(tmp_path / "b.jsonl", [rollout("x", question="another question")])
    nothing = write(tmp_path / "c.jsonl", [{"no": "rollout"}])
    with pytest.raises(UsageError, match="have no task in common"):
        sides(a, other)
    with pytest.raises(InputError, match="no usable rollout"):
        sides(a, nothing)
    with pytest.raises(InputError, match="no such file"):
        sides(a, tmp_path / "gone.jsonl")
    with pytest.raises(UsageError, match="not of one kind"):
        compare_sides(str(a), "champion", workspace=None, confidence=0.95, solved_at=None)
    with pytest.raises(UsageError, match="name their workspace"):
        compare_sides("base", "champion", workspace=None, confidence=0.95, solved_at=None)


def test_policies_of_a_workspace(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    store = workspace.store

    def policy(name: str) -> ArtifactRef:
        with store.draft("checkpoint") as draft:
            draft.write_json(POINTER if name == "base" else "model.json", {"model": name, "identity": name})
            return draft.commit(stage="base" if name == "base" else "train", parents=[] if name == "base" else [tasks])

    def measure(policy: ArtifactRef, wins: int, seed: int = 0, tasks: ArtifactRef | None = None) -> ArtifactRef:
        rollouts = [Scored(i, float(n < wins), False, 3, f"{n}") for i in range(6) for n in range(4)]
        found = evaluate(
            policy,
            tasks or heldout,
            [{}] * 6,
            rollouts,
            samples=4,
            confidence=0.95,
            collected=[Collected(samples=4, seed=seed, sampling={})],
        )
        with store.draft("evaluation") as draft:
            draft.write_json(FILE, found)
            return draft.commit(stage="evaluate", parents=[policy])

    with store.draft("tasks") as draft:
        draft.write_json("tasks.json", [])
        heldout = tasks = draft.commit(stage="tasks")
    base, trained = policy("base"), policy("trained")
    measure(base, 1)
    evaluation = measure(trained, 3)
    for name in (trained.digest[:8], str(trained), evaluation.digest[:10]):
        found = compare_sides("base", name, workspace=workspace, confidence=0.95, solved_at=None)
        assert found.difference.lift.mean == pytest.approx(0.5), name
    measure(trained, 2, seed=9)
    found = compare_sides("base", trained.digest, workspace=workspace, confidence=0.95, solved_at=None)
    assert found.difference.lift.mean == pytest.approx(0.5), "of two evaluations, the one with equal seeds"
    other = measure(trained, 2, tasks=ArtifactRef(kind="tasks", digest="3" * 64))
    for name, said in (
        ("champion", "no champion"),
        ("abc", "means nothing"),
        (tasks.digest, "is tasks:.*, and no policy"),
        (other.digest, "other tasks; `gristmill compare base"),
        (policy("third").digest, "was not evaluated yet; `gristmill evaluate RECIPE"),
    ):
        with pytest.raises(UsageError, match=said):
            compare_sides("base", name, workspace=workspace, confidence=0.95, solved_at=None)
