"""The public surface: exactly these names, each where it is said to be, and typed as it is loaded."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gristmill

PUBLIC = {
    *("ArtifactRef", "Conversation", "Decision", "DropReason", "Estimate", "Evaluation", "GristmillError"),
    *("IngestResult", "Manifest", "Recipe", "Store", "Unrepresentable", "Verdict", "Workspace"),
    *("convert", "decide", "lift", "mean_reward", "paired_difference"),
}


def test_the_public_names() -> None:
    assert set(dir(gristmill)) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_loads(name: str) -> None:
    assert getattr(gristmill, name).__name__ == name


def test_types_and_loading_agree() -> None:
    tree = ast.parse(Path(gristmill.__file__).read_text())
    typed = {
        alias.asname: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("gristmill.")
        for alias in node.names
    }
    assert typed == {name: f"gristmill.{module}" for name, module in gristmill._MODULE_OF.items()}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = gristmill.nope
