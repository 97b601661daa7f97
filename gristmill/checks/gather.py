"""Gather the evidence that stands in columns: rollout tables and the selection over them, by DuckDB.

Reads no payload. Environments are judged apart, since two environments' rewards have nothing in common; nothing here
assumes that rewards lie in 0..1. Every order is total, so equal input gives equal evidence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill.checks.evidence import Conflict, Environment, Evidence, Method, Pairs, RewardKind, Spread, Turn
from gristmill.checks.remedies import TaskCounts
from gristmill.histogram import Histogram, histogram
from gristmill.pairs import Candidate, pair
from gristmill.reasons import DropReason
from gristmill.recipe import PairsRecipe
from gristmill.scale import Scale, scale

if TYPE_CHECKING:
    import duckdb
    import numpy as np

CHARS_PER_TOKEN = 4.0  # of English text under common tokenizers; measured instead where rollouts count their tokens
_COLUMNS = (
    *("rollout_id", "source", "agent", "task_key", "reward", "metrics", "model", "answer_key"),
    *("answer_chars", "prompt_chars", "output_tokens", "truncated"),
)
_NEAR_FULL = 0.95
_BINS = 20
_CONFLICT_ROWS = 20  # fewer say nothing about a correlation


def reward_kind(low: float, high: float, *, binary: bool) -> RewardKind:
    """The kind of rewards that lie between `low` and `high`; `binary`: none is other than 0 and 1."""
    if low == high:
        return "constant"
    if binary:
        return "binary"
    return "continuous" if low >= 0 and high <= 1 else "unbounded"


class Gathered(NamedTuple):
    """The evidence, and what remedies are computed from."""

    evidence: Evidence
    groups: Groups | None
    tasks: list[TaskCounts]
    rewards: list[float]
    """Distinct rewards of usable rollouts, ascending."""


def gather(
    tables: Sequence[Sequence[Path]],
    selection: Path,
    counts: Mapping[str, Any],
    *,
    method: Method,
    pairs: PairsRecipe | None = None,
    label_threshold: float | None = None,
    seed: int = 0,
    max_length: int | None = None,
    samples: int | None = None,
) -> Gathered:
    """The evidence of tables and of what was chosen from them.

    Args:
        tables: the Parquet files of each table, in row order; oldest table first.
        selection: the `selection.parquet` over them.
        counts: of the last stage so far: `rows_read`, `dropped`, and `examples` (training rows) or `rows_kept`.
        pairs: how preference pairs are made; None makes none.
        label_threshold: KTO's, from which reward on an answer is desirable; None takes each environment's own.
        seed: of the recipe.
        max_length: tokens that training keeps of a row.
        samples: rollouts a task that the recipe asks for.
    """
    import duckdb

    with duckdb.connect() as db:
        db.execute("SET memory_limit = '2GB'")
        _load(db, tables, selection)
        (usable, truncated, chosen) = _row(
            db, "SELECT count(*), count(*) FILTER (truncated), count(*) FILTER (chosen) FROM rollout"
        )
        environments = _environments(db)
        good, bad = _row(
            db,
            "SELECT count(*) FILTER (reward >= coalesce($at, solved_at)), "
            "count(*) FILTER (reward < coalesce($at, solved_at)) "
            "FROM rollout JOIN environment USING (environment) WHERE NOT truncated",
            {"at": label_threshold},
        )
        tasks, largest = _row(
            db,
            "SELECT count(*), coalesce(max(n), 0) FROM "
            "(SELECT count(*) AS n FROM rollout WHERE chosen GROUP BY coalesce(task_key, rollout_id))",
        )
        lengths = _column(db, "answer_chars", "chosen")
        tokens = _column(db, f"(answer_chars + prompt_chars) / {_chars_per_token(db)!r}", "chosen")
        chars = spread(lengths)
        fence = chars.p75 + 3 * (chars.p75 - chars.p25) if chars else 0.0
        grouped = groups(db) if pairs is not None or method == "rl" else None
        made = None if pairs is None or grouped is None else pair_up(grouped, pairs, seed)
        signal = sum(one.signal_tasks for one in environments)
        wanted = made.count if made else {"kto": good + bad, "rl": signal}.get(method, chosen)
        evidence = Evidence(
            method=method,
            rows_read=counts["rows_read"],
            usable=usable,
            dropped=dict(counts["dropped"]),
            examples=counts.get("examples", wanted),
            chosen=chosen,
            truncated=truncated,
            environments=environments,
            pairs=made,
            desirable=good,
            undesirable=bad,
            chosen_tasks=tasks,
            largest_task=largest,
            answer_chars=chars,
            answer_bins=bins(lengths),
            long_outliers=int((lengths > fence).sum()),
            tokens=spread(tokens),
            token_bins=bins(tokens),
            max_length=max_length,
            over_length=0 if max_length is None else int((tokens > max_length).sum()),
            duplicates=_one(
                db,
                "SELECT count(*) - count(DISTINCT (task_key, answer_key)) FROM rollout "
                "WHERE task_key IS NOT NULL AND answer_key IS NOT NULL",
            ),
            commonest_answer_tasks=_one(
                db,
                "SELECT coalesce(max(n), 0) FROM (SELECT count(DISTINCT coalesce(task_key, rollout_id)) AS n "
                "FROM rollout WHERE chosen AND answer_key IS NOT NULL GROUP BY answer_key)",
            ),
            turns=_turns(db, len(tables)),
            chosen_models=_counts(
                db, "SELECT coalesce(model, '(not named)'), count(*) FROM rollout WHERE chosen GROUP BY 1"
            ),
            samples=samples,
            tasks=sum(one.tasks for one in environments),
        )
        tasks = [TaskCounts(*row) for row in db.execute(_TASK_COUNTS).fetchall()]
        rewards = [reward for (reward,) in db.execute("SELECT DISTINCT reward FROM rollout ORDER BY 1").fetchall()]
        return Gathered(evidence, grouped, tasks, rewards)


def _load(db: duckdb.DuckDBPyConnection, tables: Sequence[Sequence[Path]], selection: Path) -> None:
    """`rollout`: usable rows with `environment`, `at_table` and `chosen`."""
    parts, values = [], []
    for number, files in enumerate(tables):
        for order, path in enumerate(files):
            parts.append(
                f"SELECT {number} AS at_table, {order} AS at_file, file_row_number AS at_row, {', '.join(_COLUMNS)} "
                "FROM read_parquet(?, file_row_number = true) WHERE drop_reason IS NULL"
            )
            values.append(str(path))
    db.execute(
        f"""
        CREATE TEMP TABLE rollout AS
        SELECT r.*, coalesce(r.agent, r.source) AS environment,
            s.at_row IS NOT NULL AND s.reason IS NULL AS chosen, s.reason AS left_out
        FROM ({" UNION ALL ".join(parts)}) r
        LEFT JOIN (SELECT at_table, at_file, at_row, reason FROM read_parquet(?)) s USING (at_table, at_file, at_row)
        """,
        [*values, str(selection)],
    )


def _row(db: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] | dict[str, Any] = ()) -> tuple[Any, ...]:
    found = db.execute(query, values).fetchone()
    assert found is not None
    return tuple(found)


def _one(db: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> Any:
    return _row(db, query, values)[0]


def _counts(db: duckdb.DuckDBPyConnection, query: str) -> dict[str, int]:
    return dict(db.execute(f"{query} ORDER BY 2 DESC, 1").fetchall())


def _column(db: duckdb.DuckDBPyConnection, value: str, condition: str = "true") -> np.ndarray:
    """The values of an expression, in the rows' order."""
    import numpy as np

    query = f"SELECT ({value})::DOUBLE AS v FROM rollout WHERE {condition} ORDER BY at_table, at_file, at_row"
    return np.asarray(db.execute(query).fetchnumpy()["v"], np.float64)


