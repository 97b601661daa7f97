"""What a target is: one training framework's row format, its files, and what it takes to start it.

A target turns an `Example` into this framework's row, writes rows to files, and finishes an export folder with
what the framework needs beside the data: a launch config with the recipe's values, a dataset registry, a dataset
class. It holds no state, so that any worker can ask it for a row.

Guarantees: a row that the format cannot carry whole raises `Unrepresentable`, it is never cut down; equal rows give
equal bytes; nothing in an export names a path outside its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from gristmill.example import Example, Method

Row = bytes | dict[str, Any]
"""A line of JSON with its newline, or the columns of a Parquet row (JSON columns as JSON bytes)."""

Scale = Literal["lora", "full"]

# Peak learning rates where the recipe sets none: TRL's own defaults for all weights; ten times that for adapters
# (Schulman et al. 2025, "LoRA Without Regret"), except for reward models, where TRL's default is for adapters.
LEARNING_RATES: dict[Method, dict[Scale, float]] = {
    "sft": {"full": 2e-5, "lora": 2e-4},
    "dpo": {"full": 1e-6, "lora": 1e-5},
    "kto": {"full": 1e-6, "lora": 1e-5},
    "reward": {"full": 1e-5, "lora": 1e-4},
    "rl": {"full": 1e-6, "lora": 1e-5},
}


@dataclass(frozen=True, slots=True)
class Launch:
    """What launch configs take from the recipe, in no framework's names."""

    model: str = "Qwen/Qwen3-0.6B"
    """A model's name on the hub, or a folder."""
    epochs: float = 1.0
    learning_rate: float | None = None
    """Peak; None takes the method's usual one (`LEARNING_RATES`)."""
    batch_size: int = 16
    """Rows an optimiser step, over all devices."""
    max_length: int = 8192
    """Tokens of a row at most."""
    lora_rank: int = 16
    """0 trains all weights."""
    lora_targets: tuple[str, ...] = ()
    """Modules that get adapters; empty means all linear layers."""
    beta: float = 0.1
    """How hard preference methods hold the policy to its reference."""
    seed: int = 0

    @property
    def lora_alpha(self) -> int:
        """Twice the rank: the adapter's scale stays the same whatever its rank."""
        return 2 * self.lora_rank

    def rate(self, method: Method) -> float:
        """The peak learning rate."""
        if self.learning_rate is not None:
            return self.learning_rate
        return LEARNING_RATES[method]["lora" if self.lora_rank else "full"]


@dataclass(frozen=True, slots=True)
class Export:
    """A folder whose data files are written and which a target now finishes."""

    folder: Path
    method: Method
    train: tuple[str, ...]
    """Names of the training files in the folder, in order."""
    validation: tuple[str, ...] = ()
    launch: Launch = field(default_factory=Launch)
    counts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Target(Protocol):
    """One framework. Built-in ones are in this package; others come by the entry point `gristmill.targets`."""

    name: str
    methods: frozenset[Method]
    suffix: Literal["jsonl", "parquet"]
    """Of its data files: train.jsonl and validation.jsonl, or train-00000-of-0000N.parquet and so on."""
    single_message: bool
    """Each side of a preference and each labelled completion must be one assistant message, because the framework
    puts loss on all of it (tool results too) or reads no more than that."""

    def row(self, example: Example) -> Row:
        """This framework's row.

        Raises:
            Unrepresentable: the format cannot carry the example; with the reason to drop it.
        """

    def write(self, rows: Sequence[Row], path: Path) -> None:
        """Write one data file with equal bytes for equal rows. Lines of JSON may be written without it, one by one."""

    def finish(self, export: Export) -> None:
        """Put launch config, dataset registry and the like beside the data."""
