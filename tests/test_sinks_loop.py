"""The built-in sinks on a real run: what MLflow, OpenLineage, trackio and a hub's folder hold afterwards.

One tiny run with all sinks on fills a workspace; the tests read it back by each library's own means.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill.champions import champions, roll_back
from gristmill.evaluation import read_evaluation
from gristmill.recipe import Recipe, build
from gristmill.runs import RUNS
from gristmill.sinks import configured
from gristmill.sinks.delivery import deliver, owes, standing, start_again
from gristmill.workspace import Workspace

pytest.importorskip("mlflow", reason="mlflow is not installed")
pytest.importorskip("openlineage.client", reason="openlineage-python is not installed")
pytest.importorskip("trackio", reason="trackio is not installed")
# MLflow uses what SQLAlchemy deprecates; openlineage what dateutil does. None of it is ours to mend.
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.live]


def recipe(folder: Path) -> Recipe:
    return build(
        {
            "name": "tiny",
            "turns": 1,
            "policy": {"model": "tiny-random", "device": "cpu"},
            "environment": {"tasks": 6, "heldout": 4},
            "collect": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
            "curate": {"min_reward": None, "keep_truncated": True},
            "checks": {"min_examples": 1, "max_truncated": 1.0},
            "train": {"epochs": 1, "batch_size": 4, "lora_rank": 2},
            "evaluate": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
            # An untrained model proves nothing; the gate must say yes for there to be a champion.
            "promote": {"min_effect": -1.0, "max_pass_drop": None, "max_failure_rise": None, "min_diversity": None},
            "sinks": {
                "mlflow": {},
                "openlineage": {},
                "trackio": {},
                "hub": {"model_repo": "we/model", "dataset_repo": "we/data", "folder": str(folder / "hub")},
                "patience": 60,
            },
        }
    )


@pytest.fixture(scope="module")
def ran(prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Any]:
    from flows.improve import improve

    folder = tmp_path_factory.mktemp("ran")
    outcome = improve(recipe(folder), str(folder / "ws"))
    place = Workspace(folder / "ws")
    for name in configured(recipe(folder).sinks):
        assert standing(place, name).error is None, name
        assert owes(place, name) == 0, name
    return place, outcome


@pytest.fixture
def client(ran: tuple[Workspace, Any]) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{ran[0].root / 'mlflow.db'}")


def runs_of(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("tiny")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_mlflow_has_the_run_and_its_turns(ran: tuple[Workspace, Any], client: Any) -> None:
    runs = runs_of(client)
    assert set(runs) == {"tiny", "base", "turn 1"}
    whole = runs["tiny"]
    assert {runs[name].data.tags["mlflow.parentRunId"] for name in ("base", "turn 1")} == {whole.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert whole.data.params["train.lora_rank"] == "2" and whole.data.params["curate.min_reward"] == "null"
    assert not any(name.startswith("sinks") for name in whole.data.params)


def test_mlflow_has_every_metric_with_its_step(ran: tuple[Workspace, Any], client: Any) -> None:
    place, outcome = ran
    (turn,) = outcome.turns
    runs = runs_of(client)
    losses = place.store.manifest(turn.checkpoint).counts["losses"]
    history = client.get_metric_history(runs["turn 1"].info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == list(enumerate(losses, 1))
    curve = client.get_metric_history(runs["tiny"].info.run_id, "mean_reward")
    assert [one.step for one in curve] == [0, 1]
    decision = place.store.read_json(turn.decision, "decision.json")
    found = runs["tiny"].data.metrics
    for suffix, key in (("", "mean"), ("_low", "low"), ("_high", "high")):
        assert found[f"lift{suffix}"] == decision["lift"][key]
    assert "pass_at_2" in found
    assert runs["turn 1"].data.metrics["format/examples"] == place.store.manifest(turn.dataset).counts["examples"]
    assert runs["turn 1"].data.tags["gristmill.verdict"] == "promoted"


def test_mlflow_knows_the_data_by_digest(ran: tuple[Workspace, Any], client: Any) -> None:
    (turn,) = ran[1].turns
    inputs = runs_of(client)["turn 1"].inputs.dataset_inputs
    assert {one.dataset.name: one.dataset.digest for one in inputs}["tiny/format"] == turn.dataset.digest[:36]
    assert len({(one.dataset.name, one.dataset.digest) for one in inputs}) == len(inputs)


def test_mlflow_has_a_version_for_every_model_and_the_page(ran: tuple[Workspace, Any], client: Any) -> None:
    (turn,) = ran[1].turns
    versions = client.search_model_versions("name = 'tiny'")
    assert {one.tags["gristmill.checkpoint"] for one in versions} == {turn.champion.digest, turn.checkpoint.digest}
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags["gristmill.checkpoint"] == turn.checkpoint.digest
    assert champion.tags["gristmill.from_dataset"] == turn.dataset.digest
    assert Path(champion.source.removeprefix("file://")) == ran[0].store.path(turn.checkpoint)
    assert [one.path for one in client.list_artifacts(runs_of(client)["tiny"].info.run_id)] == ["report.html"]


def test_openlineage_events_are_what_its_classes_take(ran: tuple[Workspace, Any]) -> None:
    """The package's classes are made from the specification, and check ids and times."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

    place, outcome = ran
    (turn,) = outcome.turns
    said = [json.loads(line) for line in (place.root / "openlineage.jsonl").read_text().splitlines()]
    begun: dict[str, str] = {}
    for one in said:
        RunEvent(
            eventType=RunState(one["eventType"]),
            eventTime=one["eventTime"],
            producer=one["producer"],
            run=Run(**one["run"]),
            job=Job(**one["job"]),
            inputs=[InputDataset(**dataset) for dataset in one["inputs"]],
            outputs=[OutputDataset(**dataset) for dataset in one["outputs"]],
        )
        assert one["schemaURL"].endswith("OpenLineage.json#/$defs/RunEvent")
        facets = [one["run"]["facets"], one["job"]["facets"]]
        for dataset in (*one["inputs"], *one["outputs"]):
            facets += [dataset["facets"], dataset.get("inputFacets") or {}, dataset.get("outputFacets") or {}]
        assert all({"_producer", "_schemaURL"} <= facet.keys() for group in facets for facet in group.values())
        run = one["run"]["runId"]
        assert (run in begun) == (one["eventType"] != "START"), one  # each run starts once, then ends once
        begun[run] = one["eventType"]
    assert set(begun.values()) == {"COMPLETE"}
    ended = {one["job"]["name"]: one for one in said if one["eventType"] == "COMPLETE"}
    train = ended["tiny.train"]
    assert train["run"]["facets"]["parent"]["run"]["runId"] == ended["tiny"]["run"]["runId"]
    (made,) = train["outputs"]
    assert made["facets"]["version"]["datasetVersion"] == turn.checkpoint.digest
    data = next(one for one in train["inputs"] if one["name"] == "tiny/format")
    assert data["facets"]["version"]["datasetVersion"] == turn.dataset.digest
    assert data["inputFacets"]["dataQualityMetrics"]["rowCount"] == 12
    (written,) = ended["tiny.format"]["outputs"]
    assert "rollout_id" not in {field["name"] for field in written["facets"]["schema"]["fields"]}


