"""A model as a folder: its files, a card that the hub's own classes read, and nothing of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from gristmill import names
from gristmill.artifact import ArtifactRef, now
from gristmill.champions import roll_back
from gristmill.cli import app
from gristmill.errors import UsageError
from gristmill.model_export import export
from gristmill.recipe import build
from gristmill.redaction import public_text
from gristmill.tracing import taint
from tests.lineages import Filled, filled


@pytest.fixture
def made(tmp_path: Path) -> Filled:
    return filled(tmp_path)


def card(made: Filled, out: Path, ref: ArtifactRef | None = None) -> ModelCard:
    export(made.workspace, ref or made.model, out, force=True)
    return ModelCard.load(out / "README.md")


def test_the_folder_and_its_header(made: Filled, tmp_path: Path) -> None:
    told = export(made.workspace, made.model, tmp_path / "out")
    assert set(told.files) == {"README.md", "curve.svg", "lineage.json", "stub.json"} and told.promoted
    header = ModelCard.load(tmp_path / "out" / "README.md").data
    assert header.base_model == "tester" and header.library_name == "transformers"
    assert header.datasets == [f"data-v1-{made.dataset.digest[:12]}"]
    results = {one.metric_type: one.metric_value for one in header.eval_results}
    assert results == {"mean_reward": 0.875, "pass@1": 0.875, "pass@2": 1.0}
    assert "gristmill" in header.tags


def test_the_card_says_what_the_gate_said(made: Filled, tmp_path: Path) -> None:
    text = card(made, tmp_path / "out").text
    assert "**promoted**, against base (tester): lift +0.750" in text
    assert re.search(r"\| base \(tester\) \| 0\.125 \[.*\| 0\.250 \|  \|  \|", text)
    assert re.search(r"\| \*\*model v1\*\* \| 0\.875 .*\| \+0\.750 \[.*\| promoted \|", text)
    assert "This model − base: +0.750" in text and "![Held-out mean reward by turn](curve.svg)" in text
    assert "| data v1 |" in text and "1 below_reward" in text and "flowchart LR" in text
    assert "does **not**" not in text
    assert (tmp_path / "out" / "curve.svg").read_text().startswith("<svg xmlns=")


def test_a_challenger_that_was_not_promoted_says_so(made: Filled, tmp_path: Path) -> None:
    told = export(made.workspace, made.next_model, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert not told.promoted and "The gate did **not** promote it" in text
    assert "2 challengers were measured on the same held-out tasks" in text
    roll_back(made.workspace, "")
    assert "rolled back later" in card(made, tmp_path / "other").text


def test_a_taint_stands_on_the_card(made: Filled, tmp_path: Path) -> None:
    assert "Marked as bad" not in card(made, tmp_path / "out").text
    taint(made.workspace, "data v1#0", "leaked")
    assert "**Marked as bad since it was trained:** 1 of 4 rows of data v1." in card(made, tmp_path / "out").text


def test_the_recipe_loads_again_and_names_no_path(made: Filled, tmp_path: Path) -> None:
    secret = "https://me:hunter2@host/v1"
    settings = build({"name": "tiny", "policy": {"model": str(tmp_path / "secret" / "mine")}}, []).resolved()
    settings["policy"]["base_url"] = secret
    start = {"time": now(), "run": 1, "event": "start", "command": ["improve"], "recipe": settings, "refresh": {}}
    made.workspace.append("runs.jsonl", start | {"pid": 1, "gristmill": "0", "engine": None})
    line = {"run": 1, "turn": 1, "stage": "train", "cached": False, "result": str(made.model), "inputs": []}
    (made.workspace.root / "journal.jsonl").unlink()
    made.workspace.record(line)
    export(made.workspace, made.model, tmp_path / "out")
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())
    assert recipe["policy"]["model"] == "mine" and recipe["policy"]["base_url"] == "https://host/v1"
    assert build(recipe, []).name == "tiny"
    for file in (tmp_path / "out").iterdir():
        assert str(tmp_path) not in file.read_text() and "hunter2" not in file.read_text()
    walk = json.loads((tmp_path / "out" / "lineage.json").read_text())
    assert walk["recipe"]["name"] == "tiny" and str(made.table) in {node["id"] for node in walk["nodes"]}


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/me/models/mine", "mine"),
        ("serve --model ~/models/mine --port 1", "serve --model mine --port 1"),
        ("https://host/v1/models", "https://host/v1/models"),
        ("and/or, 1/2", "and/or, 1/2"),
        ("http://me:x@host/v1", "http://host/v1"),
    ],
)
def test_what_is_public(text: str, public: str) -> None:
    assert public_text(text) == public


def test_nothing_is_overwritten(made: Filled, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    export(made.workspace, made.model, out)  # empty is as good as new
    with pytest.raises(UsageError, match="is not empty"):
        export(made.workspace, made.model, out)
    export(made.workspace, made.next_model, out, force=True)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="no export of ours"):
        export(made.workspace, made.model, mine, force=True)
    assert (mine / "thesis.tex").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out", "workspace"]
    with pytest.raises(UsageError, match="is no model"):
        export(made.workspace, made.dataset, tmp_path / "third")


def run(made: Filled, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["champion", *arguments, "-w", str(made.workspace.root)], env={"COLUMNS": "200"})


def test_the_champion_by_command(made: Filled, tmp_path: Path) -> None:
    shown = run(made).stdout
    assert "model v1" in shown and "is champion since 2026-01-01" in shown and "evidence" in shown
    assert "is checkpoint" in run(made, "alias", "production").stdout
    assert "alias production: model v1" in run(made).stdout
    assert run(made, "alias", "production", "model-v2").exit_code == 0
    assert names.resolve(made.workspace, "production") == made.next_model
    out = tmp_path / "out"
    assert json.loads(run(made, "export", "champion", "--out", str(out), "--json").stdout)["model"] == "model v1"
    assert run(made, "export", "--out", str(out)).exit_code != 0
    first = json.loads(run(made, "--json").stdout)[0]
    assert first["champion"] and first["names"] == ["model v1", "champion"]
    assert "is rolled back" in run(made, "rollback", "--reason", "verbose").stdout
    assert "every promotion was rolled back" in run(made).stdout
    misplaced = CliRunner().invoke(app, ["champion", "-w", "x", "rollback"])
    assert isinstance(misplaced.exception, UsageError)
