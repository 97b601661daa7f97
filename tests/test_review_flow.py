"""A turn that waits for people: it pauses, says what to do, goes on by itself, and uses what they said."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.decisions import ReviewDecision, now, read_opinions
from gristmill.errors import GateError
from gristmill.recipe import Recipe
from gristmill.review import waiting
from gristmill.review_command import Sizes, _open
from gristmill.workspace import Workspace, read_lines
from tests.test_loop import command, recipe

REVIEWED = {"review.required": True, "review.low": 2, "review.middle": 2, "review.high": 2}


def improve(what: Recipe, workspace: Path, ended: dict[tuple[int, str], str]) -> Any:
    """The run's outcome; how each stage ended, also where it raised."""
    from flows.improve import improve as flow

    def listen(update: progress.Update) -> None:
        ended[update.turn, update.stage] = update.state

    with progress.listening(listen):
        return flow(what, str(workspace))


@pytest.fixture(scope="module")
def stopped(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose run stopped at the review, because nobody was there."""
    root = tmp_path_factory.mktemp("reviewed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(waiting.WAIT_VARIABLE, "0")
        with pytest.raises(GateError, match=r"turn 1 waits for review, \d of \d undecided"):
            improve(recipe(**REVIEWED), root, {})
    return root


@pytest.fixture
def workspace(stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workspace]:
    monkeypatch.setenv(waiting.WAIT_VARIABLE, "300")  # for ever, if a test fails
    shutil.copytree(stopped, tmp_path / "copy")
    return Workspace(tmp_path / "copy")


def sampled(workspace: Workspace) -> list[str]:
    asked = waiting.announced(workspace, "tiny")
    assert asked is not None
    return [one.rollout_id for one in waiting.read_sample(workspace.store, asked.sample)]


def decide(workspace: Workspace, reject: int = 1) -> dict[str, str]:
    """Reject the first `reject` rollouts of the sample, accept the others."""
    said = {}
    for number, rollout_id in enumerate(sampled(workspace)):
        said[rollout_id] = "reject" if number < reject else "accept"
        entry = {"rollout_id": rollout_id, "decision": said[rollout_id], "reviewer": "ada", "time": now()}
        waiting.log_of(workspace).append(ReviewDecision.model_validate(entry))
    return said


def curated(workspace: Workspace, **changes: Any) -> tuple[ArtifactRef, dict[tuple[int, str], str]]:
    """Run as far as the checks, which then say no: the selection, and how each stage ended."""
    ended: dict[tuple[int, str], str] = {}
    with pytest.raises(GateError, match="too few examples"):
        improve(recipe(**{**changes, "checks.min_examples": 1000}), workspace.root, ended)
    line = [one for one in read_lines(workspace.root / "journal.jsonl") if one["stage"] == "curate"][-1]
    found = [ref for ref in workspace.store.refs() if str(ref) == line["result"]]
    return found[0], ended


def rejected(workspace: Workspace, selection: ArtifactRef) -> set[str]:
    rows = pq.read_table(workspace.store.path(selection) / "selection.parquet").to_pylist()
    return {row["rollout_id"] for row in rows if row["reason"] == "review_rejected"}


def those(said: dict[str, str]) -> set[str]:
    return {rollout_id for rollout_id, judgement in said.items() if judgement == "reject"}


def test_the_sentence_names_the_command(stopped: Path) -> None:
    assert waiting.command(Workspace("workspace"), "tiny") == "gristmill review tiny"
    assert waiting.command(Workspace(stopped), "tiny").startswith("gristmill review tiny -w ")


def test_what_they_rejected_is_not_trained_on(workspace: Workspace) -> None:
    said = decide(workspace)
    selection, ended = curated(workspace, **REVIEWED)
    assert rejected(workspace, selection) == those(said) != set()
    assert ended[1, "sample"] == ended[1, "collect"] == "cached"  # the same sample, which was waited for
    (decisions,) = [ref for ref in workspace.store.manifest(selection).parents if ref.kind == "decisions"]
    held = read_opinions(workspace.store, decisions)
    assert {one.rollout_id: one.judgement for one in held} == said
    assert {ref.kind for ref in workspace.store.manifest(decisions).parents} == {"table", "sample"}

    same, ended = curated(workspace, **REVIEWED)
    assert (same, ended[1, "review"], ended[1, "curate"]) == (selection, "cached", "cached")
    time.sleep(0.002)  # an entry's time has milliseconds
    said = decide(workspace, reject=2)
    changed, ended = curated(workspace, **REVIEWED)
    assert rejected(workspace, changed) == those(said)
    assert (ended[1, "collect"], ended[1, "curate"]) == ("cached", "done")


def test_decisions_count_without_being_asked_for(workspace: Workspace) -> None:
    said = decide(workspace)
    selection, ended = curated(workspace)
    assert rejected(workspace, selection) == those(said)
    assert (1, "sample") not in ended


def test_it_pauses_and_goes_on_by_itself(workspace: Workspace, prefect_server: str) -> None:
    """Decided by another thread, while the run waits in this one; Prefect shows that it waits."""
    seen: list[dict[str, Any]] = []

    def review() -> None:
        only = {"flow_runs": {"state": {"name": {"any_": ["AwaitingReview"]}}}}
        try:
            for _ in range(600):
                if seen:
                    break
                time.sleep(0.1)
                seen.extend(httpx.post(f"{prefect_server}/flow_runs/filter", json=only, timeout=30).json())
        finally:
            decide(workspace)

    reviewer = threading.Thread(target=review)
    reviewer.start()
    selection, ended = curated(workspace, **REVIEWED)
    reviewer.join()
    assert seen[0]["state"]["type"] == "PAUSED"
    assert "gristmill review tiny" in seen[0]["state"]["message"]
    assert ended[1, "review"] == "done"
    assert len(rejected(workspace, selection)) == 1


def test_the_command_ends_with_three_where_nobody_watches(
    workspace: Workspace, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(waiting.WAIT_VARIABLE)
    process = command(workspace.root, prefect_server, *(f"{key}={value}" for key, value in REVIEWED.items()))
    _, log = process.communicate(timeout=300)
    assert process.returncode == 3
    last = log.decode().splitlines()[-1]
    assert last.startswith("error: turn 1 waits for review") and "gristmill review tiny" in last
    assert "Traceback" not in log.decode()


@pytest.mark.live
def test_an_interrupted_wait_goes_on(
    workspace: Workspace, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = [f"{key}={value}" for key, value in REVIEWED.items()]
    (workspace.root / "reviews" / "tiny.json").unlink()
    process = command(workspace.root, prefect_server, *overrides)
    while not (workspace.root / "reviews" / "tiny.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 130, log.decode()
    before = sampled(workspace)
    said = decide(workspace)
    selection, ended = curated(workspace, **REVIEWED)
    assert ended[1, "sample"] == "cached"
    assert sampled(workspace) == before
    assert rejected(workspace, selection) == those(said)


def test_the_run_s_sample_is_what_the_command_opens(workspace: Workspace) -> None:
    with _open(["tiny"], workspace, Sizes(), {}) as opened:
        assert {one.rollout_id for one in opened.queue.rollouts} == set(sampled(workspace))
        assert opened.title == "tiny, turn 1"
        assert "goes on by itself" in opened.waiting


@pytest.mark.live
def test_a_finished_run_without_a_review_can_be_reviewed(workspace: Workspace) -> None:
    improve(recipe(), workspace.root, {})
    shutil.rmtree(workspace.root / "reviews")
    with _open(["tiny"], workspace, Sizes(everything=True), {}) as opened:
        assert len(opened.queue.rollouts) == 12
        assert opened.waiting == ""
