"""What was chosen, cut into shards that can be written anywhere: fixed by the selection, never by workers.

Reads the selection and the table's columns (no payload). A unit is what becomes examples together: a rollout for
`sft` and `kto`, all chosen rollouts of a task for `dpo`, `reward` and `rl`. Units stand in the order of their first
rollout; a shard holds units of about `SHARD_BYTES` of raw rows. What needs the other rollouts of a task or of an
environment is settled here: scales, labels, signal, the validation tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill import scan
from gristmill.dataset import split
from gristmill.errors import RecipeError
from gristmill.example import Method
from gristmill.reasons import DropReason
from gristmill.recipe import FormatRecipe
from gristmill.scale import Scale, scale

if TYPE_CHECKING:
    import duckdb

SHARD_BYTES = 32 << 20
_SHARD_ROWS = 8192
_FETCH = 4096
GROUPED: frozenset[Method] = frozenset({"dpo", "reward", "rl"})
_BINS = 10


class Chosen(NamedTuple):
    """A chosen rollout, as far as the columns tell."""

    file: int
    """Index in `Work.files`."""
    row: int
    rollout_id: str
    task_key: str | None
    reward: float
    environment: str
    source: str
    line: int
    answer_key: str | None
    answer_chars: int
    row_bytes: int
    validation: bool
    reason: str | None
    """Why it cannot be used, found here; null if it can."""
    label: bool
    """kto: desirable."""
    metrics: dict[str, float] | None
    """Those that the recipe names, where it names some."""
    fields: str | None
    """rl: task fields of the materialized inputs, as JSON."""
    group: int


class Shard(NamedTuple):
    """Units to be written together."""

    number: int
    units: list[list[Chosen]]


@dataclass(frozen=True)
class Work:
    """A dataset to be written. `shards` is a stream, to be taken once."""

    files: list[Path]
    scales: dict[str, Scale]
    metric_scales: dict[str, dict[str, Scale]]
    """environment → metric → scale."""
    counts: dict[str, Any]
    """What the whole says that no shard could: tasks, validation tasks, signal."""
    shards: Iterator[Shard] = field(repr=False)


def cut(
    db: duckdb.DuckDBPyConnection, selection: Path, tables: Sequence[Sequence[Path]], recipe: FormatRecipe, seed: int
) -> Work:
    """Read what was chosen and cut it.

    Args:
        db: `scan.connect(tables)`; stays open while shards are taken.
        selection: a `selection.parquet`.
        tables: the Parquet files of each table that it was made from, in the same order.
    """
    import pyarrow.parquet as pq

    # not by read_table, which imports pandas where that is installed
    db.register("selected", pq.ParquetFile(selection).read(columns=["at_table", "at_file", "at_row", "reason"]))
    scales = _scales(db)
    metric_scales = _metric_scales(db, recipe.pairs.metrics) if recipe.pairs.metrics else {}
    _create_chosen(db, recipe, seed)
    places = [row[0] for row in db.execute("SELECT DISTINCT place FROM chosen ORDER BY place").fetchall()]
    limit = split.threshold(places, recipe.validation)
    counts: dict[str, Any] = {"tasks": len(places), "validation_tasks": sum(place < limit for place in places)}
    if recipe.method == "rl":
        counts["rl"] = _signal(db)
    elif recipe.method == "kto":
        counts["labels"] = _labels(db)
    starts = [0]
    for table in tables:
        starts.append(starts[-1] + len(table))
    return Work(
        [path for table in tables for path in table],
        scales,
        metric_scales,
        counts,
        _shards(_rows(db, recipe.method in GROUPED, starts, limit)),
    )


def _scales(db: duckdb.DuckDBPyConnection) -> dict[str, Scale]:
    """Of the rewards of all usable rollouts, chosen or not."""
    rows = db.execute("SELECT environment, low, high, solved_at FROM scales ORDER BY environment").fetchall()
    return {name: Scale(low, high, (low, high, solved) == (0, 1, 1)) for name, low, high, solved in rows}


def _metric_scales(db: duckdb.DuckDBPyConnection, names: Sequence[str]) -> dict[str, dict[str, Scale]]:
    """environment → metric → scale.

    Raises:
        RecipeError: no rollout has such a metric.
    """
    found: dict[str, dict[str, Scale]] = {}
    for name in names:
        rows = db.execute(
            "SELECT environment, min(v), max(v), bool_and(v = 0 OR v = 1) FROM "
            f"(SELECT environment, map_extract(metrics, {scan.text(name)})[1] AS v FROM rollouts) "
            "WHERE v IS NOT NULL GROUP BY 1"
        ).fetchall()
        if not rows:
            known = db.execute("SELECT DISTINCT unnest(map_keys(metrics)) AS name FROM rollouts ORDER BY 1").fetchall()
            there = ", ".join(one for (one,) in known) or "none"
            raise RecipeError(f"format.pairs.metrics: no rollout has the metric {name!r}; there are: {there}")
        for environment, low, high, binary in rows:
            found.setdefault(environment, {})[name] = scale(low, high, binary)
    return found


def _create_chosen(db: duckdb.DuckDBPyConnection, recipe: FormatRecipe, seed: int) -> None:
    """The table `chosen`: chosen rollouts with place, label, and the reason why one cannot be used."""
    names = ", ".join(f"{scan.text(n)}: map_extract(metrics, {scan.text(n)})[1]" for n in recipe.pairs.metrics)
    metrics = f"MAP {{{names}}}" if names else "NULL"
    solved = "solved_at" if recipe.label_threshold is None else repr(float(recipe.label_threshold))
    fields, join = "NULL", ""
    if recipe.method == "rl" and db.execute("SELECT 1 FROM duckdb_views() WHERE view_name = 'inputs'").fetchone():
        fields = "inputs.fields"
        join = (
            "LEFT JOIN (SELECT run, task_index, rollout_index, any_value(fields ORDER BY fields) AS fields "
            "FROM inputs GROUP BY ALL) AS inputs USING (run, task_index, rollout_index)"
        )
    answer = "coalesce(task_key, rollout_id), coalesce(answer_key, rollout_id)"
    reason = {
        "sft": "NULL",
        "kto": f"""CASE WHEN truncated THEN '{DropReason.TRUNCATED}'
            WHEN min(label) OVER (PARTITION BY {answer}) <> max(label) OVER (PARTITION BY {answer})
            THEN '{DropReason.CONTRADICTORY_REWARD}'
            WHEN row_number() OVER (PARTITION BY {answer} ORDER BY rollout_id, {scan.POSITION}) > 1
            THEN '{DropReason.DUPLICATE_ANSWER}' END""",
        "rl": f"""CASE WHEN task_key IS NULL THEN '{DropReason.UNGROUPABLE}'
            WHEN min(reward) OVER (PARTITION BY task_key) = max(reward) OVER (PARTITION BY task_key)
            THEN '{DropReason.NO_SIGNAL}' END""",
    }.get(
        recipe.method,
        f"""CASE WHEN task_key IS NULL THEN '{DropReason.UNGROUPABLE}'
            WHEN truncated THEN '{DropReason.TRUNCATED}' END""",
    )
    grouped = recipe.method in GROUPED
    order = "min(nth) OVER (PARTITION BY coalesce(task_key, rollout_id))" if grouped else "nth"
    db.execute(
        f"""
        CREATE TEMP TABLE chosen AS
        WITH picked AS (
            SELECT {scan.POSITION}, rollout_id, task_key, reward, environment, source, line, answer_key,
                answer_chars, row_bytes, truncated, {split.place_sql(seed)} AS place,
                (reward >= {solved})::INTEGER AS label, {metrics} AS metrics, {fields} AS fields,
                row_number() OVER (ORDER BY {scan.POSITION}) AS nth
            FROM rollouts JOIN selected USING ({scan.POSITION}) JOIN scales USING (environment) {join}
            WHERE selected.reason IS NULL
        )
        SELECT *, {reason} AS reason, {order} AS unit FROM picked
        """
    )


def _rows(db: duckdb.DuckDBPyConnection, grouped: bool, starts: list[int], limit: str) -> Iterator[Chosen]:
    cursor = db.execute(
        f"""
        SELECT {starts}[at_table + 1] + at_file, at_row, rollout_id, task_key, reward, environment, source, line,
            answer_key, answer_chars, row_bytes, place < '{limit}', reason, label = 1, metrics, fields, unit
        FROM chosen ORDER BY unit, nth
        """
    )
    while batch := cursor.fetchmany(_FETCH):
        for row in map(Chosen._make, batch):
            if row.metrics:
                yield row._replace(metrics={name: v for name, v in row.metrics.items() if v is not None})
            else:
                yield row


def _shards(rows: Iterator[Chosen]) -> Iterator[Shard]:
    units: list[list[Chosen]] = []
    number = size = count = 0
    for row in rows:
        if units and units[-1][0].group == row.group:
            units[-1].append(row)
        else:
            if size >= SHARD_BYTES or count >= _SHARD_ROWS:
                yield Shard(number, units)
                units, size, count, number = [], 0, 0, number + 1
            units.append([row])
        size += row.row_bytes
        count += 1
    yield Shard(number, units)


def _labels(db: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """How desirable and undesirable answers spread over tasks, of those that can be used."""
    return _one(
        db,
        """
        WITH task AS (SELECT sum(label) AS good, count(*) AS n FROM chosen WHERE reason IS NULL
            GROUP BY coalesce(task_key, rollout_id))
        SELECT count(*) FILTER (good > 0 AND good < n) AS tasks_with_both,
            count(*) FILTER (good = n) AS tasks_only_desirable,
            count(*) FILTER (good = 0) AS tasks_only_undesirable FROM task
        """,
    )


def _signal(db: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """The distribution check of an RL task set: how often tasks are solved, how their rewards spread."""
    told = _one(
        db,
        """
        WITH task AS (SELECT avg(label) AS rate, min(reward) < max(reward) AS signal, count(*) AS n,
                stddev_pop(reward ORDER BY reward) AS std
            FROM chosen WHERE task_key IS NOT NULL GROUP BY task_key)
        SELECT count(*) AS tasks, count(*) FILTER (signal) AS tasks_with_signal,
            count(*) FILTER (n = 1) AS tasks_of_one_rollout,
            count(*) FILTER (rate = 0) AS never_solved, count(*) FILTER (rate > 0 AND rate < 1) AS sometimes_solved,
            count(*) FILTER (rate = 1) AS always_solved, fsum(rate ORDER BY rate) / count(*) AS mean_solve_rate,
            fsum(std ORDER BY std) / count(*) AS mean_std FROM task
        """,
    )
    rates = db.execute(
        f"SELECT least(floor(avg(label) * {_BINS}), {_BINS - 1})::INTEGER AS bin FROM chosen "
        "WHERE task_key IS NOT NULL GROUP BY task_key"
    ).fetchall()
    bins = [0] * _BINS
    for (number,) in rates:
        bins[number] += 1
    return {**told, "solve_rates": {"edges": [i / _BINS for i in range(_BINS + 1)], "counts": bins}}


def _one(db: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    cursor = db.execute(query)
    row = cursor.fetchone()
    assert row is not None
    return dict(zip([column[0] for column in cursor.description], row, strict=True))


def firsts(units: Sequence[list[Chosen]]) -> list[int]:
    """Where each unit begins among the shard's rollouts."""
    return [0, *accumulate(map(len, units))][: len(units)]
