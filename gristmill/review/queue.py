"""The queue: rollouts to review, and the other attempts at their tasks for comparison.

Reads the columns of rollout tables once, for these rollouts only; the payload of a rollout is read when it is looked
at. A rollout that is in several tables comes once, from the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gristmill import scan
from gristmill.errors import UsageError
from gristmill.inputs import INPUTS
from gristmill.sample import Sampled
from gristmill.table import read_raw

MOST = 20_000
"""Rollouts in one queue at most: nobody reviews more, and the page holds the whole list."""

_NO_DECISIONS: Mapping[str, str] = {}

_COLUMNS = (
    *("rollout_id", "source", "line", "run", "agent", "task_index", "rollout_index", "task_key", "reward"),
    *("metrics", "labels", "model", "turns", "tool_calls", "output_tokens", "truncated", "incomplete"),
)


@dataclass(frozen=True)
class Rollout:
    """One rollout's columns, and where its row lies."""

    part: Path
    row: int
    rollout_id: str
    source: str
    line: int
    run: str
    agent: str | None
    task_index: int | None
    rollout_index: int | None
    task_key: str | None
    reward: float
    metrics: dict[str, float]
    labels: dict[str, str]
    model: str | None
    turns: int
    tool_calls: int
    output_tokens: int | None
    truncated: bool
    incomplete: str | None
    stratum: str | None = None

    def raw(self) -> bytes:
        """The line, as it stood in the input."""
        return next(read_raw(self.part, [self.row]))

    def task_fields(self) -> str | None:
        """JSON text of the dataset row's fields, where they lie beside the table."""
        path = self.part.parent / INPUTS
        if not path.is_file():
            return None
        import duckdb

        with duckdb.connect() as db:
            found = db.execute(
                "SELECT fields FROM read_parquet(?) WHERE run = ? AND task_index = ? AND rollout_index = ? LIMIT 1",
                [str(path), self.run, self.task_index, self.rollout_index],
            ).fetchone()
        return str(found[0]) if found else None


@dataclass(frozen=True)
class Queue:
    """`rollouts` are to be reviewed, in this order."""

    rollouts: tuple[Rollout, ...]
    known: dict[str, Rollout] = field(repr=False)
    """By id: these and the other attempts at their tasks."""

    def attempts(self, rollout: Rollout) -> list[Rollout]:
        """All attempts at the rollout's task, itself included, best first."""
        if rollout.task_key is None:
            return [rollout]
        same = [one for one in self.known.values() if one.task_key == rollout.task_key]
        return sorted(same, key=lambda one: (-one.reward, one.rollout_index or 0, one.rollout_id))


def everything(
    tables: Sequence[Sequence[Path]], where: Sequence[str] = (), decisions: Mapping[str, str] = _NO_DECISIONS
) -> Queue:
    """Every usable rollout of which the conditions are true (gristmill/condition.py), in the order of the input.

    Args:
        decisions: rollout id → judgement: what conditions call `decision`.

    Raises:
        UsageError: there are more than `MOST`, or none.
        RecipeError: a condition cannot be used; says why, and which names there are.
    """
    ids = _matching(tables, where, decisions)
    if not ids:
        raise UsageError("no rollout is like that; ask for less with --where")
    if len(ids) > MOST:
        raise UsageError(
            f"{len(ids):,} rollouts are too many to review one by one (at most {MOST:,}); "
            "narrow them down with --where, or review a sample"
        )
    known = _with_attempts(tables, ids)
    return Queue(tuple(known[key] for key in ids), known)


def sampled(tables: Sequence[Sequence[Path]], sample: Sequence[Sampled], seed: int) -> Queue:
    """The rollouts of a sample, mixed by the seed: whoever stops half-way has seen a fair half of it."""
    ids = [one.rollout_id for one in sample]
    strata = {one.rollout_id: one.stratum for one in sample}
    known = _with_attempts(tables, ids)
    known |= {key: replace(known[key], stratum=strata[key]) for key in strata if key in known}
    mixed = sorted(strata, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    return Queue(tuple(known[key] for key in mixed if key in known), known)


def _matching(tables: Sequence[Sequence[Path]], where: Sequence[str], decisions: Mapping[str, str]) -> list[str]:
    """Ids in the order of the input, each once."""
    import duckdb

    from gristmill.condition import Names

    with scan.connect(tables) as db:
        db.execute("CREATE TEMP TABLE decisions (rollout_id VARCHAR, decision VARCHAR)")
        if decisions:
            columns = [list(decisions), list(decisions.values())]
            db.execute("INSERT INTO decisions SELECT unnest($1), unnest($2)", columns).fetchall()
        names = Names(db)
        conditions = [one for text in where for one in names.conditions(text, "--where")]
        names.check([(one.text, "--where", one.sql) for one in conditions])
        test = " AND ".join(f"({one.sql}) IS TRUE" for one in conditions) or "true"
        query = f"SELECT rollout_id FROM ({names.source()}) WHERE {test} ORDER BY {scan.POSITION}"
        try:
            return list(dict.fromkeys(row[0] for row in db.execute(query).fetchall()))
        except duckdb.Error as error:
            raise names.refusal(" and ".join(where), "--where", error) from None


def _with_attempts(tables: Sequence[Sequence[Path]], ids: Sequence[str]) -> dict[str, Rollout]:
    """These rollouts and all others of their tasks, by id, in the order of the input."""
    query = (
        f"SELECT {scan.POSITION}, {', '.join(_COLUMNS)} FROM rollouts WHERE rollout_id IN (SELECT unnest($ids)) "
        "OR task_key IN (SELECT task_key FROM rollouts WHERE rollout_id IN (SELECT unnest($ids))) "
        f"ORDER BY {scan.POSITION}"
    )
    with scan.connect(tables) as db:
        rows = db.execute(query, {"ids": list(ids)}).fetchall()
    known: dict[str, Rollout] = {}
    for at_table, at_file, at_row, *columns in rows:
        rollout = Rollout(tables[at_table][at_file], at_row, *columns)
        known.setdefault(rollout.rollout_id, rollout)
    return known
