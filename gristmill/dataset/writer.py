"""One shard of a dataset: raw rows become examples, examples become a framework's rows, rows become a file a split.

A pure function of its job, for any process. A rollout ends in at least one example, or with one reason. A row that
has no chat form, that the target cannot hold, or that is too long is dropped with its reason, never mangled; where
that breaks a pair, the task's other rollouts are paired again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self, cast

from gristmill import chat, plain, targets
from gristmill.dataset.preferences import Preferences
from gristmill.dataset.rl import rl_task
from gristmill.dataset.shards import GROUPED, Chosen, Shard, firsts
from gristmill.dataset.token_ids import stretches
from gristmill.dataset.tokens import Counting, counting
from gristmill.example import Example, Labelled, Meta, Sft, Tokens
from gristmill.reasons import DropReason
from gristmill.recipe import FormatRecipe
from gristmill.rollout import Unreadable, parse
from gristmill.scale import UNSCALED, Scale
from gristmill.table import read_raw

SPLITS = ("train", "validation")
SHOWN = 3  # examples kept for the rendered sample
_WRITE_BYTES = 1 << 20  # a write a row costs four times as much


class Job(NamedTuple):
    """A shard and all that it takes to write it."""

    shard: Shard
    files: dict[int, str]
    recipe: FormatRecipe
    scales: dict[str, Scale]
    metric_scales: dict[str, dict[str, Scale]]
    seed: int
    folder: str


class Origins(NamedTuple):
    """Which rows came from which rollouts; lists with one entry a row and rollout."""

    validation: list[bool]
    row: list[int]
    """Within the shard's rows of this split."""
    role: list[str]
    """`only`, `chosen`, `rejected`, or `attempt` (one of several rollouts of an rl task)."""
    rollout: list[int]
    """Within the shard's rollouts, in the order of its units: whoever cut the shard knows the rest."""


class Written(NamedTuple):
    """What a shard gave."""

    rows: tuple[int, int]
    """Of train and of validation."""
    origins: Origins
    dropped: dict[str, int]
    notes: dict[str, int]
    """What the chat form does not hold (chat.Conversation.lost), and what else is worth knowing, counted."""
    gaps: list[float]
    """Of each pair, in the environment's unit."""
    lengths: list[tuple[int, int]]
    """Of each pair: characters of chosen and rejected."""
    labels: tuple[int, int]
    """Undesirable and desirable."""
    tokens: list[int]
    """Of each row, if they are counted."""
    shown: list[Example]


def write_shard(job: Job) -> Written:
    """Write `<split>-<number>.part` into the job's folder for each split that has rows."""
    return Sheet(job).write()


def part_path(folder: Path, split: str, number: int) -> Path:
    """Where a shard's rows of a split are, until they have their final name."""
    return folder / f"{split}-{number:05d}.part"