def test_trackio_has_the_curve(ran: tuple[Workspace, Any]) -> None:
    """Read by its own command: trackio takes its folder when it is imported."""
    place, outcome = ran

    def ask(*arguments: str) -> Any:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("trackio")), *arguments, "--project", "tiny", "--json"],
            env=os.environ | {"TRACKIO_DIR": str(place.root / "trackio")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout[done.stdout.index("{") :])

    whole, turn = sorted(ask("list", "runs")["runs"])
    assert turn == f"{whole} turn 1"
    curve = ask("get", "metric", "--run", whole, "--metric", "mean_reward")["values"]
    assert [one["step"] for one in curve] == [0, 1]
    losses = place.store.manifest(outcome.turns[0].checkpoint).counts["losses"]
    logged = ask("get", "metric", "--run", turn, "--metric", "loss")["values"]
    assert [(one["step"], one["value"]) for one in logged] == list(enumerate(losses, 1))


def test_the_hub_s_folder_has_the_champion_and_its_data(ran: tuple[Workspace, Any]) -> None:
    place, outcome = ran
    (turn,) = outcome.turns
    hub = place.root.parent / "hub"
    assert {"README.md", "config.json", "model.safetensors", "lineage.json"} <= {
        one.name for one in (hub / "models/we/model").iterdir()
    }
    sent = {one.name for one in (hub / "datasets/we/data").iterdir()}
    assert sent == {one.name for one in place.store.manifest(turn.dataset).files}


