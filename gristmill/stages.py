"""Stages: which fields of a recipe each one reads, and which version of its logic is today's.

Both are what a cached stage depends on beside the artifacts that it takes, so they say why one would run again.
`tests/test_stages.py` holds the tables to the wiring of the flows and the steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gristmill.recipe import Recipe, TrainRecipe
from gristmill.refresh import BEFORE, OPTIONAL, PREPARE, REPORT, REVIEWING, TURN

_ACTING = ("policy.kind", "policy.device", "policy.server", "policy.server_args")
_ASKED = ("environment.name", "environment.agent", "environment.start")
_WHERE = frozenset(("launch", "deployment"))  # a training runs, changes no weights
_AGAIN = ("environment.fresh",)  # the same tasks again are sampled with another seed
_SAMPLING = ("samples", "temperature", "top_p", "max_new_tokens", "batch_size", "seeds")

READS: dict[str, tuple[str, ...]] = {
    "base policy": ("policy.model",),
    "held-out tasks": ("environment", "seed"),
    "collect held-out": (*_ACTING, *_ASKED, *(f"evaluate.{name}" for name in _SAMPLING), "seed"),
    "ingest held-out": (),
    "evaluate": ("promote.confidence", "environment.solved_at"),
    "tasks": ("environment", "seed"),
    "collect": (*_ACTING, *_ASKED, *_AGAIN, *(f"collect.{name}" for name in (*_SAMPLING, "temperatures")), "seed"),
    "ingest": (),
    "read": ("rollouts",),
    "sample": ("review", "seed"),
    "review": (),
    "taints": (),
    "curate": ("curate", "seed"),
    "format": ("format", "seed"),
    "validate": ("curate", "format", "checks", "collect.samples", "train.max_length", "seed"),
    "train": (*(f"train.{name}" for name in TrainRecipe.model_fields if name not in _WHERE), "format.method", "seed"),
    "promote": ("promote",),
    "report": ("",),
}
"""Stage → fields, or sections (`""`: the whole recipe), that are among its inputs."""

VERSIONS: dict[str, str] = {
    "evaluate": "3",
    "format": "2",
    "make-tasks": "2",
    "promote": "3",
    "train": "2",
    "validate": "2",
}
"""Task → version of its logic, where it is not 1; raise it when equal inputs would give something else."""


def reads(stage: str, field: str) -> bool:
    """Whether a dotted recipe field is among the stage's inputs.

    A stage with a longer name (`promote on all samples`) reads what its first word does; an unknown one, everything.
    """
    first = stage.partition(" ")[0]
    named = READS[stage] if stage in READS else READS.get({"collect": "collect held-out"}.get(first, first), ("",))
    return any(not name or field == name or field.startswith(f"{name}.") for name in named)


def expected(recipe: Recipe, flow: str) -> list[tuple[int, str]]:
    """Turn and stage of all that a whole run has, in order, less what only some have."""
    optional = OPTIONAL - REVIEWING if recipe.review.required else OPTIONAL
    if flow == "prepare":
        return [(0, stage) for stage in PREPARE if stage not in optional]
    found = [(0, stage) for stage in BEFORE]
    for turn in range(1, recipe.turns + 1):
        found += [(turn, stage) for stage in TURN if stage not in optional]
    return [*found, (recipe.turns, REPORT)]


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted field → its two values, for each field that differs, by name."""
    first, second = flat(before), flat(now)
    return {
        name: (first.get(name), second.get(name))
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A resolved recipe by dotted field."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def shown(value: Any) -> str:
    """A field's value for people."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
