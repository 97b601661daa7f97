"""Curriculum: which training tasks are worth another attempt, where tasks come again.

Reads what earlier rounds of collection made of each task. A task that was solved every time has nothing left to
teach. One on which no rollout did better than another has no signal for the policy that tried, and may have for the
next: it rests until there is another champion. A task without usable rollouts is attempted again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.environment import read_tasks
from gristmill.evaluation import scored
from gristmill.identity import digest
from gristmill.store import Store
from gristmill.table import parts


class Rest(StrEnum):
    """Why a task is not attempted again."""

    SOLVED = "solved"
    """Every rollout of its last round solved it."""
    NO_SIGNAL = "no_signal"
    """No rollout of its last round did better than another, and the policy is still the same."""


class Round(NamedTuple):
    """One collection: who acted, and the rewards of each task's usable rollouts by the task's identity."""

    policy: ArtifactRef
    rewards: Mapping[str, Sequence[float]]


def resting(rounds: Sequence[Round], champion: ArtifactRef, solved_at: float) -> dict[str, Rest]:
    """The tasks that rest, by identity.

    Args:
        rounds: oldest first; the last one that has a task decides about it.
        champion: who collects next.
        solved_at: the reward from which on a rollout counts as solved.
    """
    last: dict[str, tuple[ArtifactRef, Sequence[float]]] = {}
    for one in rounds:
        last |= {task: (one.policy, values) for task, values in one.rewards.items() if values}
    found = {}
    for task, (policy, values) in sorted(last.items()):
        if min(values) >= solved_at:
            found[task] = Rest.SOLVED
        elif min(values) == max(values) and policy == champion:
            found[task] = Rest.NO_SIGNAL
    return found


def identity(task: Mapping[str, Any]) -> str:
    """What a task row is, whichever turn hands it out."""
    return digest(task)


def read_round(store: Store, table: ArtifactRef) -> Round:
    """The collection behind a rollout table of the loop.

    Raises:
        ArtifactMissing: its rollouts or tasks are not in the store.
    """
    (rollouts,) = (ref for ref in store.manifest(table).parents if ref.kind == "rollouts")
    parents = {ref.kind: ref for ref in store.manifest(rollouts).parents}
    tasks = [identity(row) for row in read_tasks(store, parents["tasks"])]
    rewards: dict[str, list[float]] = defaultdict(list)
    for row in scored(parts(store.path(table))):
        rewards[tasks[row.task_index]].append(row.reward)
    return Round(parents["checkpoint"], rewards)
