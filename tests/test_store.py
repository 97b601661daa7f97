"""The store: equal content has one address, nothing half-written is seen, damage is found."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from gristmill import artifact
from gristmill.artifact import ArtifactRef
from gristmill.errors import ArtifactDamaged, ArtifactMissing, NewerSchema, StoreError
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


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store)
    manifest = store.path(ref) / "manifest.json"
    newer = manifest.read_bytes().replace(b'"schema_version": 1', b'"schema_version": 2')
    manifest.write_bytes(newer)
    for act in (store.manifest, store.exists, lambda _: put(store)):
        with pytest.raises(NewerSchema, match=r"schema version 2, and this Gristmill reads up to 1: .* upgrade"):
            act(ref)
    assert manifest.read_bytes() == newer


def test_an_older_schema_is_brought_forward_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    ref = put(store, counts={"rows": 3})
    before = (store.path(ref) / "manifest.json").read_bytes()
    monkeypatch.setattr(artifact, "SCHEMA_VERSION", 3)
    monkeypatch.setitem(artifact.MIGRATIONS, 1, lambda raw: raw | {"counts": {"rows_read": raw["counts"]["rows"]}})
    monkeypatch.setitem(artifact.MIGRATIONS, 2, lambda raw: raw | {"stage": raw["stage"].upper(), "schema_version": 3})
    manifest = store.manifest(ref)
    assert (manifest.counts, manifest.stage) == ({"rows_read": 3}, "TEST")
    assert (store.path(ref) / "manifest.json").read_bytes() == before


def test_two_processes_commit_the_same_at_once(tmp_path: Path) -> None:
    one, two = Store(tmp_path), Store(tmp_path)
    with one.draft("dataset") as first, two.draft("dataset") as second:
        for draft in (first, second):
            (draft.path / "a.txt").write_text("x")
        assert first.commit(stage="first") == second.commit(stage="second")
    (ref,) = one.refs()
    assert one.manifest(ref).stage == "first"


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Store(tmp_path)
    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(
        StoreError, match=r"stage test could not be stored: No space left on device; .* same command again"
    ):
        put(store)
    monkeypatch.undo()
    assert list(store.refs()) == []
    put(store)


def test_what_is_removed_is_gone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    ref = put(store)
    store.remove(ref)
    store.remove(ref)
    assert list(store.refs()) == []


def test_an_empty_payload_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="empty dataset"), store.draft("dataset") as draft:
        draft.commit(stage="test")


def test_errors_survive_another_process() -> None:
    error = ArtifactMissing("x is not here")
    assert str(pickle.loads(pickle.dumps(error))) == "x is not here"
