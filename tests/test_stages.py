"""The tables of what stages read and of their versions say what the flows and the steps do."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

import flows
import tasks
from gristmill.artifact import ArtifactRef
from gristmill.errors import GristmillError
from gristmill.loop import Standing
from gristmill.recipe import Recipe, build, with_overrides
from gristmill.stages import VERSIONS, flat, reads

Wired = Callable[[Recipe], dict[str, str]]
# Read, and yet of no consequence for the key in the recipe of this test.
WITHOUT_EFFECT = {
    ("train", "train.init_from"),  # which model that is stands among the inputs
    ("train", "train.reference"),
    ("collect", "collect.temperatures"),  # resolved to the turn's temperature
}

KINDS = {
    "base policy": "checkpoint",
    "held-out tasks": "tasks",
    "collect held-out": "rollouts",
    "ingest held-out": "table",
    "evaluate": "evaluation",
    "tasks": "tasks",
    "collect": "rollouts",
    "ingest": "table",
    "curate": "selection",
    "format": "dataset",
    "validate": "report",
    "train": "checkpoint",
    "promote": "decision",
}


def ref(kind: Any) -> ArtifactRef:
    return ArtifactRef(kind=kind, digest="a" * 64)


class Enough(Exception):
    """The wiring asked the store for what no stage has made here."""


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[Wired]:
    """Recipe → cache key of each stage, as the flows wire it: the stages themselves do nothing here."""
    from flows import evaluate as evaluating
    from flows import improve as improving
    from flows import iterate as iterating
    from tasks import caching

    found: dict[str, str] = {}

    def note(step: Any, turn: int, label: str, /, **inputs: Any) -> ArtifactRef:
        found.setdefault(label, caching._key(step, inputs))
        if label == "promote":
            raise Enough
        return ref(KINDS[label])

    for name in pkgutil.iter_modules(flows.__path__):
        module = import_module(f"flows.{name.name}")
        if getattr(module, "run", None) is caching.run:
            monkeypatch.setattr(module, "run", note)
    monkeypatch.setattr(iterating, "reviewed", lambda *_: None)

    def keys(recipe: Recipe) -> dict[str, str]:
        found.clear()
        evaluating.base(recipe.policy.model)
        heldout = evaluating.heldout_tasks(recipe)
        evaluating.evaluate(recipe, ref("checkpoint"), heldout, 0)
        given = improving._tasks(recipe, 1, standing())
        with pytest.raises(Enough):
            iterating.iterate.fn(recipe, 1, standing(), given)
        return dict(found)

    yield keys


def standing() -> Standing:
    return Standing(
        base=ref("checkpoint"), heldout=ref("tasks"), champion=ref("checkpoint"), champion_evaluation=ref("evaluation")
    )


def values_of(annotation: Any) -> list[Any]:
    """A few values that a field of this type may take."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    inner = [one for part in get_args(annotation) for one in values_of(part)]
    return [*inner, True, False, 0.5, 0.25, 1, 2, 3, "accumulate", "reasoning-gym", "reward > 0", "x", ["x"], [0.5]]


def another(recipe: Recipe, field: str) -> Iterator[Recipe]:
    """The recipe with another value of the field, for each that is valid."""
    model: Any = Recipe
    *sections, last = field.split(".")
    for name in sections:
        annotation = model.model_fields[name].annotation
        model = next(
            kind
            for kind in (annotation, *get_args(annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        )
    for value in values_of(model.model_fields[last].annotation):
        try:
            changed = with_overrides(recipe, {field: value})
        except GristmillError:
            continue
        if flat(changed.resolved()).get(field) != flat(recipe.resolved()).get(field):
            yield changed


def test_what_a_stage_reads_is_what_its_key_depends_on(wired: Wired) -> None:
    recipe = build({"policy": {"model": "tiny-random"}})
    before = wired(recipe)
    assert set(before) == set(KINDS)
    wrong, untried = [], []
    for field in flat(recipe.resolved()):
        for changed in another(recipe, field):
            try:
                now = wired(changed)
            except GristmillError:  # a name that has to resolve
                continue
            both = flat(changed.resolved())
            # Some fields bring others with them; then only the safe direction can be seen.
            alone = sum(both.get(name) != value for name, value in flat(recipe.resolved()).items()) == 1
            for stage in KINDS:
                depends, said = now[stage] != before[stage], reads(stage, field)
                if depends and not said and alone:
                    wrong.append(f"{stage} depends on {field}")
                if said and not depends and (stage, field) not in WITHOUT_EFFECT:
                    wrong.append(f"{stage} does not depend on {field}")
            break
        else:
            untried.append(field)
    assert wrong == []
    assert len(untried) < 0.15 * len(flat(recipe.resolved())), untried


def test_every_version_is_of_a_step() -> None:
    found = set()
    for module in pkgutil.iter_modules(tasks.__path__):
        for one in vars(import_module(f"tasks.{module.name}")).values():
            if getattr(getattr(one, "cache_policy", None), "version", None) is not None:
                found.add(one.name)
                assert one.cache_policy.version == VERSIONS.get(one.name, "1")
    assert found > set(VERSIONS)
