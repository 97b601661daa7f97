"""Choosing: the rules of a recipe over rollout tables, then duplicates, caps and balance. Used by curate and explain.

Columns are read once, and only those that the recipe needs; the payload is read only of rows that pass the rules
and are no exact duplicates, and only where near-duplicates or tokens are asked for. Every order is total and
follows from content: accepted in review first, then shorter answers, then the rollout's identity, then position.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from gristmill import scan
from gristmill.balance import NONE, quotas
from gristmill.columns import integers, numbers
from gristmill.condition import Names
from gristmill.errors import GristmillError
from gristmill.reasons import DropReason
from gristmill.recipe import CurateRecipe
from gristmill.rules import rules

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Positions = "np.ndarray[Any, np.dtype[np.int64]]"
_FILE, _TABLE = 32, 48  # bits of a position: row, file, table


class Stage(NamedTuple):
    """What one step after the rules drops."""

    reason: DropReason
    text: str
    origin: str
    positions: np.ndarray[Any, np.dtype[np.int64]]
    """Of the rows that it drops, ascending."""
    twins: list[str] | None = None
    """Of each, the rollout that was kept in its place."""


class Chosen(NamedTuple):
    """The steps after the rules, in order, and how many rows are left."""

    stages: list[Stage]
    rows: int
    balance: dict[str, dict[str, int]]
    """Category → rollouts `before` balancing and `kept`."""


class Choosing:
    """A recipe applied to tables; use as a context manager."""

    def __init__(
        self,
        tables: Sequence[Sequence[Path]],
        recipe: CurateRecipe,
        decisions: Mapping[str, str],
        seed: int,
    ) -> None:
        """Binds the rules; reads nothing yet but what names need.

        Raises:
            RecipeError: a condition or the balanced expression cannot be used.
        """
        self._tables, self.recipe, self._seed = tables, recipe, seed
        judgements = set(decisions.values())
        self._reviewed = bool(judgements - {"taint"})
        self._db = scan.connect(tables)
        try:
            self._db.execute("CREATE TEMP TABLE decisions (rollout_id VARCHAR, decision VARCHAR)")
            if decisions:
                self._db.execute(
                    "INSERT INTO decisions SELECT unnest($1), unnest($2)", [list(decisions), list(decisions.values())]
                )
            self._names = Names(self._db)
            self.rules = rules(recipe, self._names, reviewed=self._reviewed, tainted="taint" in judgements)
            by = recipe.balance
            self._category = self._names.value(by.by, "curate.balance.by") if by else None
            self._accepted = self._names.value("decision = 'accept'", "review") if self._reviewed else None
            self._names.check([(rule.text, rule.label, rule.sql) for rule in self.rules])
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    @cached_property
    def rows(self) -> pa.Table:
        """Usable rows in the tables' order: `spot` (table, file and row in one number), `rollout_id`, `task_key`,
        `reward`, `truncated`, `fails` (a bit for each rule that does not hold) and `unknown` (a bit for each that is
        null); and what choosing needs.

        Raises:
            RecipeError: a condition fails on some row.
            ArtifactDamaged: a table cannot be read.
        """
        import duckdb

        def bits(test: str) -> str:
            each = [f"(({rule.sql}) {test})::UBIGINT << {bit}" for bit, rule in enumerate(self.rules)]
            return " | ".join(f"({one})" for one in each) or "0::UBIGINT"

        columns = [
            f"(at_table::BIGINT << {_TABLE}) | (at_file::BIGINT << {_FILE}) | at_row AS spot",
            "rollout_id, task_key, reward, truncated::UTINYINT AS truncated",
            f"{bits('IS NOT TRUE')} AS fails",
            f"{bits('IS NULL')} AS unknown",
        ]
        if self.recipe.deduplicate:
            columns.append("coalesce(answer_key, rollout_id) AS answer")
        if self.recipe.deduplicate or self.recipe.per_task:
            columns.append("answer_chars")
        if self._category:
            columns.append(f"coalesce(({self._category})::VARCHAR, {scan.text(NONE)}) AS category")
        if self._accepted:
            columns.append(f"coalesce({self._accepted}, false)::UTINYINT AS accepted")
        # DuckDB keeps the order of a scan, but not that of a join
        order = " ORDER BY spot" if self._names.joined else ""
        query = f"SELECT {', '.join(columns)} FROM ({self._names.source()}){order}"
        try:
            return self._db.sql(query).to_arrow_table()
        except duckdb.Error as error:
            raise self._culprit(error) from None

    def _culprit(self, error: Exception) -> GristmillError:
        """The condition on which a row fails, such as one that casts text to a number; or a damaged table."""
        import duckdb

        try:
            self._db.execute("SELECT count(COLUMNS(*)) FROM rollouts").fetchall()
        except duckdb.Error as own:
            return scan.damaged(own)
        for rule in self.rules:
            try:
                self._db.execute(f"SELECT count(*) FROM ({self._names.source()}) WHERE {rule.sql}").fetchall()
            except duckdb.Error as own:
                return self._names.refusal(rule.text, rule.label, own)
        by = self.recipe.balance
        return self._names.refusal(by.by if by else "", "curate.balance.by", error)

    def choose(self, *, without: int = 0, recipe: CurateRecipe | None = None) -> Chosen:
        """What follows the rules.

        Args:
            without: bits of rules that are not asked.
            recipe: another one, of the same rules and with fewer later steps.
        """
        import numpy as np

        recipe, rows = recipe or self.recipe, self.rows
        self._db.register("judged", rows)
        asked = np.uint64(~without & (1 << 64) - 1)
        passing = int(np.count_nonzero((numbers(rows["fails"]) & asked) == 0))
        stages: list[Stage] = []
        lost = none = np.empty(0, np.int64)
        if recipe.near_duplicates or recipe.max_tokens:
            first = self._windows(recipe, without, none)
            fresh = numbers(first["spot"])[numbers(first["copy"]) == 1]
            lost = self._payload(np.sort(fresh), stages)
        told = self._windows(recipe, without, lost)
        found = {name: numbers(told[name]) for name in told.column_names if name != "category"}
        if recipe.deduplicate:
            copies = np.flatnonzero(found["copy"] > 1)
            copies = copies[np.argsort(found["spot"][copies])]
            kept_rows = np.searchsorted(numbers(rows["spot"]), found["first"][copies])
            twins = rows["rollout_id"].take(integers(kept_rows)).to_pylist()
            text = "one of equal answers a task"
            stages.insert(0, Stage(DropReason.DUPLICATE_ANSWER, text, "deduplicate", found["spot"][copies], twins))
        fresh = found["fresh"] == 1
        kept = fresh
        if recipe.per_task:
            kept = fresh & (found["place"] <= recipe.per_task)
            text = f"at most {recipe.per_task} a task"
            stages.append(Stage(DropReason.OVER_TASK_CAP, text, "per_task", np.sort(found["spot"][fresh & ~kept])))
        balance: dict[str, dict[str, int]] = {}
        if recipe.balance:
            coded = told["category"].combine_chunks().dictionary_encode()
            names, which = coded.dictionary.to_pylist(), numbers(coded.indices)[kept]
            counts = dict(zip(names, np.bincount(which, minlength=len(names)).tolist(), strict=True))
            available = {name: counts[name] for name in sorted(counts) if counts[name]}
            allowed = quotas(available, recipe.balance)
            over = found["turn"][kept] > np.array([allowed.get(name, 0) for name in names], np.int64)[which]
            how = f"at most {recipe.balance.cap} each" if recipe.balance.cap else "by weights"
            text = f"balanced by {recipe.balance.by}, {how}"
            stages.append(Stage(DropReason.BALANCED_OUT, text, "balance", np.sort(found["spot"][kept][over])))
            balance = {name: {"before": count, "kept": min(count, allowed[name])} for name, count in available.items()}
        return Chosen(stages, passing - sum(len(stage.positions) for stage in stages), balance)

    def _windows(self, recipe: CurateRecipe, without: int, lost: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
        """Of each row that passes the rules: the how-many-th copy it is, whose, and its place in task and category."""
        import pyarrow as pa

        accepted = "accepted DESC, " if self._reviewed else ""
        preferred = f"{accepted}answer_chars, rollout_id, spot"
        drawn = f"{accepted}md5_number({scan.text(f'{self._seed}:')} || rollout_id), spot"
        task = "coalesce(task_key, rollout_id) AS task"
        same = f"(PARTITION BY task, answer ORDER BY {preferred})"
        copy = f"row_number() OVER {same} AS copy, first_value(spot) OVER {same} AS first"
        once = "1 AS copy, spot AS first"
        place = f"row_number() OVER (PARTITION BY task, fresh ORDER BY {preferred})" if recipe.per_task else "1"
        under = f"place <= {recipe.per_task}" if recipe.per_task else "true"
        turn = f"row_number() OVER (PARTITION BY category, fresh AND {under} ORDER BY {drawn})"
        asked = (1 << 64) - 1 & ~without
        unlost = " AND spot NOT IN (SELECT spot FROM lost)" if len(lost) else ""
        self._db.register("lost", pa.table({"spot": integers(lost)}))
        found = self._db.sql(
            f"""
            WITH passing AS (SELECT *, {task} FROM judged WHERE fails & {asked}::UBIGINT = 0),
                copied AS (SELECT *, {copy if recipe.deduplicate else once} FROM passing),
                told AS (SELECT *, copy = 1{unlost} AS fresh FROM copied),
                placed AS (SELECT *, {place} AS place FROM told)
            SELECT spot, copy, first, fresh::UTINYINT AS fresh, place
                {f", category, {turn} AS turn" if recipe.balance else ""}
            FROM placed
            """
        )
        return found.to_arrow_table()

    def _payload(
        self, positions: np.ndarray[Any, np.dtype[np.int64]], stages: list[Stage]
    ) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Add the steps that need the rows' text; the positions of rows that these drop."""
        import numpy as np

        from gristmill import payload

        limit, threshold = self.recipe.max_tokens, self.recipe.near_duplicates
        at_table, at_file, at_row = place(positions)
        places = []
        for number, table in enumerate(self._tables):
            for file, part in enumerate(table):
                mine = at_row[(at_table == number) & (at_file == file)]
                if len(mine):
                    places.append((part, mine))
        shards = list(payload.read(places, tokenizer=self.recipe.tokenizer, sketches=threshold is not None))
        fits = np.ones(len(positions), bool)
        if limit is not None:
            tokens = [count for shard in shards for count in shard.tokens]
            fits = np.array([count is None or count <= limit for count in tokens], bool)
            text = f"at most {limit} tokens ({self.recipe.tokenizer})"
            stages.append(Stage(DropReason.OVER_LENGTH, text, "max_tokens", positions[~fits]))
        lost = [positions[~fits]]
        if threshold is not None:
            sketches = [sketch for shard in shards for sketch in shard.sketches]
            rows = np.searchsorted(numbers(self.rows["spot"]), positions)
            identities, tasks = (
                self.rows[name].take(integers(rows)).to_pylist() for name in ("rollout_id", "task_key")
            )
            accepted = numbers(self.rows["accepted"])[rows] if self._reviewed else np.zeros(len(rows), np.uint8)
            # earlier tables first, so that what a turn adds displaces nothing; then by content, not by line
            order = sorted(
                np.flatnonzero(fits).tolist(),
                key=lambda at: (-accepted[at], at_table[at], identities[at], positions[at]),
            )
            known = [tasks[at] or identities[at] for at in order]
            found = payload.twins([sketches[at] for at in order], known, threshold)
            alike = sorted((at, order[twin]) for at, twin in zip(order, found, strict=True) if twin is not None)
            gone = positions[[at for at, _ in alike]] if alike else positions[:0]
            text = f"texts less than {threshold:g} alike"
            named = [identities[twin] for _, twin in alike]
            stages.append(Stage(DropReason.NEAR_DUPLICATE, text, "near_duplicates", gone, named))
            lost.append(gone)
        return np.sort(np.concatenate(lost))


def place(positions: np.ndarray[Any, np.dtype[np.int64]]) -> tuple[Any, Any, Any]:
    """Table, file and row of positions."""
    return positions >> _TABLE, positions >> _FILE & (1 << _TABLE - _FILE) - 1, positions & (1 << _FILE) - 1
