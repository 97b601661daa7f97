"""Conditions: what a user writes to say which rollouts to keep, read by DuckDB's own parser.

A condition is an SQL expression over one rollout. It may speak of (the first that has the name counts)

* the columns of the rollout table, and `environment`;
* what is known of the rollout's task and of its environment's scale (`DERIVED`), and `decision`, a reviewer's;
* every metric and label, by its bare name; `metrics.NAME` and `labels.NAME` say which is meant;
* the task fields of the materialized inputs (gristmill/inputs.py), by name or path: `difficulty`, `metadata.level`;
  `fields.NAME` says that a field is meant.

Only what an expression names is read. It sees one row: no subqueries, windows, aggregates or table functions, and
nothing that differs from run to run (the clock, random numbers, settings). `a AND b` is two conditions.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gristmill import scan
from gristmill.errors import RecipeError

if TYPE_CHECKING:
    import duckdb

TASK: dict[str, str] = {
    "task_rollouts": "count(*)",
    # in an order of its own, so that a sum does not depend on which thread added first
    "task_mean": "sum(reward ORDER BY reward) / count(*)",
    "task_min": "min(reward)",
    "task_max": "max(reward)",
    "task_std": "stddev_samp(reward ORDER BY reward)",
    "task_answers": "count(DISTINCT answer_key)",
    "task_solved": "count(*) FILTER (reward >= solved_at) / count(*)",
}
"""Over all usable rollouts of the task, before anything is dropped; null where the task is not known."""

SCALED: dict[str, str] = {
    "reward_scaled": "(reward - scales.low) / nullif(scales.high - scales.low, 0)",
    "solved": "reward >= scales.solved_at",
}
"""The reward on its environment's scale (gristmill/scale.py)."""

DERIVED = (*TASK, *SCALED, "decision")

_NUMBERS = "('UBIGINT', 'BIGINT', 'HUGEINT', 'UHUGEINT', 'DOUBLE', 'BOOLEAN')"
_REFUSED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "PARAMETER": "a parameter",
    "STAR": "`*`",
    "DEFAULT": "DEFAULT",
}


class Condition(NamedTuple):
    """One condition, as written and as SQL over `Names.source()`."""

    text: str
    sql: str


