"""Which tasks are set apart for validation: decided by each task's content, so that equal prompts never straddle.

A task is identified by its prompt (equal in every run), else by its task key, else by the rollout alone. Its place
is the sha256 of seed and identity: a task that is in validation stays there as data grows, in this export and the next.
"""

from __future__ import annotations

import hashlib

IDENTITY = "coalesce(prompt_key, task_key, rollout_id)"
"""SQL over the view `rollouts` (gristmill/scan.py)."""


def place(identity: str, seed: int) -> str:
    """Where a task stands: 16 hex digits, uniform over tasks."""
    return hashlib.sha256(f"{seed}\x1f{identity}".encode()).hexdigest()[:16]


def place_sql(seed: int) -> str:
    """`place` in SQL."""
    return f"substr(sha256('{int(seed)}' || chr(31) || {IDENTITY}), 1, 16)"


def threshold(places: list[str], share: float) -> str:
    """Tasks whose place is under this go to validation.

    That is the given share of all tasks there could be. Of the two or more that there are, at least one is taken, and
    at least one is left; with share 0, none is taken.

    Args:
        places: of the tasks, ascending, each once.
        share: 0 to 1, without 1.
    """
    if share == 0 or len(places) < 2:
        return ""
    limit = f"{int(share * 2**64):016x}"
    return min(max(limit, _after(places[0])), places[-1])


def _after(place: str) -> str:
    # a prefix sorts before what it begins
    return place + "0"
