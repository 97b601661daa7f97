"""Status: each reason for which a stage would run again is named, and nothing else is."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gristmill import progress
from gristmill.errors import GateError, UsageError
from gristmill.runs import find, recorded, runs
from gristmill.status import Status, status
from gristmill.status_command import run as show
from gristmill.workspace import Workspace
from tests.recorded import CHAIN, killed, promote, recipe, run_turn


def states(found: Status) -> dict[str, str]:
    return {one.stage: one.state for one in found.stages if one.turn == 1}


def why(found: Status, stage: str) -> tuple[str, ...]:
    return next(one.why for one in found.stages if (one.turn, one.stage) == (1, stage))


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    place = Workspace(tmp_path / "w")
    promote(place, run_turn(place, recipe()))
    return place


def printed(place: Workspace, *arguments: str) -> str:
    out = io.StringIO()
    show(arguments, workspace=place.root, json=False, console=Console(file=out, width=200))
    return out.getvalue()


def test_what_ended_is_fresh(place: Workspace) -> None:
    found = status(place, recipe())
    assert set(states(found).values()) == {"fresh"}
    assert found.changed == () and found.owed == 0
    assert found.champion is not None and found.champion.turn == 1
    assert "nothing is owed" in printed(place)


def test_an_evaluation_on_its_own_is_the_last_run_and_not_the_loop(place: Workspace, tmp_path: Path) -> None:
    for one in (place, Workspace(tmp_path / "other")):
        with one.locked(), recorded(one, ["evaluate", "base@0123"], recipe(seed=7)):
            pass
    found = status(place)
    assert found.last is not None and found.last.command == "evaluate base@0123"
    assert (found.compared_with, found.owed) == (1, 0) and found.stages
    assert "`gristmill improve RECIPE` begins a loop" in printed(Workspace(tmp_path / "other"))


def test_a_changed_setting_is_named_and_what_follows_follows(place: Workspace) -> None:
    found = status(place, recipe(**{"curate.min_reward": 0.5}))
    assert found.changed == ("curate.min_reward: 1.0 → 0.5",)
    assert states(found) | {"tasks": "fresh", "collect": "fresh", "ingest": "fresh"} == states(found)
    assert why(found, "curate") == ("curate.min_reward: 1.0 → 0.5",)
    assert why(found, "format") == ("follows curate of turn 1",)
    assert why(found, "train") == ("follows format of turn 1",)
    assert why(found, "promote") == ("follows evaluate of turn 1",)
    assert found.owed == 8 and found.owed_seconds == 16.0


def test_a_setting_that_nothing_reads_makes_nothing_stale(place: Workspace) -> None:
    assert status(place, recipe(**{"requests.concurrency": 2})).owed == 0


def test_the_nearest_run_is_compared_with(place: Workspace) -> None:
    run_turn(place, recipe(seed=7), says="seven")
    assert status(place, recipe(seed=7)).compared_with == 2
    assert status(place, recipe()).compared_with == 1


def test_new_code_is_named(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("gristmill.stages").stages.VERSIONS, "format", "99")
    found = status(place)
    assert why(found, "format") == ("the code of format is version 99, was 2",)
    assert states(found)["curate"] == "fresh" and states(found)["train"] == "stale"


def test_what_is_gone_is_missing_and_says_so(place: Workspace) -> None:
    selection = next(ref for ref in place.store.refs() if ref.kind == "selection")
    shutil.rmtree(place.store.path(selection))
    found = status(place)
    assert states(found)["curate"] == "missing"
    assert why(found, "curate") == (f"{selection.short} is gone or damaged",)
    assert states(found)["format"] == "fresh"  # made again to the byte, it changes nothing
    dataset = next(ref for ref in place.store.refs() if ref.kind == "dataset")
    (place.results / f"format-{dataset.digest}").unlink()
    assert why(status(place), "format") == ("the record that finds it is gone from results/",)


def test_tainting_and_reviewing_since_are_reasons(place: Workspace) -> None:
    time.sleep(1.1)  # the journal tells seconds
    (place.root / "taints.jsonl").write_text("{}\n")
    assert why(status(place), "curate") == ("rollouts were tainted since",)


def test_further_turns_are_owed_and_how_long_they_took(place: Workspace) -> None:
    found = status(place, recipe(turns=2))
    owed = [one for one in found.stages if one.turn == 2]
    assert {one.state for one in owed} == {"owed"}
    assert [one.seconds for one in owed if one.stage == "train"] == [2.0]


def test_a_killed_run_is_told_from_one_that_works(tmp_path: Path) -> None:
    place = killed(tmp_path / "w")
    found = status(place)
    assert found.last is not None and found.last.outcome == "killed"
    assert [stage for stage, state in states(found).items() if state == "fresh"] == list(CHAIN)[:4]
    assert "gristmill resume -w" in printed(place)


def test_what_runs_now_is_seen_from_another_process(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    with place.locked(), recorded(place, ["improve"], recipe()), progress.stage(1, "train"):
        progress.advance(3, 40, "steps")
        shown = subprocess.run(
            [sys.executable, "-m", "gristmill", "status", "-w", str(tmp_path), "--json"],
            capture_output=True,
            check=True,
        )
    told = json.loads(shown.stdout)
    assert told["last"]["outcome"] == "running"
    assert (told["now"]["turn"], told["now"]["stage"], told["now"]["done"], told["now"]["total"]) == (1, "train", 3, 40)
    assert [one["stage"] for one in told["stages"] if one["state"] == "running"] == ["train"]
    assert not (tmp_path / "running.json").exists()


def test_how_a_run_ended_is_recorded(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for error in (GateError("GM102 too few"), KeyboardInterrupt(), ValueError("odd\nthing")):
        with pytest.raises(type(error)):
            run_turn(place, recipe(), until="tasks", error=error)
    run_turn(place, recipe(), until="tasks")
    assert [(run.number, run.outcome, run.error) for run in runs(place)] == [
        (1, "refused", "GM102 too few"),
        (2, "interrupted", "interrupted"),
        (3, "failed", "ValueError: odd thing"),
        (4, "done", None),
    ]
    assert find(place, "run 3") == find(place, "3") == find(place, "run:3") == runs(place)[2]
    assert find(place, "last").number == 4
    with pytest.raises(UsageError, match=r"there is no run '9' in .*; it has runs 1 to 4"):
        find(place, "9")


def test_an_empty_workspace_says_how_to_begin(tmp_path: Path) -> None:
    assert "nothing has run" in printed(Workspace(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_workspace_of_before_runs_were_recorded_is_shown(place: Workspace) -> None:
    (place.root / "runs.jsonl").unlink()
    lines = [json.loads(line) for line in (place.root / "journal.jsonl").read_text().splitlines()]
    old = ("time", "turn", "stage", "cached", "result")
    (place.root / "journal.jsonl").write_text("".join(json.dumps({k: one[k] for k in old}) + "\n" for one in lines))
    assert set(states(status(place)).values()) == {"fresh"}
    assert set(states(status(place, recipe())).values()) == {"owed"}
