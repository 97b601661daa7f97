"""Workspaces in buckets, over HTTP: one truth for several machines, nothing lost, nobody overwritten, said in words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gristmill.artifact import ArtifactRef
from gristmill.doctor import examine
from gristmill.errors import (
    ArtifactDamaged,
    ArtifactMissing,
    NewerSchema,
    StoreError,
    StoreUnreachable,
    UsageError,
    WorkspaceBusy,
    WorkspaceLost,
)
from gristmill.remote.bucket import Bucket, remote_url
from gristmill.remote.workspace import RemoteWorkspace
from gristmill.store import Store
from gristmill.workspace import Workspace
from tests import buckets
from tests.buckets import Fault, Proxy

pytest.importorskip("obstore")

Machine = Callable[[str], RemoteWorkspace]
CEPH, AZURE, GOOGLE = (pytest.param(name, marks=pytest.mark.live) for name in ("gateway", "azure", "google"))


def machines(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Workspaces at one URL, each with a mirror of its own, as on another machine."""

    def machine(name: str) -> RemoteWorkspace:
        monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / name))
        place = Workspace(url)
        assert isinstance(place, RemoteWorkspace)
        return place

    return machine


@pytest.fixture
def machine(bucket_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A new workspace in each kind of store."""
    return machines(bucket_url, tmp_path, monkeypatch)


@pytest.fixture(params=["s3", CEPH])
def broken(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Machine, Proxy]]:
    """A workspace behind a proxy that breaks requests."""
    with Proxy(request.getfixturevalue(request.param)) as proxy:
        for name, value in buckets.s3_environment(proxy.port).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("GRISTMILL_REMOTE_PATIENCE", "2")
        yield machines(f"s3://bucket/{tmp_path.name}", tmp_path, monkeypatch), proxy


def put(place: Workspace, text: str = "payload", name: str = "a.txt") -> ArtifactRef:
    with place.store.draft("dataset") as draft:
        (draft.path / "sub").mkdir()
        (draft.path / name).write_text(text)
        (draft.path / "sub" / "b.txt").write_text("below")
        return draft.commit(stage="test", counts={"examples": 1})


def once(fault: Fault, method: str, end: str, times: int = 1) -> Callable[[str, str], Fault | None]:
    left = [times]

    def breaks(found: str, path: str) -> Fault | None:
        if found == method and path.partition("?")[0].endswith(end) and left[0]:
            left[0] -= 1
            return fault
        return None

    return breaks


# ---- the store


def test_equal_content_has_the_digest_that_it_has_on_disk(machine: Machine, tmp_path: Path) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    assert ref == put(Workspace(tmp_path / "disk"))
    assert there.store.exists(ref)
    assert list(there.store.refs()) == [ref]
    assert there.store.manifest(ref) == here.store.manifest(ref)
    assert not Store.exists(there.store, ref)  # nothing was fetched so far
    assert (there.store.path(ref) / "sub" / "b.txt").read_text() == "below"
    there.store.verify(ref)


def test_the_older_copy_is_kept_wherever_it_was_made(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.store.draft("dataset") as draft:
        (draft.path / "a.txt").write_text("x")
        ref = draft.commit(stage="first")
    with there.store.draft("dataset") as draft:
        (draft.path / "a.txt").write_text("x")
        assert draft.commit(stage="second") == ref
    for place in (here, there, machine("third")):
        assert place.store.manifest(ref).stage == "first"


def test_nothing_in_the_bucket_says_where_it_was_made(machine: Machine, tmp_path: Path) -> None:
    here = machine("here")
    with here.locked():
        put(here)
        here.results.mkdir(exist_ok=True)
        key = here.results / "train-1"
        key.write_bytes(orjson.dumps({"metadata": {"storage_key": str(key)}, "result": "{}"}))
        here.record({"stage": "test"})
        everything = b"".join(found.data for e in here.bucket.entries("") if (found := here.bucket.read(e.key)))
    for secret in (str(tmp_path), os.uname().nodename, buckets.SECRET, str(os.getpid())):
        assert f'{secret}"'.encode() not in everything and f"{secret}/".encode() not in everything


def test_one_file_is_read_without_fetching_the_rest(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.store.draft("report") as draft:
        draft.write_json("summary.json", {"a": 1})
        (draft.path / "large").write_text("x" * 1000)
        ref = draft.commit(stage="test")
    assert there.store.read_json(ref, "summary.json") == {"a": 1}
    assert not Store.exists(there.store, ref)


@pytest.mark.parametrize("bucket_url", ["s3", CEPH, GOOGLE], indirect=True)
def test_a_large_file_goes_in_parts_and_comes_back(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.store.draft("checkpoint") as draft:
        (draft.path / "large").write_bytes(b"".join(number.to_bytes(4) * 256 for number in range(18_000)))
        ref = draft.commit(stage="test")
    there.store.verify(ref)
    assert (there.store.path(ref) / "large").read_bytes() == (here.store.path(ref) / "large").read_bytes()


def test_damage_in_the_bucket_is_found_and_named(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    here.bucket.write(f"{ref.location}/a.txt", b"paYload")  # same size
    assert there.store.exists(ref)
    for look in (there.store.path, there.store.verify):
        with pytest.raises(
            ArtifactDamaged, match=r"a\.txt: expected sha256 .* found sha256 .*gristmill workspace copy"
        ):
            look(ref)
    assert list((there.root / "artifacts" / "dataset").iterdir()) == []
    here.bucket.write(f"{ref.location}/a.txt", b"short")
    assert not machine("third").store.exists(ref)
    with pytest.raises(ArtifactDamaged, match="5 bytes instead of 7"):
        there.store.path(ref)
    assert put(machine("third")) == ref  # making it again mends it
    machine("fourth").store.verify(ref)


def test_damage_in_the_mirror_is_fetched_again(machine: Machine) -> None:
    here = machine("here")
    ref = put(here)
    (here.store.path(ref) / "a.txt").write_text("short")
    assert (here.store.path(ref) / "a.txt").read_text() == "payload"
    (here.store.path(ref) / "a.txt").write_text("paYload")
    here.store.verify(ref)  # the bucket's copy is whole; the mirror's is dropped
    assert (here.store.path(ref) / "a.txt").read_text() == "payload"


def test_what_was_removed_is_missing_for_all(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    here.store.remove(ref)
    assert not here.store.exists(ref)
    assert list(there.store.refs()) == []
    with pytest.raises(ArtifactMissing, match="is not in workspace"):
        there.store.path(ref)


def test_a_truncated_manifest_is_damage_not_a_traceback(machine: Machine) -> None:
    ref = put(machine("here"))
    there = machine("there")
    there.bucket.write(f"{ref.location}/manifest.json", b'{"kind": "data')
    assert not there.store.exists(ref)
    with pytest.raises(ArtifactDamaged, match=r"manifest\.json cannot be read"):
        there.store.manifest(ref)


def test_what_a_newer_gristmill_wrote_is_refused(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    data = (here.store.path(ref) / "manifest.json").read_bytes().replace(b'"schema_version": 1', b'"schema_version": 9')
    there.bucket.write(f"{ref.location}/manifest.json", data)
    with pytest.raises(NewerSchema, match="schema version 9, and this Gristmill reads up to 1"):
        there.store.manifest(ref)


def test_a_writer_killed_before_the_manifest_leaves_nothing_that_exists(
    broken: tuple[Machine, Proxy], tmp_path: Path
) -> None:
    machine, proxy = broken
    proxy.breaks = once("hang", "PUT", "/manifest.json")
    code = (
        "import sys; from gristmill.workspace import Workspace\n"
        "with Workspace(sys.argv[1]).store.draft('dataset') as draft:\n"
        "    (draft.path / 'a.txt').write_text('payload'); draft.commit(stage='test')"
    )
    here = machine("here")
    with subprocess.Popen([sys.executable, "-c", code, here.location]) as writer:
        assert proxy.hanging.wait(60)
        writer.send_signal(signal.SIGKILL)
    assert [entry.key.rpartition("/")[2] for entry in here.bucket.entries("artifacts")] == ["a.txt"]
    assert list(here.store.refs()) == []
    with here.store.draft("dataset") as draft:
        (draft.path / "a.txt").write_text("payload")
        ref = draft.commit(stage="test")
    assert machine("there").store.exists(ref)


def test_a_server_that_is_busy_or_dies_for_a_moment_is_waited_for(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    here = machine("here")
    for fault in ("503", "lose request", "lose answer"):
        fault_of: Fault = fault  # type: ignore[assignment]
        proxy.breaks = once(fault_of, "PUT", "/a.txt", times=2)
        ref = put(here, fault)
        proxy.breaks = once(fault_of, "PUT", "/manifest.json", times=2)
        ref = put(here, fault + " of the manifest")
        assert machine(fault).store.exists(ref)


def test_a_server_that_stays_away_is_one_sentence_and_loses_nothing(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    here = machine("here")
    alive, proxy.behind = proxy.behind, buckets.free_port()
    with pytest.raises(StoreUnreachable, match=r"could not .* the same command goes on") as raised:
        put(here)
    assert buckets.SECRET not in str(raised.value)
    with pytest.raises(StoreUnreachable):
        here.append("journal.jsonl", {"a": 1})
    proxy.behind = alive
    assert machine("there").store.exists(put(here))
    here.append("journal.jsonl", {"a": 2})
    assert here.read("journal.jsonl") == [{"a": 2}]


# ---- files that only grow


def test_two_writers_lose_no_line(machine: Machine) -> None:
    places = [machine("here"), machine("there")]
    count = 15

    def write(place: RemoteWorkspace, who: int) -> None:
        for number in range(count):
            place.append("journal.jsonl", {"who": who, "number": number})

    threads = [threading.Thread(target=write, args=(place, who)) for who, place in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = machine("third").read("journal.jsonl")
    for who in range(len(places)):
        assert [line["number"] for line in lines if line["who"] == who] == list(range(count))
    assert len(lines) == count * len(places)


def test_a_line_whose_answer_was_lost_is_there_once(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    here = machine("here")
    for number in range(3):  # the first creates the file
        proxy.breaks = once("lose answer", "PUT", "/journal.jsonl")
        here.append("journal.jsonl", {"n": number})
        proxy.breaks = once("lose request", "PUT", "/journal.jsonl")
        here.append("journal.jsonl", {"n": number + 0.5})
    assert [line["n"] for line in here.read("journal.jsonl")] == [0, 0.5, 1, 1.5, 2, 2.5]


def test_registry_names_and_pages_are_everybodys(machine: Machine) -> None:
    from gristmill.names import give, resolve

    here, there = machine("here"), machine("there")
    ref = put(here)
    give(here, "good", ref)
    assert resolve(there, "good") == ref
    (here.root / "page.html").write_text("<p>hello")
    here.publish(here.root / "page.html", here.page("tiny"))
    assert there.get_file("reports/tiny.html") == b"<p>hello"
    assert there.file_names("reports") == ["reports/tiny.html"]


def test_reviewers_elsewhere_write_to_one_log(machine: Machine) -> None:
    from gristmill.decisions import ReviewDecision, effective
    from gristmill.review.waiting import command, log_of

    here, there = machine("here"), machine("there")
    assert log_of(there).entries() == ()
    for place, who in ((here, "ann"), (there, "bob")):
        entry = ReviewDecision(rollout_id="r1", decision="accept", reviewer=who, time="2026-11-21T09:00:00+00:00")
        log_of(place).append(entry)
    assert [entry.reviewer for entry in log_of(here).entries()] == ["ann", "bob"]
    assert effective(log_of(here).entries()) == {"r1": "accept"}
    assert command(here, "tiny") == f"gristmill review tiny -w {here.location}"


def test_a_tag_that_was_given_elsewhere_is_a_root_of_gc(machine: Machine) -> None:
    from gristmill.gc import collect
    from gristmill.names import give

    here, there = machine("here"), machine("there")
    kept, spare = put(here, "kept"), put(here, "spare")
    give(here, "good", kept)
    assert collect(there, keep_runs=0).artifacts == (spare.short,)
    assert collect(there, keep_runs=0, delete=True).artifacts == (spare.short,)
    assert list(here.store.refs()) == [kept]


# ---- the lock


def test_one_run_at_a_time_wherever_it_is(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    with here.locked():
        with pytest.raises(WorkspaceBusy, match=r"in use by another run, .* its lease ends in \d+ s"), there.locked():
            pass
        put(here)
    with there.locked():
        put(there, "other")


def test_a_dead_holder_on_this_machine_is_known_at_once(broken: tuple[Machine, Proxy]) -> None:
    machine, _ = broken
    here = machine("here")
    code = (
        "import sys, time; from gristmill.workspace import Workspace\n"
        "with Workspace(sys.argv[1]).locked():\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, here.location], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(WorkspaceBusy, match=f"process {holder.pid}"), here.locked():
            pass
        holder.kill()
        holder.wait()
    with here.locked():
        pass


@pytest.mark.parametrize("bucket_url", ["s3", CEPH], indirect=True)  # one store suffices for what takes seconds
def test_a_holder_that_was_taken_over_writes_nothing_more(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    here.lease_seconds = 1.0
    with pytest.raises(WorkspaceLost, match="no longer this run's: another run took it over"), here.locked():
        assert here.store.lease is not None
        here.store.lease._stop.set()  # as if the process had been stopped for a while
        first = put(here, "before")
        deadline = time.monotonic() + 20
        while True:
            try:
                with there.locked():
                    for act in (lambda: put(here, "after"), lambda: here.append("journal.jsonl", {"a": 1})):
                        with pytest.raises(WorkspaceLost):
                            act()
                    assert list(there.store.refs()) == [first]
                    assert there.read("journal.jsonl") == []
                    there.append("journal.jsonl", {"b": 1})
                    put(here, "late")
                break
            except WorkspaceBusy:
                assert time.monotonic() < deadline
                time.sleep(0.2)
    with machine("third").locked():
        assert machine("third").read("journal.jsonl") == [{"b": 1}]


@pytest.mark.parametrize("bucket_url", ["s3", CEPH], indirect=True)
def test_a_lease_is_renewed_while_its_run_lives(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    here.lease_seconds = 1.0
    with here.locked():
        time.sleep(4.5)  # longer than the lease, and than the grain of the store's clock
        with pytest.raises(WorkspaceBusy), there.locked():
            pass
        put(here)


def test_an_unchanged_object_is_replaced_whichever_way_the_server_spells_its_tag(machine: Machine) -> None:
    bucket, other = machine("here").bucket, machine("there").bucket
    first = bucket.create("x", b"1")
    assert first is not None
    second = bucket.replace("x", b"2", first)
    assert second is not None
    assert bucket.replace("x", b"3", first) is None and other.replace("x", b"3", first) is None
    assert other.replace("x", b"4", second) is not None
    assert bucket.replace("x", b"5", second) is None
    bucket.delete(["x"])
    assert other.replace("x", b"6", second) is None and bucket.read("x") is None


def test_lost_answers_do_not_lose_the_lock(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    here = machine("here")
    here.lease_seconds = 1.0
    proxy.breaks = once("lose answer", "PUT", "/lock", times=1)
    with here.locked():
        proxy.breaks = once("lose answer", "PUT", "/lock", times=2)
        time.sleep(1.0)
        put(here)


@pytest.mark.parametrize("broken", ["s3"], indirect=True)  # a real one sees that its request was changed
def test_a_store_without_conditions_is_refused(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    proxy.breaks = lambda method, path: "ignore conditions"
    with pytest.raises(StoreError, match="ignores the conditions of conditional writes"), machine("here").locked():
        pass


# ---- records of results


def test_another_machine_finds_what_is_done(machine: Machine, prefect_server: str) -> None:
    from prefect import flow

    from tasks.caching import run, step

    ran: list[str] = []

    @step("remote-step")
    def work(text: str) -> ArtifactRef:
        ran.append(text)
        return put(Workspace.current(), text)

    @flow
    def chain(place: str) -> ArtifactRef:
        workspace = Workspace(place)
        with workspace.locked(), workspace.entered():
            return run(work, 1, "one", text="x")

    ref = chain(machine("here").location)
    assert ran == ["x"]
    assert chain(machine("there").location) == ref
    assert ran == ["x"]
    machine("third").store.remove(ref)
    assert chain(machine("fourth").location) == ref  # a record whose artifact is gone is a miss
    assert ran == ["x", "x"]


# ---- names of places


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        (Path("s3://bucket/a"), "s3://bucket/a"),
        ("gs://bucket", "gs://bucket"),
        ("az://container//x", "az://container/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("workspace", None),
        ("/tmp/s3:/x", None),
        (Path("s3:"), None),
    ],
)
def test_urls_are_told_from_folders(given: Any, meant: str | None) -> None:
    assert remote_url(given) == meant


def test_file_urls_are_folders(tmp_path: Path) -> None:
    assert Workspace(f"file://{tmp_path}").root == tmp_path


@pytest.mark.parametrize("url", ["s3://user:geheim@bucket/x", "gs://geheim@bucket/x", "s3://bucket/x?key=geheim"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UsageError) as raised:
        Workspace(url)
    assert "geheim" not in str(raised.value)


def test_a_bucket_that_is_not_there_is_said(s3: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {**buckets.s3_environment(s3), "GRISTMILL_CACHE": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match="there is no such bucket or container"), Workspace("s3://none/x").locked():
        pass


def test_what_is_not_allowed_is_said(broken: tuple[Machine, Proxy]) -> None:
    machine, proxy = broken
    proxy.breaks = lambda method, path: "403"
    with pytest.raises(
        StoreError, match=r"not allowed to read a.txt \(403 Forbidden\); check the credentials"
    ) as raised:
        machine("here").bucket.read("a.txt")
    assert not isinstance(raised.value, StoreUnreachable)  # waiting mends nothing


@pytest.mark.parametrize("bucket_url", [CEPH, AZURE], indirect=True)
def test_wrong_credentials_are_said(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"):
        monkeypatch.setenv(name, "d3Jvbmc=")
    with pytest.raises(StoreError, match=r"not allowed to list it \(403 Forbidden, \w+\); check the cred"):
        list(machine("here").bucket.entries(""))


def test_no_credentials_at_all_are_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GRISTMILL_REMOTE_PATIENCE", "0.1")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StoreUnreachable, match=r"no credentials to list it with: .* docs/workspace.md says where"):
        list(Bucket("s3://bucket/x").entries(""))


@pytest.mark.parametrize(
    "asked",
    [
        "computeMetadata/v1/instance/service-accounts/default/token?audience=x",
        "metadata/identity/oauth2/token?api-version=2019-08-01&resource=x",
    ],
)
def test_the_other_clouds_credentials_too(asked: str) -> None:
    """What obstore says of Google and Azure; where their libraries look cannot be moved for a test."""
    error = Exception(
        f"Error performing GET http://169.254.169.254/{asked} - Server returned status code: 403 Forbidden"
    )
    assert "no credentials to list it with" in str(Bucket("memory://any")._words("list it", error))


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(UsageError, match=r"gs:// needs the extra \[gcs\]: pip install 'gristmill\[gcs\]'"):
        Bucket("gs://bucket/x")


def test_credentials_may_lie_in_a_profile(s3: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("boto3")
    (tmp_path / "credentials").write_text(f"[mine]\naws_access_key_id=a\naws_secret_access_key={buckets.SECRET}\n")
    for name, value in {
        **buckets.s3_environment(s3),
        "GRISTMILL_CACHE": str(tmp_path),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_PROFILE": "mine",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert list(Workspace("s3://bucket/empty").store.refs()) == []
    monkeypatch.setenv("AWS_PROFILE", "other")
    with pytest.raises(UsageError, match=r"AWS credentials: .*other"):
        Workspace("s3://bucket/empty")


def test_workers_find_it_by_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path))
    monkeypatch.setenv("GRISTMILL_WORKSPACE", f"memory://{tmp_path.name}")
    assert Workspace.current() is Workspace.current()
    assert Workspace.current().location == f"memory://{tmp_path.name}"


# ---- the doctor


def said(place: Workspace, check: str, **how: Any) -> list[tuple[str, str, bool]]:
    return [(one.level, one.what, one.mended) for one in examine(place, **how) if one.check == check]


def test_the_doctor_looks_at_the_bucket_and_fetches_nothing(machine: Machine) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    told: list[tuple[int, int]] = []
    for deep, words in ((False, "sizes as their manifests say"), (True, "every byte hashed again")):
        ((level, what, _),) = said(
            there, "artifacts", deep=deep, progress=lambda done, total, _: told.append((done, total))
        )
        assert (level, what.partition(";")[0]) == ("ok", f"1 artifacts in the bucket, {words}")
    assert told[-1][0] == sum(entry.bytes for entry in there.store.manifest(ref).files)
    assert not Store.exists(there.store, ref)
    assert said(there, "lock") == [("ok", "nobody holds it, here or elsewhere", False)]
    with here.locked():
        ((_, what, _),) = said(there, "lock")
        assert what.startswith("a run elsewhere has it, or died: its lease was renewed at ")


@pytest.mark.parametrize(
    ("name", "data", "deep", "words"),
    [
        ("a.txt", b"paYload", True, "a.txt: expected sha256"),
        ("a.txt", b"short", False, "a.txt has 5 bytes, expected 7"),
        ("a.txt", None, False, "a.txt is missing"),
        ("manifest.json", b'{"kind"', True, "manifest.json cannot be read"),
    ],
)
@pytest.mark.parametrize("mirrored", [True, False])
def test_damage_in_the_bucket_is_mended_from_the_mirror_or_set_aside(
    machine: Machine, name: str, data: bytes | None, deep: bool, words: str, mirrored: bool
) -> None:
    here, there = machine("here"), machine("there")
    ref = put(here)
    if data is None:
        here.bucket.delete([f"{ref.location}/{name}"])
    else:
        here.bucket.write(f"{ref.location}/{name}", data)
    doctored = here if mirrored else there
    ((level, what, mended),) = said(doctored, "artifacts", deep=deep)
    assert (level, mended) == ("wrong", False) and what.startswith(f"{ref.short}: {words}")
    ((_, _, mended),) = said(doctored, "artifacts", deep=deep, mend=True)
    assert mended and [level for level, _, _ in said(doctored, "artifacts", deep=True)] == ["ok"]
    if mirrored:
        machine("third").store.verify(ref)
        return
    assert list(machine("third").store.refs()) == []
    (aside,) = (there.root / "damaged").iterdir()
    assert (aside / "sub" / "b.txt").read_text() == "below"
    assert put(machine("third")) == ref


def test_an_upload_that_was_cut_short_is_a_note_and_nothing_is_deleted(machine: Machine) -> None:
    here = machine("here")
    ref = put(here)
    here.bucket.delete([f"{ref.location}/manifest.json"])
    for mend in (False, True):
        (note, ok) = said(machine("there"), "artifacts", mend=mend)
        assert note[0] == "note" and "no manifest, so it does not exist" in note[1]
        assert ok[1].startswith("0 artifacts in the bucket")
    assert len(list(here.bucket.entries("artifacts"))) == 2


def test_what_is_not_there_is_said_of_the_url_and_not_of_its_mirror(machine: Machine) -> None:
    from gristmill.names import resolve

    here = machine("here")
    put(here)
    for name in ("champion", "base", "model-v7", "nothing"):
        with pytest.raises(UsageError) as raised:
            resolve(here, name)
        assert here.location in str(raised.value) and str(here.root) not in str(raised.value)
