"""The rows of a dataset folder as TRL takes them, and how a step's rows are shared.

Reads `train*.parquet` or `train.jsonl`, and `validation*.parquet` or `validation.jsonl` beside it, in TRL's formats
(docs/targets.md). Columns that the method does not read are left out: they may hold mixed types. Messages keep their
exact keys (`List(Json())`): Arrow structs would fill in the keys of other rows with nulls.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.example import Method

Split = Literal["train", "validation"]

# What a method's rows may be, in the order of preference; `tools` may go with each.
_SHAPES: dict[Method, tuple[tuple[str, ...], ...]] = {
    "sft": (("input_ids", "labels"), ("prompt", "completion"), ("messages",)),
    "dpo": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "reward": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "kto": (("prompt", "completion", "label"),),
}
_IDS = ("input_ids", "labels")


def data_files(folder: Path, split: Split = "train") -> list[Path]:
    """The files of a split in `folder`, by name; a folder without validation files is fine.

    Raises:
        UsageError: there is no training data.
    """
    found = sorted(folder.glob(f"{split}*.parquet")) or sorted(folder.glob(f"{split}.jsonl"))
    if not found and split == "train":
        raise UsageError(f"{folder} holds no training data: expected train*.parquet or train.jsonl in it")
    return found


def read(folder: Path, split: Split, method: Method, cache: Path) -> Any:
    """The split as a `datasets.Dataset`, or None where there are no such files.

    Raises:
        UsageError: the files hold no rows for the method, or a line is not JSON.
        TrainingError: there is not one training row.
    """
    from datasets import Dataset, Features
    from datasets.exceptions import DatasetGenerationError

    files = data_files(folder, split)
    if not files:
        return None
    if files[0].suffix == ".parquet":
        dataset = Dataset.from_parquet([str(file) for file in files], cache_dir=str(cache))
        dataset = dataset.select_columns(_columns(dataset.column_names, method, files[0]))
    else:
        first = next(_lines(files), None)
        if first is None:
            if split == "validation":
                return None
            raise TrainingError(f"{files[0]} is empty: there is nothing to train on")
        names = _columns(list(first), method, files[0])
        features = Features({name: _feature(name, first.get(name)) for name in names})
        # Into a file, not memory: several ranks must find one another's caches. A changed file makes another job, whose
        # cache starts empty.
        try:
            dataset = Dataset.from_generator(
                _filled,
                features=features,
                cache_dir=str(cache),
                gen_kwargs={"files": tuple(files), "names": tuple(names)},
            )
        except DatasetGenerationError as error:
            raise error.__cause__ or error from None
    if len(dataset) == 0:
        if split == "validation":
            return None
        raise TrainingError(f"{files[0]} is empty: there is nothing to train on")
    if method == "reward" and "margin" in dataset.column_names and None in dataset["margin"]:
        dataset = dataset.remove_columns("margin")  # the loss takes all margins or none
    return dataset


def _columns(found: list[str], method: Method, file: Path) -> list[str]:
    """The columns of the first shape that the file has."""
    for shape in _SHAPES[method]:
        if set(shape) <= set(found):
            extra = ("tools", "margin") if method == "reward" else ("tools",)
            return [*shape, *(name for name in extra if name in found and "input_ids" not in shape)]
    wanted = " or ".join(", ".join(shape) for shape in _SHAPES[method])
    raise UsageError(f"{file}: {method} needs rows with {wanted}; found {', '.join(found)}")


def _feature(name: str, value: Any) -> Any:
    from datasets import Json, List, Value

    if name in _IDS:
        return List(Value("int32"))
    if name in ("label", "margin"):
        return Value("bool" if name == "label" else "float64")
    return Value("string") if isinstance(value, str) else List(Json())


def _filled(files: tuple[Path, ...], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for row in _lines(files):
        yield {name: [] if name == "tools" and row.get(name) is None else row.get(name) for name in names}


def _lines(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{file}, row {number} is not JSON ({error}): write the export again") from error
                yield row


class Share(NamedTuple):
    """How an optimiser step's rows come about: device × accumulation × processes."""

    device: int
    """Rows that one device takes at once."""
    accumulation: int
    processes: int

    def halved(self, method: Method) -> Share | None:
        """The next smaller rows at once, for as many rows a step; None if there are none."""
        least = least_at_once(method)
        rows = self.device * self.accumulation
        for device in range(self.device // 2, least - 1, -1):
            if rows % device == 0:
                return Share(device, rows // device, self.processes)
        return None


def least_at_once(method: Method) -> int:
    """KTO estimates its KL term from the other rows of a device's batch: one row has none."""
    return 2 if method == "kto" else 1


def share(batch_size: int, processes: int, method: Method, at_once: int | None = None) -> Share:
    """Share a step's rows among processes, as many at once as there are, or `at_once`.

    Raises:
        RecipeError: that does not come out even, or kto would have one row at once.
    """
    if batch_size % processes:
        raise RecipeError(
            f"train.batch_size {batch_size} cannot be shared evenly by {processes} processes; change one of them"
        )
    rows = batch_size // processes
    device = rows if at_once is None else at_once
    if rows % device:
        raise RecipeError(
            f"train.options.per_device_train_batch_size {device} does not divide the {rows} rows a step of a process"
        )
    if device < least_at_once(method):
        raise RecipeError(
            f"kto needs at least 2 rows on a device at once, for its KL term; here it is {device}: raise "
            "train.batch_size"
        )
    return Share(device, rows // device, processes)
