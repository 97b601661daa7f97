"""The difference of two runs: recipes field by field, rows by stage, scores with intervals, and what was promoted.

Read from what both runs recorded; runs whose artifacts were collected since still have their recipes and outcomes. Two
runs part at the first stage that has another result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import ArtifactRef
from gristmill.errors import GristmillError
from gristmill.evaluation import read_evaluation
from gristmill.promotion import read_decision
from gristmill.runs import Run
from gristmill.stages import changes
from gristmill.statistics import Estimate
from gristmill.store import Store
from gristmill.workspace import Workspace

T = TypeVar("T")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Turned(_Model):
    """What a run made in a turn; None where it did not get so far, or the artifact is gone."""

    collected: int | None = Field(None, description="Rollouts of the turn.")
    read: int | None = Field(None, description="Rows that curation chose from.")
    chosen: int | None = None
    dropped: dict[str, int] = Field(default_factory=dict, description="Reason → rows.")
    examples: int | None = None
    mean_reward: Estimate | None = None
    lift: Estimate | None = Field(None, description="Over the champion of that moment.")
    verdict: str | None = None
    checkpoint: str | None = None


class Side(_Model):
    """One of the two runs."""

    run: int
    command: str
    began: str
    outcome: str
    gristmill: str | None
    base: Estimate | None = Field(description="Mean reward of the base policy.")
    turns: dict[int, Turned]
    promoted: tuple[int, ...] = Field(description="Turns whose gate said promoted.")


class RunDiff(_Model):
    """The difference, B against A."""

    a: Side
    b: Side
    recipe: dict[str, tuple[Any, Any]] = Field(description="Field → its values in A and in B, where they differ.")
    parted: str | None = Field(description="The first stage with another result, as `turn 1 curate`; null if none.")


def diff_runs(workspace: Workspace, a: Run, b: Run) -> RunDiff:
    """Compare two runs of a workspace."""
    there = {ref.short: ref for ref in workspace.store.refs()}
    return RunDiff(
        a=_side(workspace.store, there, a),
        b=_side(workspace.store, there, b),
        recipe=changes(a.recipe or {}, b.recipe or {}),
        parted=_parted(a, b),
    )


def _parted(a: Run, b: Run) -> str | None:
    mine, yours = a.latest, b.latest
    for (turn, stage), one in mine.items():
        other = yours.get((turn, stage))
        if other is None or other.result != one.result:
            return f"{'base' if turn == 0 else f'turn {turn}'} {stage}"
    further = next((at for at in yours if at not in mine), None)
    return None if further is None else f"{'base' if further[0] == 0 else f'turn {further[0]}'} {further[1]}"


def _side(store: Store, there: Mapping[str, ArtifactRef], run: Run) -> Side:
    made: dict[int, dict[str, ArtifactRef | None]] = {}
    for (turn, stage), one in run.latest.items():
        made.setdefault(turn, {})[stage] = there.get(one.result)
    turns = {turn: _turned(store, stages) for turn, stages in made.items() if turn > 0 or "read" in stages}
    return Side(
        run=run.number,
        command=" ".join(run.command),
        began=run.started,
        outcome=run.outcome or "unfinished",
        gristmill=run.gristmill,
        base=_score(store, made.get(0, {}).get("evaluate")),
        turns=turns,
        promoted=tuple(turn for turn, one in turns.items() if one.verdict == "promoted"),
    )


def _turned(store: Store, stages: Mapping[str, ArtifactRef | None]) -> Turned:
    rollouts = _counts(store, stages.get("collect"))
    selection = _counts(store, stages.get("curate"))
    dataset = _counts(store, stages.get("format"))
    # With more samples the gate decides again; the last decision of the turn counts.
    decided = [ref for stage, ref in stages.items() if stage.startswith("promote")]
    decision = _read(read_decision, store, decided[-1] if decided else None)
    checkpoint = stages.get("train")
    return Turned(
        collected=rollouts.get("rollouts"),
        read=selection.get("rows_read"),
        chosen=selection.get("rows_kept"),
        dropped=selection.get("dropped", {}),
        examples=dataset.get("examples"),
        mean_reward=_score(store, stages.get("evaluate")),
        lift=decision.lift if decision else None,
        verdict=decision.verdict if decision else None,
        checkpoint=checkpoint.short if checkpoint else None,
    )


def _counts(store: Store, ref: ArtifactRef | None) -> dict[str, Any]:
    manifest = _read(Store.manifest, store, ref)
    return manifest.counts if manifest else {}


def _score(store: Store, ref: ArtifactRef | None) -> Estimate | None:
    evaluation = _read(read_evaluation, store, ref)
    return evaluation.estimate if evaluation else None


def _read(read: Callable[[Store, ArtifactRef], T], store: Store, ref: ArtifactRef | None) -> T | None:
    """None where there is nothing, or it is damaged or another version's: that is the doctor's to say, not a diff's."""
    try:
        return read(store, ref) if ref else None
    except (GristmillError, OSError, ValueError):
        return None
