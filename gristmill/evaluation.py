"""Score a policy from its rollouts on held-out tasks.

Reads a rollout table and the task rows it was collected on; keeps every task's rewards, so that any two
evaluations on the same tasks can be paired later (gristmill/comparison.py). Failures and masked rows are missing
samples, never zeros; they are counted. A task of which every sample is missing is not measured: pairs leave it out,
and the share that is missing is a guard of the gate.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    answer_key: str | None = None
    output_tokens: int | None = None


class Category(BaseModel):
    """Results within one task type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    estimate: Estimate
    tasks: tuple[str, ...] = ()
    """Task indices, as in `Evaluation.rewards`."""


class Evaluation(BaseModel):
    """A policy on held-out tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: ArtifactRef
    tasks: ArtifactRef
    rewards: dict[str, tuple[float, ...]]
    """Task index (as text) → rewards of its samples; tasks without a usable one are not here."""
    estimate: Estimate
    categories: tuple[Category, ...]
    expected: int
    missing: int
    truncated_share: float
    mean_answer_chars: float
    mean_output_tokens: float | None = None
    """Null where no rollout says how many tokens it took."""
    solved_at: float = 1.0
    """The reward from which on a sample counts as solved."""
    pass_at: dict[int, Estimate] = {}
    """k → share of tasks solved in k attempts, for 1, 2, 4 … up to the fewest samples that a task has."""
    distinct_answers: float = 1.0
    """Distinct answers of a task's samples over samples, mean over tasks: 1 if no two are the same."""

    @property
    def success_rate(self) -> Estimate:
        """Share of samples that solve their task: pass@1."""
        return self.pass_at[1]


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
    solved_at: float = 1.0,
) -> Evaluation:
    """Group usable rollouts by task and estimate.

    Args:
        task_rows: the held-out tasks; a rollout's `task_index` is the position here.
        samples: rollouts asked for a task.
        confidence: of all intervals, two-sided.
        solved_at: the reward from which on a sample counts as solved.

    Raises:
        CollectionError: fewer than two tasks have a usable rollout, so nothing could be said.
    """
    rewards: dict[int, list[float]] = defaultdict(list)
    answers: dict[int, set[str]] = defaultdict(set)
    tokens: list[int] = []
    cut = chars = count = 0
    for rollout in rollouts:
        rewards[rollout.task_index].append(rollout.reward)
        answers[rollout.task_index].add(rollout.answer_key or f"{count}")
        if rollout.output_tokens is not None:
            tokens.append(rollout.output_tokens)
        cut += rollout.truncated
        chars += rollout.answer_chars
        count += 1
    if len(rewards) < min(2, len(task_rows)):
        raise CollectionError(
            f"{len(rewards)} of {len(task_rows)} held-out tasks have a usable rollout, of {samples} asked for each; "
            "the failures beside the rollouts say why; collect again before comparing policies"
        )
    by_type: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for index, row in enumerate(task_rows):
        if index in rewards:
            by_type[str(row.get("task_type") or "all")][str(index)] = rewards[index]
    expected = len(task_rows) * samples
    by_task = {str(i): tuple(rewards[i]) for i in sorted(rewards)}
    return Evaluation(
        policy=policy,
        tasks=tasks,
        rewards=by_task,
        estimate=mean_reward(by_task, confidence),
        categories=tuple(
            Category(name=name, estimate=mean_reward(by_type[name], confidence), tasks=tuple(by_type[name]))
            for name in sorted(by_type)
        ),
        expected=expected,
        missing=expected - count,
        truncated_share=cut / count,
        mean_answer_chars=chars / count,
        mean_output_tokens=sum(tokens) / len(tokens) if tokens else None,
        solved_at=solved_at,
        pass_at={k: mean_reward(solved_in(by_task, k, solved_at), confidence) for k in attempts(by_task)},
        distinct_answers=sum(len(answers[i]) / len(rewards[i]) for i in rewards) / len(rewards),
    )


def attempts(rewards: Mapping[str, Sequence[float]]) -> list[int]:
    """The k for which pass@k can be told of every task: powers of two, and the fewest samples that a task has."""
    fewest = min(map(len, rewards.values()))
    powers = [1 << power for power in range(fewest.bit_length()) if 1 << power <= fewest]
    return sorted({*powers, fewest})


def solved_in(rewards: Mapping[str, Sequence[float]], k: int, solved_at: float) -> dict[str, list[float]]:
    """Each task's chance to be solved in k attempts, as the one observation of a task that `statistics` takes.

    The unbiased estimate 1 − C(n − c, k) / C(n, k) from c solved samples of n: Chen et al. 2021, "Evaluating Large
    Language Models Trained on Code", arXiv:2107.03374, equation 1.

    Raises:
        ValueError: a task has fewer than k samples.
    """
    found = {}
    for task, values in rewards.items():
        n, c = len(values), sum(value >= solved_at for value in values)
        if n < k:
            raise ValueError(f"task {task} has {n} samples, fewer than k = {k}")
        found[task] = [1 - math.comb(n - c, k) / math.comb(n, k)]
    return found


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