def spread(values: Sequence[float] | np.ndarray) -> Spread | None:
    """How numbers are distributed; None of none."""
    import numpy as np

    if not len(values):
        return None
    low, p25, middle, p75, p99, high = (float(q) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 0.99, 1]))
    mean = float(np.mean(values))
    return Spread(count=len(values), mean=mean, min=low, p25=p25, median=middle, p75=p75, p99=p99, max=high)


def bins(values: Sequence[float] | np.ndarray, low: float | None = None, high: float | None = None) -> Histogram | None:
    """About twenty bins that hold all values (and `low`, `high`); None of none."""
    return histogram(values, _BINS, low=low, high=high) if len(values) else None


def _environments(db: duckdb.DuckDBPyConnection) -> tuple[Environment, ...]:
    """Each environment, by name; leaves tables `environment` (its span) and `task` (repeated or not) behind."""
    found = db.execute(
        "SELECT environment, min(reward), max(reward), bool_and(reward IN (0, 1)), "
        "count(*) FILTER (task_key IS NULL) FROM rollout GROUP BY 1 ORDER BY 1"
    ).fetchall()
    scales = {name: scale(low, high, binary) for name, low, high, binary, _ in found}
    # numbers and text bound one by one: environments are few
    db.execute("CREATE TEMP TABLE environment (environment TEXT, solved_at DOUBLE, low DOUBLE, high DOUBLE)")
    for name, one in scales.items():
        db.execute("INSERT INTO environment VALUES (?, ?, ?, ?)", [name, one.solved_at, one.low, one.high])
    db.execute(
        """
        CREATE TEMP TABLE task AS
        SELECT environment, task_key, at_table, count(*) AS n, count(*) FILTER (reward >= solved_at) AS solved,
            min(reward) AS low, max(reward) AS high, stddev_pop(reward ORDER BY reward) AS std,
            count(DISTINCT answer_key) AS answers
        FROM rollout JOIN environment USING (environment) WHERE task_key IS NOT NULL
        GROUP BY environment, task_key, at_table, environment.low, environment.high
        """
    )
    quarters = ", ".join(
        f"count(*) FILTER (n > 1 AND solved > 0 AND solved < n AND ceil(4 * solved / n) = {quarter})"
        for quarter in (1, 2, 3, 4)
    )
    tasks = {
        name: values
        for name, *values in db.execute(
            f"""
            SELECT environment, count(*), count(*) FILTER (n > 1), count(*) FILTER (n > 1 AND high > low),
                count(*) FILTER (n > 1 AND solved = 0), count(*) FILTER (n > 1 AND solved = n),
                fsum(std ORDER BY std) FILTER (n > 1), {quarters}
            FROM task GROUP BY environment
            """
        ).fetchall()
    }
    solved = _counts(
        db,
        "SELECT environment, count(*) FILTER (reward >= solved_at) FROM rollout JOIN environment USING (environment) "
        "GROUP BY 1",
    )
    common = {
        name: (reward, rows)
        for name, reward, rows in db.execute(
            "SELECT environment, reward, count(*) FROM rollout GROUP BY 1, 2 "
            "QUALIFY row_number() OVER (PARTITION BY environment ORDER BY count(*) DESC, reward) = 1"
        ).fetchall()
    }
    conflicts = _conflicts(db)
    made = []
    for name, low, high, binary, ungroupable in found:
        rewards = _rewards(db, name)
        ends = (0.0, 1.0) if low >= 0 and high <= 1 else (None, None)
        all_tasks, repeated, signal, never, always, std, *rates = tasks.get(name, [0, 0, 0, 0, 0, None, 0, 0, 0, 0])
        made.append(
            Environment(
                name=name,
                rows=len(rewards),
                reward=spread(rewards),
                bins=bins(rewards, *ends),
                kind=reward_kind(low, high, binary=binary),
                solved_at=scales[name].solved_at,
                solved=solved[name],
                commonest=common[name][0],
                commonest_rows=common[name][1],
                tasks=all_tasks,
                repeated_tasks=repeated,
                ungroupable=ungroupable,
                signal_tasks=signal,
                never=never,
                always=always,
                solve_rates=(never, *rates, always),
                within_std=std / repeated if repeated else None,
                conflicts=tuple(conflicts.get(name, ())),
            )
        )
    return tuple(made)


