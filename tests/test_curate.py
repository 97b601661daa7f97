"""Selection: every rollout is chosen or has a reason, in an order that never varies."""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.curate import SELECTION, curate
from gristmill.errors import RecipeError
from gristmill.recipe import CurateRecipe
from tests.rows import rollout, table


def select(folder: Path, rows: list[dict[str, Any]], **recipe: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    files, counts = table(folder, rows)
    found = curate([files], [counts], CurateRecipe(**recipe), folder)
    return pq.read_table(folder / SELECTION).to_pylist(), found


def reasons(selection: list[dict[str, Any]]) -> list[str | None]:
    return [row["reason"] for row in selection]


def test_each_reason_in_its_place(tmp_path: Path) -> None:
    rows = [
        rollout("right", repeat=0),
        rollout("wrong", repeat=1, reward=0.0),
        rollout("right", repeat=2),
        rollout("cut", repeat=3, truncated=True),
        rollout("no reward", repeat=4, reward=None),
        rollout("Right but long", repeat=5),
    ]
    selection, counts = select(tmp_path, rows, where="answer_chars < 10")
    chosen = [None, "duplicate_answer"]
    assert sorted(reasons(selection[:1] + selection[2:3]), key=str) == sorted(chosen, key=str)
    assert [selection[1]["reason"], selection[3]["reason"], selection[4]["reason"]] == [
        "below_reward",
        "truncated",
        "filtered",
    ]
    assert counts["dropped"] == {
        "below_reward": 1,
        "duplicate_answer": 1,
        "filtered": 1,
        "reward_null": 1,
        "truncated": 1,
    }
    assert (counts["rows_read"], counts["rows_kept"], counts["truncated"]) == (6, 1, 1)


def test_the_cap_prefers_shorter_answers_and_counts_distinct_ones(tmp_path: Path) -> None:
    rows = [rollout("x" * n, repeat=i) for i, n in enumerate([30, 10, 10, 20])]
    selection, _ = select(tmp_path, rows, per_task=2)
    kept = [row["at_row"] for row in selection if row["reason"] is None]
    assert reasons(selection).count("duplicate_answer") == 1
    assert selection[0]["reason"] == "over_task_cap"
    assert 3 in kept
    assert len(kept) == 2


def test_tasks_are_not_mixed(tmp_path: Path) -> None:
    rows = [rollout("same", task=task, repeat=0) for task in range(3)]
    selection, _ = select(tmp_path, rows, per_task=1)
    assert reasons(selection) == [None, None, None]


def test_rewards_of_any_range_have_a_histogram_that_holds_them_all(tmp_path: Path) -> None:
    for number, rewards in enumerate([[0.0, 1.0, 1.0], [-100.0, 19.4], [2.0, 2.0]]):
        rows = [rollout(str(i), repeat=i, reward=r) for i, r in enumerate(rewards)]
        _, counts = select(tmp_path / str(number), rows, min_reward=None)
        assert sum(counts["rewards"]["histogram"]["counts"]) == len(rewards)  # 1.0 is in a bin, the last one


def test_two_tables_are_one_selection(tmp_path: Path) -> None:
    first, counted = table(tmp_path / "a", [rollout("a", task=0)])
    second, also = table(tmp_path / "b", [rollout("b", task=1), rollout("c", task=1, repeat=1, reward=0.0)])
    counts = curate([first, second], [counted, also], CurateRecipe(), tmp_path)
    assert (counts["rows_read"], counts["rows_kept"]) == (3, 2)
    rows = pq.read_table(tmp_path / SELECTION).to_pylist()
    assert [(row["at_table"], row["at_row"]) for row in rows] == [(0, 0), (1, 0), (1, 1)]


def test_an_unknown_column_gets_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"curate.where: .*did you mean reward.*columns: .*tool_calls"):
        select(tmp_path, [rollout()], where="rewrad > 0.5")


@pytest.mark.parametrize(
    "attack",
    [
        "reward > 0) OR (SELECT count(*) FROM read_text('/etc/hostname')) > 0 OR (1 = 1",
        "EXISTS (SELECT * FROM '/etc/passwd')",
    ],
)
def test_a_condition_cannot_look_outside_the_table(tmp_path: Path, attack: str) -> None:
    with pytest.raises(RecipeError, match="cannot be used"):
        select(tmp_path, [rollout()], where=attack)


some_rows = st.lists(
    st.builds(
        rollout,
        st.sampled_from(["a", "b", "bb", "ccc"]),
        task=st.integers(0, 2),
        repeat=st.integers(0, 9),
        reward=st.sampled_from([0.0, 0.5, 1.0, None, "1", True]),
        truncated=st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@given(some_rows, st.sampled_from([None, 1, 2]), st.booleans())
@settings(max_examples=25)
def test_rows_are_conserved(rows: list[dict[str, Any]], per_task: int | None, deduplicate: bool) -> None:
    with TemporaryDirectory() as folder:
        selection, counts = select(Path(folder), rows, per_task=per_task, deduplicate=deduplicate)
    assert counts["rows_read"] == len(rows) == counts["rows_kept"] + sum(counts["dropped"].values())
    chosen = [row for row in selection if row["reason"] is None]
    assert len(chosen) == counts["rows_kept"]
    assert all(row["reward"] == 1.0 for row in chosen)


@given(some_rows, st.randoms(use_true_random=False))
@settings(max_examples=15)
def test_what_is_chosen_does_not_depend_on_the_order_of_lines(rows: list[dict[str, Any]], rng: random.Random) -> None:
    unique = list({(r["_ng_task_index"], r["_ng_rollout_index"]): r for r in rows}.values())
    shuffled = rng.sample(unique, len(unique))
    with TemporaryDirectory() as folder:
        one, _ = select(Path(folder) / "one", unique, per_task=2)
        two, _ = select(Path(folder) / "two", shuffled, per_task=2)
    assert {r["rollout_id"] for r in one if r["reason"] is None} == {
        r["rollout_id"] for r in two if r["reason"] is None
    }
