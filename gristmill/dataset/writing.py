"""Format: what was chosen becomes a dataset in a framework's format, with the rollouts that each row came from.

Reads a selection and the raw rows that it chose (only those), in shards, on as many workers as there are; writes into
a folder

    train.jsonl, validation.jsonl                     or
    train-00000-of-0000N.parquet, validation-…        the rows, in the order of the selection
    provenance.parquet                                gristmill/dataset/provenance.py
    sample.txt                                        with a tokenizer: rows as they are trained on
    README.md                                         the card
    and what the target adds (launch config, dataset registry …)

Equal input gives equal bytes with any number of workers. rows_read = rows_kept + Σ dropped, where a rollout is kept
if it is in at least one row.
"""

from __future__ import annotations

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gristmill import scan, targets
from gristmill.dataset import tokens
from gristmill.dataset.card import write_card
from gristmill.dataset.provenance import PROVENANCE, schema, table
from gristmill.dataset.shards import Chosen, Work, cut
from gristmill.dataset.writer import SPLITS, Job, Written, part_path
from gristmill.errors import RecipeError
from gristmill.example import Example
from gristmill.recipe import FormatRecipe
from gristmill.workers import map_ordered

SAMPLE = "sample.txt"
_WRITE = "gristmill.dataset.writer:write_shard"
_TRAINED = ("⟦", "⟧")


