"""How far a framework's training is, from the lines that it writes.

A reader of lines knows one framework's form and remembers what it needs to (the loss and the step may stand in
different lines). Lines of a training that was resumed repeat steps; the latest of a step counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import orjson


class Step(NamedTuple):
    """One optimiser step, or what the framework counts instead."""

    number: int
    of: int
    """0 where the framework does not say."""
    loss: float


class Reader(Protocol):
    """Finds steps in lines."""

    def __call__(self, line: str) -> Step | None:
        """The step that this line completes, if any."""


class JsonLines:
    """One JSON object a step (LLaMA-Factory's trainer_log.jsonl)."""

    def __init__(self, number: str, of: str, loss: str) -> None:
        self.number, self.of, self.loss = number, of, loss

    def __call__(self, line: str) -> Step | None:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(row, dict) or self.loss not in row:
            return None
        return Step(row[self.number], row[self.of], float(row[self.loss]))


class LogLines:
    """Log lines, by regular expressions with the groups `step`, `of` and `loss`, together or apart.

    A step is complete when a line with a loss was seen; its number and total may have come before. A progress bar that
    is drawn less often than steps are taken lags behind: a loss that comes with no new number is the next step's.
    """

    def __init__(self, *patterns: str) -> None:
        self.patterns = [re.compile(pattern) for pattern in patterns]
        self.number = self.of = 0
        self.last = 0  # number of the last step that was complete

    def __call__(self, line: str) -> Step | None:
        step = None
        for pattern in self.patterns:
            for match in pattern.finditer(line):
                found = match.groupdict()
                self.of = int(found.get("of") or self.of)
                if number := found.get("step"):
                    if int(number) < self.number:  # begun anew
                        self.last = 0
                    self.number = int(number)
                if loss := found.get("loss"):
                    self.last = self.number if number or self.number > self.last else self.last + 1
                    step = Step(self.last, self.of, float(loss))
        return step


class EpochLines(LogLines):
    """As `LogLines`, where steps are counted within an epoch (group `epoch`), or in parts of a step.

    Args:
        epochs: of the whole training.
        first: number of the first epoch.
        each: how many counts make an optimiser step.
    """

    def __init__(self, *patterns: str, epochs: int, first: int = 1, each: int = 1) -> None:
        super().__init__(*patterns)
        self.epochs, self.epoch, self.first, self.each = epochs, first, first, each

    def __call__(self, line: str) -> Step | None:
        for pattern in self.patterns:
            if "epoch" in pattern.groupindex and (match := pattern.search(line)):
                self.epoch = int(match["epoch"])
        step = super().__call__(line)
        if step is None:
            return None
        counted = (self.epoch - self.first) * step.of + step.number
        if counted % self.each:
            return None
        return Step(counted // self.each, self.epochs * step.of // self.each, step.loss)


class Tail:
    """Whole lines of a growing file, each once. A carriage return ends a line, as progress bars have it."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset = path, offset
        self._rest = b""

    def lines(self) -> Iterator[str]:
        """What was added since the last call."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            if file.seek(0, 2) < self.offset:  # begun anew
                self.offset, self._rest = 0, b""
            file.seek(self.offset)
            data = file.read()
        self.offset += len(data)
        *whole, self._rest = re.split(rb"[\r\n]", self._rest + data)
        yield from (line.decode(errors="replace") for line in whole if line)
