"""What follows from a turn to the next: data, start, reference, tasks that rest, and when the loop ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.curriculum import Rest, Round, resting
from gristmill.errors import GateError, RecipeError
from gristmill.loop import Standing, Turn, starts_from, training_words
from gristmill.recipe import Recipe, build
from gristmill.stopping import Spent, stop
from gristmill.workspace import Workspace
from tests.test_loop import finished, improve, ran  # noqa: F401 - a fixture
from tests.test_loop import recipe as tiny


def ref(kind: Any, number: int) -> ArtifactRef:
    return ArtifactRef(kind=kind, digest=f"{number:064x}")


BASE, CHAMPION = ref("checkpoint", 1), ref("checkpoint", 2)
STANDING = Standing(
    base=BASE,
    heldout=ref("tasks", 1),
    champion=CHAMPION,
    champion_evaluation=ref("evaluation", 1),
    tables=(ref("table", 1), ref("table", 2), ref("table", 3)),
)


def turn(number: int, *, promoted: bool) -> Turn:
    kinds = {"table": "table", "heldout_table": "table", "champion": "checkpoint", "champion_evaluation": "evaluation"}
    fields = [name for name in Turn.model_fields if name not in ("turn", "promoted")]
    refs: dict[str, Any] = {name: ref(kinds.get(name, name), number) for name in fields}
    return Turn(turn=number, promoted=promoted, **refs)


def of(*overrides: str) -> Recipe:
    return build({}, overrides)


@pytest.mark.parametrize(
    ("overrides", "tables", "words"),
    [
        ([], [1, 2, 3, 4], "sft from the base, on the rollouts of all turns so far"),
        (["curate.data=replace"], [4], "sft from the base, on the rollouts of the turn"),
        (["curate.data=window(2)"], [3, 4], "sft from the base, on the rollouts of the last 2 turns"),
        (["curate.data=window(9)"], [1, 2, 3, 4], "sft from the base, on the rollouts of the last 9 turns"),
        (["train.init_from=champion"], [4], "sft from the champion, on the rollouts of the turn"),
        (["format.method=dpo"], [4], "dpo from the champion, on the rollouts of the turn"),
        (
            ["format.method=dpo", "train.init_from=base"],
            [1, 2, 3, 4],
            "dpo from the base, on the rollouts of all turns",
        ),
    ],
)
def test_which_rollouts_a_turn_trains_on(overrides: list[str], tables: list[int], words: str) -> None:
    chosen = of(*overrides)
    assert STANDING.tables_of(chosen, ref("table", 4)) == [ref("table", n) for n in tables]
    assert training_words(chosen).startswith(words)
    assert STANDING.start(chosen) == (BASE if starts_from(chosen) == "base" else CHAMPION)


def test_what_holds_a_preference_method() -> None:
    assert STANDING.reference(of("format.method=dpo")) is None  # the model that it starts from: the champion
    held = of("format.method=kto", "train.reference=base")
    assert STANDING.reference(held) == BASE
    assert training_words(held).endswith(", held to the base")
    assert STANDING.reference(of("format.method=dpo", "train.reference=base", "train.init_from=base")) is None
    assert STANDING.reference(of("train.reference=base")) is None  # sft has none


@pytest.mark.parametrize("data", ["window(0)", "window()", "windw(3)", "all", ""])
def test_data_that_is_none_of_the_three(data: str) -> None:
    with pytest.raises(RecipeError, match=r"`curate.data`: expected accumulate, replace, or window\(n\)"):
        build({"curate": {"data": data}})


def test_temperatures_by_turn() -> None:
    cooling = of("collect.temperatures=[1.0, 0.8]").collect
    assert [cooling.at(n).temperature for n in (1, 2, 3)] == [1.0, 0.8, 0.8]
    assert of("collect.temperature=0.5").collect.at(7).temperature == 0.5
    # Equal sampling is equal content, however it was said: what was collected is found again.
    assert cooling.at(1).content() == of("collect.temperature=1.0").collect.at(3).content()


# ---- curriculum


def test_tasks_rest_by_their_last_round_and_who_acted() -> None:
    first = Round(BASE, {"solved": [1, 1], "mixed": [0, 1], "failed": [0, 0], "graded": [0.2, 0.2], "gone": []})
    second = Round(CHAMPION, {"mixed": [0, 0]})
    assert resting([first], BASE, 1.0) == {
        "solved": Rest.SOLVED,
        "failed": Rest.NO_SIGNAL,
        "graded": Rest.NO_SIGNAL,
    }
    # Another champion wakes what no rollout of the one before did better on; what is solved stays so.
    assert resting([first, second], CHAMPION, 1.0) == {"solved": Rest.SOLVED, "mixed": Rest.NO_SIGNAL}
    assert resting([first], BASE, 0.2)["graded"] is Rest.SOLVED
    assert resting([], BASE, 1.0) == {}


def test_a_curriculum_needs_tasks_that_come_again() -> None:
    with pytest.raises(RecipeError, match="curriculum needs tasks that come again: set fresh to false"):
        of("environment.curriculum=true")
    assert of("environment.curriculum=true", "environment.fresh=false").environment.again


# ---- stop rules


def test_turns_in_a_row_that_promote_nothing() -> None:
    rule = of("stop.without_promotion=2")
    said = [turn(1, promoted=True), turn(2, promoted=False), turn(3, promoted=False)]
    ends = [stop(rule, said[:n], Spent(), Spent()) for n in range(4)]
    assert ends == [None, None, None, "2 turns in a row promoted nothing (stop.without_promotion)"]


def test_budgets_are_not_knowingly_exceeded() -> None:
    sizes = ["environment.tasks=10", "collect.samples=2", "environment.heldout=5", "evaluate.samples=4"]
    one = [turn(1, promoted=True)]
    # A turn takes 40 rollouts, 400 tokens and an hour; before it the base was measured.
    before, now = Spent(20, 200, 1800), Spent(60, 600, 5400)
    for field, enough, short in (("rollouts", 100, 99), ("tokens", 1000, 999), ("hours", 2.5, 2.4)):
        assert stop(of(*sizes, f"stop.{field}={enough}"), one, before, now) is None
        why = stop(of(*sizes, f"stop.{field}={short}"), one, before, now)
        assert why is not None and f"(stop.{field})" in why
    # Before the first turn the recipe says what it takes.
    assert stop(of(*sizes, "stop.rollouts=60"), [], Spent(), before) is None
    assert stop(of(*sizes, "stop.rollouts=59"), [], Spent(), before) == (
        "20 rollouts are spent and another turn takes about 40, of a budget of 59 (stop.rollouts)"
    )
    # A gate that may look twice, at 6 samples instead of 4, may take 2 × 5 × 2 more.
    twice = [*sizes, "promote.on_inconclusive=collect_more", "promote.most_samples=6"]
    assert stop(of(*twice, "stop.rollouts=80"), [], Spent(), before) is None
    assert stop(of(*twice, "stop.rollouts=79"), [], Spent(), before) is not None


# ---- the loop


def test_the_loop_stops_and_says_why(finished: tuple[Path, Any]) -> None:  # noqa: F811
    workspace, outcome = finished
    stopped, ended = improve(tiny(**{"turns": 3, "stop.without_promotion": 1}), workspace)
    assert ran(ended) == ["1 report"]
    assert stopped.turns == outcome.turns
    assert stopped.stopped == "1 turn in a row promoted nothing (stop.without_promotion)"
    assert "stopped after turn 1: 1 turn in a row" in Workspace(workspace).page("tiny").read_text()
    # 8 for the base and 20 a turn: a second one does not fit, and a first one not into 27.
    stopped, _ = improve(tiny(**{"turns": 3, "stop.rollouts": 47}), workspace)
    assert stopped.turns == outcome.turns and "28 rollouts are spent" in stopped.stopped
    with pytest.raises(GateError, match=r"no turn was begun: 8 rollouts are spent .* \(stop\.rollouts\)"):
        improve(tiny(**{"stop.rollouts": 27}), workspace)


def test_a_turn_goes_on_from_the_champion(prefect_server: str, tmp_path: Path) -> None:
    """Two turns that promote whatever comes: the second starts from the first's model and data of its own."""
    place = Workspace(tmp_path)
    lenient = {"promote.min_effect": -2.0, "promote.max_failure_rise": "", "promote.max_pass_drop": ""}
    lenient |= {"promote.max_category_drop": "", "promote.min_diversity": "", "promote.max_length_ratio": ""}
    settings = {"turns": 2, "train.init_from": "champion", "collect.temperatures": "[1.0, 0.5]"}
    settings |= {"environment.fresh": "false", "environment.curriculum": "true"}
    outcome, ended = improve(tiny(**settings, **lenient), tmp_path)
    first, second = outcome.turns
    manifest = place.store.manifest
    assert first.promoted and second.promoted
    assert first.checkpoint in manifest(second.checkpoint).parents
    assert first.champion in manifest(first.checkpoint).parents
    assert second.table in manifest(second.selection).parents
    assert first.table not in manifest(second.selection).parents
    temperatures = [manifest(one.rollouts).settings["sampling"]["temperature"] for one in outcome.turns]
    assert temperatures == [1.0, 0.5]
    # The tiny model solves nothing: the same tasks rest while it is champion, and another champion wakes them.
    tasks = [next(p for p in manifest(one.rollouts).parents if p.kind == "tasks") for one in outcome.turns]
    assert tasks[0] == tasks[1]
    stays, ended = improve(tiny(**settings), tmp_path)
    assert len(stays.turns) == 1 and not stays.turns[0].promoted
    assert stays.stopped.startswith("every training task rests (6 no signal)")
    assert "1 collect" not in ran(ended)


@pytest.mark.live
@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_loop_of_preferences(prefect_server: str, tmp_path: Path, method: str) -> None:
    """Pairs or labels of the champion's own answers train a challenger. On the embedded model: a random one never ends
    its answers, and those that were cut are nobody's rejected side."""
    settings = {"policy.model": "smollm2-135m", "environment.tasks": 24, "environment.heldout": 8}
    settings |= {"collect.samples": 6, "collect.max_new_tokens": 16, "collect.batch_size": 16, "format.method": method}
    settings |= {"curate.keep_truncated": "false", "curate.per_task": "null", "curate.deduplicate": "false"}
    outcome, _ = improve(tiny(**settings), tmp_path)
    place = Workspace(tmp_path)
    manifest = place.store.manifest(outcome.turns[0].checkpoint)
    assert manifest.settings["method"] == method
    assert manifest.counts["steps"] > 0
    assert f"{method} from the champion" in place.page("tiny").read_text()
