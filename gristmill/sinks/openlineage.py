"""OpenLineage: a run event at the start and the end of each stage, its datasets in and out, and of the run around them.

    job       <recipe>, and <recipe>.<stage> with the run of the recipe as its parent; <recipe>.evaluation for
              `gristmill evaluate`
    dataset   <recipe>/<stage that made it>, its version the artifact's sha256; <recipe>/champion for promotions
    facets    version, schema (Parquet), statistics of what was written, data quality metrics of what was read

To a file of JSON lines, or to a lineage server's HTTP API. Run ids follow from the events' ids, so that sending twice
says the same. Specification: https://openlineage.io/spec/2-0-2/OpenLineage.json.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState, set_producer
from openlineage.client.facet_v2 import (
    data_quality_metrics_input_dataset,
    dataset_version_dataset,
    error_message_run,
    job_type_job,
    output_statistics_output_dataset,
    parent_run,
    schema_dataset,
)
from openlineage.client.serde import Serde
from openlineage.client.transport.http import ApiKeyTokenProvider, HttpConfig, HttpTransport, TokenProvider

from gristmill.artifact import ArtifactRef, Manifest
from gristmill.dataset.provenance import PROVENANCE
from gristmill.errors import ArtifactMissing
from gristmill.recipe import OpenLineageSinkRecipe
from gristmill.sinks.events import Event, Input, Produced, Promoted, RolledBack, RunEnded, RunOf, RunStarted
from gristmill.workspace import Workspace, append_line

PRODUCER = "urn:gristmill"
_SPACE = uuid.UUID("5b0ff5b0-4c0e-5c3f-9a52-6f5d0c1f3a77")  # of our version 5 UUIDs
_TIMEOUT = 5.0  # seconds a request


class OpenLineageSink:
    """Writes or posts run events."""

    def __init__(self, settings: OpenLineageSinkRecipe, workspace: Workspace) -> None:
        self.settings, self.workspace, self.namespace = settings, workspace, settings.namespace
        set_producer(PRODUCER)  # of facets; of this process, in which nobody else speaks OpenLineage
        self.file = Path(settings.file) if settings.file else workspace.root / "openlineage.jsonl"
        self.http = None
        if settings.url:
            key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
            if settings.api_key_env and not key:
                raise LookupError(f"the environment variable {settings.api_key_env} is not set")
            auth = ApiKeyTokenProvider({"apiKey": key}) if key else TokenProvider({})
            self.http = HttpTransport(HttpConfig(url=settings.url, timeout=_TIMEOUT, auth=auth))

    def send(self, event: Event) -> None:
        for one in self._events(event):
            if self.http:
                self.http.emit(one)
            else:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                append_line(self.file, orjson.loads(Serde.to_json(one)))

    def close(self) -> None:
        if self.http:
            self.http.close()

    def _events(self, event: Event) -> Iterable[RunEvent]:
        match event:
            case RunStarted():
                yield self._run(event.run, event.number, RunState.START, event.time)
            case RunEnded():
                state = {"done": RunState.COMPLETE, "interrupted": RunState.ABORT}.get(event.outcome, RunState.FAIL)
                yield self._run(event.run, event.number, state, event.time, event.error)
            case Produced():
                yield from self._stage(event)
            case Promoted():
                yield from self._champion(event.id, event.run, event.champion.checkpoint, event.time)
            case RolledBack():
                yield from self._champion(event.id, event.run, event.rollback.back_to, event.time)

    def _run(self, of: RunOf, number: int, state: RunState, time: str, error: str | None = None) -> RunEvent:
        facets: dict[str, Any] = {}
        if error:
            facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=error, programmingLanguage="Python")
        return RunEvent(
            eventType=state,
            eventTime=time,
            producer=PRODUCER,
            run=Run(runId=_run_id(of, number), facets=facets),
            job=self._job(_whole(of), "DAG"),
        )

    def _stage(self, event: Produced) -> Iterable[RunEvent]:
        parent = parent_run.ParentRunFacet(
            run=parent_run.Run(runId=_run_id(event.run, event.number)),
            job=parent_run.Job(namespace=self.namespace, name=_whole(event.run)),
        )
        run = Run(runId=_uuid(event.id), facets={"parent": parent})
        job = self._job(f"{event.run.name}.{event.stage.replace(' ', '-')}", "TASK")
        inputs = [self._input(event.run, one) for one in event.inputs]
        began = datetime.fromisoformat(event.time) - timedelta(seconds=0 if event.cached else event.manifest.seconds)
        common: dict[str, Any] = {"producer": PRODUCER, "run": run, "job": job, "inputs": inputs}
        yield RunEvent(eventType=RunState.START, eventTime=began.isoformat(timespec="milliseconds"), **common)
        yield RunEvent(
            eventType=RunState.COMPLETE,
            eventTime=event.time,
            outputs=[self._output(event.run, event.stage, event.manifest)],
            **common,
        )

    def _champion(self, said: str, of: RunOf, checkpoint: ArtifactRef, time: str) -> Iterable[RunEvent]:
        run, job = Run(runId=_uuid(said)), self._job(f"{of.name}.champion", "TASK")
        output = OutputDataset(self.namespace, f"{of.name}/champion", facets=_version(checkpoint.digest))
        yield RunEvent(eventType=RunState.START, eventTime=time, producer=PRODUCER, run=run, job=job)
        yield RunEvent(
            eventType=RunState.COMPLETE, eventTime=time, producer=PRODUCER, run=run, job=job, outputs=[output]
        )

    def _job(self, name: str, kind: str) -> Job:
        facet = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="GRISTMILL", jobType=kind)
        return Job(namespace=self.namespace, name=name, facets={"jobType": facet})

    def _input(self, of: RunOf, one: Input) -> InputDataset:
        counts = one.manifest.counts
        rewards = counts.get("rewards") or {}
        columns = {}
        if rewards.get("min") is not None:
            columns["reward"] = data_quality_metrics_input_dataset.ColumnMetrics(
                count=float(counts["rows_read"]), min=rewards["min"], max=rewards["max"], quantiles=None
            )
        quality = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
            columnMetrics=columns, rowCount=_rows(one.manifest), bytes=sum(file.bytes for file in one.manifest.files)
        )
        return InputDataset(
            self.namespace,
            _name(of, one.stage),
            facets=_version(one.ref.digest),
            inputFacets={"dataQualityMetrics": quality},
        )

    def _output(self, of: RunOf, stage: str, manifest: Manifest) -> OutputDataset:
        statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=_rows(manifest), size=sum(file.bytes for file in manifest.files), fileCount=len(manifest.files)
        )
        facets = _version(manifest.digest)
        if fields := self._columns(manifest):
            facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=fields)
        return OutputDataset(
            self.namespace, _name(of, stage), facets=facets, outputFacets={"outputStatistics": statistics}
        )

    def _columns(self, manifest: Manifest) -> list[schema_dataset.SchemaDatasetFacetFields]:
        """Of the rows: the first Parquet file that is not their provenance, if there is one."""
        names = (file.name for file in manifest.files if file.name.endswith(".parquet") and file.name != PROVENANCE)
        name = next(names, None)
        if name is None:
            return []
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(self.workspace.store.path(manifest.ref) / name)
        except (ArtifactMissing, FileNotFoundError):
            return []
        return [schema_dataset.SchemaDatasetFacetFields(name=one.name, type=str(one.type)) for one in schema]


def _rows(manifest: Manifest) -> int | None:
    names = ("examples", "rows_kept", "rollouts", "tasks", "sampled")
    return next((int(manifest.counts[name]) for name in names if name in manifest.counts), None)


def _version(digest: str) -> dict[str, Any]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=digest)}


def _whole(of: RunOf) -> str:
    """The job around the stages: the loop, or evaluations on their own."""
    return f"{of.name}.evaluation" if of.policies else of.name


def _name(of: RunOf, stage: str) -> str:
    return f"{of.name}/{stage.replace(' ', '-')}"


def _run_id(of: RunOf, number: int) -> str:
    return _uuid(f"{of.key}/{number}")


def _uuid(text: str) -> str:
    return str(uuid.uuid5(_SPACE, text))
