"""Profile: what a rollout table holds, and what it could train.

Reads the table's columns with DuckDB and, to see whether rows have a chat form, the lines of at most
`CHECKED_ROWS` rows spread evenly over it. An environment is an agent, or a file where no agent is named;
rewards are judged within one, since two environments' rewards have nothing in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill import chat
from gristmill.histogram import Histogram, histogram
from gristmill.ingest import IngestResult
from gristmill.reasons import DropReason
from gristmill.rollout import Unreadable, parse
from gristmill.table import read_raw

if TYPE_CHECKING:
    import duckdb

CHECKED_ROWS = 2000
_GAP = 0.2  # of the reward range: what a preference pair needs between its sides
_BINS = 20

RewardKind = Literal["none", "constant", "binary", "continuous", "unbounded"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Spread(_Model):
    """How a number is distributed over the rows that have it."""

    count: int
    mean: float
    std: float | None = Field(description="Sample standard deviation; null for one row.")
    min: float
    median: float
    p95: float
    max: float


class Dropped(_Model):
    """Rows dropped for one reason, and where the first one stands."""

    reason: DropReason
    count: int
    source: str
    line: int


class Environment(_Model):
    """The usable rollouts of one environment."""

    name: str
    rows: int
    tasks: int
    rollouts_per_task: Spread | None
    ungroupable: int = Field(description="Rows whose task is not known: no pairs, no solve rates.")
    reward: Spread
    reward_kind: RewardKind
    components: tuple[str, ...] = Field(description="Names in `reward_components`; the reward is made of several.")
    histogram: Histogram
    solved_at: float = Field(description="Solved from this reward on: 1 if binary, else the range's middle.")
    never: int = Field(description="Tasks that no rollout solved.")
    sometimes: int = Field(description="Tasks that some rollouts solved and some did not.")
    always: int = Field(description="Tasks that every rollout solved.")
    sft_rows: int = Field(description="Distinct solved answers that are not cut.")
    dpo_pairs: int = Field(description="Tasks with a best and a worst answer far enough apart.")
    kto_desirable: int
    kto_undesirable: int
    rl_tasks: int = Field(description="Tasks with at least two rollouts whose rewards differ.")


class Checked(_Model):
    """How many rows of a sample have a chat form to train on."""

    rows: int
    of: int = Field(description="Usable rows in all; the sample is spread evenly over them.")
    trainable: int
    problems: dict[str, int] = Field(description="Reason to drop → rows of the sample.")


class Profile(_Model):
    """What the rollouts are."""

    rows_read: int
    rows_kept: int
    dropped: dict[str, int]
    drops: tuple[Dropped, ...]
    files: int
    bytes: int = Field(description="Of the files, uncompressed.")
    failures_beside: int = Field(0, description="Lines of the files' `_failures.jsonl` sidecars, which are not read.")
    truncated: int = Field(description="Usable rows whose answer is cut.")
    duplicate_answers: int = Field(description="Usable rows that say what another row of their task said.")
    environments: tuple[Environment, ...]
    models: dict[str, int]
    tools: dict[str, int] = Field(description="Calls of each tool, the most called ones.")
    lengths: dict[str, Spread] = Field(description="Turns, calls, characters, tokens, bytes a row.")
    metrics: dict[str, Spread] = Field(description="Every number and boolean of the verifiers.")
    checked: Checked


def profile(result: IngestResult) -> Profile:
    """Profile the table that an ingest made."""
    import duckdb

    with duckdb.connect() as db:
        db.execute("SET memory_limit = '1GB'")
        db.execute(
            "CREATE VIEW usable AS SELECT *, coalesce(agent, source) AS environment "
            f"FROM read_parquet({_listed(result.tables)}) WHERE drop_reason IS NULL"
        )
        names = [name for (name,) in db.execute("SELECT DISTINCT environment FROM usable ORDER BY 1").fetchall()]
        return Profile(
            rows_read=result.rows_read,
            rows_kept=result.rows_kept,
            dropped={str(reason): count for reason, count in result.dropped.items()},
            drops=tuple(
                Dropped(
                    reason=reason,
                    count=count,
                    source=result.examples[reason][0],
                    line=result.examples[reason][1],
                )
                for reason, count in result.dropped.items()
            ),
            files=len(result.sources),
            bytes=sum(source["bytes"] for source in result.sources),
            truncated=_one(db, "SELECT count(*) FROM usable WHERE truncated"),
            duplicate_answers=_one(
                db,
                "SELECT count(*) - count(DISTINCT (task_key, answer_key)) FROM usable "
                "WHERE task_key IS NOT NULL AND answer_key IS NOT NULL",
            ),
            environments=tuple(_environment(db, name) for name in names),
            models=_counts(db, "SELECT coalesce(model, '(not named)'), count(*) FROM usable GROUP BY 1"),
            tools=_counts(db, "SELECT unnest(tools_called) AS tool, count(*) FROM usable GROUP BY 1", most=50),
            lengths=_lengths(db),
            metrics=_spreads(
                db,
                "SELECT unnest(map_keys(metrics)) AS name, unnest(map_values(metrics)) AS value FROM usable",
            ),
            checked=_check(result.tables, result.rows_kept),
        )


def _listed(tables: Sequence[Path]) -> str:
    # a view cannot have parameters
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in tables) + "]"


def _one(db: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> Any:
    found = db.execute(query, list(values)).fetchone()
    assert found is not None
    return found[0]


def _counts(db: duckdb.DuckDBPyConnection, query: str, most: int = 1000) -> dict[str, int]:
    return dict(db.execute(f"{query} ORDER BY 2 DESC, 1 LIMIT {most}").fetchall())


def _spreads(db: duckdb.DuckDBPyConnection, query: str) -> dict[str, Spread]:
    """Spread of `value` for each `name` of a query's rows."""
    rows = db.execute(
        f"SELECT name, count(value), fsum(value) / count(value), "
        f"stddev_samp(value ORDER BY value), min(value), median(value), "
        f"quantile_cont(value, 0.95), max(value) "
        f"FROM ({query}) WHERE value IS NOT NULL GROUP BY name ORDER BY name"
    ).fetchall()
    fields = list(Spread.model_fields)
    return {name: Spread(**dict(zip(fields, values, strict=True))) for name, *values in rows}


