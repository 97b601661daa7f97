"""Rollout tables as one relation in DuckDB: the view `rollouts`, of usable rows, with the position of each.

    at_table, at_file, at_row     which table, which of its parts, which row of it: a total order
    environment                   the agent, or the file where no agent is named: rewards compare within one only
    every column of the table     but the payload, and `drop_reason`, which is null here

Beside it, `scales` has each environment's scale (gristmill/scale.py): `environment`, `low`, `high`, `solved_at`; and
`inputs` the task fields that lie beside the tables, if any do. Nothing is read before a query names it. The
connection can read the tables' folders and nothing else, and its configuration is locked, so what a user writes into
a query sees the tables and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.errors import ArtifactDamaged, InputError
from gristmill.inputs import INPUTS
from gristmill.table import schema

if TYPE_CHECKING:
    import duckdb

POSITION = "at_table, at_file, at_row"
# the line itself, where it stands, and what is null in every usable row
_LEFT_OUT = ("raw", "offset", "drop_reason")
_SCALES = """
    SELECT environment,
        CASE WHEN min(reward) >= 0 AND max(reward) <= 1 THEN 0 ELSE min(reward) END AS low,
        CASE WHEN min(reward) >= 0 AND max(reward) <= 1 THEN 1 ELSE max(reward) END AS high,
        CASE WHEN bool_and(reward IN (0, 1)) THEN 1 ELSE (low + high) / 2 END AS solved_at
    FROM rollouts GROUP BY environment
"""


def connect(tables: Sequence[Sequence[Path]]) -> duckdb.DuckDBPyConnection:
    """A connection with the views; close it after use.

    Args:
        tables: the Parquet files of each table, in row order.

    Raises:
        InputError: there is no file at all.
        ArtifactDamaged: one is no Parquet file.
    """
    import duckdb

    files = [str(path.resolve()) for table in tables for path in table]
    if not files:
        raise InputError("no rollout table was given")
    folders = sorted({str(Path(file).parent) for file in files})
    inputs = [str(path) for folder in folders if (path := Path(folder) / INPUTS).is_file()]
    table_of = [number for number, table in enumerate(tables) for _ in table]
    file_of = [order for table in tables for order in range(len(table))]
    if len(tables) == 1:
        at_table, at_file = "0::INTEGER", "file_index::INTEGER"
    else:
        at_table, at_file = (f"({numbers})[file_index::BIGINT + 1]" for numbers in (table_of, file_of))
    db = duckdb.connect()
    try:
        db.execute(f"SET allowed_directories = {_texts(folders)}")
        db.execute("SET enable_external_access = false")
        db.execute("SET lock_configuration = true")
        db.execute(
            f"CREATE TEMP VIEW rollouts AS SELECT {at_table} AS at_table, {at_file} AS at_file, "
            f"file_row_number AS at_row, coalesce(agent, source) AS environment, {', '.join(columns()[1:])} "
            f"FROM read_parquet({_texts(files)}) WHERE drop_reason IS NULL"
        )
        db.execute(f"CREATE TEMP VIEW scales AS {_SCALES}")
        if inputs:
            db.execute(f"CREATE TEMP VIEW inputs AS FROM read_parquet({_texts(inputs)})")
    except duckdb.Error as error:
        db.close()
        raise damaged(error) from None
    except BaseException:
        db.close()
        raise
    return db


def damaged(error: Exception) -> ArtifactDamaged:
    """What to say when DuckDB cannot read a table."""
    return ArtifactDamaged(f"a rollout table cannot be read: {str(error).splitlines()[0]}; ingest the rollouts again")


def columns() -> list[str]:
    """Columns of `rollouts` that say something of a rollout: all but its position."""
    return ["environment", *(column for column in schema().names if column not in _LEFT_OUT)]


def text(value: str) -> str:
    """A value as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """A name as an SQL identifier."""
    return '"' + value.replace('"', '""') + '"'


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(text, values)) + "]"
