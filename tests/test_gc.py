"""Garbage collection never takes what a champion, a name or a recent run needs, and a kill leaves a whole store."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest
from rich.console import Console

from gristmill import names
from gristmill.artifact import MANIFEST
from gristmill.champions import roll_back
from gristmill.errors import StoreError, WorkspaceBusy
from gristmill.gc import collect
from gristmill.gc_command import run as show
from gristmill.workspace import Workspace
from tests.recorded import CHAIN, killed, promote, put, recipe, run_turn


def age(place: Workspace, day: int = 1) -> None:
    """Whatever is younger was made on a day long ago."""
    then = f"2020-01-{day:02}T00:00:00+00:00"
    for path in place.root.glob(f"artifacts/*/*/{MANIFEST}"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"created": min(manifest["created"], then, key=_long_ago)}))
    for name in ("runs.jsonl", "journal.jsonl"):
        path = place.root / name
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        lines = [line | {"time": min(line["time"], then, key=_long_ago)} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _long_ago(time: str) -> str:
    return time[:4]  # what was aged already stays as it is


def whole(place: Workspace) -> None:
    """Every artifact is whole, and so is all that it was made of."""
    there = set(place.store.refs())
    for ref in there:
        place.store.verify(ref)
        assert set(place.store.manifest(ref).parents) <= there


def test_without_delete_nothing_is_removed(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    run_turn(place, recipe())
    age(place)
    run_turn(place, recipe(seed=1), says="later")
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    out = io.StringIO()
    found = show(workspace=tmp_path, keep_runs=1, days=None, delete=False, json=False, console=Console(file=out))
    assert len(found.artifacts) == len(CHAIN) and not found.deleted
    assert "nothing was removed" in out.getvalue() and "--delete" in out.getvalue()
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_a_champion_keeps_its_whole_ancestry(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    made = run_turn(place, recipe())
    promote(place, made)
    run_turn(place, recipe(seed=1), says="loser")
    age(place)
    found = collect(place, keep_runs=0, delete=True)
    kept = set(place.store.refs())
    assert {made["train"], made["promote"], made["format"], made["curate"], made["tasks"]} <= kept
    assert made["validate"] not in kept  # nothing was made of it
    assert len(found.artifacts) == len(CHAIN) + 1
    whole(place)
    assert len(list(place.results.iterdir())) == len(kept)


def test_a_promotion_that_was_rolled_back_keeps_nothing(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    promote(place, run_turn(place, recipe()))
    roll_back(place, "a trial")
    age(place)
    collect(place, keep_runs=0, delete=True)
    assert list(place.store.refs()) == []


def test_tags_and_files_that_nobody_here_knows_keep_what_they_name(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    made = run_turn(place, recipe())
    names.give(place, "good", made["curate"])
    (tmp_path / "unheard-of.jsonl").write_text(json.dumps({"keep": [made["ingest held-out"].model_dump()]}) + "\n")
    age(place)
    collect(place, keep_runs=0, delete=True)
    kept = set(place.store.refs())
    assert {made["curate"], made["ingest held-out"], made["train"]} <= kept  # the last made the held-out rollouts
    assert made["evaluate"] not in kept
    whole(place)


def test_recent_runs_keep_what_they_used(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    for number in range(3):
        run_turn(place, recipe(seed=number), says=str(number))
        age(place, number + 1)
    found = collect(place, keep_runs=2)
    assert found.runs == (2, 3) and len(found.artifacts) == len(CHAIN)
    assert collect(place, keep_runs=0, days=1).runs == ()
    assert collect(place, keep_runs=0, days=1e5).runs == (1, 2, 3)


def test_what_is_younger_than_the_kept_runs_stays_though_no_run_names_it(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    put(place, "export", "old")
    run_turn(place, recipe())
    age(place)
    run_turn(place, recipe(seed=1), says="later")
    new = put(place, "export", "new")
    collect(place, keep_runs=1, delete=True)
    assert [ref for ref in place.store.refs() if ref.kind == "export"] == [new]


def test_an_unfinished_run_keeps_its_work(tmp_path: Path) -> None:
    place = killed(tmp_path)
    (place.work("train-abc") / "step.json").write_text("{}")
    collect(place, keep_runs=0, delete=True)
    assert (tmp_path / "work" / "train-abc").exists()
    assert len(list(place.store.refs())) == 4
    run_turn(place, recipe())
    collect(place, delete=True)
    assert not (tmp_path / "work" / "train-abc").exists()


def test_a_sweep_that_is_killed_leaves_a_whole_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workspace(tmp_path)
    promote(place, run_turn(place, recipe()))
    for number in range(1, 4):
        run_turn(place, recipe(seed=number), says=str(number))
    age(place)
    expected = {ref.short for ref in place.store.refs()} - set(collect(place, keep_runs=0).artifacts)
    rng = random.Random(0)
    remove = type(place.store).remove
    for _ in range(50):
        left = rng.randint(0, 8)

        def until_killed(store: object, ref: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            remove(place.store, ref)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(type(place.store), "remove", until_killed)
            try:
                collect(place, keep_runs=0, delete=True)
            except KeyboardInterrupt:
                whole(place)
                continue
        break
    assert {ref.short for ref in place.store.refs()} == expected
    whole(place)


def test_nothing_is_swept_while_an_ancestry_cannot_be_read(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    made = run_turn(place, recipe())
    (place.store.path(made["train"]) / MANIFEST).write_text("{")
    with pytest.raises(StoreError, match=r"damaged, so its ancestry is unknown .*doctor --mend"):
        collect(place, keep_runs=0, delete=True)


def test_it_waits_for_no_run(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    run_turn(place, recipe())
    with place.locked():
        assert collect(Workspace(tmp_path)).bytes == 0
        with pytest.raises(WorkspaceBusy):
            collect(Workspace(tmp_path), delete=True)