def _lengths(db: duckdb.DuckDBPyConnection) -> dict[str, Spread]:
    columns = ("turns", "tool_calls", "prompt_chars", "answer_chars", "output_tokens", "row_bytes")
    each = " UNION ALL ".join(f"SELECT '{name}' AS name, {name}::DOUBLE AS value FROM usable" for name in columns)
    found = _spreads(db, each)
    return {name: found[name] for name in columns if name in found}


def _environment(db: duckdb.DuckDBPyConnection, name: str) -> Environment:
    db.execute(
        "CREATE OR REPLACE TEMP TABLE here AS SELECT * EXCLUDE (raw) FROM usable WHERE environment = ?",
        [name],
    )
    reward = _spreads(db, "SELECT 'reward' AS name, reward AS value FROM here")["reward"]
    values = [value for (value,) in db.execute("SELECT DISTINCT reward FROM here LIMIT 3").fetchall()]
    kind, solved_at = _kind(reward, values)
    low, high = (0.0, 1.0) if reward.min >= 0 and reward.max <= 1 else (None, None)
    rewards = [value for (value,) in db.execute("SELECT reward FROM here").fetchall()]
    bins = histogram(rewards, _BINS, low=low, high=high)
    gap = _GAP * (reward.max - reward.min)
    db.execute(
        """
        CREATE OR REPLACE TEMP TABLE task AS
        SELECT task_key, count(*) AS n, count(*) FILTER (reward >= $at) AS solved,
            min(reward) AS low, max(reward) AS high,
            count(DISTINCT answer_key) FILTER (NOT truncated) AS answers,
            max(reward) FILTER (NOT truncated) - min(reward) FILTER (NOT truncated) AS gap
        FROM here WHERE task_key IS NOT NULL GROUP BY task_key
        """,
        {"at": solved_at},
    )
    counted = db.execute(
        """
        SELECT count(*), count(*) FILTER (solved = 0), count(*) FILTER (solved > 0 AND solved < n),
            count(*) FILTER (solved = n), count(*) FILTER (gap >= $gap AND gap > 0 AND answers > 1),
            count(*) FILTER (n > 1 AND high > low)
        FROM task
        """,
        {"gap": gap},
    ).fetchone()
    assert counted is not None
    tasks, never, sometimes, always, pairs, signal = counted
    rows = reward.count
    components = db.execute("SELECT DISTINCT unnest(map_keys(metrics)) AS name FROM here ORDER BY name").fetchall()
    prefix = "reward_components."
    return Environment(
        name=name,
        rows=rows,
        tasks=tasks,
        rollouts_per_task=_spreads(db, "SELECT 'n' AS name, n::DOUBLE AS value FROM task").get("n"),
        ungroupable=_one(db, "SELECT count(*) FROM here WHERE task_key IS NULL"),
        reward=reward,
        reward_kind=kind,
        components=tuple(field.removeprefix(prefix) for (field,) in components if field.startswith(prefix)),
        histogram=bins,
        solved_at=solved_at,
        never=never,
        sometimes=sometimes,
        always=always,
        sft_rows=_one(
            db,
            "SELECT count(DISTINCT (coalesce(task_key, rollout_id), answer_key)) FROM here "
            "WHERE reward >= ? AND NOT truncated",
            [solved_at],
        ),
        dpo_pairs=pairs,
        kto_desirable=_one(db, "SELECT count(*) FROM here WHERE reward >= ? AND NOT truncated", [solved_at]),
        kto_undesirable=_one(db, "SELECT count(*) FROM here WHERE reward < ? AND NOT truncated", [solved_at]),
        rl_tasks=signal,
    )


def _kind(reward: Spread, some: Sequence[float]) -> tuple[RewardKind, float]:
    """The kind of an environment's rewards, and from which reward on a rollout counts as solved."""
    if reward.min == reward.max:
        return "constant", 1.0 if 0 <= reward.min <= 1 else reward.min
    if set(some) <= {0.0, 1.0}:
        return "binary", 1.0
    if reward.min >= 0 and reward.max <= 1:
        return "continuous", 0.5
    return "unbounded", (reward.min + reward.max) / 2


def _check(tables: Sequence[Path], usable: int) -> Checked:
    """Convert a sample: every k-th usable row, so that all parts of the input are looked at."""
    import pyarrow.parquet as pq

    step = max(1, -(-usable // CHECKED_ROWS))
    problems: Counter[str] = Counter()
    rows = seen = 0
    for path in tables:
        reasons = pq.ParquetFile(path).read(columns=["drop_reason"])["drop_reason"].to_pylist()
        positions = [position for position, reason in enumerate(reasons) if reason is None]
        chosen = [position for number, position in enumerate(positions, seen) if number % step == 0]
        seen += len(positions)
        for raw in read_raw(path, chosen):
            rows += 1
            try:
                chat.require_trainable(chat.convert(parse(raw)))
            except (chat.Unrepresentable, Unreadable) as problem:
                problems[str(problem.reason)] += 1
    ordered = {str(reason): problems[reason] for reason in DropReason if problems[reason]}
    return Checked(rows=rows, of=usable, trainable=rows - sum(ordered.values()), problems=ordered)