def _rewards(db: duckdb.DuckDBPyConnection, environment: str) -> np.ndarray:
    import numpy as np

    query = "SELECT reward FROM rollout WHERE environment = ? ORDER BY reward"
    return np.asarray(db.execute(query, [environment]).fetchnumpy()["reward"], np.float64)


def _conflicts(db: duckdb.DuckDBPyConnection) -> dict[str, list[Conflict]]:
    """Parts of a reward (`reward_components`) and the reward itself, each pair that is negatively correlated.

    Spearman: the correlation of ranks, so that the scale of a part does not matter.
    """
    found = db.execute(
        """
        WITH part AS (
            SELECT at_table, at_file, at_row, environment, unnest(map_keys(metrics)) AS name,
                unnest(map_values(metrics)) AS value
            FROM rollout
        ), score AS (
            SELECT at_table, at_file, at_row, environment, replace(name, 'reward_components.', '') AS name, value
            FROM part WHERE starts_with(name, 'reward_components.')
        ), ranked AS (
            SELECT *, rank() OVER same + (count(*) OVER (PARTITION BY environment, name, value) - 1) / 2.0 AS place
            FROM score WINDOW same AS (PARTITION BY environment, name ORDER BY value)
        )
        SELECT environment, a.name, b.name, corr(a.place, b.place ORDER BY a.place, b.place), count(*)
        FROM ranked a JOIN ranked b USING (at_table, at_file, at_row, environment)
        WHERE a.name < b.name
        GROUP BY 1, 2, 3 HAVING count(*) >= ? ORDER BY 1, 4, 2, 3
        """,
        [_CONFLICT_ROWS],
    ).fetchall()
    conflicts: dict[str, list[Conflict]] = {}
    for environment, first, second, correlation, rows in found:
        if correlation is not None and correlation < 0:
            conflicts.setdefault(environment, []).append(
                Conflict(first=first, second=second, correlation=round(correlation, 6), rows=rows)
            )
    return conflicts


class Groups(NamedTuple):
    """The rollouts of each task, and the scale of their environment's rewards."""

    tasks: list[tuple[Scale, list[Candidate]]]
    binary: bool
    """Every environment with a task has binary rewards."""


