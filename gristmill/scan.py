"""Rollout tables as one relation in DuckDB: the view `rollouts`, of usable rows, with the position of each.

    at_table, at_file, at_row     which table, which of its parts, which row of it: a total order
    every column of the table     but the payload, and `drop_reason`, which is null here
    environment                   the agent, or the file where no agent is named: rewards compare within one only

Nothing is read before a query names it. The connection can read the tables' folders and nothing else, and its
configuration is locked, so what a user writes into a query sees the tables and no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.errors import InputError
from gristmill.inputs import INPUTS

if TYPE_CHECKING:
    import duckdb

POSITION = "at_table, at_file, at_row"
_PAYLOAD = "raw"


def connect(tables: Sequence[Sequence[Path]]) -> duckdb.DuckDBPyConnection:
    """A connection with the views `rollouts` and, where task fields lie beside a table, `inputs`; close it after use.

    Args:
        tables: the Parquet files of each table, in row order.

    Raises:
        InputError: there is no file at all.
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
            f"file_row_number AS at_row, coalesce(agent, source) AS environment, * EXCLUDE ({_PAYLOAD}, drop_reason) "
            f"FROM read_parquet({_texts(files)}) WHERE drop_reason IS NULL"
        )
        if inputs:
            db.execute(f"CREATE TEMP VIEW inputs AS FROM read_parquet({_texts(inputs)})")
    except BaseException:
        db.close()
        raise
    return db


def text(value: str) -> str:
    """A value as an SQL string."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """A name as an SQL identifier."""
    return '"' + value.replace('"', '""') + '"'


def _texts(values: Sequence[str]) -> str:
    return "[" + ", ".join(map(text, values)) + "]"
