"""Fill a run's report from the store: evaluations, decisions, funnels, losses and transcripts.

Reads artifacts and their manifests; returns the `RunReport` that `report_page.render` draws and the `Summary` that
`--json` prints. Transcripts are taken evenly over the held-out tasks, not picked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from gristmill import chat
from gristmill.artifact import ArtifactRef, Manifest
from gristmill.environment import read_tasks
from gristmill.evaluation import Evaluation, lift, read_evaluation
from gristmill.loop import Turn, training_words
from gristmill.promotion import Verdict, read_decision
from gristmill.recipe import Recipe
from gristmill.report import (
    Answer,
    ArtifactRow,
    CategoryRow,
    Funnel,
    Gate,
    Rewards,
    RunReport,
    StageRow,
    Transcript,
    TurnReport,
)
from gristmill.rollout import parse
from gristmill.statistics import Estimate, paired_difference
from gristmill.store import Store
from gristmill.table import parts, read_raw

_TRANSCRIPTS = 6
_NOTHING = Answer(text="(no usable rollout)")


class TurnSummary(BaseModel):
    """A turn for programs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    turn: int
    mean_reward: float
    promoted: bool
    verdict: Verdict
    examples: int
    checkpoint: str
    dataset: str


class Lift(BaseModel):
    """Champion − base on the held-out tasks; `low` and `high` are null where one task allows no interval."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mean: float
    low: float | None
    high: float | None
    confidence: float
    tasks: int


class Summary(BaseModel):
    """A run for programs: what `--json` prints, less what only the process knows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    base: Estimate
    turns: tuple[TurnSummary, ...]
    lift: Lift
    champion: str
    stopped: str | None
    """Why the loop ended before its last turn."""


