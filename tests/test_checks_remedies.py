"""A remedy's number is what happens when it is applied; estimates hold against simulated collections."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.checks import Finding, Report, validate
from gristmill.checks.remedies import TaskCounts, enough, more_pairs, more_rows, rates
from gristmill.curate import SELECTION, curate
from gristmill.recipe import CurateRecipe, Recipe, build
from tests.rows import rollout, table

some_rows = st.lists(
    st.builds(
        rollout,
        st.sampled_from(["a", "b", "bb", "ccc", "dddd"]),
        task=st.integers(0, 4),
        repeat=st.integers(0, 99),
        reward=st.sampled_from([0.0, 0.25, 0.5, 0.7, 0.85, 0.93, 1.0]),
        truncated=st.booleans(),
    ),
    min_size=3,
    max_size=30,
)


def run(folder: Path, rows: list[dict[str, Any]], recipe: Recipe) -> tuple[Report, int]:
    """Validate under a recipe; also how many rows curation chose."""
    folder.mkdir()
    files, counted = table(folder, rows)

    def choose(changed: CurateRecipe) -> int:
        (folder / "again").mkdir(exist_ok=True)
        return int(curate([files], [counted], changed, folder / "again")["rows_kept"])

    counts = curate([files], [counted], recipe.curate, folder)
    report = validate(
        [files],
        folder / SELECTION,
        counts,
        curate=recipe.curate,
        format=recipe.format,
        checks=recipe.checks,
        choose=choose,
    )
    return report, counts["rows_kept"]


def finding(report: Report, id: str) -> Finding:
    (found,) = [one for one in report.findings if one.id == id]
    return found


@given(
    some_rows,
    st.sampled_from([0.9, 0.95, 1.0]),
    st.sampled_from([None, 1, 2]),
    st.sampled_from([[], ["answer_chars < 3"]]),
)
@settings(max_examples=8)
def test_each_setting_gives_what_its_remedy_promised(
    rows: list[dict[str, Any]], min_reward: float, per_task: int | None, where: list[str]
) -> None:
    values: dict[str, Any] = {
        "curate": {"min_reward": min_reward, "per_task": per_task, "where": where},
        "checks": {"min_examples": 20},
    }
    with TemporaryDirectory() as name:
        report, now = run(Path(name) / "before", rows, build(values))
        if report.evidence.examples >= 20:
            return
        for number, remedy in enumerate(finding(report, "GM102").remedies):
            if not remedy.setting.startswith("curate."):
                continue
            # applied as a person would: the text that was printed
            changed = build(values, [f"{remedy.setting}={'null' if remedy.new is None else remedy.new}"])
            _, then = run(Path(name) / f"after{number}", rows, changed)
            assert then == remedy.rows > now
            assert f"would choose {then:,}" in str(remedy)


@given(some_rows)
@settings(max_examples=8)
def test_each_pair_setting_makes_what_its_remedy_promised(rows: list[dict[str, Any]]) -> None:
    values: dict[str, Any] = {"format": {"method": "dpo", "pairs": {"min_gap": 0.5}}, "checks": {"min_examples": 20}}
    with TemporaryDirectory() as name:
        report, _ = run(Path(name) / "before", rows, build(values))
        for number, remedy in enumerate(finding(report, "GM103").remedies):
            if not remedy.setting.startswith("format."):
                continue
            changed = build(values, [f"{remedy.setting}={remedy.new}"])
            after, _ = run(Path(name) / f"after{number}", rows, changed)
            assert after.evidence.examples == remedy.rows > report.evidence.examples


def test_the_threshold_is_lowered_no_further_than_needed_nor_below_solved(tmp_path: Path) -> None:
    rewards = [1.0] * 4 + [0.93] * 4 + [0.91] * 4 + [0.6] * 4 + [0.2] * 8
    rows = [rollout(f"answer {n}", task=n, reward=reward) for n, reward in enumerate(rewards)]

    def threshold(wanted: int) -> tuple[Any, Any]:
        recipe = build({"curate": {"min_reward": 0.95}, "checks": {"min_examples": wanted}})
        report, _ = run(tmp_path / str(wanted), rows, recipe)
        remedy = finding(report, "GM102").remedies[0]
        return remedy.setting, (remedy.old, remedy.new, remedy.rows)

    assert threshold(7) == ("curate.min_reward", (0.95, 0.93, 8))
    assert threshold(12) == ("curate.min_reward", (0.95, 0.9, 12))
    # even all that is solved is too few: 0.2 is not proposed
    assert threshold(20) == ("curate.min_reward", (0.95, 0.6, 16))


def test_binary_failures_are_never_proposed_as_examples(tmp_path: Path) -> None:
    rows = [rollout(f"answer {n}", task=n, reward=float(n < 3)) for n in range(12)]
    report, _ = run(tmp_path / "x", rows, build({"checks": {"min_examples": 10}}))
    assert "curate.min_reward" not in [remedy.setting for remedy in finding(report, "GM102").remedies]


def simulate(rng: np.random.Generator, tasks: int, samples: int, answers: int) -> np.ndarray:
    """For each task, per rollout: 0 wrong, else which right answer was given."""
    p = rng.beta(0.8, 1.6, tasks)
    good = rng.random((tasks, samples)) < p[:, None]
    return np.where(good, rng.integers(1, answers + 1, (tasks, samples)), 0)


def counts_of(said: np.ndarray, cap: int | None) -> list[TaskCounts]:
    counts = []
    for row in said:
        good = row[row > 0]
        values, times = np.unique(good, return_counts=True)
        chosen = len(values) if cap is None else min(cap, len(values))
        counts.append(TaskCounts(len(row), len(good), chosen, len(values), int((times == 1).sum())))
    return counts


@pytest.mark.parametrize(("answers", "cap"), [(10**6, 4), (10**6, None), (6, 4)])
def test_further_rollouts_give_about_what_is_estimated(answers: int, cap: int | None) -> None:
    rng = np.random.default_rng(7)
    said = simulate(rng, 400, 12, answers)
    for more in (1, 3, 8):
        then = sum(task.chosen for task in counts_of(said[:, : 4 + more], cap))
        estimate = more_rows(counts_of(said[:, :4], cap), more, cap, distinct=True)
        assert estimate == pytest.approx(then, rel=0.1)


def test_further_rollouts_give_about_the_pairs_that_are_estimated() -> None:
    rng = np.random.default_rng(3)
    good = simulate(rng, 400, 12, 1) > 0

    def tasks(samples: int) -> list[tuple[int, int, bool]]:
        solved = good[:, :samples].sum(axis=1)
        return [(samples, int(count), 0 < count < samples) for count in solved]

    for more in (1, 3, 8):
        then = sum(paired for _, _, paired in tasks(4 + more))
        assert more_pairs(tasks(4), more) == pytest.approx(then, rel=0.1)


def test_success_rates_are_recovered() -> None:
    rng = np.random.default_rng(1)
    p = rng.beta(2, 3, 4000)
    fitted = rates(rng.binomial(8, p), np.full(4000, 8))
    assert fitted.a == pytest.approx(2, rel=0.15)
    assert fitted.b == pytest.approx(3, rel=0.15)


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=20),
    st.sampled_from([None, 1, 4]),
)
@settings(max_examples=50)
def test_estimates_never_shrink_and_respect_the_cap(shapes: list[tuple[int, int, int]], cap: int | None) -> None:
    tasks = []
    for rollouts, good, answers in shapes:
        good = min(good, rollouts)
        answers = min(max(answers, int(good > 0)), good)
        tasks.append(TaskCounts(rollouts, good, min(cap or answers, answers), answers, 0))
    now = sum(task.chosen for task in tasks)
    series = [more_rows(tasks, more, cap, distinct=True) for more in (0, 1, 5, 20)]
    assert series[0] == pytest.approx(now)
    assert all(b >= a - 1e-9 for a, b in pairwise(series))
    if cap is not None:
        assert series[-1] <= cap * len(tasks) + 1e-9


def test_no_more_rollouts_are_asked_for_than_needed() -> None:
    tasks = [TaskCounts(4, 2, 2, 2, 2)] * 50

    def expected(more: int) -> float:
        return more_rows(tasks, more, None, distinct=True)

    found = enough(expected, 4, 150)
    assert found is not None
    assert expected(found.more) >= 150 > expected(found.more - 1)
    # out of reach: what twice the rollouts would give, and no promise of more
    far = enough(expected, 4, 10**6)
    assert far is not None
    assert (far.more, far.rows) == (4, expected(4))
