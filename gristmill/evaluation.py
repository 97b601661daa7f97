"""Score a policy from its rollouts on held-out tasks.

Reads a rollout table and the task rows it was collected on; keeps every task's rewards, so that any two
evaluations on the same tasks can be paired later. Failures and masked rows are missing samples, never zeros;
they are counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.errors import CollectionError, UsageError
from gristmill.statistics import Estimate, mean_reward, paired_difference
from gristmill.store import Store

FILE = "evaluation.json"


class Scored(NamedTuple):
    """What an evaluation needs of one usable rollout."""

    task_index: int
    reward: float
    truncated: bool
    answer_chars: int


class Category(BaseModel):
    """Results within one task type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    estimate: Estimate


class Evaluation(BaseModel):
    """A policy on held-out tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ArtifactRef
    tasks: ArtifactRef
    rewards: dict[str, tuple[float, ...]]
    """Task index (as text) → rewards of its samples."""
    estimate: Estimate
    categories: tuple[Category, ...]
    expected: int
    missing: int
    truncated_share: float
    mean_answer_chars: float


def scored(table: Sequence[Path]) -> Iterator[Scored]:
    """The usable rollouts of a rollout table (its Parquet files)."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    for path in table:
        rows = pq.read_table(path, columns=list(Scored._fields), filters=pc.field("drop_reason").is_null())
        yield from (Scored(**row) for row in rows.to_pylist())


def evaluate(
    policy: ArtifactRef,
    tasks: ArtifactRef,
    task_rows: Sequence[dict[str, Any]],
    rollouts: Iterable[Scored],
    *,
    samples: int,
    confidence: float,
) -> Evaluation:
    """Group usable rollouts by task and estimate.

    Raises:
        CollectionError: some task has no usable rollout, so policies could no longer be paired on equal terms.
    """
    rewards: dict[int, list[float]] = defaultdict(list)
    cut = chars = count = 0
    for rollout in rollouts:
        rewards[rollout.task_index].append(rollout.reward)
        cut += rollout.truncated
        chars += rollout.answer_chars
        count += 1
    absent = [i for i in range(len(task_rows)) if i not in rewards]
    if absent:
        raise CollectionError(
            f"held-out task {absent[0]} and {len(absent) - 1} others have no usable rollout out of {samples} each; "
            "collect again before comparing policies"
        )
    by_type: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for index, row in enumerate(task_rows):
        by_type[str(row.get("task_type") or "all")][str(index)] = rewards[index]
    expected = len(task_rows) * samples
    return Evaluation(
        policy=policy,
        tasks=tasks,
        rewards={str(i): tuple(rewards[i]) for i in sorted(rewards)},
        estimate=mean_reward({str(i): v for i, v in rewards.items()}, confidence),
        categories=tuple(
            Category(name=name, estimate=mean_reward(by_type[name], confidence)) for name in sorted(by_type)
        ),
        expected=expected,
        missing=expected - count,
        truncated_share=cut / count,
        mean_answer_chars=chars / count,
    )


def read_evaluation(store: Store, ref: ArtifactRef) -> Evaluation:
    """An evaluation from the store."""
    return Evaluation.model_validate(store.read_json(ref, FILE))


def lift(challenger: Evaluation, champion: Evaluation, confidence: float) -> Estimate:
    """Paired difference of two evaluations.

    Raises:
        UsageError: they were made on different task sets.
    """
    if challenger.tasks != champion.tasks:
        raise UsageError(
            f"cannot compare evaluations on different tasks ({challenger.tasks} and {champion.tasks}); "
            "evaluate both policies on one held-out set"
        )
    return paired_difference(challenger.rewards, champion.rewards, confidence)
