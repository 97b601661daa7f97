"""What is marked as bad: rollouts, tasks and files, in a log of the workspace that only grows.

    taints.jsonl    {"action", "what", "key", "agent", "prompt_key", "name", "reason", "from_turn", "by", "time"}

From then on curation leaves these rollouts out (reason `tainted`), in every turn that the same recipe makes or makes
again from `from_turn` on; the turns before keep what they were trained on. A *rollout* is told by its fingerprint, a
*file* by its content, so that it is meant wherever it is read again. A *task* is meant wherever the same agent gets the
same prompt, if its prompt tells it from the file's other tasks; otherwise only in the file where it was marked.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.decisions import login_name
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    import duckdb

FILE = "taints.jsonl"

What = Literal["rollout", "task", "file"]


class Taint(BaseModel):
    """One entry of the log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    action: Literal["taint", "untaint"] = "taint"
    what: What
    key: str
    """Rollout id, task key, or the file's fingerprint (`run` in the rollout table)."""
    agent: str | None = None
    prompt_key: str | None = None
    """Of a task that its prompt tells from others."""
    name: str = ""
    """What people call it."""
    reason: str = ""
    from_turn: int = Field(0, ge=0, description="Turns before this one keep it.")
    by: str
    time: str

    def content(self) -> dict[str, Any]:
        """What it means for a turn: without who, when and why."""
        return self.model_dump(mode="json", include={"what", "key", "agent", "prompt_key"})


def history(workspace: Workspace) -> list[Taint]:
    """Every entry, oldest first."""
    return [Taint.model_validate(line) for line in workspace.read(FILE)]


def standing(workspace: Workspace, turn: int | None = None) -> list[Taint]:
    """Taints that hold now, by what and key; with a turn, those that hold for it (0: outside of a loop, all)."""
    last = {(entry.what, entry.key): entry for entry in history(workspace)}
    holding = [entry for _, entry in sorted(last.items()) if entry.action == "taint"]
    return [entry for entry in holding if not turn or turn >= entry.from_turn]


def append(workspace: Workspace, *entries: Taint) -> None:
    """Add entries to the log."""
    workspace.append(FILE, *(entry.model_dump(mode="json") for entry in entries))


def entry(action: Literal["taint", "untaint"], what: What, key: str, **more: Any) -> Taint:
    """An entry of whoever is logged in, made now."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return Taint(action=action, what=what, key=key, by=login_name(), time=now, **more)


def meant(db: duckdb.DuckDBPyConnection, relation: str, taint: dict[str, Any], columns: str) -> list[tuple[Any, ...]]:
    """Rows of a relation of rollouts that a taint's `content` means, in no order.

    Args:
        relation: has the rollout table's `rollout_id`, `task_key`, `agent`, `prompt_key` and `run`.
        columns: what to select.
    """
    where, values = condition(taint)
    return db.execute(f"SELECT {columns} FROM {relation} WHERE {where}", values).fetchall()


def condition(taint: dict[str, Any]) -> tuple[str, list[Any]]:
    """An SQL condition over such a relation, and its parameters."""
    column = {"rollout": "rollout_id", "task": "task_key", "file": "run"}[taint["what"]]
    if taint.get("prompt_key") is None:
        return f"{column} = ?", [taint["key"]]
    return (
        f"({column} = ? OR (prompt_key = ? AND agent IS NOT DISTINCT FROM ?))",
        [taint["key"], taint["prompt_key"], taint["agent"]],
    )


def rollouts(db: duckdb.DuckDBPyConnection, taints: Iterable[dict[str, Any]]) -> tuple[list[str], list[dict[str, Any]]]:
    """Ids of the rollouts in the view `rollouts` that are tainted, sorted; and the taints that mean any of them."""
    found: set[str] = set()
    used = []
    for taint in taints:
        ids = {row[0] for row in meant(db, "rollouts", taint, "DISTINCT rollout_id")}
        found |= ids
        if ids:
            used.append(taint)
    return sorted(found), used
