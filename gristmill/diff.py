"""Diff: which rollouts came and went between two selections, and by which rule.

A rollout is the same in both if its line is (`rollout_id`; equal lines are told apart by their order). It came if it
was chosen in B only: `rule` is then the one that dropped it in A. It went if it was chosen in A only: `rule` is
the one that drops it in B. A selection that was made without the rollout's table has no rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pyarrow as pa

ABSENT = "not among the rollouts"


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Moved(_Model):
    """A rollout that was chosen in one selection and not in the other."""

    rollout_id: str
    task_key: str | None
    reward: float
    reason: str | None = Field(description="The drop reason where it was not chosen; null: it was not there.")
    rule: str = Field(description=f"The rule where it was not chosen, or `{ABSENT}`.")


class Diff(_Model):
    """The difference of two selections, B against A."""

    a: str
    b: str
    settings: dict[str, tuple[Any, Any]] = Field(description="Recipe field → its values in A and in B, where known.")
    chosen_in_a: int
    chosen_in_b: int
    stayed: int = Field(description="Chosen in both.")
    came_by: dict[str, int] = Field(description="Rule that dropped it in A → rollouts, most first.")
    went_by: dict[str, int] = Field(description="Rule that drops it in B → rollouts, most first.")
    came: tuple[Moved, ...]
    went: tuple[Moved, ...]


def diff(
    a: pa.Table,
    b: pa.Table,
    *,
    names: tuple[str, str] = ("A", "B"),
    settings: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None,
) -> Diff:
    """Compare two selections (tables as `selection.read` gives them); moved rollouts come by rule, then identity.

    Args:
        settings: the recipe sections that they were made with.
    """
    import duckdb

    numbered = (
        "SELECT rollout_id, task_key, reward, reason, rule, row_number() OVER (PARTITION BY rollout_id "
        "ORDER BY at_table, at_file, at_row) AS copy FROM {}"
    )
    with duckdb.connect() as db:
        db.register("a", a)
        db.register("b", b)
        db.execute(
            f"""
            CREATE TEMP TABLE both_sides AS
            SELECT coalesce(x.rollout_id, y.rollout_id) AS rollout_id, coalesce(x.task_key, y.task_key) AS task_key,
                coalesce(x.reward, y.reward) AS reward,
                x.copy IS NOT NULL AND x.reason IS NULL AS in_a, y.copy IS NOT NULL AND y.reason IS NULL AS in_b,
                x.reason AS reason_a, coalesce(x.rule, x.reason, '{ABSENT}') AS rule_a,
                y.reason AS reason_b, coalesce(y.rule, y.reason, '{ABSENT}') AS rule_b
            FROM ({numbered.format("a")}) AS x
            FULL JOIN ({numbered.format("b")}) AS y ON x.rollout_id = y.rollout_id AND x.copy = y.copy
            """
        )

        def moved(here: str, there: str) -> tuple[Moved, ...]:
            """Chosen `here` and not `there`."""
            rows = db.execute(
                f"SELECT rollout_id, task_key, reward, reason_{there}, rule_{there} FROM both_sides "
                f"WHERE in_{here} AND NOT in_{there} ORDER BY 5, 1"
            ).fetchall()
            return tuple(Moved(**dict(zip(Moved.model_fields, row, strict=True))) for row in rows)

        one = db.execute(
            "SELECT count(*) FILTER (in_a), count(*) FILTER (in_b), count(*) FILTER (in_a AND in_b) FROM both_sides"
        ).fetchall()[0]
        came, went = moved("b", "a"), moved("a", "b")
    changed: dict[str, tuple[Any, Any]] = {}
    if settings:
        first, second = settings
        changed = {
            field: (first.get(field), second.get(field))
            for field in dict.fromkeys([*first, *second])
            if first.get(field) != second.get(field)
        }
    return Diff(
        a=names[0],
        b=names[1],
        settings=changed,
        chosen_in_a=one[0],
        chosen_in_b=one[1],
        stayed=one[2],
        came_by=_by(came),
        went_by=_by(went),
        came=came,
        went=went,
    )


def _by(rows: tuple[Moved, ...]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.rule] = counts.get(row.rule, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
