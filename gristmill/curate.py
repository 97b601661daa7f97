"""Curate: choose the rollouts that are worth training on, and say of every other one why not.

Reads rollout tables (never their payload) with DuckDB; writes `selection.parquet`: one row per usable rollout, in
input order, with the reason it was not chosen, or null. Every order is total, so equal input gives equal bytes.
A user's condition runs with external access off: it can look at the table and at nothing else.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill.errors import RecipeError
from gristmill.reasons import DropReason
from gristmill.recipe import CurateRecipe

if TYPE_CHECKING:
    import duckdb

SELECTION = "selection.parquet"
_HIDDEN = ("raw",)  # payload: selection never reads it
_BINS = 20


def curate(
    tables: Sequence[Sequence[Path]], counted: Sequence[dict[str, Any]], recipe: CurateRecipe, out: Path
) -> dict[str, Any]:
    """Select over one or more rollout tables.

    Args:
        tables: the Parquet files of each table, in row order.
        counted: each table's own counts (`rows_read`, `rows_kept`, `dropped`), in the same order.
        out: folder that gets `selection.parquet`.

    Returns:
        Counts: `rows_read`, `rows_kept` (chosen), `dropped` (reason → rows, those of reading included),
        `truncated`, and `rewards` of the usable rollouts: `min`, `max`, `mean`, `histogram` (`edges`, `counts`;
        the last bin is closed).

    Raises:
        RecipeError: `curate.where` is no condition over the table's columns.
    """
    import duckdb

    with duckdb.connect() as db:
        db.execute("SET preserve_insertion_order = true")
        _load(db, tables)
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        condition = _condition(db, recipe.where)
        cut = "false" if recipe.keep_truncated else "truncated"
        keep_reward = "true" if recipe.min_reward is None else f"reward >= {float(recipe.min_reward)!r}"
        db.execute(
            f"""
            CREATE TEMP TABLE judged AS
            SELECT *,
                CASE WHEN {cut} THEN '{DropReason.TRUNCATED}'
                     WHEN NOT ({keep_reward}) THEN '{DropReason.BELOW_REWARD}'
                     WHEN ({condition}) IS NOT TRUE THEN '{DropReason.FILTERED}' END AS reason,
                coalesce(task_key, rollout_id) AS unit
            FROM usable
            """
        )
        # Shorter answers first, then the content id, then the position: a total order, and the same in every run.
        preference = "answer_chars, rollout_id, at_table, at_file, at_row"
        first = f"row_number() OVER (PARTITION BY unit, answer_key ORDER BY {preference}) = 1"
        distinct = first if recipe.deduplicate else "true"
        rank = f"row_number() OVER (PARTITION BY unit ORDER BY {preference})"
        cap = f"{rank} <= {recipe.per_task}" if recipe.per_task else "true"
        db.execute(
            f"""
            CREATE TEMP TABLE selection AS
            WITH candidate AS (SELECT *, {distinct} AS is_first FROM judged WHERE reason IS NULL),
                 ranked AS (SELECT *, {cap} AS under_cap FROM candidate WHERE is_first)
            SELECT j.at_table, j.at_file, j.at_row, j.rollout_id, j.task_key, j.reward,
                CASE WHEN j.reason IS NOT NULL THEN j.reason
                     WHEN NOT c.is_first THEN '{DropReason.DUPLICATE_ANSWER}'
                     WHEN NOT r.under_cap THEN '{DropReason.OVER_TASK_CAP}' END AS reason
            FROM judged j
            LEFT JOIN candidate c USING (at_table, at_file, at_row)
            LEFT JOIN ranked r USING (at_table, at_file, at_row)
            ORDER BY at_table, at_file, at_row
            """
        )
        _write(db, out / SELECTION)
        return _counts(db, counted)


def _load(db: duckdb.DuckDBPyConnection, tables: Sequence[Sequence[Path]]) -> None:
    """Usable rows of all tables, with the position of each (`at_table`, `at_file`, `at_row`)."""
    hidden = ", ".join(_HIDDEN)
    parts = []
    values: list[str] = []
    for number, files in enumerate(tables):
        for order, path in enumerate(files):
            parts.append(
                f"SELECT {number} AS at_table, {order} AS at_file, file_row_number AS at_row, "
                f"* EXCLUDE ({hidden}, file_row_number) FROM read_parquet(?, file_row_number = true)"
            )
            values.append(str(path))
    db.execute(
        "CREATE TEMP TABLE usable AS SELECT * FROM ("
        + " UNION ALL BY NAME ".join(parts)
        + ") WHERE drop_reason IS NULL",
        values,
    )


def _condition(db: duckdb.DuckDBPyConnection, where: str | None) -> str:
    """The user's condition, checked by preparing it against the table."""
    import duckdb

    if where is None:
        return "true"
    try:
        db.execute(f"SELECT count(*) FROM usable WHERE (\n{where}\n) IS TRUE")
    except duckdb.Error as error:
        columns = [row[0] for row in db.execute("DESCRIBE usable").fetchall() if not row[0].startswith("at_")]
        unknown = _unknown_column(str(error))
        near = difflib.get_close_matches(unknown, columns, n=3) if unknown else []
        hint = f"; did you mean {' or '.join(near)}" if near else ""
        raise RecipeError(
            f"curate.where: {where!r} is not a condition ({str(error).splitlines()[0]}){hint}; "
            f"columns: {', '.join(columns)}"
        ) from None
    return where


def _unknown_column(message: str) -> str | None:
    parts = message.split('"')
    return parts[1] if "column" in message.lower() and len(parts) > 2 else None


def _write(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    # through Arrow, because the condition's connection may not write files
    import pyarrow.parquet as pq

    pq.write_table(db.sql("SELECT * FROM selection").to_arrow_table(), path, compression="zstd")


def _counts(db: duckdb.DuckDBPyConnection, counted: Sequence[dict[str, Any]]) -> dict[str, Any]:
    dropped: dict[str, int] = {}
    for table in counted:
        for reason, count in table["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    for reason, count in db.execute(
        "SELECT reason, count(*) FROM selection WHERE reason IS NOT NULL GROUP BY reason"
    ).fetchall():
        dropped[reason] = dropped.get(reason, 0) + count
    one = db.execute(
        "SELECT count(*) FILTER (reason IS NULL), min(reward), max(reward), avg(reward) FROM selection"
    ).fetchone()
    assert one is not None
    kept, low, high, mean = one
    truncated = db.execute("SELECT count(*) FROM usable WHERE truncated").fetchone()
    assert truncated is not None
    return {
        "rows_read": sum(table["rows_read"] for table in counted),
        "rows_kept": kept,
        "dropped": dict(sorted(dropped.items())),
        "truncated": truncated[0],
        "rewards": {"min": low, "max": high, "mean": mean, "histogram": _histogram(db, low, high)},
    }


def _histogram(db: duckdb.DuckDBPyConnection, low: float | None, high: float | None) -> dict[str, list[float]]:
    """Equal bins over the observed range, the last one closed; rewards within 0..1 get the range 0..1."""
    import numpy as np

    if low is None or high is None:
        return {"edges": [], "counts": []}
    rewards = db.execute("SELECT reward FROM selection").fetchnumpy()["reward"]
    limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high) if high > low else (low - 0.5, high + 0.5)
    counts, edges = np.histogram(rewards, bins=_BINS, range=limits)
    return {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]}