# rollouts that pass every filter: what is chosen, and what only repeats or exceeds it
_TASK_COUNTS = f"""
    WITH good AS (
        SELECT coalesce(task_key, rollout_id) AS unit, answer_key, chosen,
            chosen OR left_out IN ('{DropReason.DUPLICATE_ANSWER}', '{DropReason.OVER_TASK_CAP}') AS good
        FROM rollout
    ), answer AS (
        SELECT unit, answer_key, count(*) AS n FROM good WHERE good GROUP BY unit, answer_key
    ), said AS (
        SELECT unit, count(*) AS answers, count(*) FILTER (n = 1) AS single FROM answer GROUP BY unit
    )
    SELECT count(*), count(*) FILTER (good), count(*) FILTER (chosen),
        coalesce(max(answers), 0), coalesce(max(single), 0)
    FROM good LEFT JOIN said USING (unit) GROUP BY unit ORDER BY unit
"""


def groups(db: duckdb.DuckDBPyConnection) -> Groups:
    """Tasks of known identity, ready to be paired."""
    found = db.execute(
        """
        SELECT environment, task_key, rollout_id, reward, answer_key, answer_chars, truncated
        FROM rollout WHERE task_key IS NOT NULL
        ORDER BY environment, task_key, at_table, at_file, at_row
        """
    ).fetchall()
    scales = {}
    for name, low, high, binary in db.execute(
        "SELECT environment, min(reward), max(reward), bool_and(reward IN (0, 1)) FROM rollout GROUP BY 1"
    ).fetchall():
        scales[name] = scale(low, high, binary)
    tasks = []
    for (name, _), rows in groupby(found, key=lambda row: row[:2]):
        candidates = [
            Candidate(rollout_id, reward, answer, length, DropReason.TRUNCATED if cut else None)
            for _, _, rollout_id, reward, answer, length, cut in rows
        ]
        tasks.append((scales[name], candidates))
    return Groups(tasks, bool(scales) and all(one.binary for one in scales.values()))


def pair_up(made: Groups, settings: PairsRecipe, seed: int = 0) -> Pairs:
    """The pairs that formatting would make, as far as columns tell (it also drops what has no chat form)."""
    gaps: list[float] = []
    better: list[int] = []
    worse: list[int] = []
    small = 0
    for unit, candidates in made.tasks:
        found = pair(candidates, settings, unit, seed=seed)
        small += not found.pairs and DropReason.NO_GAP in found.dropped.values() and _differ(candidates)
        for one in found.pairs:
            chosen, rejected = candidates[one.chosen], candidates[one.rejected]
            gaps.append(round((chosen.reward - rejected.reward) / unit.unit, 9))
            better.append(chosen.length)
            worse.append(rejected.length)
    return Pairs(
        count=len(gaps),
        small=small,
        gaps=spread(gaps),
        gap_bins=bins(gaps, 0.0, 1.0),
        near_full=sum(gap >= _NEAR_FULL for gap in gaps),
        binary=made.binary,
        chosen_chars=float(median(better)) if better else None,
        rejected_chars=float(median(worse)) if worse else None,
        longer_chosen=sum(a > b for a, b in zip(better, worse, strict=True)),
    )


def _differ(candidates: Sequence[Candidate]) -> bool:
    rewards = {one.reward for one in candidates if one.unusable is None}
    return len(rewards) > 1


def _turns(db: duckdb.DuckDBPyConnection, tables: int) -> tuple[Turn, ...]:
    """Each table, oldest first."""
    turns = []
    for number in range(tables):
        rows, mean = _row(
            db, "SELECT count(*), fsum(reward ORDER BY reward) / count(*) FROM rollout WHERE at_table = ?", [number]
        )
        distinct = _one(
            db,
            "SELECT fsum(share ORDER BY share) / count(*) FROM "
            "(SELECT answers / n AS share FROM task WHERE at_table = ? AND n > 1)",
            [number],
        )
        models = dict(
            db.execute(
                "SELECT coalesce(model, '(not named)'), count(*) FROM rollout WHERE at_table = ? "
                "GROUP BY 1 ORDER BY 2 DESC, 1",
                [number],
            ).fetchall()
        )
        if rows:
            turns.append(Turn(rows=rows, mean_reward=mean, distinct=distinct, models=models))
    return tuple(turns)


def _chars_per_token(db: duckdb.DuckDBPyConnection) -> float:
    """Measured on answers without hidden reasoning; else the usual figure."""
    chars, tokens = _row(
        db,
        "SELECT sum(answer_chars), sum(output_tokens) FROM rollout "
        "WHERE output_tokens > 0 AND answer_chars >= 2 * output_tokens",
    )
    return float(chars) / float(tokens) if tokens else CHARS_PER_TOKEN