class Names:
    """Resolves the names in expressions, and remembers what must be joined for them."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        """`db` is from `scan.connect`, with a temporary table `decisions` (rollout_id, decision)."""
        self._db = db
        self._columns = scan.columns()
        views = db.execute("SELECT count(*) FROM duckdb_views() WHERE temporary AND view_name = 'inputs'").fetchall()
        self._has_inputs = views == [(1,)]
        self._found: dict[tuple[str, ...], str] = {}
        self._task: dict[str, None] = {}  # in order of use
        self._fields: dict[str, str] = {}
        self._lifted: dict[str, str] = {}
        self._joins: set[str] = set()

    @property
    def joined(self) -> bool:
        """Whether the source joins anything, and so no longer has the tables' order."""
        return bool(self._joins)

    # ---- reading expressions

    def conditions(self, text: str, label: str) -> list[Condition]:
        """The conditions that a user's text is made of; `check` them when all are known.

        Raises:
            RecipeError: it does not parse, or names something that is not there; `label` says where it stands.
        """
        tree = self._parse(text, label)
        expression = _expression(tree, label, text)
        whole = expression["type"] == "CONJUNCTION_AND"
        parts = expression["children"] if whole else [expression]
        texts = self._slices(text, tree, parts) if whole else [" ".join(text.split())]
        return [
            Condition(words, f"({self._sql(tree, self._resolved(part, label, text))})")
            for words, part in zip(texts, parts, strict=True)
        ]

    def value(self, text: str, label: str) -> str:
        """An expression that gives any value, as SQL over `source()`.

        Raises:
            RecipeError: as `conditions`.
        """
        tree = self._parse(text, label)
        return f"({self._sql(tree, self._resolved(_expression(tree, label, text), label, text))})"

    def check(self, conditions: Sequence[tuple[str, str, str]]) -> None:
        """Bind conditions (text, label, SQL) without reading a row.

        Raises:
            RecipeError: one does not fit its columns' types, or gives neither true or false nor a number.
        """
        import duckdb

        if not conditions:
            return
        together = ", ".join(sql for _, _, sql in conditions)
        try:
            found = self._db.execute(f"SELECT {together} FROM ({self.source()}) LIMIT 0").description
            self._db.fetchall()  # DuckDB refuses other work until a result is read to its end
        except duckdb.Error as error:
            if len(conditions) == 1:
                text, label, _ = conditions[0]
                raise self.refusal(text, label, error) from None
            for one in conditions:
                self.check([one])
            raise
        for (text, label, _), column in zip(conditions, found, strict=True):
            kind = str(column[1])
            if not re.match(r"BOOL|NULL|U?(TINY|SMALL|BIG|HUGE)?INT|DOUBLE|FLOAT|DECIMAL|NUMBER", kind):
                raise self.refusal(text, label, f"it gives {kind}, not true or false")

    def refusal(self, text: str, label: str, error: Exception | str) -> RecipeError:
        said = re.sub(r"\s+", " ", str(error).split("\n\nLINE")[0].split("\n")[0])
        return RecipeError(f"{label}: {text!r} cannot be used: {said}")

    def _parse(self, text: str, label: str) -> dict[str, Any]:
        tree = self._tree(text)
        if tree["error"]:
            raise self.refusal(text, label, tree["error_message"])
        return tree

    def _tree(self, text: str) -> dict[str, Any]:
        told = self._one("SELECT json_serialize_sql(?::VARCHAR)", f"SELECT {text}")
        tree: dict[str, Any] = orjson.loads(told)
        return tree

    def _sql(self, tree: dict[str, Any], expression: Any) -> str:
        """DuckDB's own writing of an expression."""
        statement = tree["statements"][0]
        whole = {
            **tree,
            "statements": [{**statement, "node": {**statement["node"], "select_list": [expression]}}],
        }
        told: str = self._one("SELECT json_deserialize_sql(?::JSON)", orjson.dumps(whole).decode())
        return told.removeprefix("SELECT ").strip()

    def _slices(self, text: str, tree: dict[str, Any], parts: Sequence[Any]) -> list[str]:
        """Each part in the user's own words where `AND` cuts the text into them, else as DuckDB writes it."""
        written = [self._sql(tree, part) for part in parts]
        pieces = re.split(r"(?i)(\band\b)", text)  # every second piece is an `and`
        said: list[str] = []
        start = 0
        for wanted in written:
            for stop in range(start + 1, len(pieces) + 1, 2):
                words = "".join(pieces[start:stop])
                one = self._tree(words)
                if not one["error"] and self._sql(one, one["statements"][0]["node"]["select_list"][0]) == wanted:
                    said.append(" ".join(re.sub(r"--[^\n]*", "", words).split()))
                    start = stop + 1
                    break
            else:
                return written
        return said if start > len(pieces) else written

    def _resolved(self, node: Any, label: str, text: str, bound: frozenset[str] = frozenset()) -> Any:
        """The tree with each name replaced by a column of `source()`."""
        if isinstance(node, list):
            return [self._resolved(item, label, text, bound) for item in node]
        if not isinstance(node, dict):
            return node
        kind = node.get("class")
        if kind in _REFUSED:
            raise self.refusal(text, label, f"it may not hold {_REFUSED[kind]}; it sees one rollout at a time")
        if kind == "FUNCTION":
            self._allow(node["function_name"], label, text)
        if kind == "LAMBDA":
            bound = bound | set(_names(node["lhs"]))
            return {**node, "expr": self._resolved(node["expr"], label, text, bound)}
        if kind == "COLUMN_REF":
            path = tuple(node["column_names"])
            return node if path[0] in bound else {**node, "column_names": [self._resolve(path, label, text)]}
        return {key: self._resolved(value, label, text, bound) for key, value in node.items()}

    def _allow(self, function: str, label: str, text: str) -> None:
        if function.lower() in self._allowed:
            return
        known = self._one("SELECT count(*) FROM duckdb_functions() WHERE function_name = ?", function.lower())
        if not known:
            near = difflib.get_close_matches(function.lower(), sorted(self._allowed), n=2)
            hint = f"; did you mean {' or '.join(near)}" if near else ""
            raise self.refusal(text, label, f"there is no function {function}{hint}")
        raise self.refusal(
            text,
            label,
            f"{function} is not allowed: a condition sees one rollout, and must give the same in every run"
            + (f"; of a rollout's task are known {', '.join(TASK)}" if function.lower() in _AGGREGATES else ""),
        )

    @cached_property
    def _allowed(self) -> frozenset[str]:
        """Functions of one row that give the same for the same row, and macros that are made of such alone."""
        rows = self._db.execute(
            "SELECT function_name, function_type, stability, macro_definition FROM duckdb_functions()"
        ).fetchall()
        scalar = {(name, stability == "CONSISTENT") for name, kind, stability, _ in rows if kind == "scalar"}
        unsteady = {name for name, steady in scalar if not steady} | {"select", *_SETTINGS}
        macros = {
            name
            for name, kind, _, body in rows
            if kind == "macro" and not unsteady & set(re.findall(r"\w+", (body or "select").lower()))
        }
        return frozenset({name for name, _ in scalar} | macros) - unsteady

    # ---- resolving names

    def _resolve(self, path: tuple[str, ...], label: str, text: str) -> str:
        if path not in self._found:
            self._found[path] = self._place(path, label, text)
        return self._found[path]

    def _place(self, path: tuple[str, ...], label: str, text: str) -> str:
        if len(path) == 1:
            name = path[0].lower()
            if name in self._columns:
                return name
            if name in TASK:
                self._task[name] = None
                self._joins.add("task")
                return name
            if name in SCALED:
                self._joins.add("scales")
                self._lifted[name] = SCALED[name]
                return name
            if name == "decision":
                self._joins.add("decisions")
                return name
            if name == "fields" and self._has_inputs:
                self._joins.add("inputs")
                self._fields.setdefault("fields", "fields")
                return name
        first, rest = path[0].lower(), ".".join(path[1:])
        name = ".".join(path)
        if first in ("metrics", "labels") and rest:
            if self._has(first, rest):
                return self._lift(first, rest)
            raise self._unknown(path, label, text)
        if first != "fields":
            for column in ("metrics", "labels"):
                if self._has(column, name):
                    return self._lift(column, name)
        field = path[1:] if first == "fields" else path
        if self._has_inputs and field and (sql := self._field(field)) is not None:
            alias = f"field {len(self._fields)}"
            self._fields[alias] = sql
            self._joins.add("inputs")
            return alias
        if not self._one("SELECT count(*) FROM (SELECT 1 FROM rollouts LIMIT 1)"):
            self._lifted["unknown"] = "NULL"  # nothing usable: nothing can be known of any name
            return "unknown"
        raise self._unknown(path, label, text)

    def _has(self, column: str, key: str) -> bool:
        query = f"SELECT count(*) FROM (SELECT 1 FROM rollouts WHERE {column}[{scan.text(key)}] IS NOT NULL LIMIT 1)"
        return bool(self._one(query))

    def _lift(self, column: str, key: str) -> str:
        alias = f"{column} {key}"
        self._lifted[alias] = f"{column}[{scan.text(key)}]"
        return alias

    def _field(self, path: Sequence[str]) -> str | None:
        """SQL for a task field, a number where it is one in every row; None where no row has it."""
        pointer = scan.text("".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path))
        kinds = f"SELECT json_type(fields, {pointer}) AS kind FROM inputs"
        found, numeric = self._row(f"SELECT count(*), bool_and(kind IN {_NUMBERS}) FROM ({kinds}) WHERE kind <> 'NULL'")
        if not found:
            return None
        value = f"json_extract_string(fields, {pointer})"
        if not numeric:
            return value
        return f"CASE {value} WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE TRY_CAST({value} AS DOUBLE) END"

    def _unknown(self, path: tuple[str, ...], label: str, text: str) -> RecipeError:
        known = self.known()
        asked = ".".join(path)
        every = {name.lower(): name for names in known.values() for name in names}
        close = difflib.get_close_matches(asked.lower(), every, n=3)
        hint = f"; did you mean {' or '.join(every[name] for name in close)}" if close else ""
        listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in known.items() if names)
        return RecipeError(f"{label}: {text!r} cannot be used: there is no `{asked}`{hint}; {listed}")

    def known(self) -> dict[str, list[str]]:
        """Every name that a condition can use, by kind; reads the tables."""
        kinds = {"columns": self._columns, "of the task and its scale": list(DERIVED)}
        for kind in ("metrics", "labels"):
            query = f"SELECT DISTINCT unnest(map_keys({kind})) AS name FROM rollouts ORDER BY name"
            kinds[kind] = [row[0] for row in self._db.execute(query).fetchall()]
        if self._has_inputs:
            query = "SELECT DISTINCT unnest(json_keys(fields)) AS name FROM inputs ORDER BY name"
            kinds["task fields"] = [row[0] for row in self._db.execute(query).fetchall()]
        return kinds

    # ---- the relation that resolved expressions run over

    def source(self) -> str:
        """A query: every row of `rollouts`, with the columns that were resolved."""
        extra = [f"{sql} AS {scan.name(alias)}" for alias, sql in self._lifted.items()]
        joins: list[str] = []
        if "task" in self._joins:
            values = ", ".join(f"{TASK[name]} AS {name}" for name in self._task)
            scales = "JOIN scales USING (environment)" if "task_solved" in self._task else ""
            joins.append(
                f"LEFT JOIN (SELECT task_key, {values} FROM rollouts {scales} WHERE task_key IS NOT NULL "
                "GROUP BY task_key) AS task ON rollouts.task_key = task.task_key"
            )
            extra += [f"task.{name}" for name in self._task]
        if "scales" in self._joins:
            joins.append("JOIN scales ON rollouts.environment = scales.environment")
        if "decisions" in self._joins:
            joins.append("LEFT JOIN decisions ON rollouts.rollout_id = decisions.rollout_id")
            extra.append("decisions.decision")
        if "inputs" in self._joins:
            key = "run, task_index, rollout_index"
            values = ", ".join(f"{sql} AS {scan.name(alias)}" for alias, sql in self._fields.items())
            # one file may have been ingested into two tables
            once = f"SELECT {key}, min(fields) AS fields FROM inputs GROUP BY {key}"
            same = " AND ".join(f"rollouts.{part} = input.{part}" for part in key.split(", "))
            joins.append(f"LEFT JOIN (SELECT {key}, {values} FROM ({once})) AS input ON {same}")
            extra += [f"input.{scan.name(alias)}" for alias in self._fields]
        columns = ", ".join(["rollouts.*", *extra])
        return f"SELECT {columns} FROM rollouts {' '.join(joins)}"

    def _one(self, query: str, *values: Any) -> Any:
        return self._row(query, *values)[0]

    def _row(self, query: str, *values: Any) -> tuple[Any, ...]:
        # all of it: DuckDB gives no relation while a result is not read to its end
        (found,) = self._db.execute(query, list(values)).fetchall()
        return tuple(found)


_SETTINGS = ("current_setting", "getvariable")  # which DuckDB 1.4 takes for constants
_AGGREGATES = frozenset(("avg", "mean", "min", "max", "sum", "count", "count_star", "stddev", "median"))


def _expression(tree: dict[str, Any], label: str, text: str) -> Any:
    """The one expression of a parsed `SELECT …`; a text that goes on (`, b`, `FROM t`, `; DROP t`) is refused."""
    statements = tree["statements"]
    node = statements[0]["node"]
    plain = (
        len(statements) == 1
        and node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["from_table"]["type"] == "EMPTY"
        and not node["where_clause"]
        and not node["modifiers"]
        and not node["group_expressions"]
        and not node["having"]
        and not node["qualify"]
        and not node["sample"]
        and not node["select_list"][0].get("alias")
    )
    if not plain:
        raise RecipeError(f"{label}: {text!r} cannot be used: it is more than one expression")
    return node["select_list"][0]


def _names(node: Any) -> Iterator[str]:
    """The parameters of a lambda."""
    if isinstance(node, dict):
        if node.get("class") == "COLUMN_REF":
            yield node["column_names"][0]
        for value in node.values():
            yield from _names(value)
    elif isinstance(node, list):
        for item in node:
            yield from _names(item)
