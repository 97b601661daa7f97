"""A small workspace of two turns, made by the library's own steps without an engine: real tables, selections and
datasets with provenance; models and evaluations are stubs of one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.champions import Champion, register
from gristmill.curate import SELECTION, curate
from gristmill.dataset import write_dataset
from gristmill.evaluation import FILE as EVALUATION
from gristmill.evaluation import Scored, evaluate, read_evaluation
from gristmill.ingest import ingest
from gristmill.promotion import FILE as DECISION
from gristmill.promotion import weigh
from gristmill.recipe import CurateRecipe, FormatRecipe, PromoteRecipe
from gristmill.statistics import Estimate
from gristmill.table import parts
from gristmill.workspace import Workspace
from tests.rows import rollout, write

SOLVED = {"base": (0, 0, 1, 0), "model": (2, 2, 2, 1), "next": (2, 2, 1, 1)}
"""Of each held-out task, how many of two samples solve it."""


class Filled(NamedTuple):
    """What `filled` made."""

    workspace: Workspace
    base: ArtifactRef
    table: ArtifactRef
    dataset: ArtifactRef
    model: ArtifactRef
    evaluation: ArtifactRef
    decision: ArtifactRef
    next_table: ArtifactRef
    next_dataset: ArtifactRef
    next_model: ArtifactRef


def stub(place: Workspace, kind: Any, stage: str, parents: list[ArtifactRef], **counts: Any) -> ArtifactRef:
    """An artifact of one file that says what it was made of."""
    with place.store.draft(kind) as draft:
        draft.write_json("stub.json", {"stage": stage, "parents": [str(one) for one in parents], "counts": counts})
        return draft.commit(stage=stage, parents=parents, settings={"seed": 0}, counts=counts)


def filled(root: Path) -> Filled:
    """Turn 1: five rollouts of the base, four of them training data, a model that is promoted. Turn 2: two rollouts
    of that model, six rows of both turns' data, a model of which the gate is not sure."""
    place = Workspace(root / "workspace")
    with place.store.draft("checkpoint") as draft:
        draft.write_json("pointer.json", {"model": "tester", "identity": "0" * 64})
        base = draft.commit(stage="base", settings={"model": "tester"})
    heldout = stub(place, "tasks", "make-tasks", [], tasks=4)
    before = _evaluation(place, base, heldout, SOLVED["base"])
    rows = [rollout("a", task=0), rollout("b", task=0, repeat=1), rollout("c", task=1), rollout("d", task=2)]
    table = _table(place, base, [*rows, rollout("e", task=3, reward=0.0)], 1)
    dataset = _dataset(place, [table], 1)
    model = stub(place, "checkpoint", "train", [dataset, base], steps=2, losses=[2.0, 1.0])
    _journal(place, 1, "train", model)
    evaluation = _evaluation(place, model, heldout, SOLVED["model"])
    decision, lift = _decision(place, evaluation, before)
    _journal(place, 1, "promote", decision)
    entry = {"recipe": "tiny", "recipe_digest": "1" * 64, "turn": 1, "time": "2026-01-01T00:00:00+00:00"}
    register(place, Champion(checkpoint=model, replaced=base, decision=decision, lift=lift, **entry))
    again = [rollout("f", task=0, question="question 0?"), rollout("g", task=5)]
    next_table = _table(place, model, again, 2)
    next_dataset = _dataset(place, [table, next_table], 2)
    next_model = stub(place, "checkpoint", "train", [next_dataset, base], steps=3, losses=[1.0, 1.0, 1.0])
    _journal(place, 2, "train", next_model)
    after = _evaluation(place, next_model, heldout, SOLVED["next"])
    unsure, _ = _decision(place, after, evaluation)
    _journal(place, 2, "promote", unsure)
    return Filled(place, base, table, dataset, model, evaluation, decision, next_table, next_dataset, next_model)


def _journal(place: Workspace, turn: int, stage: str, ref: ArtifactRef) -> ArtifactRef:
    place.record({"turn": turn, "stage": stage, "cached": False, "result": str(ref)})
    return ref


def _evaluation(place: Workspace, policy: ArtifactRef, heldout: ArtifactRef, solved: tuple[int, ...]) -> ArtifactRef:
    rollouts = stub(place, "rollouts", "collect", [policy, heldout], rollouts=8, tokens=80)
    table = stub(place, "table", "ingest", [rollouts], rows_read=8, rows_kept=8)
    answers = [
        Scored(task, float(sample < count), False, 5, f"{task}{sample < count}")
        for task, count in enumerate(solved)
        for sample in range(2)
    ]
    found = evaluate(policy, heldout, [{"task_type": "sums"}] * 4, answers, samples=2, confidence=0.95)
    with place.store.draft("evaluation") as draft:
        draft.write_json(EVALUATION, found)
        parents = [policy, heldout, table]
        return draft.commit(stage="evaluate", parents=parents, counts={"mean_reward": found.estimate.mean})


def _decision(place: Workspace, challenger: ArtifactRef, champion: ArtifactRef) -> tuple[ArtifactRef, Estimate]:
    ours, theirs = (read_evaluation(place.store, one) for one in (challenger, champion))
    found, decision = weigh(ours, theirs, PromoteRecipe(max_length_ratio=None, min_diversity=None))
    with place.store.draft("decision") as draft:
        draft.write_json(DECISION, {**decision.model_dump(mode="json"), "comparison": found.model_dump(mode="json")})
        counts = {"verdict": decision.verdict, "lift": decision.lift.mean}
        return draft.commit(stage="promote", parents=[challenger, champion], counts=counts), decision.lift


def _table(place: Workspace, policy: ArtifactRef, rows: list[dict[str, Any]], turn: int) -> ArtifactRef:
    tasks = stub(place, "tasks", "make-tasks", [], tasks=len(rows), turn=turn)
    with place.store.draft("rollouts") as draft:
        write(draft.path / "rollouts.jsonl", rows)
        counts = {"rollouts": len(rows), "tokens": 10 * len(rows)}
        rollouts = draft.commit(stage="collect", parents=[policy, tasks], counts=counts)
    _journal(place, turn, "collect", rollouts)
    with place.store.draft("table") as draft:
        result = ingest([place.store.path(rollouts) / "rollouts.jsonl"], draft.path)
        told = {"rows_read": result.rows_read, "rows_kept": result.rows_kept, "dropped": {}}
        return _journal(place, turn, "ingest", draft.commit(stage="ingest", parents=[rollouts], counts=told))


def _dataset(place: Workspace, tables: list[ArtifactRef], turn: int) -> ArtifactRef:
    files = [parts(place.store.path(one)) for one in tables]
    with place.store.draft("selection") as draft:
        counted = [place.store.manifest(one).counts for one in tables]
        counts = curate(files, counted, CurateRecipe(), draft.path)
        selection = draft.commit(stage="curate", parents=tables, counts=counts)
    _journal(place, turn, "curate", selection)
    with place.store.draft("dataset") as draft:
        counts = write_dataset(place.store.path(selection) / SELECTION, files, counts, FormatRecipe(), draft.path)
        dataset = draft.commit(stage="format", parents=[selection, *tables], counts=counts)
    return _journal(place, turn, "format", dataset)
