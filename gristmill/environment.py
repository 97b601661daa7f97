"""Environments: what hands out tasks and verifies answers, in NeMo Gym's row format.

An environment is a module or object with the three members of `Environment`. Built-in ones are looked up by
name; NeMo Gym servers are collected from over HTTP instead and need no entry here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, Protocol, cast

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.errors import RecipeError
from gristmill.store import Store

_BUILT_IN = {"arithmetic": "gristmill.arithmetic"}


TASKS = "tasks.jsonl"


class Environment(Protocol):
    """Tasks with answers, and a pure verifier."""

    def make_tasks(
        self, count: int, seed: int, split: Literal["train", "heldout"], turn: int = 0
    ) -> list[dict[str, Any]]:
        """Gym dataset rows; equal arguments give equal rows; splits and turns share no task."""
        ...

    def verify(self, task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
        """What a Gym resources server answers: `reward` and the verifier's own fields."""
        ...

    def response(
        self, text: str, *, model: str, prompt_tokens: int, completion_tokens: int, truncated: bool
    ) -> dict[str, Any]:
        """A Responses object around a generated text."""
        ...


def read_tasks(store: Store, ref: ArtifactRef) -> list[dict[str, Any]]:
    """The rows of a task set in the store."""
    return [orjson.loads(line) for line in (store.path(ref) / TASKS).read_bytes().splitlines()]


def environment(name: str) -> Environment:
    """A built-in environment.

    Raises:
        RecipeError: no such environment; names those that exist.
    """
    if name not in _BUILT_IN:
        raise RecipeError(f"environment {name!r} is not known; expected one of {', '.join(sorted(_BUILT_IN))}")
    return cast(Environment, import_module(_BUILT_IN[name]))
