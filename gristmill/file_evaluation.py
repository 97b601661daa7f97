"""Evaluations of rollout files, wherever they were collected.

Tasks are told apart by agent and prompt, and also by task index where the prompts alone do not (two indices share one,
as where the task is in the environment). Two files are evaluated on the tasks that both attempted; failed rows are
missing samples of their task.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.errors import InputError, UsageError
from gristmill.evaluation import Evaluation, Scored, evaluate
from gristmill.identity import digest
from gristmill.remote.bucket import remote_url

_Task = tuple[str | None, int | None, str | None]
"""Agent, task index, prompt."""


class FromFile(NamedTuple):
    """A file's evaluation, on the tasks that all files share."""

    evaluation: Evaluation
    tasks: int
    """Tasks with a usable rollout, shared or not."""


def is_files(name: str) -> bool:
    """Whether a name means rollout files and no policy."""
    path = Path(name)
    return (
        path.is_file()
        or remote_url(name) is not None
        or any(mark in name for mark in "*?[")
        or name.endswith((".jsonl", ".gz", ".zst"))
    )


def of_files(names: Sequence[str], *, confidence: float, solved_at: float | None) -> list[FromFile]:
    """Evaluate rollout files (each a file, folder or glob) on the tasks that all of them attempted.

    Args:
        solved_at: the reward from which on a rollout counts as solved; by default the scale's own, 1 if rewards are 0
            and 1, else the middle of their range.

    Raises:
        UsageError: they have no task in common.
        InputError: as ingest, or a file has no usable rollout.
    """
    from gristmill.scale import scale

    with tempfile.TemporaryDirectory(prefix="gristmill-evaluate-") as folder:
        sides = [_read(name, Path(folder) / str(number)) for number, name in enumerate(names)]
    if not any(map(_needs_index, sides)):
        sides = [_without_index(side) for side in sides]
    shared = sorted(set.intersection(*(set(side.rollouts) for side in sides)), key=repr)
    if not shared:
        have = " and ".join(f"{name} ({len(side.rollouts)} tasks)" for name, side in zip(names, sides, strict=True))
        raise UsageError(
            f"{have} have no task in common: no agent, task index and prompt are the same in both; compare rollouts of "
            "the same tasks"
        )
    if solved_at is None:
        rewards = {r.reward for side in sides for task in shared for r in side.rollouts[task]}
        solved_at = scale(min(rewards), max(rewards), rewards <= {0.0, 1.0}).solved_at
    tasks = ArtifactRef(kind="tasks", digest=digest([list(task) for task in shared]))
    return [
        FromFile(
            evaluate(
                ArtifactRef(kind="rollouts", digest=digest([name, number])),
                tasks,
                [{"task_type": agent} for agent, _, _ in shared],
                [r._replace(task_index=at) for at, task in enumerate(shared) for r in side.rollouts[task]],
                samples=[side.rows[task] for task in shared],
                confidence=confidence,
                solved_at=solved_at,
            ),
            len(side.rollouts),
        )
        for number, (name, side) in enumerate(zip(names, sides, strict=True))
    ]


class _Read(NamedTuple):
    rollouts: dict[_Task, list[Scored]]
    rows: dict[_Task, int]
    """Rows a task has, failed ones too."""


def _read(name: str, folder: Path) -> _Read:
    import pyarrow.parquet as pq

    from gristmill.ingest import ingest

    result = ingest([name], folder, copy=False)
    rollouts: dict[_Task, list[Scored]] = defaultdict(list)
    rows: dict[_Task, int] = defaultdict(int)
    wanted = [*Scored._fields, "agent", "prompt_key", "task_key", "drop_reason"]
    for part in result.tables:
        for row in pq.ParquetFile(part).read(columns=wanted).to_pylist():
            if row["task_key"] is None:
                continue
            task = row["agent"], row["task_index"], row["prompt_key"]
            rows[task] += 1
            if row["drop_reason"] is None:
                rollouts[task].append(Scored(**{field: row[field] for field in Scored._fields}))
    if not rollouts:
        raise InputError(f"{name} has no usable rollout of a known task; `gristmill inspect {name}` says why")
    return _Read(rollouts, rows)


def _needs_index(read: _Read) -> bool:
    prompts = {(agent, prompt) for agent, _, prompt in read.rollouts}
    return len(prompts) < len(read.rollouts) or any(prompt is None for _, prompt in prompts)


def _without_index(read: _Read) -> _Read:
    """Tasks by agent and prompt: their indices depend on what else the file had."""
    return _Read(
        {(agent, None, prompt): values for (agent, _, prompt), values in read.rollouts.items()},
        {(agent, None, prompt): count for (agent, _, prompt), count in read.rows.items()},
    )
