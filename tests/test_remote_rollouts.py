"""Rollout files in a bucket: read as if they lay here, copied once, and again only when they changed."""

from __future__ import annotations

import filecmp
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill import progress
from gristmill.arrivals import LOG, Arrivals
from gristmill.cli.output import showing
from gristmill.compare_command import compare_sides
from gristmill.errors import InputError, StoreError, StoreUnreachable
from gristmill.ingest import ingest
from gristmill.prepare import prepare
from gristmill.prepare_command import Options, read_arguments
from gristmill.recipe import build
from gristmill.remote import rollouts, transfer
from gristmill.remote.bucket import Bucket
from gristmill.rollout_files import find_rollout_files
from gristmill.workspace import Workspace
from tests import buckets
from tests.rows import rollout, write

pytest.importorskip("obstore")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of two runs, as a collection leaves them."""
    for run in ("monday", "tuesday"):
        folder = tmp_path / "here" / run
        folder.mkdir(parents=True)
        rows = [rollout(f"{run} {i}", task=i // 4, repeat=i % 4, reward=float(i % 2)) for i in range(16)]
        write(folder / "rollouts.jsonl", rows)
        asked = [{**row, "difficulty": row["_ng_task_index"]} for row in rows if row["_ng_rollout_index"] == 0]
        write(folder / "rollouts_materialized_inputs.jsonl", asked)
        write(folder / "rollouts_failures.jsonl", rows[:1])
        (folder / "notes.txt").write_text("not rollouts")
    return tmp_path / "here"


@pytest.fixture
def there(here: Path, bucket_url: str) -> str:
    """The same under a URL."""
    bucket = Bucket(bucket_url)
    for path in sorted(here.rglob("*")):
        if path.is_file():
            bucket.upload(path.relative_to(here).as_posix(), path)
    return bucket_url


def names(found: list[Path]) -> list[str]:
    return [f"{path.parent.name}/{path.name}" for path in found]


def test_what_a_url_means(there: str, here: Path) -> None:
    every = ["monday/rollouts.jsonl", "tuesday/rollouts.jsonl"]
    for url, meant in {
        there: every,
        f"{there}/monday": every[:1],
        f"{there}/tuesday/rollouts.jsonl": every[1:],
        f"{there}/*/rollouts.jsonl": every,
        f"{there}/[!m]*/*": every[1:],
        f"{there}/**": every,
        f"{there}/**/rollouts.jsonl": every,
        f"{there}/monday/notes.txt": ["monday/notes.txt"],  # what is named is taken whatever its name
    }.items():
        found = find_rollout_files([url])
        assert names(found) == meant, url
        assert all(filecmp.cmp(path, here / path.parent.name / path.name, shallow=False) for path in found)
    for sidecar in ("rollouts_materialized_inputs.jsonl", "rollouts_failures.jsonl"):
        assert (found := find_rollout_files([there])[0].with_name(sidecar)).is_file(), found


@pytest.mark.parametrize("url", ["nothing", "mon", "monday/rollouts.json", "*/none.jsonl", "monday/rollouts.jsonl/x"])
def test_where_there_is_nothing(there: str, url: str) -> None:
    with pytest.raises(InputError, match=rf"{url.replace('*', '.')} holds no rollout files"):
        find_rollout_files([f"{there}/{url}"])


def test_the_same_comes_of_it_as_on_disk(there: str, here: Path, tmp_path: Path) -> None:
    recipe = build({"format": {"target": "trl-jsonl", "method": "dpo"}, "checks": {"min_examples": 1}})
    for name, given in {"disk": str(here), "bucket": there}.items():
        prepare([given], recipe, tmp_path / name)
    files = {path.name for path in (tmp_path / "disk").iterdir()}
    assert {"train.jsonl", "provenance.parquet", "manifest.json"} <= files
    assert filecmp.cmpfiles(tmp_path / "disk", tmp_path / "bucket", files, shallow=False)[1:] == ([], [])
    (tmp_path / "table").mkdir()
    assert ingest([there], tmp_path / "table").inputs.rows == 8  # found beside the copies
    both = compare_sides(f"{there}/monday", str(here / "monday"), workspace=None, confidence=0.95, solved_at=1.0)
    assert both.tasks == 4 and both.difference.lift.mean == 0


def test_it_is_copied_once_and_again_when_it_changed(there: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    download = Bucket.download

    def counted(self: Bucket, key: str, *rest: Any) -> str:
        taken.append(key.rpartition("/")[2])
        return download(self, key, *rest)

    monkeypatch.setattr(Bucket, "download", counted)
    first = find_rollout_files([f"{there}/monday"])
    assert sorted(taken) == ["rollouts.jsonl", "rollouts_failures.jsonl", "rollouts_materialized_inputs.jsonl"]
    taken.clear()
    assert find_rollout_files([f"{there}/monday"]) == first and not taken

    rows = (here / "monday" / "rollouts.jsonl").read_bytes()
    Bucket(there).write("monday/rollouts.jsonl", rows.replace(b"monday", b"MONDAY"))  # no other size
    Bucket(there).delete(["monday/rollouts_failures.jsonl"])
    assert find_rollout_files([f"{there}/monday"]) == first and taken == ["rollouts.jsonl"]
    assert first[0].read_bytes() == rows.replace(b"monday", b"MONDAY")
    assert not first[0].with_name("rollouts_failures.jsonl").exists()
    taken.clear()

    first[0].write_bytes(rows[:100])  # a copy that somebody cut
    assert find_rollout_files([f"{there}/monday"]) == first and taken == ["rollouts.jsonl"]
    for tags in first[0].parents[2].rglob(".tags.json"):
        tags.write_bytes(b"{")
    assert find_rollout_files([f"{there}/monday"]) == first and len(taken) == 3


def test_what_changes_under_our_hands_is_said(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Bucket.download

    def late(self: Bucket, key: str, *rest: Any) -> str:
        if key.endswith("tuesday/rollouts.jsonl"):
            if removed:
                Bucket(there).delete(["tuesday/rollouts.jsonl"])
            else:
                Bucket(there).write("tuesday/rollouts.jsonl", b'{"reward": 1}\n')
        return download(self, key, *rest)

    monkeypatch.setattr(Bucket, "download", late)
    removed = False
    with pytest.raises(InputError, match=r"tuesday/rollouts.jsonl changed while it was read; run the same command"):
        find_rollout_files([there])
    removed = True
    with pytest.raises(InputError, match=r"tuesday/rollouts.jsonl was removed while it was read"):
        find_rollout_files([there])
    assert names(find_rollout_files([there])) == ["monday/rollouts.jsonl"]


@pytest.mark.parametrize("bucket_url", ["s3"], indirect=True)
def test_what_was_copied_before_the_bucket_went_away_is_not_copied_again(
    there: str, s3: int, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRISTMILL_REMOTE_PATIENCE", "1")
    monkeypatch.setattr(transfer, "THREADS", 1)
    with buckets.Proxy(s3) as proxy:
        for name, value in buckets.s3_environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        proxy.breaks = lambda method, path: "503" if path.endswith("tuesday/rollouts.jsonl") else None
        with pytest.raises(StoreUnreachable, match="could not read"):
            find_rollout_files([there])
        assert not list(cache.rglob("tuesday/rollouts.jsonl"))
        assert [
            path.name for path in cache.rglob(".*") if path.is_file() and path.name not in (".lock", ".tags.json")
        ] == []
        proxy.breaks, proxy.seen = (lambda method, path: None), []
        assert len(find_rollout_files([there])) == 2
        read = [path for method, path in proxy.seen if method == "GET" and "list-type" not in path]
        assert not any(path.endswith("monday/rollouts.jsonl") for path in read), read
        assert any(path.endswith("tuesday/rollouts.jsonl") for path in read)


@pytest.mark.parametrize("bucket_url", ["memory"], indirect=True)
def test_a_full_or_closed_disk_is_one_sentence(there: str, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(StoreError, match=r"could not be copied to .*; make room there, or name"):
        find_rollout_files([there])


@pytest.mark.parametrize("key", ["../rollouts.jsonl", "a/../../b.jsonl", "/etc/a.jsonl", "a//b.jsonl", "./a.jsonl"])
def test_no_name_leads_out_of_the_cache(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no name that a file can have"):
        rollouts._inside(tmp_path, key)


def test_an_equals_sign_in_a_url_makes_no_field_of_it() -> None:
    asked = read_arguments(["s3://bucket/date=2026-01-01/rollouts.jsonl", "format.validation=0.1"], Options())
    assert asked.files == ("s3://bucket/date=2026-01-01/rollouts.jsonl",)
    assert asked.recipe.format.validation == 0.1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("bucket_url", ["memory"], indirect=True)
def test_a_long_copy_shows_its_progress_in_a_terminal(there: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_TOLD", 1)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with showing():
        find_rollout_files([there])
    assert "bytes, fetching" in sys.stderr.getvalue()  # type: ignore[attr-defined]
    told: list[progress.Update] = []
    rollouts.default_cache().joinpath("rollouts").rename(rollouts.default_cache() / "before")
    with progress.listening(told.append):
        find_rollout_files([there])
    assert {one.stage for one in told} == {"fetch"} and told[-1].state == "done"
    assert told[-1].note.startswith("6 files, ")


# ---- arrivals


class Watch:
    """Arrivals under a clock of ours."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.workspace, self.now = url, Workspace(folder), 0.0
        self.restart()

    def restart(self) -> None:
        self.arrivals = Arrivals(self.url, self.workspace, settle=30, warn=pytest.fail, clock=lambda: self.now)

    def after(self, seconds: float) -> list[str]:
        self.now += seconds
        found = []
        for arrival in self.arrivals.look():
            found.append(arrival.path.removeprefix(f"{self.url}/"))
            self.arrivals.told(arrival)
        return found


