"""Stages named by people: turns, near names, and what of a refresh is still owed after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.errors import UsageError
from gristmill.refresh import BEFORE, OPTIONAL, TURN, Refresh, Refreshing
from gristmill.resume_command import go_on, refresh_of, resumed
from gristmill.workspace import Workspace
from tests.recorded import recipe, run_turn


def asked(refresh: Refresh, turns: int = 2) -> list[str]:
    """What a whole run does again."""
    again = Refreshing(refresh.resolved(turns=turns, last=turns))
    order = [(0, stage) for stage in BEFORE]
    order += [(turn, stage) for turn in range(1, turns + 1) for stage in TURN]
    return [f"{turn} {stage}" for turn, stage in [*order, (turns, "report")] if again(turn, stage)]


def test_from_is_the_stage_and_all_after_it_in_its_turn() -> None:
    assert asked(Refresh(redo_from="evaluate")) == ["2 evaluate", "2 promote", "2 report"]
    assert asked(Refresh(redo_from="evaluate:1")) == ["1 evaluate", "1 promote"]
    assert asked(Refresh(redo_from="collect held-out:0")) == ["0 collect held-out", "0 ingest held-out", "0 evaluate"]


def test_from_a_stage_that_this_run_does_not_have_is_what_comes_after_it() -> None:
    again = Refreshing(Refresh(redo_from="taints:1").resolved(turns=2, last=2))
    ran = [(turn, stage) for turn in (1, 2) for stage in TURN if stage not in OPTIONAL]
    redone = [(1, stage) for stage in TURN[TURN.index("curate") :]]
    assert [at for at in ran if again(*at)] == redone
    assert asked(Refresh(redo_from="taints", force=("taints:1",)))[:3] == ["1 taints", "2 taints", "2 curate"]


def test_force_is_the_stage_alone() -> None:
    assert asked(Refresh(force=("curate", "Collect-Held-Out:1"))) == ["1 collect held-out", "2 curate"]
    assert asked(Refresh(force=("base-policy",))) == ["0 base policy"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("trian", "no stage is called 'trian'; did you mean train?"),
        ("collect:7", "there is no turn 7; the recipe has 2"),
        ("collect:x", "expected a turn behind the colon, such as collect:2"),
        ("train:0", "turn 0 is the base's"),
        ("held-out-tasks:1", "is done once, in turn 0"),
    ],
)
def test_a_wrong_name_is_one_sentence(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("?", r"\?")):
        Refresh(redo_from=name).resolved(turns=2, last=2)


def test_a_stage_without_a_turn_means_the_last_one_that_ran(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    run_turn(place, recipe(turns=5), until="curate")
    assert refresh_of(place, recipe(turns=5), Refresh(redo_from="curate")).redo_from == "curate:1"
    run_turn(place, recipe(seed=1, turns=5), until="tasks")
    assert refresh_of(place, recipe(turns=4), Refresh(force=("base-policy", "train"))).force == (
        "base-policy:0",
        "train:1",
    )
    assert refresh_of(Workspace(tmp_path / "new"), recipe(turns=5), Refresh(force=("train",))).force == ("train:5",)


def test_a_killed_run_still_owes_what_it_did_not_redo(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_turn(place, recipe(), until="curate", refresh=Refresh(redo_from="ingest"), error=KeyboardInterrupt())
    run, what, refresh = resumed(place)
    assert (run.number, run.outcome, what) == (1, "interrupted", recipe())
    again = Refreshing(refresh)
    redone = [stage for stage in TURN if again(1, stage) and stage not in OPTIONAL]
    assert redone == list(TURN[TURN.index("format") :])


def test_the_unfinished_run_goes_on_and_not_a_later_one_that_ended(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run_turn(place, recipe(seed=1), until="collect", error=ZeroDivisionError())
    run_turn(place, recipe(seed=2))
    assert resumed(place).run.number == 1
    run_turn(place, recipe(seed=1))  # now that one ended, too
    assert resumed(place, ["turns=3"]) == (resumed(place).run, recipe(seed=1, turns=3), Refresh())
    assert resumed(place).run.number == 3


def test_there_is_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no run of the loop is recorded in .*; begin one with `gristmill improve"):
        resumed(Workspace(tmp_path))


def test_the_command_to_go_on_is_quoted_and_redoes_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    assert go_on(["improve", "my recipe.yaml", "-w", "w"], "w") == "gristmill improve 'my recipe.yaml' -w w"
    assert go_on(["improve", "r.yaml", "--from", "train", "-w", "a b"], "a b") == "gristmill resume -w 'a b'"
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert go_on(["demo", "--force=train", "--json"], "w") == "uv run gristmill resume -w w --json"
