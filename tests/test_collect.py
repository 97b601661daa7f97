"""Local collection: Gym's files, and a resumed one ends with the same bytes."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from gristmill import arithmetic, smollm
from gristmill.collect import INPUTS, ROLLOUTS, Counts
from gristmill.collect.local import collect
from gristmill.environment import environment
from gristmill.errors import RecipeError
from gristmill.recipe import SamplingRecipe

SAMPLING = SamplingRecipe(samples=2, temperature=1.0, max_new_tokens=4, batch_size=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("model") / "tiny")


def run(model: Path, folder: Path) -> Counts:
    (folder / "out").mkdir(parents=True, exist_ok=True)
    (folder / "journal").mkdir(exist_ok=True)
    return collect(
        arithmetic.make_tasks(5, 0, "train"),
        arithmetic.verify,
        model,
        policy_name="tiny",
        device="cpu",
        sampling=SAMPLING,
        seed=7,
        journal=folder / "journal",
        out=folder / "out",
    )


def test_rows_are_stamped_as_gym_stamps_them(model: Path, tmp_path: Path) -> None:
    counts = run(model, tmp_path)
    rows = [orjson.loads(line) for line in (tmp_path / "out" / ROLLOUTS).read_bytes().splitlines()]
    inputs = [orjson.loads(line) for line in (tmp_path / "out" / INPUTS).read_bytes().splitlines()]
    assert counts.rollouts == len(rows) == len(inputs) == 10
    assert [(r["_ng_task_index"], r["_ng_rollout_index"]) for r in rows] == [(t, s) for t in range(5) for s in (0, 1)]
    assert all({"responses_create_params", "response", "reward", "agent_ref"} <= row.keys() for row in rows)
    assert all(row["responses_create_params"]["max_output_tokens"] == 4 for row in rows)
    assert inputs[0]["expected_answer"] == arithmetic.make_tasks(5, 0, "train")[0]["expected_answer"]


def test_a_resumed_collection_is_the_undisturbed_one(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "whole")
    run(model, tmp_path / "torn")
    journal = tmp_path / "torn" / "journal" / "batches.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    journal.write_bytes(lines[0] + lines[2][:100])  # one batch done, one torn by the kill, one owed
    counts = run(model, tmp_path / "torn")
    assert counts.resumed in (2, 4)  # the first batch only; batches hold one or two tasks
    for name in (ROLLOUTS, INPUTS):
        assert (tmp_path / "torn" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_an_unknown_environment_is_named() -> None:
    with pytest.raises(RecipeError, match="'chess' is not known; expected one of arithmetic, reasoning-gym, nemo-gym"):
        environment("chess")
