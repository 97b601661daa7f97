"""The whole loop through the real engine and the real trainer, on a tiny random model.

One workspace is filled once; each test then changes one thing and asks what was done again. The tiny model solves
nothing, so these recipes keep answers of any reward: the path is the demo's, the learning is not under test here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.errors import GateError
from gristmill.loop import Turn
from gristmill.progress import Update
from gristmill.recipe import Recipe, build
from gristmill.workspace import Workspace

BEFORE_CURATE = ["base policy", "held-out tasks", "collect held-out", "ingest held-out", "evaluate"]
TURN = [
    *("tasks", "collect", "ingest", "curate", "format", "validate", "train"),
    *("collect held-out", "ingest held-out", "evaluate", "promote"),
]


def recipe(**changes: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "tiny",
        "turns": 1,
        "policy": {"model": "tiny-random", "device": "cpu"},
        "environment": {"tasks": 6, "heldout": 4},
        "collect": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
        # An untrained model never ends its answers: those that are cut must do.
        "curate": {"min_reward": None, "keep_truncated": True},
        "checks": {"min_examples": 1, "max_truncated": 1.0},
        "train": {"epochs": 1, "batch_size": 4, "lora_rank": 2, "save_steps": 1},
        "evaluate": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
    }
    return build(values, [f"{key}={value}" for key, value in changes.items()])


def improve(what: Recipe, workspace: Path) -> tuple[Any, dict[tuple[int, str], str]]:
    """Run in this process; the outcome, and how each stage ended."""
    from flows.improve import improve as flow

    ended: dict[tuple[int, str], str] = {}

    def listen(update: Update) -> None:
        if update.state != "running":
            ended[update.turn, update.stage] = update.state

    with progress.listening(listen):
        outcome = flow(what, str(workspace))
    return outcome, ended


def ran(ended: dict[tuple[int, str], str]) -> list[str]:
    return [f"{turn} {stage}" for (turn, stage), state in ended.items() if state == "done"]


@pytest.fixture(scope="module")
def finished(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    workspace = tmp_path_factory.mktemp("finished")
    outcome, ended = improve(recipe(), workspace)
    expected = [f"0 {s}" for s in BEFORE_CURATE] + [f"1 {s}" for s in TURN] + ["1 report"]
    assert ran(ended) == expected
    return workspace, outcome


@pytest.fixture
def copied(finished: tuple[Path, Any], tmp_path: Path) -> tuple[Path, Any]:
    """A copy to damage."""
    workspace, outcome = finished
    shutil.copytree(workspace, tmp_path / "copy")
    return tmp_path / "copy", outcome


def test_the_page_and_the_summary_are_there(finished: tuple[Path, Any]) -> None:
    workspace, outcome = finished
    store = Workspace(workspace).store
    summary = store.read_json(outcome.report, "summary.json")
    assert [turn["turn"] for turn in summary["turns"]] == [1]
    assert {"mean", "low", "high"} <= summary["lift"].keys()
    page = Workspace(workspace).page("tiny").read_text()
    assert "turn 1 checkpoint, model v1" in page
    assert page == (store.path(outcome.report) / "report.html").read_text()


def test_every_artifact_is_whole_and_has_known_parents(finished: tuple[Path, Any]) -> None:
    from tasks.format import format_dataset

    store = Workspace(finished[0]).store
    refs = list(store.refs())
    assert {ref.kind for ref in refs} == {
        *("tasks", "rollouts", "table", "selection", "dataset"),
        *("checkpoint", "evaluation", "decision", "report"),
    }
    for ref in refs:
        store.verify(ref)
        assert set(store.manifest(ref).parents) <= set(refs)
        if ref.kind == "dataset":
            assert store.manifest(ref).step_version == getattr(format_dataset.cache_policy, "version", None)


def test_rows_are_conserved_from_rollouts_to_examples(finished: tuple[Path, Any]) -> None:
    workspace, outcome = finished
    store = Workspace(workspace).store
    (turn,) = outcome.turns
    for ref in (turn.table, turn.selection, turn.dataset):
        counts = store.manifest(ref).counts
        assert counts["rows_read"] == counts["rows_kept"] + sum(counts["dropped"].values()) == 12


def test_a_dataset_knows_the_rollout_of_every_row(finished: tuple[Path, Any]) -> None:
    import pyarrow.parquet as pq

    workspace, outcome = finished
    store = Workspace(workspace).store
    (turn,) = outcome.turns
    provenance = pq.read_table(store.path(turn.dataset) / "provenance.parquet").to_pylist()
    known = set()
    for part in store.path(turn.table).glob("part-*.parquet"):
        known |= set(pq.read_table(part, columns=["rollout_id"])["rollout_id"].to_pylist())
    assert [row["row"] for row in provenance] == list(range(len(provenance)))
    assert {row["rollout_id"] for row in provenance} <= known
    assert len(provenance) == store.manifest(turn.dataset).counts["examples"]


def test_the_workspace_names_no_absolute_path(finished: tuple[Path, Any]) -> None:
    workspace = finished[0]
    for manifest in (workspace / "artifacts").glob("*/*/manifest.json"):
        assert str(workspace) not in manifest.read_text()


def test_nothing_changed_means_nothing_is_done(finished: tuple[Path, Any]) -> None:
    workspace, outcome = finished
    again, ended = improve(recipe(), workspace)
    assert set(ended.values()) == {"cached"}
    assert again == outcome


def test_one_filter_setting_redoes_only_what_follows(copied: tuple[Path, Any]) -> None:
    workspace, outcome = copied
    changed, ended = improve(recipe(**{"curate.per_task": 1}), workspace)
    assert ran(ended) == [f"1 {stage}" for stage in TURN[TURN.index("curate") :]] + ["1 report"]
    assert changed.turns[0].dataset != outcome.turns[0].dataset


@pytest.mark.parametrize("field", ["rollouts", "selection", "dataset", "evaluation"])
def test_a_deleted_artifact_is_made_again_and_alone(copied: tuple[Path, Any], field: str) -> None:
    workspace, outcome = copied
    ref: ArtifactRef = getattr(outcome.turns[0], field)
    shutil.rmtree(Workspace(workspace).store.path(ref))
    again, ended = improve(recipe(), workspace)
    stage = {"rollouts": "collect", "selection": "curate", "dataset": "format", "evaluation": "evaluate"}[field]
    assert ran(ended) == [f"1 {stage}"]
    assert again == outcome  # made again to the byte


def test_a_gate_that_says_no_stops_before_training(copied: tuple[Path, Any]) -> None:
    workspace, _ = copied
    with pytest.raises(GateError, match=r"GM102 too few examples: \d+ < 1000 .*findings: .*checks\.html"):
        improve(recipe(**{"checks.min_examples": 1000}), workspace)


def command(workspace: Path, url: str, *overrides: str) -> subprocess.Popen[bytes]:
    """The command line on the same recipe, against the shared server."""
    path = workspace.parent / f"{workspace.name}.yaml"
    path.write_text(recipe().yaml())
    return subprocess.Popen(
        [sys.executable, "-m", "gristmill", "improve", str(path), *overrides, "-w", str(workspace), "--json"],
        env=os.environ | {"PREFECT_API_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def datasets(workspace: Path) -> set[str]:
    return {ref.digest for ref in Workspace(workspace).store.refs() if ref.kind == "dataset"}


@pytest.mark.parametrize(
    "stage",
    ["train", pytest.param("collect", marks=pytest.mark.live), pytest.param("evaluate", marks=pytest.mark.live)],
)
def test_killed_and_run_again_ends_as_if_undisturbed(
    finished: tuple[Path, Any], prefect_server: str, tmp_path: Path, stage: str
) -> None:
    """SIGKILL as soon as the stage before `stage` has ended, so in the middle of it or just after."""
    before = {"collect": "turn 1  tasks", "train": "turn 1  validate", "evaluate": "turn 1  train "}[stage]
    workspace = tmp_path / "killed"
    with command(workspace, prefect_server) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.decode().startswith(before):
                break
        process.send_signal(signal.SIGKILL)
    assert not Workspace(workspace).page("tiny").exists()

    process = command(workspace, prefect_server)
    out, log = process.communicate(timeout=300)
    assert process.returncode == 0, log.decode()
    assert json.loads(out.splitlines()[-1])["cached"] >= 5
    reference, outcome = finished
    assert datasets(workspace) == datasets(reference)
    turn: Turn = outcome.turns[0]
    store = Workspace(workspace).store
    assert store.exists(turn.dataset)
    assert store.exists(turn.checkpoint)  # training, too, ends with the same weights
    assert not list((workspace / "artifacts").glob("*/.tmp-*"))
    assert not list((workspace / "work").glob("*"))


def test_the_command_says_that_nothing_was_done(finished: tuple[Path, Any], prefect_server: str) -> None:
    process = command(finished[0], prefect_server)
    out, log = process.communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    assert {"turns", "lift", "cached", "seconds", "report"} <= result.keys()
    assert result["cached"] == len(BEFORE_CURATE) + len(TURN) + 1
    assert {"turn", "mean_reward", "promoted"} <= result["turns"][0].keys()
    assert Path(result["report"]).is_file()
    assert len(re.findall(rb" cached ", log)) == result["cached"]


def test_the_command_ends_with_three_when_a_gate_says_no(copied: tuple[Path, Any], prefect_server: str) -> None:
    process = command(copied[0], prefect_server, "checks.min_examples=1000")
    _, log = process.communicate(timeout=300)
    assert process.returncode == 3
    last = log.decode().splitlines()[-1]
    assert last.startswith("error: GM102 too few examples")
    assert "Traceback" not in log.decode()


def test_after_a_rollback_the_loop_stands_where_it_stood(copied: tuple[Path, Any]) -> None:
    """The same run again: nothing is trained, the promotion does not come back, and the page says why."""
    from gristmill.champions import champions, roll_back

    place = Workspace(copied[0])
    lenient = recipe(**{"promote.min_effect": -1.0, "promote.max_failure_rise": "", "promote.max_pass_drop": ""})
    outcome, _ = improve(lenient, copied[0])
    (turn,) = outcome.turns
    assert turn.promoted and outcome.champion == turn.checkpoint != turn.champion
    roll_back(place, "it was a trial")
    again, ended = improve(lenient, copied[0])
    assert ran(ended) == ["1 report"]
    assert not again.turns[0].promoted and again.champion == turn.champion
    assert champions(place) == []
    assert "rolled back" in place.page("tiny").read_text()
