"""Recipes: every shipped one is valid, and every mistake is one sentence that names the field."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RecipeError
from gristmill.recipe import Recipe, build, documented, load, with_overrides

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    recipe = load(path)
    assert build(recipe.resolved()) == recipe


def test_there_are_recipes() -> None:
    assert "arithmetic" in {path.stem for path in RECIPES}


def test_every_field_is_documented() -> None:
    def undocumented(model: type, at: str) -> list[str]:
        found = []
        for name, field in model.model_fields.items():  # type: ignore[attr-defined]
            kind = field.annotation
            if isinstance(kind, type) and hasattr(kind, "model_fields"):
                found += undocumented(kind, f"{at}{name}.")
            elif not field.description:
                found.append(at + name)
        return found

    assert undocumented(Recipe, "") == []


@pytest.mark.parametrize(
    ("values", "overrides", "message"),
    [
        ({"trian": {}}, [], r"`trian` is no field; did you mean `train`\? allowed here: name, seed"),
        ({"train": {"epoch": 1}}, [], r"`train.epoch` is no field; did you mean `epochs`\?"),
        ({}, ["train.epochs=x"], r"`train.epochs`: input should be a valid number.*found 'x'"),
        ({}, ["turns=0"], r"`turns`: input should be greater than or equal to 1, found 0"),
        ({}, ["turns=2.5"], r"`turns`: .*found 2.5"),
        ({}, ["seed=true"], r"`seed`: .*found True"),
        ({}, ["epochs"], r"expected key=value"),
        ({"train": 3}, [], r"`train`: .*found 3"),
        ({"train": 3}, ["train.epochs=1"], r"`train` is a value, not a section"),
        ({"name": "Bad Name"}, [], r"`name`: .*found 'Bad Name'"),
        ({"format": {"method": {"a": 1}}}, [], r"`format.method`: .*found a mapping"),
    ],
)
def test_mistakes_are_one_sentence(values: dict[str, object], overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        build(values, overrides)
    assert "\n" not in str(caught.value)


def test_several_mistakes_are_counted() -> None:
    with pytest.raises(RecipeError, match="and 2 more problems"):
        build({"a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize("text", ["- a list\n", "{", "\x00"], ids=["list", "torn", "binary"])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        load(path)


def test_the_documented_recipe_is_the_default_one(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(documented())
    assert load(path) == Recipe()
    assert "per_task: 4  # At most so many rollouts a task" in documented()


def test_overrides_reach_nested_fields_and_keep_their_type() -> None:
    recipe = build({"train": {"epochs": 3}}, ["train.learning_rate=1e-4", "curate.min_reward=null", "name=x"])
    assert (recipe.train.epochs, recipe.train.learning_rate) == (3, 1e-4)
    assert recipe.curate.min_reward is None
    assert recipe.name == "x"


def test_overrides_replace_single_fields_of_a_recipe() -> None:
    recipe = build({"train": {"epochs": 3, "batch_size": 4}})
    changed = with_overrides(recipe, {"train.epochs": 1})
    assert (changed.train.epochs, changed.train.batch_size) == (1, 4)
    with pytest.raises(RecipeError, match="no field"):
        with_overrides(recipe, {"train.epoch": 1})


def test_identity_follows_content() -> None:
    assert build({}).digest == Recipe().digest
    assert build({"seed": 1}).digest != Recipe().digest


def test_a_section_by_one_word_takes_further_fields() -> None:
    """Fails if `execution: ray` and `execution.address=…` cannot stand together, in a file or in overrides."""
    wanted = ("ray", "10.0.0.1:6379")
    for values, overrides in [
        ({"execution": "ray"}, ["execution.address=10.0.0.1:6379"]),
        ({}, ["execution=ray", "execution.address=10.0.0.1:6379"]),
    ]:
        found = build(values, overrides).execution
        assert (found.kind, found.address) == wanted
    changed = with_overrides(build({}), {"execution": "ray", "execution.address": "10.0.0.1:6379"}).execution
    assert (changed.kind, changed.address) == wanted
    with pytest.raises(RecipeError, match="`name` is a value, not a section"):
        build({"name": "a"}, ["name.x=1"])


def _fields(values: dict[str, Any], at: str = "") -> Iterator[str]:
    for name, value in values.items():
        yield at + name
        if isinstance(value, dict):
            yield from _fields(value, f"{at}{name}.")


FIELD = st.sampled_from(sorted(_fields(Recipe().resolved())))
VALUE = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["null", "-1", "1e400", ".nan", "true", "[1]", "[null]", "{a: 1}", "{1: 2}", "&a", "*a", "2026-01-01"]
    ),
    st.sampled_from(["9" * 400, "!x y", "dpo", "ray", "[", "\x00", "\u2028"]),
)


@given(st.lists(st.tuples(FIELD, st.sampled_from(["", ".x", ".y.z"]), VALUE), min_size=1, max_size=3))
@settings(max_examples=300)
def test_any_override_is_taken_or_refused_in_one_sentence(given: list[tuple[str, str, str]]) -> None:
    try:
        build({}, [f"{field}{deeper}={value}" for field, deeper, value in given])
    except RecipeError as error:
        assert "\n" not in str(error)
