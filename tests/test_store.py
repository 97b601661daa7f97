"""The store: equal content has one address, nothing half-written is seen, damage is found."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.errors import ArtifactDamaged, ArtifactMissing, StoreError
from gristmill.store import Store, step_version


def put(store: Store, text: str = "payload", name: str = "a.txt", **manifest: object) -> ArtifactRef:
    with store.draft("dataset") as draft:
        (draft.path / name).write_text(text)
        return draft.commit(stage="test", **manifest)  # type: ignore[arg-type]


def test_equal_content_has_one_digest_wherever_it_is_made(tmp_path: Path) -> None:
    one = put(Store(tmp_path / "one"), settings={"x": 1})
    two = put(Store(tmp_path / "two"), settings={"x": 2})
    assert one == two
    assert put(Store(tmp_path / "one"), "other") != one
    assert put(Store(tmp_path / "one"), name="b.txt") != one


def test_the_older_copy_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store, settings={"x": 1})
    assert put(store, settings={"x": 2}) == ref
    assert store.manifest(ref).settings == {"x": 1}
    assert list(store.refs()) == [ref]


def test_manifest_says_what_it_is_made_of(tmp_path: Path) -> None:
    store = Store(tmp_path)
    parent = put(store)
    with step_version("7"):
        ref = put(store, "child", parents=[parent], counts={"rows_read": 3})
    manifest = store.manifest(ref)
    assert manifest.parents == (parent,)
    assert manifest.counts == {"rows_read": 3}
    assert manifest.step_version == "7"
    assert [(f.name, f.bytes) for f in manifest.files] == [("a.txt", 5)]
    assert str(tmp_path) not in (store.path(ref) / "manifest.json").read_text()


def test_a_draft_that_is_not_committed_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ZeroDivisionError), store.draft("dataset") as draft:
        (draft.path / "a.txt").write_text("half")
        _ = 1 / 0
    assert list(store.refs()) == []
    assert list((tmp_path / "artifacts" / "dataset").iterdir()) == []


def test_a_folder_without_a_manifest_does_not_exist(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store)
    (store.path(ref) / "manifest.json").unlink()
    assert not store.exists(ref)
    with pytest.raises(ArtifactMissing, match=r"artifacts/dataset/.* is not in workspace"):
        store.path(ref)
    assert put(store) == ref  # and can be made again over its remains
    assert store.exists(ref)


def test_sweep_removes_what_killed_writers_left(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "artifacts" / "dataset" / ".tmp-1-x"
    left.mkdir(parents=True)
    (left / "manifest.json").write_text("{}")
    assert list(store.refs()) == []
    assert store.sweep() == 1
    assert not left.exists()


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store)
    store.verify(ref)
    file = store.path(ref) / "a.txt"
    file.write_text("paYload")  # same size
    assert store.exists(ref)
    with pytest.raises(ArtifactDamaged, match=r"a\.txt: expected sha256 .* found sha256"):
        store.verify(ref)
    file.write_text("short")
    assert not store.exists(ref)
    file.unlink()
    with pytest.raises(ArtifactDamaged, match="no such file"):
        store.verify(ref)


def test_a_truncated_manifest_is_damage_not_a_traceback(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store)
    manifest = store.path(ref) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:50])
    assert not store.exists(ref)
    with pytest.raises(ArtifactDamaged, match="run again to remake it"):
        store.manifest(ref)


def test_an_empty_payload_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="empty dataset"), store.draft("dataset") as draft:
        draft.commit(stage="test")


def test_errors_survive_another_process() -> None:
    error = ArtifactMissing("x is not here")
    assert str(pickle.loads(pickle.dumps(error))) == "x is not here"