def write_dataset(
    selection: Path,
    tables: Sequence[Sequence[Path]],
    counted: dict[str, Any],
    recipe: FormatRecipe,
    out: Path,
    *,
    seed: int = 0,
    launch: targets.Launch | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write a dataset.

    Args:
        selection: a `selection.parquet`.
        tables: the Parquet files of each table that it was made from, in the same order.
        counted: the selection's counts.
        recipe: method, target, split, lengths.
        out: folder that gets the files; it exists.
        seed: decides the split, and the order of random pairs.
        launch: what the launch config takes from the recipe; without it the target adds nothing to the rows.
        workers: processes, this one counted; those of the current crew if not given.
        progress: called with (rollouts done, rollouts chosen).

    Returns:
        The selection's counts with `rows_kept` and `dropped` brought up to date, and `examples` (rows written),
        `train`, `validation`, `tasks`, `validation_tasks`, `notes`, and by method `pairs`, `labels`, `rl`, `tokens`.

    Raises:
        UsageError: no such target or tokenizer, or the target does not take the method.
    """
    target = check(recipe)
    total = int(counted["rows_kept"])
    sum_ = _Sum()
    with scan.connect(tables) as db:
        work = cut(db, selection, tables, recipe, seed)
        done = 0
        with _Files(out, target.suffix) as files:
            for number, (written, rollouts) in enumerate(_write(work, recipe, seed, out, workers)):
                files.take(number, written, rollouts)
                sum_.add(written)
                done += len(rollouts)
                if progress:
                    progress(done, total)
            names = files.close(target)
    counts = _counts(counted, work, sum_, recipe)
    if recipe.tokenizer:
        counts["tokens"] |= _sample(tokens.counting(recipe.tokenizer), sum_.shown, out)
    if launch is not None:
        target.finish(targets.Export(out, recipe.method, names["train"], names["validation"], launch, counts))
    write_card(out, recipe, counts)
    return counts


def check(recipe: FormatRecipe) -> targets.Target:
    """The recipe's target, if it takes the recipe's method: what can be known before anything is read.

    Raises:
        UsageError: no such target or tokenizer.
        RecipeError: the target does not take the method.
    """
    target = targets.get(recipe.target)
    if recipe.method not in target.methods:
        others = [name for name in targets.names() if recipe.method in targets.get(name).methods]
        raise RecipeError(
            f"target {recipe.target} does not take the method {recipe.method} (it takes "
            f"{', '.join(sorted(target.methods))}); targets that do: {', '.join(others)}"
        )
    if recipe.token_ids and recipe.method != "sft":
        raise RecipeError(f"format.token_ids is for sft; the method is {recipe.method}")
    if recipe.tokenizer:
        tokens.counting(recipe.tokenizer)
    return target


def _write(
    work: Work, recipe: FormatRecipe, seed: int, out: Path, workers: int | None
) -> Iterator[tuple[Written, list[Chosen]]]:
    """Each shard's result, in order, and its rollouts."""
    under_way: deque[list[Chosen]] = deque()

    def jobs() -> Iterator[Job]:
        for shard in work.shards:
            rollouts = [one for unit in shard.units for one in unit]
            under_way.append(rollouts)
            used = {one.file: str(work.files[one.file]) for one in rollouts}
            yield Job(shard, used, recipe, work.scales, work.metric_scales, seed, str(out))

    for written in map_ordered(_WRITE, jobs(), workers):
        yield written, under_way.popleft()


class _Files:
    """Puts the shards' files together, and says which rollouts are behind which row."""

    def __init__(self, out: Path, suffix: str) -> None:
        self.out = out
        self.suffix = suffix
        self.rows = [0, 0]
        self.numbers: tuple[list[int], list[int]] = ([], [])

    def __enter__(self) -> _Files:
        import pyarrow.parquet as pq

        self.origins = pq.ParquetWriter(self.out / PROVENANCE, schema(), compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        self.origins.close()

    def take(self, number: int, written: Written, rollouts: Sequence[Chosen]) -> None:
        origins = written.origins
        if origins.row:
            behind = [rollouts[at] for at in origins.rollout]
            values: dict[str, Sequence[Any]] = {
                "split": [SPLITS[one] for one in origins.validation],
                "row": [self.rows[one] + row for one, row in zip(origins.validation, origins.row, strict=True)],
                "role": origins.role,
                "rollout_id": [one.rollout_id for one in behind],
                "task_key": [one.task_key for one in behind],
                "reward": [one.reward for one in behind],
                "source": [one.source for one in behind],
                "line": [one.line for one in behind],
            }
            self.origins.write_table(table(values))
        for which, split in enumerate(SPLITS):
            if written.rows[which]:
                self.rows[which] += written.rows[which]
                self.numbers[which].append(number)
                if self.suffix == "jsonl":
                    _append(part_path(self.out, split, number), self.out / f"{split}.jsonl")

    def close(self, target: targets.Target) -> dict[str, tuple[str, ...]]:
        """Give the files their names."""
        names: dict[str, tuple[str, ...]] = {}
        for split, numbers in zip(SPLITS, self.numbers, strict=True):
            if self.suffix == "jsonl":
                names[split] = (f"{split}.jsonl",) if numbers else ()
            else:
                names[split] = tuple(f"{split}-{i:05d}-of-{len(numbers):05d}.parquet" for i in range(len(numbers)))
                for number, name in zip(numbers, names[split], strict=True):
                    part_path(self.out, split, number).rename(self.out / name)
        if not names["train"]:  # nothing to train on is a file without rows, not the want of a file
            name = "train.jsonl" if self.suffix == "jsonl" else "train-00000-of-00001.parquet"
            target.write([], self.out / name)
            names["train"] = (name,)
        return names


def _append(piece: Path, whole: Path) -> None:
    if not whole.exists():
        piece.rename(whole)
        return
    with piece.open("rb") as source, whole.open("ab") as sink:
        shutil.copyfileobj(source, sink, 1 << 18)  # a block that stays in the processor's cache
    piece.unlink()


class _Sum:
    """What all shards gave together."""

    def __init__(self) -> None:
        self.rows = [0, 0]
        self.kept = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.lengths: list[tuple[int, int]] = []
        self.labels = [0, 0]
        self.tokens: list[int] = []
        self.shown: list[Example] = []

    def add(self, written: Written) -> None:
        for which in (0, 1):
            self.rows[which] += written.rows[which]
            self.labels[which] += written.labels[which]
        # a rollout's rows are all in one shard
        self.kept += len(set(written.origins.rollout))
        self.dropped.update(written.dropped)
        self.notes.update(written.notes)
        self.gaps += written.gaps
        self.lengths += written.lengths
        self.tokens += written.tokens
        self.shown += written.shown


def _counts(counted: dict[str, Any], work: Work, sum_: _Sum, recipe: FormatRecipe) -> dict[str, Any]:
    dropped = Counter(counted["dropped"])
    dropped.update(sum_.dropped)
    counts: dict[str, Any] = {
        **counted,
        "rows_kept": sum_.kept,
        "dropped": {str(reason): count for reason, count in sorted(dropped.items())},
        "examples": sum(sum_.rows),
        "train": sum_.rows[0],
        "validation": sum_.rows[1],
        "notes": dict(sorted(sum_.notes.items())),
        **work.counts,
    }
    if recipe.method in ("dpo", "reward"):
        counts["pairs"] = _pairs(sum_)
    elif recipe.method == "kto":
        counts["labels"] = {"desirable": sum_.labels[1], "undesirable": sum_.labels[0], **work.counts["labels"]}
    if sum_.tokens or recipe.tokenizer:
        counts["tokens"] = _spread(sum_.tokens)
    return counts


def _pairs(sum_: _Sum) -> dict[str, Any]:
    """Gaps and the difference in length, which training learns where it is one-sided."""
    longer = sum(chosen > rejected for chosen, rejected in sum_.lengths)
    return {
        "gap": _spread(sum_.gaps),
        "chosen_chars": _spread([chosen for chosen, _ in sum_.lengths]),
        "rejected_chars": _spread([rejected for _, rejected in sum_.lengths]),
        "chosen_longer": longer / len(sum_.lengths) if sum_.lengths else None,
    }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    import math

    if not values:
        return {"count": 0}
    ordered = sorted(values)
    count = len(ordered)
    return {
        "count": count,
        "total": math.fsum(ordered),
        "mean": math.fsum(ordered) / count,
        "min": ordered[0],
        "median": ordered[(count - 1) // 2],
        "p95": ordered[min(count - 1, math.ceil(count * 0.95) - 1)],
        "max": ordered[-1],
    }


def _sample(counting: tokens.Counting, shown: Sequence[Example], out: Path) -> dict[str, Any]:
    """Write rows as they are trained on, and say what the template does."""
    opening, closing = _TRAINED
    texts = [f"What carries loss stands in {opening} {closing}.\n"]
    for number, example in enumerate(shown):
        for name, pieces in counting.pieces(example):
            told = "".join(opening + one.text + closing if one.trained else one.text for one in pieces)
            texts.append(f"──── row {number}, {name} ────\n{told}\n")
    (out / SAMPLE).write_text("\n".join(texts), encoding="utf-8")
    return {"traps": {trap.id: trap.message for trap in counting.traps()}}
