"""What a changed recipe makes run again."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gristmill.artifact import Manifest
from gristmill.recipe import Recipe, build
from gristmill.redo import FOLLOWS, Redo, redo


def report(recipe: Recipe, digest: str = "0" * 64) -> Manifest:
    return Manifest(
        kind="report",
        digest=digest,
        stage="report",
        step_version="1",
        parents=(),
        settings=recipe.resolved(),
        counts={},
        files=(),
        created=datetime.now(UTC).isoformat(),
        seconds=0.0,
        gristmill="0",
        environment={},
    )


def after(*overrides: str, before: tuple[str, ...] = ()) -> Redo:
    return redo(build({}, overrides).resolved(), [report(build({}, before))])


def test_nothing_ran_yet() -> None:
    found = redo(Recipe().resolved(), [])
    assert {found.state(stage, 2) for stage in FOLLOWS} == {"new"}


def test_the_same_recipe_is_cached() -> None:
    found = after()
    assert found.changed == ()
    assert {found.state(stage, 2) for stage in FOLLOWS} == {"cached"}


@pytest.mark.parametrize(
    ("override", "first", "untouched"),
    [
        ("curate.per_task=2", ["curate", "format", "validate", "train", "evaluate", "promote"], ["tasks", "collect"]),
        ("checks.strict=true", ["validate"], ["collect", "format", "train", "promote"]),
        ("train.epochs=1", ["train", "evaluate", "promote"], ["tasks"]),
        ("promote.confidence=0.9", ["promote"], ["tasks", "evaluate"]),
        ("environment.heldout=32", ["held-out tasks", "evaluate", "promote"], ["tasks"]),
        ("environment.tasks=32", ["tasks", "collect", "promote"], ["held-out tasks"]),
        ("policy.model=other", ["collect", "train", "evaluate"], ["tasks", "held-out tasks"]),
        ("review.required=true", ["curate", "train"], ["collect"]),
        ("requests.concurrency=4", [], list(FOLLOWS)),
        ("seed=1", list(FOLLOWS), []),
    ],
)
def test_what_a_change_feeds_runs_again(override: str, first: list[str], untouched: list[str]) -> None:
    found = after(override)
    for stage in first:
        assert f"again: {override.split('=')[0]}: " in found.state(stage, 2)
    for stage in untouched:
        assert found.state(stage, 2).startswith("cached")


def test_another_challenger_collects_in_the_second_turn() -> None:
    found = after("train.epochs=1")
    assert found.state("collect", 2) == "cached in turn 1, then again: train.epochs: 2.0 → 1.0"
    assert found.state("collect", 1) == "cached"
    assert found.state("evaluate", 2) == "base cached, challengers again: train.epochs: 2.0 → 1.0"


def test_further_turns_are_new() -> None:
    found = after("turns=3", before=("turns=2",))
    assert found.state("train", 3) == "cached for 2 turns, then new"
    assert found.state("held-out tasks", 3) == "cached"


def test_the_nearest_run_counts() -> None:
    recipes = [build({}, ["seed=1", "train.epochs=9"]), build({}, ["train.epochs=9"]), build({}, ["seed=5"])]
    reports = [report(one, str(number) * 64) for number, one in enumerate(recipes)]
    found = redo(build({}, ["train.epochs=3"]).resolved(), reports)
    assert found.changed == ("train.epochs: 9.0 → 3.0",)