def test_objects_arrive_once(there: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(there, tmp_path / "workspace")
    assert watch.after(0) == []
    assert watch.after(31) == ["monday/rollouts.jsonl", "tuesday/rollouts.jsonl"]
    assert watch.after(31) == []
    Bucket(there).write("monday/rollouts.jsonl", b'{"reward": 1.0}\n')
    Bucket(there).write("copy.jsonl", b'{"reward": 1.0}\n')  # the same content elsewhere
    assert watch.after(0) == []
    assert watch.after(31) == ["copy.jsonl"]

    read: list[str] = []
    digest = Bucket.digest
    monkeypatch.setattr(Bucket, "digest", lambda self, key: (read.append(key), digest(self, key))[1])
    watch.restart()
    assert watch.after(0) + watch.after(31) == []
    assert read == ["monday/rollouts.jsonl"]  # what was told itself is known by its tag
    for line in watch.workspace.read(LOG):
        assert line["path"].startswith(there) and line["version"]


@pytest.mark.parametrize("bucket_url", ["s3"], indirect=True)
def test_a_bucket_that_is_not_there_is_said(bucket_url: str, tmp_path: Path) -> None:
    url = bucket_url.replace("bucket", "no-such-bucket")
    for look in (
        lambda: find_rollout_files([url]),
        lambda: list(Arrivals(url, Workspace(tmp_path), settle=0, warn=print).look()),
    ):
        with pytest.raises(StoreError, match="there is no such bucket"):
            look()
