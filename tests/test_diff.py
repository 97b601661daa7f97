"""Diff: what came and went between two selections, from files and from a workspace."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from gristmill import selection
from gristmill.curate import curate
from gristmill.diff import ABSENT, diff
from gristmill.diff_command import run
from gristmill.errors import UsageError
from gristmill.recipe import CurateRecipe
from gristmill.store import Store
from tests.rows import rollout, table

ROWS = [rollout(f"answer {n}", task=n // 4, repeat=n, reward=n % 4 / 3, level="xy"[n % 2]) for n in range(12)]


def choose(folder: Path, out: Path, rows: list[dict[str, Any]] = ROWS, **recipe: Any) -> Path:
    files, counts = table(folder, rows)
    out.mkdir(parents=True, exist_ok=True)
    curate([files], [counts], CurateRecipe(**recipe), out)
    return out


def said(a: str, b: str, workspace: Path, *, json: bool = False) -> str:
    out = StringIO()
    run(a, b, workspace=workspace, json=json, console=Console(file=out, width=100))
    return out.getvalue()


def test_what_came_and_went_and_by_which_rule(tmp_path: Path) -> None:
    one = choose(tmp_path / "a", tmp_path / "one", min_reward=1.0)
    two = choose(tmp_path / "b", tmp_path / "two", min_reward=0.5, where="level = 'y'", per_task=1)
    three = choose(tmp_path / "c", tmp_path / "three", ROWS[:6], min_reward=0.5, where="level = 'x'")
    found = diff(selection.read(one), selection.read(two))
    assert (found.chosen_in_a, found.chosen_in_b, found.stayed) == (3, 3, 3)
    assert (found.came, found.went) == ((), ())
    found = diff(selection.read(two), selection.read(three))
    assert found.came_by == {"level = 'y'": 1}
    assert found.went_by == {ABSENT: 2, "level = 'x'": 1}
    assert [moved.reason for moved in found.went] == ["filtered", None, None]
    backwards = diff(selection.read(three), selection.read(two))
    assert {m.rollout_id for m in backwards.came} == {m.rollout_id for m in found.went}
    assert backwards.came_by == found.went_by


def test_equal_rows_are_told_apart_by_their_order(tmp_path: Path) -> None:
    """One file, ingested into two tables."""
    tables = [table(tmp_path / name, [rollout("same")]) for name in "ab"]
    sides = []
    for name, deduplicate in (("one", False), ("two", True)):
        (tmp_path / name).mkdir()
        recipe = CurateRecipe(deduplicate=deduplicate)
        curate([files for files, _ in tables], [counts for _, counts in tables], recipe, tmp_path / name)
        sides.append(selection.read(tmp_path / name))
    found = diff(*sides)
    assert (found.stayed, len(found.came), len(found.went)) == (1, 0, 1)
    assert found.went_by == {"one of equal answers a task": 1}


def test_the_command_on_folders_and_files(tmp_path: Path) -> None:
    one = choose(tmp_path / "a", tmp_path / "one")
    two = choose(tmp_path / "b", tmp_path / "two", min_reward=0.5)
    text = said(str(one), str(two / "selection.parquet"), tmp_path)
    assert "min_reward: 1.0 → 0.5" in text
    assert "3 chosen in both, 3 came, 0 went (3 → 6)" in text
    assert "3  reward >= 1.0" in text
    told = orjson.loads(said(str(one), str(two), tmp_path, json=True))
    assert told["settings"] == {"min_reward": [1.0, 0.5]}
    assert len(told["came"]) == told["came_by"]["reward >= 1.0"] == 3


def test_the_command_on_a_workspace(tmp_path: Path) -> None:
    store = Store(tmp_path / "space")
    refs = []
    for number, recipe in enumerate(({}, {"min_reward": 0.5})):
        with store.draft("selection") as draft:
            choose(tmp_path / str(number), draft.path, **recipe)
            refs.append(draft.commit(stage="curate"))
    text = said(refs[0].digest[:8], str(refs[1]), tmp_path / "space")
    assert text.startswith(f"{refs[0].short} → {refs[1].short}\nmin_reward: 1.0 → 0.5\n")
    with pytest.raises(UsageError, match=rf"no selection nothing .*newest first: .*{refs[0].short}"):
        said("nothing", refs[1].digest, tmp_path / "space")
    with pytest.raises(UsageError, match="2 selections begin with"):
        said("selection:", refs[1].digest, tmp_path / "space")


def test_selections_asked_differently_are_two_artifacts(tmp_path: Path) -> None:
    """Even where no row differs: a rule that drops nothing was asked all the same."""
    one = choose(tmp_path / "a", tmp_path / "one", min_reward=None)
    two = choose(tmp_path / "b", tmp_path / "two", min_reward=None, where="reward >= 0")
    assert (one / "selection.parquet").read_bytes() == (two / "selection.parquet").read_bytes()
    assert (one / "rules.json").read_bytes() != (two / "rules.json").read_bytes()


def test_what_is_no_selection_is_said(tmp_path: Path) -> None:
    one = choose(tmp_path / "a", tmp_path / "one")
    files, _ = table(tmp_path / "other", ROWS)
    with pytest.raises(UsageError, match=r"other holds no selection"):
        said(str(one), str(tmp_path / "other"), tmp_path)
    with pytest.raises(UsageError, match=r"part-00000.parquet is no selection"):
        said(str(one), str(files[0]), tmp_path)
    (tmp_path / "selection.parquet").write_bytes(b"not Parquet")
    with pytest.raises(UsageError, match=r"selection.parquet is no selection"):
        said(str(one), str(tmp_path), tmp_path)