class _Lines:
    """A split's rows as lines, written as they come: kept until the end, they would have left the cache by then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file: BinaryIO | None = None
        self.count = 0

    def add(self, row: targets.Row) -> None:
        if self.file is None:
            self.file = self.path.open("wb", buffering=_WRITE_BYTES)
        self.file.write(cast(bytes, row))
        self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            self.file.close()


class _Table:
    """A split's rows as columns, which the target writes when all are there."""

    def __init__(self, path: Path, target: targets.Target) -> None:
        self.path = path
        self.target = target
        self.rows: list[targets.Row] = []

    @property
    def count(self) -> int:
        return len(self.rows)

    def add(self, row: targets.Row) -> None:
        self.rows.append(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.rows:
            self.target.write(self.rows, self.path)


class Sheet:
    """What a shard's rows and counts are written on."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recipe = job.recipe
        self.target = _target(job.recipe.target)
        self.counting: Counting | None = counting(job.recipe.tokenizer) if job.recipe.tokenizer else None
        self.convert = partial(
            plain.convert,
            reasoning=job.recipe.reasoning,
            developer=job.recipe.developer,
            refusals=job.recipe.refusals,
        )
        paths = [part_path(Path(job.folder), split, job.shard.number) for split in SPLITS]
        self.rows = [_Lines(path) if self.target.suffix == "jsonl" else _Table(path, self.target) for path in paths]
        self.origins = Origins([], [], [], [])
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.lengths: list[tuple[int, int]] = []
        self.labels = [0, 0]
        self.tokens: list[int] = []
        self.shown: list[Example] = []

    def write(self) -> Written:
        units = self.job.shard.units
        with self.rows[0] as train, self.rows[1] as validation:
            if self.recipe.method == "rl":
                self.tasks(units)
            elif self.recipe.method in GROUPED:
                Preferences(self).write(units)
            else:
                self.singles([one for unit in units for one in unit])
        return Written(
            (train.count, validation.count),
            self.origins,
            dict(self.dropped),
            dict(self.notes),
            self.gaps,
            self.lengths,
            (self.labels[0], self.labels[1]),
            self.tokens,
            self.shown,
        )

    # ---- one rollout at a time: sft, kto

    def singles(self, rows: Sequence[Chosen]) -> None:
        for one in rows:
            if one.reason is not None:
                self.dropped[one.reason] += 1
        usable = [at for at, one in enumerate(rows) if one.reason is None]
        for at, (one, raw) in zip(usable, self.raw([rows[at] for at in usable]), strict=True):
            try:
                made = self.examples(one, self.conversation(raw))
                ready = [(example, self.target.row(example), size) for example, size in map(self.fitted, made)]
            except chat.Unrepresentable as problem:
                self.dropped[problem.reason] += 1
                continue
            for example, row, size in ready:
                self.emit(example, row, size, one.validation, [("only", at)])
            if self.recipe.method == "kto":
                self.labels[one.label] += 1

    def examples(self, one: Chosen, conversation: chat.Conversation) -> list[Example]:
        messages, start = conversation.messages, conversation.prompt_length
        meta = self.meta(one)
        if self.recipe.method == "kto":
            if self.target.single_message:
                start = len(messages) - 1
            return [Labelled(messages[:start], messages[start:], conversation.tools, one.label, meta)]
        if self.recipe.token_ids:
            return list(stretches(conversation, meta))
        return [Sft(messages[:start], messages[start:], conversation.tools, meta)]

    def conversation(self, raw: bytes) -> chat.Conversation:
        try:
            found = self.convert(raw)
        except Unreadable as problem:
            raise chat.Unrepresentable(problem.reason, "the line cannot be read") from None
        chat.require_trainable(found)
        if found.lost:
            self.notes.update(found.lost)
        return found

    # ---- tasks to attempt again: rl

    def tasks(self, units: Sequence[list[Chosen]]) -> None:
        unit_of: dict[tuple[int, int], tuple[list[Chosen], int]] = {}
        for unit, first in zip(units, firsts(units), strict=True):
            if (reason := unit[0].reason) is None:
                unit_of[unit[0].file, unit[0].row] = unit, first
            else:
                self.dropped[reason] += len(unit)
        for one, raw in self.raw([unit_of[at][0][0] for at in sorted(unit_of)]):
            unit, first = unit_of[one.file, one.row]
            try:
                example = rl_task(unit, parse(raw))
                row = self.target.row(example)
            except (chat.Unrepresentable, Unreadable) as problem:
                self.dropped[problem.reason] += len(unit)
                continue
            if one.fields is None:
                self.notes["task_without_inputs"] += 1
            self.emit(example, row, None, one.validation, [("attempt", first + at) for at in range(len(unit))])

    # ---- for all

    def raw(self, rows: Sequence[Chosen]) -> Iterator[tuple[Chosen, bytes]]:
        """The lines of rollouts that stand in the order of their positions."""
        start = 0
        while start < len(rows):
            file = rows[start].file
            stop = start
            while stop < len(rows) and rows[stop].file == file:
                stop += 1
            here = rows[start:stop]
            yield from zip(here, read_raw(Path(self.job.files[file]), [one.row for one in here]), strict=True)
            start = stop

    def fitted(self, example: Example) -> tuple[Example, int | None]:
        """The example, cut if it must and may be, and its tokens.

        Raises:
            Unrepresentable: OVER_LENGTH, or the chat template refuses it.
        """
        most = self.recipe.max_tokens
        if isinstance(example, Tokens):
            size = len(example.input_ids)
        elif self.counting is None:
            return example, None
        else:
            size = self.counting.size(example)
        if most is None or size <= most:
            return example, size
        if self.recipe.over_length == "cut" and isinstance(example, Sft) and self.counting is not None:
            shorter = self.counting.cut(example, most)
            if shorter is not None:
                self.notes["cut_to_length"] += 1
                return shorter
        raise chat.Unrepresentable(DropReason.OVER_LENGTH, f"{size} tokens")

    def emit(
        self,
        example: Example,
        row: targets.Row,
        size: int | None,
        validation: bool,
        roles: Iterable[tuple[str, int]],
    ) -> None:
        rows, origins = self.rows[validation], self.origins
        for role, rollout in roles:
            origins.validation.append(validation)
            origins.row.append(rows.count)
            origins.role.append(role)
            origins.rollout.append(rollout)
        rows.add(row)
        if size is not None:
            self.tokens.append(size)
        if self.job.shard.number == 0 and len(self.shown) < SHOWN and self.counting is not None:
            self.shown.append(example)

    def meta(self, one: Chosen) -> Meta:
        told = self.told(one)
        if one.task_key is not None:
            told["task_key"] = one.task_key
        told["task_type"] = one.environment
        return told

    def told(self, one: Chosen) -> Meta:
        told: Meta = {"rollout_id": one.rollout_id, "reward": one.reward}
        quality = self.job.scales.get(one.environment, UNSCALED).quality(one.reward)
        if quality is not None:
            told["quality"] = quality
        return told


@cache
def _target(name: str) -> targets.Target:
    """The target, looked up once a process: that goes through all that is installed."""
    return targets.get(name)
