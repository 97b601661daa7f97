"""MLflow: one run for a run of the loop, a nested one for each turn, and the registry of models.

    run            params: the recipe; metrics by turn: mean reward, pass@k, lift, each with its interval; the report
    turn's run     datasets in and out with their digests; the loss by step; counts of every stage; verdict
    model version  one for each checkpoint, tagged with our digests; the alias `champion` moves with promotions

An evaluation on its own (`gristmill evaluate`) is a run with its metrics, and one nested for each policy.

Without `uri` everything is in the workspace: `mlflow.db`, and `mlflow/` for files. A version's source is the
checkpoint's folder (a server that is not on this machine gets a `gristmill:` URI, since it could not read it);
`copy_models` copies the files instead. Sending twice changes nothing: runs and versions are found by their tags,
and metrics carry the time at which their artifact was made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import orjson
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run
from mlflow.exceptions import MlflowException

from gristmill.artifact import ArtifactRef
from gristmill.recipe import MlflowSinkRecipe
from gristmill.sinks.events import (
    Decided,
    Evaluated,
    Event,
    Produced,
    Promoted,
    RolledBack,
    RunEnded,
    RunOf,
    RunStarted,
    Trained,
)
from gristmill.statistics import Estimate
from gristmill.workspace import Workspace

ALIAS = "champion"
_RUN, _TURN, _CHECKPOINT = "gristmill.run", "gristmill.turn", "gristmill.checkpoint"
_DATA = {"tasks", "rollouts", "table", "selection", "dataset"}
_BATCH = 900  # metrics a request; a server takes 1000
_LONGEST = 6000  # characters of a parameter


class MlflowSink:
    """Tells an MLflow server or database."""

    def __init__(self, settings: MlflowSinkRecipe, workspace: Workspace) -> None:
        self.settings, self.workspace = settings, workspace
        # MLflow's own defaults wait for most of an hour on a server that does not answer.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        uri = settings.uri or f"sqlite:///{workspace.root / 'mlflow.db'}"
        self.local = uri.startswith(("sqlite:", "file:"))
        self.client = MlflowClient(tracking_uri=uri)
        self._experiments: dict[str, str] = {}
        self._runs: dict[tuple[str, int | None], str] = {}

    def send(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._started(event)
            case RunEnded():
                self._ended(event)
            case Produced():
                self._produced(event)
            case Promoted():
                self._champion(event.run, event.champion.checkpoint, event.champion.time)
            case RolledBack():
                self._champion(event.run, event.rollback.back_to, None)

    def close(self) -> None:
        """Nothing is held open."""

    def _started(self, event: RunStarted) -> None:
        run = self._run(event.run)
        self.client.update_run(run, status="RUNNING")
        self.client.set_tag(run, "gristmill.version", event.gristmill)
        params = [Param(name, text[:_LONGEST]) for name, text in _flat(event.recipe)]
        for start in range(0, len(params), 100):
            self.client.log_batch(run, params=params[start : start + 100])

    def _ended(self, event: RunEnded) -> None:
        status = {"done": "FINISHED", "interrupted": "KILLED"}.get(event.outcome, "FAILED")
        run = self._run(event.run)
        if event.error:
            self.client.set_tag(run, "gristmill.error", event.error)
        children = self._search(event.run, f"tags.`mlflow.parentRunId` = '{run}'")
        for one in [*(child.info.run_id for child in children if child.info.status == "RUNNING"), run]:
            self.client.set_terminated(one, status=status, end_time=_milliseconds(event.time))

    def _produced(self, event: Produced) -> None:
        turn = self._run(event.run, event.turn)
        manifest, at = event.manifest, _milliseconds(event.manifest.created)
        self._inputs(turn, event)
        metrics = [Metric(f"{_key(event.stage)}/{name}", value, at, 0) for name, value in _numbers(manifest.counts)]
        total: list[Metric] = []
        tags = {f"gristmill.{_key(event.stage)}": str(event.ref), "gristmill.code": manifest.gristmill}
        match event:
            case Trained():
                metrics += [Metric("loss", value, at, step) for step, value in enumerate(event.losses, 1)]
            case Evaluated(evaluation=found) if event.stage == "evaluate":  # later looks have names of their own
                named = {"mean_reward": found.estimate}
                named |= {f"pass_at_{k}": estimate for k, estimate in found.pass_at.items()}
                named |= {f"reward/{_key(one.name)}": one.estimate for one in found.categories}
                total += [metric for name, one in named.items() for metric in _interval(name, one, at, event.turn)]
            case Decided():
                total += _interval("lift", event.decision.lift, at, event.turn)
                tags |= {"gristmill.verdict": event.decision.verdict, "gristmill.reason": event.decision.reason}
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(turn, metrics=metrics[start : start + _BATCH])
        for run in (turn, self._run(event.run)) if total else ():
            self.client.log_batch(run, metrics=total)
        for name, text in tags.items():
            self.client.set_tag(turn, name, text)
        if event.ref.kind == "checkpoint" and not event.run.policies:  # what is only measured is no model of ours
            self._version(event.run, event.ref, turn, event)
        if event.ref.kind == "report" and event.stage == "report":
            self.client.log_artifact(self._run(event.run), str(self.workspace.store.path(event.ref) / "report.html"))
        if isinstance(event, Decided):
            self.client.set_terminated(turn, end_time=_milliseconds(event.time))

    def _inputs(self, run: str, event: Produced) -> None:
        """What the stage took, and the data that it made, as datasets of the turn's run."""
        sets = [(one.ref, one.stage, one.manifest, f"input of {event.stage}") for one in event.inputs]
        sets.append((event.ref, event.stage, event.manifest, "output"))
        self.client.log_inputs(
            run,
            [
                DatasetInput(
                    Dataset(
                        name=f"{event.run.name}/{_key(stage)}",
                        digest=ref.digest[:36],  # what MLflow has room for
                        source_type="gristmill",
                        source=orjson.dumps({"uri": f"gristmill:{ref.location}"}).decode(),
                        schema="{}",
                        profile=orjson.dumps(dict(_numbers(manifest.counts))).decode(),
                    ),
                    [InputTag("mlflow.data.context", context)],
                )
                for ref, stage, manifest, context in sets
                if ref.kind in _DATA
            ],
        )

    def _version(self, run: RunOf, checkpoint: ArtifactRef, turn: str, event: Produced) -> None:
        name = self._model(run)
        try:
            self.client.create_registered_model(name, tags={"gristmill.recipe": run.name})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if self._version_of(name, checkpoint) is not None:
            return
        if self.settings.copy_models:
            self.client.log_artifacts(turn, str(self.workspace.store.path(checkpoint)), "model")
            source = f"{self.client.get_run(turn).info.artifact_uri}/model"
        elif self.local:
            source = self.workspace.store.path(checkpoint).as_uri()
        else:
            source = f"gristmill:{checkpoint.location}"
        tags = {_CHECKPOINT: checkpoint.digest, _TURN: str(event.turn), _RUN: run.key}
        tags |= {f"gristmill.from_{one.ref.kind}": one.ref.digest for one in event.inputs}
        what = "the base policy" if event.turn == 0 else f"turn {event.turn} of {run.name}"
        self.client.create_model_version(name, source, turn, tags=tags, description=f"{checkpoint}, {what}")

    def _champion(self, run: RunOf, checkpoint: ArtifactRef, promoted: str | None) -> None:
        name = self._model(run)
        version = self._version_of(name, checkpoint)
        if version is None:
            raise LookupError(f"{checkpoint} has no version of the model {name}; `gristmill sinks again mlflow`")
        self.client.set_registered_model_alias(name, ALIAS, version)
        if promoted:
            self.client.set_model_version_tag(name, version, "gristmill.promoted", promoted)

    def _version_of(self, name: str, checkpoint: ArtifactRef) -> str | None:
        found = self.client.search_model_versions(f"name = '{name}'")
        return next((str(one.version) for one in found if one.tags.get(_CHECKPOINT) == checkpoint.digest), None)

    def _model(self, run: RunOf) -> str:
        return self.settings.model or run.name

    def _experiment(self, run: RunOf) -> str:
        name = self.settings.experiment or run.name
        if name not in self._experiments:
            known = self.client.get_experiment_by_name(name)
            if known is None:
                place = None if self.settings.uri else (self.workspace.root / "mlflow").as_uri()
                self._experiments[name] = self.client.create_experiment(name, artifact_location=place)
            else:
                self._experiments[name] = known.experiment_id
        return self._experiments[name]

    def _search(self, of: RunOf, condition: str) -> list[Run]:
        return list(self.client.search_runs([self._experiment(of)], condition, max_results=1000))

    def _run(self, of: RunOf, turn: int | None = None) -> str:
        """The MLflow run of the whole, or of a turn; made on first use."""
        if (of.key, turn) in self._runs:
            return self._runs[of.key, turn]
        number = "all" if turn is None else str(turn)
        found = self._search(of, f"tags.`{_RUN}` = '{of.key}' and tags.`{_TURN}` = '{number}'")
        if found:
            run = str(found[-1].info.run_id)
        else:
            tags = {_RUN: of.key, _TURN: number}
            if turn is not None:
                tags["mlflow.parentRunId"] = self._run(of)
            name = _run_name(of, turn)
            run = str(self.client.create_run(self._experiment(of), tags=tags, run_name=name).info.run_id)
        self._runs[of.key, turn] = run
        return run