class Built(BaseModel):
    """Both views of one run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    report: RunReport
    summary: Summary


def build(
    store: Store,
    recipe: Recipe,
    *,
    base: ArtifactRef,
    base_evaluation: ArtifactRef,
    base_table: ArtifactRef,
    turns: Sequence[Turn],
    stopped: str | None,
    versions: Mapping[ArtifactRef, object],
) -> Built:
    """Everything that a finished run has to show.

    Args:
        versions: what people call datasets and models, such as `data v3`.
    """
    confidence = recipe.promote.confidence
    start = read_evaluation(store, base_evaluation)
    promoted = [turn for turn in turns if turn.promoted]
    final = read_evaluation(store, promoted[-1].evaluation) if promoted else start
    # Where nothing was promoted, before-and-after shows the last challenger: the base against itself says nothing.
    shown = (promoted or list(turns))[-1]
    after = read_evaluation(store, shown.evaluation)
    names = {base: recipe.policy.model} | {turn.checkpoint: f"turn {turn.turn}" for turn in turns}
    # A challenger may be the champion's equal to the byte; the earlier name stays with it.
    total = lift(final, start, confidence)
    report = RunReport(
        title=recipe.name,
        run_id=recipe.digest[:12],
        base=recipe.policy.model,
        environment=recipe.environment.name,
        turns=tuple(_turn(store, turn, names) for turn in turns),
        base_score=start.estimate,
        lift=total if promoted else None,
        confidence=confidence,
        compared=f"turn {shown.turn}",
        categories=_categories(start, after, confidence, store),
        transcripts=_transcripts(store, start.tasks, base_table, shown.heldout_table),
        stages=tuple(_stages(store, base_evaluation, turns)),
        artifacts=tuple(_artifacts(base, turns, versions)),
        recipe=recipe.yaml(),
        training=training_words(recipe),
        stopped=stopped,
        versions=store.manifest(base_evaluation).environment | {"gristmill": store.manifest(base_evaluation).gristmill},
    )
    summary = Summary(
        recipe=recipe.name,
        base=start.estimate,
        turns=tuple(
            TurnSummary(
                turn=turn.turn,
                mean_reward=read_evaluation(store, turn.evaluation).estimate.mean,
                promoted=turn.promoted,
                verdict=read_decision(store, turn.decision).verdict,
                examples=store.manifest(turn.dataset).counts["examples"],
                checkpoint=turn.checkpoint.digest,
                dataset=turn.dataset.digest,
            )
            for turn in turns
        ),
        lift=Lift(mean=total.mean, low=total.low, high=total.high, confidence=confidence, tasks=total.tasks),
        champion=(promoted[-1].checkpoint if promoted else base).digest,
        stopped=stopped,
    )
    return Built(report=report, summary=summary)


def _turn(store: Store, turn: Turn, names: dict[ArtifactRef, str]) -> TurnReport:
    counts = store.manifest(turn.dataset).counts
    rewards = counts["rewards"]
    histogram = rewards["histogram"]
    return TurnReport(
        turn=turn.turn,
        challenger=f"turn {turn.turn}",
        score=read_evaluation(store, turn.evaluation).estimate,
        gate=Gate(
            champion=names[turn.champion],
            champion_score=read_evaluation(store, turn.champion_evaluation).estimate,
            decision=read_decision(store, turn.decision),
            rolled_back=read_decision(store, turn.decision).promoted and not turn.promoted,
        ),
        funnel=Funnel(
            rows_read=counts["rows_read"],
            rows_kept=counts["rows_kept"],
            dropped=counts["dropped"],
            examples=counts["examples"],
        ),
        rewards=Rewards(edges=histogram["edges"], counts=histogram["counts"], mean=rewards["mean"])
        if histogram["edges"]
        else None,
        loss=tuple(store.manifest(turn.checkpoint).counts["losses"]),
    )


def _categories(before: Evaluation, after: Evaluation, confidence: float, store: Store) -> tuple[CategoryRow, ...]:
    types = _types(store, before.tasks)
    later = {category.name: category for category in after.categories}
    rows = []
    for old in before.categories:
        keys = [key for key in before.rewards if key in after.rewards and types[int(key)] == old.name]
        if not keys:
            continue
        change = paired_difference(
            {key: after.rewards[key] for key in keys}, {key: before.rewards[key] for key in keys}, confidence
        )
        rows.append(CategoryRow(category=old.name, before=old.estimate, after=later[old.name].estimate, lift=change))
    return tuple(rows)


def _types(store: Store, tasks: ArtifactRef) -> list[str]:
    return [str(row.get("task_type") or "all") for row in read_tasks(store, tasks)]


def _transcripts(store: Store, tasks: ArtifactRef, before: ArtifactRef, after: ArtifactRef) -> tuple[Transcript, ...]:
    rows = read_tasks(store, tasks)
    chosen = sorted({round(i * (len(rows) - 1) / max(1, _TRANSCRIPTS - 1)) for i in range(_TRANSCRIPTS)})
    old, new = _first_answers(store, before, chosen), _first_answers(store, after, chosen)
    return tuple(
        Transcript(
            task=f"held-out task {index}",
            question=_question(rows[index]),
            before=old.get(index, _NOTHING),
            after=new.get(index, _NOTHING),
            category=str(rows[index].get("task_type") or ""),
        )
        for index in chosen
        if index in old and index in new
    )


def _first_answers(store: Store, table: ArtifactRef, tasks: list[int]) -> dict[int, Answer]:
    """The first sample of each task, as the policy wrote it."""
    import pyarrow.parquet as pq

    found = {}
    wanted = set(tasks)
    for path in parts(store.path(table)):
        rows = pq.read_table(path, columns=["task_index", "rollout_index", "reward"]).to_pylist()
        at = [n for n, row in enumerate(rows) if row["rollout_index"] == 0 and row["task_index"] in wanted]
        for row, raw in zip((rows[n] for n in at), read_raw(path, at), strict=True):
            try:
                text = chat.answer_text(chat.convert(parse(raw)))
            except chat.Unrepresentable as problem:
                text = f"({problem})"
            found[row["task_index"]] = Answer(text=text, reward=row["reward"])
    return found


def _question(task: dict[str, Any]) -> str:
    asked = task["responses_create_params"]["input"]
    return asked if isinstance(asked, str) else str(asked[-1]["content"])


def _stages(store: Store, base_evaluation: ArtifactRef, turns: Sequence[Turn]) -> list[StageRow]:
    """One row for each artifact of the run, with the seconds that it took when it was made."""
    rows = [_stage(store.manifest(base_evaluation), None)]
    for turn in turns:
        for ref in (
            turn.rollouts,
            turn.table,
            turn.selection,
            turn.dataset,
            turn.checkpoint,
            turn.heldout_table,
            turn.evaluation,
            turn.decision,
        ):
            rows.append(_stage(store.manifest(ref), turn.turn))
    return rows


def _stage(manifest: Manifest, turn: int | None) -> StageRow:
    return StageRow(
        stage=manifest.stage,
        turn=turn,
        seconds=manifest.seconds,
        kind=manifest.kind,
        digest=manifest.digest,
    )


def _artifacts(base: ArtifactRef, turns: Sequence[Turn], versions: Mapping[ArtifactRef, object]) -> list[ArtifactRow]:
    rows = [ArtifactRow(label="base policy", kind=base.kind, digest=base.digest)]
    for turn in turns:
        for label, ref in (
            ("dataset", turn.dataset),
            ("checkpoint", turn.checkpoint),
            ("evaluation", turn.evaluation),
        ):
            called = f", {versions[ref]}" if ref in versions else ""
            rows.append(ArtifactRow(label=f"turn {turn.turn} {label}{called}", kind=ref.kind, digest=ref.digest))
    return rows
