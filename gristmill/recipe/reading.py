"""From YAML and overrides to a recipe, and back; every problem is one sentence."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gristmill.errors import RecipeError
from gristmill.recipe.whole import Recipe


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a YAML recipe and apply dotted `key=value` overrides.

    Raises:
        RecipeError: one sentence that names the file, the field, what is allowed and what was found.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror or error}; expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"recipe {path} is not UTF-8 text; expected a YAML file") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"recipe {path}{where}: not YAML ({getattr(error, 'problem', None) or error})") from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}: expected keys such as `policy:` at the top, found a {_yaml_type(values)}")
    return build(values, overrides, source=f"recipe {path}")


def build(values: Mapping[str, Any], overrides: Sequence[str] = (), *, source: str = "recipe") -> Recipe:
    """Validate plain values plus overrides.

    Raises:
        RecipeError: as `load`.
    """
    merged: dict[str, Any] = _copy(values)
    for override in overrides:
        _apply(merged, override)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"{source}: {_sentence(error)}") from None


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with dotted fields replaced (Prefect does not merge nested parameters).

    Raises:
        RecipeError: an override names no field or does not validate.
    """
    if not overrides:
        return recipe
    merged = recipe.resolved()
    for key, value in overrides.items():
        _set(merged, key, value)
    try:
        return Recipe.model_validate(merged)
    except ValidationError as error:
        raise RecipeError(f"override: {_sentence(error)}") from None


def documented(recipe: Recipe | None = None) -> str:
    """A recipe as YAML with every field's description behind it: a file to start from."""
    lines: list[str] = []

    def write(section: BaseModel, indent: str) -> None:
        for name, field in type(section).model_fields.items():
            value = getattr(section, name)
            if isinstance(value, BaseModel):
                lines.append(f"{indent}{name}:  # {(type(value).__doc__ or '').strip()}")
                write(value, indent + "  ")
            else:
                plain = section.model_dump(mode="json", include={name})[name]
                shown = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True).removesuffix("...\n").strip()
                lines.append(f"{indent}{name}: {shown}  # {field.description}")

    write(recipe or Recipe(), "")
    return "\n".join(lines) + "\n"


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise RecipeError(f"override {override!r}: expected key=value, such as train.epochs=1")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and _is_number(value):  # YAML 1.1 reads 1e-4 (no dot) as text
        value = float(value)
    _set(values, key.strip(), value)


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, field = key.split(".")
    at = values
    for depth, name in enumerate(sections, 1):
        inner = at.setdefault(name, {})
        kind = _section(sections[:depth])
        if isinstance(inner, str) and kind and (short := getattr(kind, "shorthand", None)):
            inner = at[name] = {short: inner}
        if not isinstance(inner, dict):
            raise RecipeError(f"override {key}: `{name}` is a value, not a section")
        at = inner
    at[field] = value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _sentence(error: ValidationError) -> str:
    """The first problem, in one sentence, and how many more there are."""
    problems = error.errors()
    first = problems[0]
    where = [str(part) for part in first["loc"]]
    name = ".".join(where) or "the recipe"
    if first["type"] == "extra_forbidden":
        section = _section(where[:-1])
        allowed = list(section.model_fields) if section else []
        near = difflib.get_close_matches(where[-1], allowed, n=1)
        hint = f"did you mean `{near[0]}`? " if near else ""
        text = f"`{name}` is no field; {hint}allowed here: {', '.join(allowed)}"
    else:
        found = first["input"]
        shown = repr(found) if not isinstance(found, dict | list) else f"a {_yaml_type(found)}"
        message = first["msg"].removeprefix("Value error, ")
        text = f"`{name}`: {message[0].lower()}{message[1:]}"
        if not isinstance(found, dict) or first["type"] != "value_error":  # a section as a whole is no finding
            text += f", found {shown}"
        if field := _field(where):
            text += f" ({field.description})" if field.description else ""
    more = len(problems) - 1
    return text + (f"; and {more} more problem{'s' if more > 1 else ''}" if more else "")


def _section(path: Sequence[str]) -> type[BaseModel] | None:
    model: type[BaseModel] = Recipe
    for part in path:
        field = model.model_fields.get(part)
        kinds = [] if field is None else [field.annotation, *get_args(field.annotation)]  # `X | None` is X here
        found = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if found is None:
            return None
        model = found
    return model


def _field(path: Sequence[str]) -> FieldInfo | None:
    section = _section(path[:-1]) if path else None
    if section is None:
        return None
    return section.model_fields.get(path[-1])


def _yaml_type(value: Any) -> str:
    names: dict[str, str] = {"dict": "mapping", "str": "text"}
    return names.get(type(value).__name__, type(value).__name__)
