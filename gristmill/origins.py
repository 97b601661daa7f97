"""Rows and rollouts: which rollouts made a row, which rows a rollout went into, and where each rollout comes from.

Asks the tables and the provenance of all datasets of a workspace at once, by SQL, so that a hundred thousand rows are
no loop of ours. Rollouts are told by `rollout_id`, the fingerprint of their line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.dataset.provenance import PROVENANCE
from gristmill.errors import ArtifactMissing, StoreError, UsageError
from gristmill.lineage import Fate, Lineage, Origin, Touched
from gristmill.selection import SELECTION
from gristmill.table import parts
from gristmill.taints import What, condition

SHOWN = 50
"""Rollouts that are told one by one."""
_FIRST = 5  # rows of a dataset
_SHORTEST = 6
_ORIGIN = "source, line, run, agent, task_index, rollout_index, task_key, reward, model, drop_reason"
_COLUMNS = f"rollout_id, prompt_key, {_ORIGIN}"


class Sought(NamedTuple):
    """Rollouts in question: one, those of a task, or those of a file."""

    what: What
    key: str
    name: str
    """For people."""
    agent: str | None = None
    prompt_key: str | None = None
    """Of a task that its prompt tells from others, so that it is the same one in other files."""

    def content(self) -> dict[str, Any]:
        """As `taints.condition` takes it."""
        return {"what": self.what, "key": self.key, "agent": self.agent, "prompt_key": self.prompt_key}


class Rows:
    """The tables and datasets of a workspace as relations; use as a context manager."""

    def __init__(self, lineage: Lineage) -> None:
        """Opens the files that are there; what was deleted is left out."""
        import duckdb

        self.lineage = lineage
        store = lineage.workspace.store
        self._ref: dict[str, ArtifactRef] = {}
        tables: list[str] = []
        datasets: list[str] = []
        for ref in lineage.manifests:
            try:
                if ref.kind == "table":
                    tables += self._files(ref, parts(store.path(ref)))
                elif ref.kind == "dataset" and (file := store.path(ref) / PROVENANCE).is_file():
                    datasets += self._files(ref, [file])
            except ArtifactMissing:
                continue
        self._db = duckdb.connect()
        kinds = {"line": "BIGINT", "task_index": "BIGINT", "rollout_index": "BIGINT", "reward": "DOUBLE"}
        self._view("rollouts", _COLUMNS.split(", "), tables, kinds)
        columns = ["split", "row", "role", "rollout_id", "task_key", "reward", "source", "line"]
        self._view("sources", columns, datasets, {**kinds, "row": "BIGINT"})

    def _files(self, ref: ArtifactRef, files: Iterable[Path]) -> Iterator[str]:
        for file in map(str, files):
            self._ref[file] = ref
            yield file

    def _view(self, name: str, columns: list[str], files: list[str], kinds: dict[str, str]) -> None:
        import duckdb

        if files:
            said = ", ".join("'" + file.replace("'", "''") + "'" for file in files)
            source = f"SELECT {', '.join(columns)}, filename FROM read_parquet([{said}], filename = true)"
        else:
            empty = ", ".join(f"NULL::{kinds.get(column, 'VARCHAR')} AS {column}" for column in columns)
            source = f"SELECT {empty}, NULL::VARCHAR AS filename WHERE false"
        try:
            self._db.execute(f"CREATE TEMP VIEW {name} AS {source}")
        except duckdb.Error as error:
            raise self._damaged(error) from None

    @staticmethod
    def _damaged(error: Exception) -> StoreError:
        return StoreError(
            f"a table or a dataset cannot be read ({str(error).splitlines()[0]}); `gristmill doctor --deep` names it"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._db.close()

    def _ask(self, query: str, values: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        import duckdb

        try:
            return self._db.execute(query, list(values)).fetchall()
        except duckdb.Error as error:
            raise self._damaged(error) from None

    # ---- what is meant

    def find(self, text: str) -> Sought | None:
        """The rollout, task or file that a text means: an id or its first six characters, or a file's name.

        Raises:
            UsageError: it means several.
        """
        said = text.strip().rstrip("…")
        kind, _, key = said.rpartition(":")
        wanted: list[tuple[What, str]] = [("rollout", "rollout_id"), ("task", "task_key"), ("file", "run")]
        for what, column in wanted:
            if len(key) < _SHORTEST or kind not in ("", what):
                continue
            union = "" if what == "file" else f" UNION SELECT {column} FROM sources WHERE starts_with({column}, $1)"
            found = self._ask(
                f"SELECT {column} FROM rollouts WHERE starts_with({column}, $1){union} ORDER BY ALL LIMIT 9", [key]
            )
            ids = [row[0] for row in found]
            if key in ids:
                ids = [key]
            if len(ids) > 1:
                raise UsageError(f"{text} is ambiguous: {what}s {', '.join(one[:12] for one in ids)}; give more of it")
            if ids:
                return self.task(ids[0]) if what == "task" else Sought(what, ids[0], f"{what} {ids[0][:12]}")
        return self.file(said)

    def file(self, name: str) -> Sought | None:
        """A rollout file by the name that the tables know it by.

        Raises:
            UsageError: several files have that name.
        """
        found = self._ask(
            "SELECT run, any_value(filename), count(*) FROM rollouts WHERE source = $1 GROUP BY run ORDER BY run",
            [name],
        )
        if len(found) > 1:
            each = ", ".join(f"file:{run[:12]} ({rows} rows, in {self._ref[file]})" for run, file, rows in found[:8])
            raise UsageError(f"{len(found)} files are called {name}: {each}; name one so, or its table")
        return Sought("file", found[0][0], f"file {name}") if found else None

    def task(self, key: str) -> Sought:
        """A task by its key, with its prompt where that tells it from the other tasks of its file."""
        found = self._ask(
            "SELECT any_value(t.agent), any_value(t.prompt_key), count(DISTINCT r.task_index), any_value(t.task_index) "
            "FROM (SELECT DISTINCT agent, prompt_key, run, task_index FROM rollouts WHERE task_key = $1) t "
            "JOIN rollouts r ON r.run = t.run AND r.prompt_key = t.prompt_key AND r.agent IS NOT DISTINCT FROM t.agent",
            [key],
        )
        agent, prompt, tasks, index = found[0]
        name = f"task {key[:12]}" + ("" if index is None else f" (index {index})")
        return Sought("task", key, name, agent, prompt) if tasks == 1 else Sought("task", key, name)

    def files_of(self, ref: ArtifactRef) -> list[Sought]:
        """The files that a table, or the table of collected rollouts, was read from."""
        tables = [ref] if ref.kind == "table" else [c for c in self.lineage.children.get(ref, ()) if c.kind == "table"]
        names = [file for file, one in self._ref.items() if one in tables]
        found = self._ask(
            "SELECT DISTINCT run, source FROM rollouts WHERE list_contains($1, filename) ORDER BY ALL", [names]
        )
        return [Sought("file", run, f"file {source} of {self.lineage.named(ref)}") for run, source in found]

    def rows(self, dataset: ArtifactRef, row: int, split: str) -> list[tuple[str, str]]:
        """(role, rollout_id) of a dataset's row.

        Raises:
            UsageError: there is no such row, or the dataset's files are gone.
        """
        file = next((name for name, ref in self._ref.items() if ref == dataset), None)
        if file is None:
            raise UsageError(f"{dataset} has no {PROVENANCE} here; run the command that made it again")
        found = self._ask(
            'SELECT role, rollout_id FROM read_parquet($1) WHERE split = $2 AND "row" = $3', [file, split, row]
        )
        if not found:
            counts = self._ask("SELECT split, max(row) FROM read_parquet($1) GROUP BY split ORDER BY split", [file])
            there = " and ".join(f"{name}#0 to {name}#{last}" for name, last in counts) or "none"
            raise UsageError(f"{self.lineage.named(dataset)} has no row {split}#{row}; it has {there}")
        return [(role, rollout) for role, rollout in found]

    # ---- the answers

    def seek(self, sought: Iterable[Sought | str]) -> int:
        """From now on the questions are about these rollouts (ids, or what is sought); how many there are."""
        self._db.execute("CREATE OR REPLACE TEMP TABLE sought (rollout_id VARCHAR)")
        ids = []
        for one in sought:
            if isinstance(one, str):
                ids.append(one)
                continue
            where, values = condition(one.content())
            self._ask(f"INSERT INTO sought SELECT DISTINCT rollout_id FROM rollouts WHERE {where}", values)
            if one.what == "rollout":
                ids.append(one.key)
            elif one.what == "task":  # where its table is gone
                self._ask("INSERT INTO sought SELECT DISTINCT rollout_id FROM sources WHERE task_key = $1", [one.key])
        self._ask("INSERT INTO sought SELECT unnest($1::VARCHAR[])", [ids])
        self._ask("CREATE OR REPLACE TEMP TABLE sought AS SELECT DISTINCT rollout_id FROM sought")
        return int(self._ask("SELECT count(*) FROM sought")[0][0])

    def holding(self) -> list[ArtifactRef]:
        """Tables with these rollouts."""
        found = self._ask("SELECT DISTINCT filename FROM rollouts WHERE rollout_id IN (FROM sought)")
        return self.lineage.ordered({self._ref[row[0]] for row in found})

    def touched(self) -> dict[ArtifactRef, Touched]:
        """Datasets with rows made of these rollouts."""
        found = self._ask(
            f"""
            WITH hits AS (SELECT filename, split, "row", rollout_id FROM sources WHERE rollout_id IN (FROM sought)),
                each AS (SELECT filename, count(DISTINCT rollout_id) AS rollouts FROM hits GROUP BY filename),
                lines AS (SELECT DISTINCT filename, split, "row" FROM hits)
            SELECT filename, count(*), any_value(rollouts),
                arg_min(split || '#' || "row", split || lpad("row"::VARCHAR, 12, '0'), {_FIRST})
            FROM lines JOIN each USING (filename) GROUP BY filename
            """
        )
        answer = {}
        for file, rows, rollouts, first in found:
            ref = self._ref[file]
            answer[ref] = Touched(
                id=str(ref),
                label=self.lineage.label(ref),
                rows=rows,
                of=int(self.lineage.manifests[ref].counts.get("examples", 0)),
                rollouts=rollouts,
                first=tuple(first),
            )
        return {ref: answer[ref] for ref in self.lineage.ordered(answer)}

    def origins(self, roles: dict[str, str] | None = None) -> list[Origin]:
        """These rollouts, the first ones where there are many; equal lines of several tables are one each.

        Args:
            roles: rollout id → its role in a row.
        """
        found = self._ask(
            f"SELECT rollout_id, filename, {_ORIGIN} FROM rollouts WHERE rollout_id IN (FROM sought) "
            f"ORDER BY filename, line, rollout_id LIMIT {SHOWN}"
        )
        told = []
        for rollout_id, file, source, line, run, agent, task, attempt, key, reward, model, dropped in found:
            table = self._ref[file]
            policy = self.lineage.policy(table)
            told.append(
                Origin(
                    rollout_id=rollout_id,
                    role=(roles or {}).get(rollout_id),
                    task_key=key,
                    task=task,
                    attempt=attempt,
                    agent=agent,
                    reward=reward,
                    model=model,
                    policy=None if policy is None else self.lineage.named(policy),
                    run=run,
                    source=source,
                    line=line,
                    table=str(table),
                    drop_reason=dropped,
                )
            )
        known = {one.rollout_id for one in told}
        gone = self._ask(
            "SELECT DISTINCT rollout_id, task_key, reward, source, line FROM sources "
            f"WHERE rollout_id IN (FROM sought) ORDER BY ALL LIMIT {SHOWN}"
        )
        for rollout_id, key, reward, source, line in gone:
            if rollout_id not in known and len(told) < SHOWN:
                role = (roles or {}).get(rollout_id)
                told.append(
                    Origin(rollout_id=rollout_id, role=role, task_key=key, reward=reward, source=source, line=line)
                )
        return told

    def fates(self, rollout_id: str) -> tuple[Fate, ...]:
        """What became of a rollout in each selection that saw it, by its turn."""
        told = []
        store = self.lineage.workspace.store
        for ref in self.lineage.ordered(one for one in self.lineage.manifests if one.kind == "selection"):
            file = store.path(ref) / SELECTION
            if not file.is_file():
                continue
            found = self._ask(
                "SELECT reason, rule FROM read_parquet($1) WHERE rollout_id = $2", [str(file), rollout_id]
            )
            told += [
                Fate(selection=str(ref), chosen=reason is None, reason=reason, rule=rule) for reason, rule in found[:1]
            ]
        return tuple(told)


def content(lineage: Lineage, dataset: ArtifactRef, row: int, split: str) -> Any:
    """A dataset's row as it is trained on, from whatever file of the split holds it."""
    folder = lineage.workspace.store.path(dataset)
    names = [entry.name for entry in lineage.manifests[dataset].files if Path(entry.name).name.startswith(split)]
    left = row
    for name in sorted(names):
        file = folder / name
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file) as opened:
                for group in range(opened.metadata.num_row_groups):
                    rows = opened.metadata.row_group(group).num_rows
                    if left < rows:
                        return _plain(opened.read_row_group(group).slice(left, 1).to_pylist()[0])
                    left -= rows
        else:
            with file.open("rb") as lines:
                for line in lines:
                    if left == 0:
                        return orjson.loads(line)
                    left -= 1
    raise UsageError(f"{dataset} has no row {split}#{row} in its files")


def _plain(value: Any) -> Any:
    """Columns of JSON (messages, tools) hold text in Parquet: the objects and lists that they stand for."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value
