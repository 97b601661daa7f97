"""Rollouts that exist: what NeMo Gym's CLI, or this collector, wrote, with its sidecars joined.

The task fields of a rollout are only in `NAME_materialized_inputs.jsonl`; failures are in `NAME_failures.jsonl`. Both
are joined by task and repeat. Such rollouts can start a collection (what they lack is then asked for), and be scored
again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gristmill.errors import InputError
from gristmill.identity import digest, file_digest
from gristmill.rollout import Unreadable, parse
from gristmill.rollout_files import MATERIALIZED, sidecar

Key = tuple[int, int]
"""`_ng_task_index` and `_ng_rollout_index`."""


class Stored:
    """The rollouts of one file by key, read when asked for. A row without both indices, or torn, is only counted.

    Raises:
        InputError: a file is not there, or rollouts and materialized inputs have nothing in common.
    """

    def __init__(self, path: Path) -> None:
        inputs = sidecar(path, MATERIALIZED)
        for file in (path, inputs):
            if not file.is_file():
                raise InputError(
                    f"{file} is not there; a collection is a rollouts file and its _materialized_inputs.jsonl beside it"
                )
        self.path = path
        self.rollouts, self.skipped = _index(path)
        self.inputs, _ = _index(inputs)
        self.known = sorted(self.rollouts.keys() & self.inputs.keys())
        if not self.inputs or (self.rollouts and not self.known):
            raise InputError(f"{path} has no rollout whose task is in {inputs.name}; expected equal _ng_… indices")
        self._rollouts, self._inputs = path.open("rb"), inputs.open("rb")

    def __enter__(self) -> Stored:
        return self

    def __exit__(self, *_: object) -> None:
        self._rollouts.close()
        self._inputs.close()

    def row(self, key: Key) -> dict[str, Any]:
        """The rollout row."""
        self._rollouts.seek(self.rollouts[key])
        return parse(self._rollouts.readline())

    def task(self, key: Key) -> dict[str, Any]:
        """The materialized input of a rollout: its dataset row, as it was sent."""
        self._inputs.seek(self.inputs[key])
        return parse(self._inputs.readline())

    @property
    def identity(self) -> str:
        """What these rollouts are, by content."""
        return digest({"rollouts": [[*key, digest(self.row(key)["response"])] for key in self.known]})

    @property
    def inputs_identity(self) -> str:
        """What was to be collected, by content."""
        return file_digest(sidecar(self.path, MATERIALIZED))


def completion(path: Path) -> dict[str, int]:
    """Expected, succeeded, failed and missing rollouts of a file, from its sidecars.

    Raises:
        InputError: as `Stored`.
    """
    with Stored(path) as stored:
        wanted = set(stored.inputs)
        there = wanted & set(stored.rollouts)
    failures = path.with_name(f"{path.stem}_failures.jsonl")
    failed = (set(_index(failures)[0]) if failures.is_file() else set()) & wanted - there
    return {
        "expected": len(wanted),
        "succeeded": len(there),
        "failed": len(failed),
        "missing": len(wanted) - len(there) - len(failed),
    }


def _index(path: Path) -> tuple[dict[Key, int], int]:
    """Position of the first row of each key, and how many lines have none."""
    found: dict[Key, int] = {}
    skipped = 0
    for at, line in _lines(path):
        if line.isspace():
            continue
        try:
            row = parse(line)
            found.setdefault((int(row["_ng_task_index"]), int(row["_ng_rollout_index"])), at)
        except (Unreadable, KeyError, TypeError, ValueError):
            skipped += 1
    return found, skipped


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    at = 0
    with path.open("rb") as file:
        for line in file:
            yield at, line
            at += len(line)
