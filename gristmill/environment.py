"""Environments: what hands out tasks and verifies answers, in NeMo Gym's row format.

    arithmetic                embedded, procedural
    reasoning-gym             procedural, over a hundred families (gristmill/reasoning.py)
    package.module:function   a verifier of somebody's own, for tasks in a file
    nemo-gym                  servers: they verify themselves (gristmill/collect/gym.py), tasks come from a file

Tasks from files are cut by content into turns and into training and held-out tasks, so that equal recipes give equal
tasks, whatever the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.errors import RecipeError, UsageError
from gristmill.identity import digest
from gristmill.recipe import EnvironmentRecipe
from gristmill.store import Store

GYM = "nemo-gym"
TASKS = "tasks.jsonl"
_BUILT_IN = {"arithmetic": "gristmill.arithmetic", "reasoning-gym": "gristmill.reasoning"}
_HELDOUT_SHARE = 5
"""One task in this many is held out of a file that has no held-out file beside it."""

Split = Literal["train", "heldout"]
Verify = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""(task row, Responses object) → what a Gym resources server answers: `reward` and the verifier's own fields."""


class Environment(Protocol):
    """Tasks with answers, and a pure verifier."""

    def make_tasks(self, count: int, seed: int, split: Split, turn: int = 0) -> list[dict[str, Any]]:
        """Gym dataset rows; equal arguments give equal rows; splits and turns share no task."""
        ...

    def verify(self, task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
        """What a Gym resources server answers: `reward` and the verifier's own fields."""
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
        raise RecipeError(
            f"`environment.name`: {name!r} is not known; expected one of {', '.join(sorted(_BUILT_IN))}, {GYM}, or "
            "a verifier such as package.module:function"
        )
    return cast(Environment, import_module(_BUILT_IN[name]))


def verifier(name: str) -> Verify:
    """What scores answers: a built-in environment's, or `package.module:function`.

    Raises:
        RecipeError: it cannot be imported, or is no function; or the environment verifies on its own servers.
    """
    if ":" not in name:
        return environment(name).verify
    module, _, attribute = name.partition(":")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"environment.name: the verifier {name!r} cannot be imported ({error})") from error
    if not callable(found):
        raise RecipeError(f"environment.name: {name!r} is a {type(found).__name__}, expected a function")
    return cast(Verify, found)


def source(settings: EnvironmentRecipe) -> str | None:
    """What tasks are made from beyond the recipe: the content of its task files; None without any.

    Raises:
        RecipeError: the environment needs a task file and the recipe names none.
        InputError: a file that cannot be read.
    """
    if settings.name in _BUILT_IN:
        return None
    if settings.name != GYM:
        verifier(settings.name)
    if settings.train_file is None:
        raise RecipeError(
            f"environment.train_file: {settings.name} has no tasks of its own; "
            "name a JSONL file of NeMo Gym dataset rows"
        )
    from gristmill.collect.tasks import TaskFile

    with TaskFile(Path(settings.train_file)) as train:
        found = train.identity
    if settings.heldout_file is not None:
        with TaskFile(Path(settings.heldout_file)) as heldout:
            found += f" {heldout.identity}"
    return found


def make_tasks(settings: EnvironmentRecipe, split: Split, seed: int, turn: int) -> list[dict[str, Any]]:
    """The task rows of a turn (turn 0 for the held-out split).

    Raises:
        RecipeError: the environment's names do not resolve.
        UsageError: it has too few tasks; says how many.
    """
    count = settings.heldout if split == "heldout" else settings.tasks
    if settings.name in _BUILT_IN:
        if count is None:
            raise RecipeError(
                f"environment.{'heldout' if split == 'heldout' else 'tasks'}: null means all of a file, and "
                f"{settings.name} has no end; give a number"
            )
        if settings.name == "reasoning-gym":
            from gristmill import reasoning

            return reasoning.make_tasks(count, seed, split, turn, settings.families)
        return environment(settings.name).make_tasks(count, seed, split, turn)
    return _from_file(settings, split, count, seed, turn)


def _from_file(
    settings: EnvironmentRecipe, split: Split, count: int | None, seed: int, turn: int
) -> list[dict[str, Any]]:
    from gristmill.collect.tasks import TaskFile

    source(settings)
    own = settings.heldout_file if split == "heldout" else None
    path = Path(own or cast(str, settings.train_file))
    with TaskFile(path) as file:
        # By the prompt and not the whole row: two answers to one question are not two questions.
        rows = [(digest(row["responses_create_params"]["input"]), row) for row in file]
    if settings.heldout_file is None:
        wanted = split == "heldout"
        rows = [(key, row) for key, row in rows if (int(key[:8], 16) % _HELDOUT_SHARE == 0) == wanted]
    elif split == "train":
        with TaskFile(Path(settings.heldout_file)) as file:
            held = {digest(row["responses_create_params"]["input"]) for row in file}
        rows = [(key, row) for key, row in rows if key not in held]
    order = sorted(rows, key=lambda pair: (digest({"seed": seed, "prompt": pair[0]}), digest(pair[1])))
    start, number = (0, len(order)) if count is None else (max(turn - 1, 0) * count, count)
    taken = [row for _, row in order[start : start + number]]
    if len(taken) < max(number, 1):
        field = "heldout" if split == "heldout" else "tasks"
        raise UsageError(
            f"{path} has {len(order)} {split} tasks that are in no other split, and turn {turn} needs "
            f"{start + number}: lower environment.{field} or turns, or set it to null to take all of them every time"
        )
    return taken
