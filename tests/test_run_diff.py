"""The difference of two runs: what was set otherwise, where they part, what each came to."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gristmill import evaluation, promotion
from gristmill.diff_command import run as show
from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation, Measure
from gristmill.promotion import Decision, Verdict
from gristmill.run_diff import diff_runs
from gristmill.runs import runs
from gristmill.workspace import Workspace
from tests.recorded import LIFT, put, recipe, run_turn


def score(place: Workspace, mean: float) -> Evaluation:
    ref = put(place, "tasks", "held out")
    estimate = LIFT.model_copy(update={"mean": mean, "low": mean - 0.1, "high": mean + 0.1})
    measure = Measure(estimate=estimate, by_task={})
    return Evaluation(
        policy=ref,
        tasks=ref,
        rewards={},
        estimate=estimate,
        categories=(),
        expected=16,
        missing=0,
        failures=measure,
        chars=measure,
    )


def ended(place: Workspace, what: Any, chosen: int, mean: float, verdict: Verdict) -> None:
    """A run with real evaluations and decisions."""
    decision = Decision(verdict=verdict, lift=LIFT, min_effect=0.0, confidence=0.95, reason="as it is")
    counts = {
        "collect": {"rollouts": 16},
        "curate": {"rows_read": 16, "rows_kept": chosen, "dropped": {"low_reward": 16 - chosen}},
        "format": {"examples": chosen},
    }
    files = {"evaluate": {evaluation.FILE: score(place, mean)}, "promote": {promotion.FILE: decision}}
    run_turn(place, what, says=f"{chosen}", counts=counts, files=files)


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    place = Workspace(tmp_path / "w")
    ended(place, recipe(), 10, 0.2, Verdict.INCONCLUSIVE)
    ended(place, recipe(**{"curate.min_reward": 0.5}), 14, 0.4, Verdict.PROMOTED)
    return place


def test_two_runs_field_by_field_and_stage_by_stage(place: Workspace) -> None:
    one, two = runs(place)
    found = diff_runs(place, one, two)
    assert found.recipe == {"curate.min_reward": (1.0, 0.5)}
    assert found.parted == "turn 1 tasks"
    a, b = found.a.turns[1], found.b.turns[1]
    assert (a.collected, a.read, a.chosen, a.dropped, a.examples) == (16, 16, 10, {"low_reward": 6}, 10)
    assert (b.chosen, b.dropped, b.examples) == (14, {"low_reward": 2}, 14)
    assert a.lift == b.lift == LIFT
    assert a.mean_reward is not None and b.mean_reward is not None
    assert (a.mean_reward.mean, b.mean_reward.mean) == (0.2, 0.4)
    assert (found.a.promoted, found.b.promoted) == ((), (1,))


def test_the_command_takes_numbers_and_prints_or_gives_json(place: Workspace) -> None:
    out = io.StringIO()
    show("1", "run 2", workspace=place.root, json=False, console=Console(file=out, width=100))
    said = out.getvalue()
    assert "curate.min_reward: 1.0 → 0.5" in said and "they part at turn 1 tasks" in said
    assert "+0.200 [+0.100, +0.300]" in said and "promoted" in said and "dropped: low_reward" in said
    out = io.StringIO()
    show("1", "last", workspace=place.root, json=True, console=Console(file=out))
    told = json.loads(out.getvalue())
    assert (told["a"]["run"], told["b"]["run"]) == (1, 2) and told["recipe"]["curate.min_reward"] == [1.0, 0.5]
    with pytest.raises(UsageError, match="there is no run '7'"):
        show("1", "7", workspace=place.root, json=False, console=Console(file=out))


def test_equal_runs_do_not_part(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for _ in range(2):
        run_turn(place, recipe())
    found = diff_runs(place, *runs(place))
    assert found.parted is None and found.recipe == {}


def test_what_was_swept_or_damaged_leaves_a_gap_and_no_traceback(place: Workspace) -> None:
    shutil.rmtree(place.root / "artifacts" / "evaluation")
    for path in place.root.glob("artifacts/selection/*/manifest.json"):
        path.write_text("{")
    found = diff_runs(place, *runs(place))
    turn = found.b.turns[1]
    assert turn.mean_reward is None and turn.chosen is None and turn.verdict == "promoted"
