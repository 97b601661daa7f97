"""Task rows in a file, read one at a time: NeMo Gym's dataset rows, or the materialized inputs of a collection.

A task is a distinct row: Gym counts equal lines as repeats of one task, and so does this. Rows that already carry
`_ng_task_index` and `_ng_rollout_index` lose them, so a materialized file stands for the tasks that it was made from.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from gristmill.errors import InputError
from gristmill.identity import digest, file_digest

STAMPS = ("_ng_task_index", "_ng_rollout_index", "_ng_attempt_index", "_ng_rollout_id")


class TaskFile:
    """The distinct tasks of a JSONL file, by position. Holds positions only; one thread uses it.

    Raises:
        InputError: not there, empty, or a row is no task; names the row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity = f"sha256:{_digest_of(path)}"
        self._offsets = array("q")
        self.repeated = 0
        """Rows that were equal to an earlier one."""
        seen: set[bytes] = set()
        at = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    key = bytes.fromhex(digest(_read(line, path, number)))
                    if key in seen:
                        self.repeated += 1
                    else:
                        seen.add(key)
                        self._offsets.append(at)
                at += len(line)
        if not self._offsets:
            raise InputError(f"{path} holds no tasks; expected rows with responses_create_params")
        self._file: BinaryIO = path.open("rb")

    def __enter__(self) -> TaskFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        self._file.seek(self._offsets[index])
        row: dict[str, Any] = orjson.loads(self._file.readline())
        for name in STAMPS:
            row.pop(name, None)
        return row

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))


def chosen(count: int, limit: int | None = None, shard: tuple[int, int] = (0, 1)) -> Sequence[int]:
    """Positions of the first `limit` tasks that fall to shard i of n: every n-th, from i."""
    number, of = shard
    return range(number, count if limit is None else min(limit, count), of)


def _digest_of(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise InputError(f"task file {path}: {error.strerror or error}; expected JSON lines") from error


def _read(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InputError(f"{path}, row {number}: not JSON ({error}); expected a NeMo Gym dataset row") from None
    params = row.get("responses_create_params") if isinstance(row, dict) else None
    if not isinstance(params, dict) or not isinstance(params.get("input"), list | str):
        raise InputError(
            f"{path}, row {number}: no responses_create_params.input; expected a NeMo Gym dataset row, "
            'such as {"responses_create_params": {"input": [{"role": "user", "content": "…"}]}, …}'
        )
    return {name: value for name, value in row.items() if name not in STAMPS}