def _run_name(of: RunOf, turn: int | None) -> str:
    if of.policies:
        whole = f"evaluate {' and '.join(of.policies)}"
        return whole if turn is None else of.policies[turn] if turn < len(of.policies) else f"policy {turn}"
    return of.name if turn is None else "base" if turn == 0 else f"turn {turn}"


def _interval(name: str, one: Estimate, at: int, step: int) -> Iterator[Metric]:
    for suffix, value in (("", one.mean), ("_low", one.low), ("_high", one.high)):
        if value is not None:
            yield Metric(name + suffix, value, at, step)


def _numbers(counts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The counts that are numbers, and those of the mappings in them: `dropped/no_reward`."""
    for name, value in counts.items():
        if isinstance(value, bool):
            continue
        if isinstance(value, int | float):
            yield _key(name), float(value)
        elif isinstance(value, dict):
            for inner, number in value.items():
                if isinstance(number, int | float) and not isinstance(number, bool):
                    yield f"{_key(name)}/{_key(str(inner))}", float(number)


def _flat(recipe: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    for name, value in recipe.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{before}{name}.")
        else:
            yield _key(before + name), value if isinstance(value, str) else orjson.dumps(value).decode()


def _key(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/`."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./") else "_" for c in name)[:200]


def _milliseconds(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1000)
