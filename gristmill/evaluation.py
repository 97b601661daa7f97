"""Score a policy from its rollouts on held-out tasks.

Reads a rollout table and the task rows it was collected on; keeps every task's rewards, so that any two
evaluations on the same tasks can be paired later (gristmill/comparison.py). Failures and masked rows are missing
samples, never zeros; they are counted. A task of which every sample is missing is not measured: pairs leave it out,
and the share that is missing is a guard of the gate. Lengths, failures and diversity are kept by task as well, so that
their differences too have intervals.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

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


class Collected(BaseModel):
    """How the rollouts of one collection were asked for; equal for policies that are compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples: int
    """A task."""
    seed: int
    sampling: dict[str, Any]
    """Temperature, length limit and whatever else rollouts depend on, without `samples`."""


class Measure(BaseModel):
    """Something besides reward, by task and on average."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by_task: dict[str, float]
    estimate: Estimate


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
    failures: Measure
    """Share of the samples asked for that are missing or cut at the length limit."""
    chars: Measure
    """Characters of an answer."""
    tokens: Measure | None = None
    """Tokens of an answer; null where no rollout says how many it took."""
    diversity: Measure | None = None
    """Chance that two unsolved answers to a task differ, over the tasks with two; null where there are none. Solved
    ones do not count: a policy that finds the one right answer is better, not poorer."""
    collected: tuple[Collected, ...] = ()
    """Empty where rollouts came from elsewhere."""
    solved_at: float = 1.0
    """The reward from which on a sample counts as solved."""
    pass_at: dict[int, Estimate] = {}
    """k → share of tasks solved in k attempts, for 1, 2, 4 … up to the fewest samples that a task has."""

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
    samples: int | Sequence[int],
    confidence: float,
    solved_at: float = 1.0,
    collected: Sequence[Collected] = (),
) -> Evaluation:
    """Group usable rollouts by task and estimate.

    Args:
        task_rows: the held-out tasks; a rollout's `task_index` is the position here.
        samples: rollouts asked for of every task, or of each.
        confidence: of all intervals, two-sided.
        solved_at: the reward from which on a sample counts as solved.
        collected: how they were asked for, one a collection.

    Raises:
        CollectionError: fewer than two tasks have a usable rollout, so nothing could be said.
    """
    of_task: dict[int, list[Scored]] = defaultdict(list)
    for rollout in rollouts:
        of_task[rollout.task_index].append(rollout)
    asked = [samples] * len(task_rows) if isinstance(samples, int) else list(samples)
    if len(of_task) < min(2, len(task_rows)):
        most = max(asked, default=0)
        raise CollectionError(
            f"{len(of_task)} of {len(task_rows)} held-out tasks have a usable rollout, of {most} asked for each; "
            "the failures beside the rollouts say why; collect again before comparing policies"
        )
    by_task = {str(i): tuple(one.reward for one in of_task[i]) for i in sorted(of_task)}
    by_type: dict[str, list[str]] = defaultdict(list)
    for index, row in enumerate(task_rows):
        if index in of_task:
            by_type[str(row.get("task_type") or "all")].append(str(index))
    fine = {i: sum(not one.truncated for one in of_task.get(i, ())) for i in range(len(task_rows))}
    tokens = {i: [one.output_tokens for one in found if one.output_tokens is not None] for i, found in of_task.items()}
    unsolved = {i: [one.answer_key for one in found if one.reward < solved_at] for i, found in of_task.items()}

    def measure(values: Mapping[int, float]) -> Measure:
        plain = {str(i): float(values[i]) for i in sorted(values)}
        return Measure(
            by_task=plain, estimate=mean_reward({task: [value] for task, value in plain.items()}, confidence)
        )

    def measure_any(values: Mapping[int, float]) -> Measure | None:
        return measure(values) if values else None

    return Evaluation(
        policy=policy,
        tasks=tasks,
        rewards=by_task,
        estimate=mean_reward(by_task, confidence),
        categories=tuple(
            Category(
                name=name,
                estimate=mean_reward({task: by_task[task] for task in by_type[name]}, confidence),
                tasks=tuple(by_type[name]),
            )
            for name in sorted(by_type)
        ),
        expected=sum(asked),
        missing=sum(asked) - sum(map(len, by_task.values())),
        failures=measure({i: 1 - fine[i] / asked[i] for i in range(len(task_rows))}),
        chars=measure({i: _mean([one.answer_chars for one in found]) for i, found in of_task.items()}),
        tokens=measure_any({i: _mean(found) for i, found in tokens.items() if found}),
        diversity=measure_any({i: _differ(found) for i, found in unsolved.items() if len(found) > 1}),
        collected=tuple(collected),
        solved_at=solved_at,
        pass_at={k: mean_reward(solved_in(by_task, k, solved_at), confidence) for k in attempts(by_task)},
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _differ(answers: Sequence[str | None]) -> float:
    """Share of the pairs that differ: unbiased in the number of answers (Simpson 1949, "Measurement of Diversity",
    Nature 163). An answer without a key, which is too long or has none, differs from every other."""
    n = len(answers)
    same = sum(count * (count - 1) for key, count in Counter(answers).items() if key is not None)
    return 1 - same / (n * (n - 1))


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
    """An evaluation from the store.

    Raises:
        UsageError: another version of Gristmill wrote it.
        ArtifactDamaged: it is not what was written.
    """
    try:
        return Evaluation.model_validate(store.read_json(ref, FILE))
    except ValidationError as error:
        store.verify(ref)
        found = store.manifest(ref).gristmill
        raise UsageError(
            f"{ref} was written by gristmill {found}, whose evaluations this version does not read; evaluate again: "
            "the rollouts are still there, and only the scoring is repeated"
        ) from error


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