def test_sending_everything_again_changes_nothing(ran: tuple[Workspace, Any], client: Any) -> None:
    def picture() -> Any:
        return {
            name: (run.data.params, run.data.metrics, len(run.inputs.dataset_inputs), run.info.status)
            for name, run in runs_of(client).items()
        }, sorted(one.version for one in client.search_model_versions("name = 'tiny'"))

    place = ran[0]
    before = picture()
    losses = client.get_metric_history(runs_of(client)["turn 1"].info.run_id, "loss")
    start_again(place, "mlflow")
    assert deliver(place, "mlflow", recipe(place.root.parent).sinks).error is None
    assert picture() == before
    assert len(client.get_metric_history(runs_of(client)["turn 1"].info.run_id, "loss")) == len(losses)


def test_a_rollback_moves_the_alias_back(ran: tuple[Workspace, Any], client: Any) -> None:
    """Last: it changes the workspace."""
    place, outcome = ran
    assert len(champions(place)) == 1
    roll_back(place, "it was a trial")
    assert owes(place, "mlflow") == 1
    assert deliver(place, "mlflow", recipe(place.root.parent).sinks).error is None
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert champion.tags["gristmill.checkpoint"] == outcome.turns[0].champion.digest
    assert len(place.read(RUNS)) == 2


def test_an_evaluation_on_its_own_is_a_run_of_its_own(ran: tuple[Workspace, Any], client: Any) -> None:
    """After all others: it is one more run of the workspace."""
    from flows.evaluate import evaluate_policies
    from gristmill.status import status

    place, outcome = ran
    before = {name: run.data.metrics for name, run in runs_of(client).items()}
    models = client.search_model_versions("name = 'tiny'")
    checkpoint = outcome.turns[0].checkpoint
    (found,) = evaluate_policies(recipe(place.root.parent), str(place.root), [checkpoint])
    for name in ("mlflow", "openlineage"):
        assert (standing(place, name).error, owes(place, name)) == (None, 0)
    runs = runs_of(client)
    whole, one = runs.pop(f"evaluate {checkpoint}"), runs.pop(str(checkpoint))
    assert {name: run.data.metrics for name, run in runs.items()} == before, "the loop's own curve is as it was"
    assert one.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert (whole.info.status, one.info.status) == ("FINISHED", "FINISHED")
    mean = read_evaluation(place.store, found).estimate.mean
    assert whole.data.metrics["mean_reward"] == one.data.metrics["mean_reward"] == mean
    assert one.data.tags["gristmill.evaluate"] == str(found)
    assert client.search_model_versions("name = 'tiny'") == models
    said = [json.loads(line) for line in (place.root / "openlineage.jsonl").read_text().splitlines()]
    (ended,) = [x for x in said if x["job"]["name"] == "tiny.evaluation" and x["eventType"] == "COMPLETE"]
    measured = [x for x in said if x["job"]["name"] == "tiny.evaluate" and x["eventType"] == "COMPLETE"][-1]
    assert measured["run"]["facets"]["parent"]["run"]["runId"] == ended["run"]["runId"]
    assert measured["outputs"][0]["facets"]["version"]["datasetVersion"] == found.digest
    shown = status(place)
    assert shown.last is not None and shown.last.command == f"evaluate {checkpoint}"
    assert {stage.state for stage in shown.stages} == {"fresh"}, "what is owed is still the loop's"
