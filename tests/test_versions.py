"""Numbers that stay, names that move, and one resolver for all of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gristmill import names
from gristmill.artifact import ArtifactRef
from gristmill.champions import roll_back
from gristmill.errors import UsageError
from gristmill.names import resolve
from gristmill.versions import FILE, assign, parse, versions
from gristmill.workspace import Workspace
from tests.lineages import filled, stub


def said(place: Workspace) -> dict[str, str]:
    return {str(version): ref.digest for ref, version in versions(place).items()}


def test_numbers_follow_the_order_of_making(tmp_path: Path) -> None:
    made = filled(tmp_path)
    expected = {
        "data v1": made.dataset.digest,
        "data v2": made.next_dataset.digest,
        "model v1": made.model.digest,
        "model v2": made.next_model.digest,
    }
    assert said(made.workspace) == expected
    assert not (made.workspace.root / FILE).exists()  # reading writes nothing
    assign(made.workspace, made.evaluation)
    assert not (made.workspace.root / FILE).exists()  # no kind that has versions
    assign(made.workspace, made.next_model)
    assert said(made.workspace) == expected
    before = (made.workspace.root / FILE).read_bytes()
    assign(made.workspace, made.model)
    assert (made.workspace.root / FILE).read_bytes() == before


def test_a_number_outlives_its_artifact_and_is_not_given_again(tmp_path: Path) -> None:
    made = filled(tmp_path)
    place = made.workspace
    assign(place, made.next_dataset)
    shutil.rmtree(place.store.path(made.next_dataset))
    new = stub(place, "dataset", "format", [], examples=1)
    assign(place, new)
    assert said(place)["data v2"] == made.next_dataset.digest
    assert said(place)["data v3"] == new.digest
    (place.root / FILE).write_bytes((place.root / FILE).read_bytes() + b'{"kind": "data')  # its writer was killed
    assert said(place)["data v3"] == new.digest


def test_made_by_hand_between_two_runs_keeps_its_number(tmp_path: Path) -> None:
    made = filled(tmp_path)
    place = made.workspace
    new = stub(place, "checkpoint", "train", [], steps=1, losses=[1.0])
    shown = said(place)
    assert new.digest in shown.values()
    assign(place, new)
    assert said(place) == shown


@pytest.mark.parametrize("text", ["model v2", "model-v2", "Model:v2", "checkpoint v2", "modelv2"])
def test_ways_to_say_a_version(text: str) -> None:
    assert parse(text) == ("checkpoint", 2)


@pytest.mark.parametrize("text", ["model v", "v2", "models v2", "model v2x", "evaluation v1"])
def test_what_is_no_version(text: str) -> None:
    assert parse(text) is None


def test_one_resolver_for_every_name(tmp_path: Path) -> None:
    made = filled(tmp_path)
    place = made.workspace
    names.give(place, "good", made.dataset)
    names.give(place, "production", made.model, "alias")
    expected: dict[str, ArtifactRef] = {
        "model v1": made.model,
        "data-v2": made.next_dataset,
        "champion": made.model,
        "base": made.base,
        "tester": made.base,
        "good": made.dataset,
        "production": made.model,
        made.decision.digest[:6]: made.decision,
        str(made.evaluation): made.evaluation,
        f"{made.table.short}…": made.table,
    }
    for text, ref in expected.items():
        assert resolve(place, text) == ref, text


def test_a_file_or_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    made = filled(tmp_path)
    copy = tmp_path / "elsewhere"
    shutil.copytree(made.workspace.store.path(made.next_dataset), copy)
    (copy / "manifest.json").unlink()
    (copy / "mine.txt").write_text("not part of it")
    assert resolve(made.workspace, str(copy)) == made.next_dataset
    assert resolve(made.workspace, str(copy / "provenance.parquet")) == made.next_dataset
    with pytest.raises(UsageError, match=r"no artifact of .* has that content"):
        resolve(made.workspace, str(copy / "mine.txt"))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("model v9", "there is no model v9 in .*; did you mean model-v2 or model-v1"),
        ("gooood", "did you mean good"),
        ("00000000", "means nothing in"),
        ("", "means nothing in"),
    ],
)
def test_what_means_nothing_says_what_is_near(tmp_path: Path, text: str, sentence: str) -> None:
    made = filled(tmp_path)
    names.give(made.workspace, "good", made.model)
    with pytest.raises(UsageError, match=sentence):
        resolve(made.workspace, text)


def test_no_workspace_no_champion(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no workspace"):
        resolve(Workspace(tmp_path / "none"), "champion")
    made = filled(tmp_path)
    roll_back(made.workspace, "")
    with pytest.raises(UsageError, match="nothing has been promoted"):
        resolve(made.workspace, "champion")


def test_a_tag_moves_and_its_history_stays(tmp_path: Path) -> None:
    made = filled(tmp_path)
    place = made.workspace
    names.give(place, "best", made.model)
    names.give(place, "best", made.next_model)
    assert resolve(place, "best") == made.next_model
    assert [entry.ref for entry in names.history(place)] == [made.model, made.next_model]
    names.give(place, "best", None)
    with pytest.raises(UsageError):
        resolve(place, "best")
    with pytest.raises(UsageError, match="no tag 'best' to take away"):
        names.give(place, "best", None)
    names.note(place, made.model, " watch the length ")
    assert [entry.text for entry in names.notes(place)[made.model]] == ["watch the length"]


@pytest.mark.parametrize("name", ["champion", "base", "model-v3", "abcdef12", "two words", "../x", "-w", ""])
def test_names_that_would_mean_something_else(tmp_path: Path, name: str) -> None:
    made = filled(tmp_path)
    with pytest.raises(UsageError):
        names.give(made.workspace, name, made.model)
    assert names.history(made.workspace) == []


def test_an_alias_is_a_model_s(tmp_path: Path) -> None:
    made = filled(tmp_path)
    with pytest.raises(UsageError, match="is no model"):
        names.give(made.workspace, "production", made.dataset, "alias")
    names.give(made.workspace, "production", made.model, "alias")
    with pytest.raises(UsageError, match="'production' is an alias"):
        names.give(made.workspace, "production", made.dataset)
