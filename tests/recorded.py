"""A workspace with recorded runs, made by the library alone: no engine, no model, a few bytes an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from gristmill.artifact import ArtifactRef, Kind
from gristmill.champions import Champion, register
from gristmill.recipe import Recipe, build
from gristmill.refresh import Refresh
from gristmill.runs import Recording, recorded
from gristmill.stages import VERSIONS
from gristmill.statistics import Estimate
from gristmill.workspace import Workspace

LIFT = Estimate(mean=0.2, low=0.1, high=0.3, standard_error=0.05, tasks=8, samples=16)

# Stage → task, kind of its artifact, and the stages of its turn that it takes.
CHAIN: dict[str, tuple[str, Kind, tuple[str, ...]]] = {
    "tasks": ("make-tasks", "tasks", ()),
    "collect": ("collect", "rollouts", ("tasks",)),
    "ingest": ("ingest", "table", ("collect",)),
    "curate": ("curate", "selection", ("ingest",)),
    "format": ("format", "dataset", ("curate",)),
    "validate": ("validate", "report", ("format",)),
    "train": ("train", "checkpoint", ("format",)),
    "collect held-out": ("collect", "rollouts", ("train",)),
    "ingest held-out": ("ingest", "table", ("collect held-out",)),
    "evaluate": ("evaluate", "evaluation", ("ingest held-out",)),
    "promote": ("promote", "decision", ("evaluate",)),
}


def recipe(**changes: Any) -> Recipe:
    return build({"name": "tiny", "turns": 1}, [f"{name}={value}" for name, value in changes.items()])


def put(
    workspace: Workspace,
    kind: Kind,
    text: str,
    parents: list[ArtifactRef] | None = None,
    counts: dict[str, Any] | None = None,
    files: dict[str, BaseModel] | None = None,
) -> ArtifactRef:
    with workspace.store.draft(kind) as draft:
        (draft.path / "payload.txt").write_text(text)
        for name, model in (files or {}).items():
            draft.write_json(name, model)
        return draft.commit(stage="test", parents=parents or (), counts=counts)


def produce(
    workspace: Workspace,
    recording: Recording,
    turn: int,
    stage: str,
    *,
    says: str = "",
    parents: list[ArtifactRef] | None = None,
    seconds: float = 2.0,
    counts: dict[str, Any] | None = None,
    files: dict[str, BaseModel] | None = None,
) -> ArtifactRef:
    """One stage: its artifact, its result record, its line in the journal."""
    task, kind, _ = CHAIN[stage]
    parents = parents or []
    ref = put(workspace, kind, f"{stage} {turn} {says}", parents, counts, files)
    key = f"{task}-{ref.digest}"
    workspace.results.mkdir(exist_ok=True)
    (workspace.results / key).write_text(ref.model_dump_json())
    recording.production(
        turn=turn,
        stage=stage,
        task=task,
        version=VERSIONS.get(task, "1"),
        key=key,
        inputs=[str(parent) for parent in parents],
        cached=False,
        result=str(ref),
        seconds=seconds,
    )
    return ref


def run_turn(
    workspace: Workspace,
    what: Recipe,
    *,
    until: str | None = None,
    says: str = "",
    refresh: Refresh | None = None,
    error: BaseException | None = None,
    counts: dict[str, dict[str, Any]] | None = None,
    files: dict[str, dict[str, BaseModel]] | None = None,
) -> dict[str, ArtifactRef]:
    """A run of one turn that ends after the stage `until`, by `error` if one is given."""
    made: dict[str, ArtifactRef] = {}
    with workspace.locked(), recorded(workspace, ["improve"], what, refresh=refresh) as recording:
        for stage, (_, _, takes) in CHAIN.items():
            made[stage] = produce(
                workspace,
                recording,
                1,
                stage,
                says=says,
                parents=[made[name] for name in takes],
                counts=(counts or {}).get(stage),
                files=(files or {}).get(stage),
            )
            if stage == until:
                break
        if error is not None:
            raise error
    return made


def promote(workspace: Workspace, made: dict[str, ArtifactRef]) -> Champion:
    """Register the turn's challenger."""
    champion = Champion(
        recipe="tiny",
        recipe_digest="0" * 64,
        turn=1,
        checkpoint=made["train"],
        replaced=made["train"],
        decision=made["promote"],
        lift=LIFT,
        time="2026-01-01T00:00:00+00:00",
    )
    register(workspace, champion)
    return champion


def killed(path: Path) -> Workspace:
    """A workspace whose only run was killed after `curate`: its start is recorded, its end is not."""
    place = Workspace(path)
    run_turn(place, recipe(), until="curate")
    file = path / "runs.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))
    return place
