"""Damage that a workspace must survive: a full disk, a deleted folder, a clock set back, kills at chosen system calls.

The kills are real (`strace` injects SIGKILL at the n-th call of a kind); after each one the next run ends as if nothing
had happened, and nothing that was said to be there is gone. `tests/live/test_kill_sweep.py` tries every n.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from gristmill.champions import champions
from gristmill.doctor import examine
from gristmill.doctor_command import still_wrong
from gristmill.errors import ArtifactDamaged, DiskFull, WorkspaceLost, full_disk, unreadable
from gristmill.runs import recorded, runs
from gristmill.status import status
from gristmill.workspace import Workspace
from tests.recorded import CHAIN, promote, recipe, run_turn

ROOT = Path(__file__).parents[1]
WORK = """
    import sys
    from pathlib import Path
    from gristmill.gc import collect
    from gristmill.workspace import Workspace
    from tests.recorded import promote, recipe, run_turn

    place = Workspace(Path(sys.argv[1]))
    promote(place, run_turn(place, recipe()))
    run_turn(place, recipe(seed=1), says="later")
    collect(place, keep_runs=0, delete=True)
    """


def program(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *arguments]


def killed_at(call: str, number: int, place: Path) -> bool:
    """Work in a workspace until the n-th system call of a kind kills; False if it ended before that."""
    injected = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}"]
    injected += ["-e", f"inject={call}:signal=KILL:when={number}"]
    done = subprocess.run([*injected, *program(WORK, str(place))], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, -9, 137), done.stderr
    return done.returncode != 0


def survives(place: Path) -> None:
    """What a killed worker left: all that exists is whole, and the same work ends well and leaves nothing owed."""
    for ref in Workspace(place).store.refs():
        Workspace(place).store.verify(ref)
        there = set(Workspace(place).store.refs())
        assert set(Workspace(place).store.manifest(ref).parents) <= there
    before = {(run.number, run.outcome) for run in runs(Workspace(place)) if run.outcome}
    promoted = champions(Workspace(place)) if place.exists() else []
    subprocess.run(program(WORK, str(place)), cwd=ROOT, check=True)
    again = Workspace(place)
    assert before <= {(run.number, run.outcome) for run in runs(again)}
    assert champions(again)[: len(promoted)] == promoted
    assert len(champions(again)) == 1
    # The champion's ancestry stands; what nothing was made of was swept, and so was the run that promoted nothing.
    swept = [one.stage for one in status(again, recipe()).stages if one.turn == 1 and one.state != "fresh"]
    assert swept == ["validate"]
    assert still_wrong(examine(again, deep=True)) == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="no strace here")
@pytest.mark.parametrize(("call", "number"), [("fsync", 1), ("fsync", 30), ("/rename", 9), ("ftruncate", 2)])
def test_a_kill_at_a_system_call_loses_nothing(tmp_path: Path, call: str, number: int) -> None:
    place = tmp_path / "w"
    assert killed_at(call, number, place)
    survives(place)


FILL = """
    import sys
    from pathlib import Path
    from gristmill.errors import StoreError, full_disk
    from gristmill.workspace import Workspace
    from tests.recorded import recipe, run_turn

    place = Workspace(Path(sys.argv[1]) / "w")
    filler = Path(sys.argv[1]) / "filler"
    filler.write_bytes(bytes(330_000))
    try:
        for number in range(100):
            run_turn(place, recipe(seed=number), says=str(number) * 3000)
    except (StoreError, OSError) as error:
        print(full_disk(error) or repr(error))
    filler.unlink()
    for ref in place.store.refs():
        place.store.verify(ref)
    run_turn(place, recipe(seed=number), says=str(number) * 3000)
    """


def test_a_full_disk_is_one_sentence_and_nothing_is_half_made(tmp_path: Path) -> None:
    """On a file system of half a megabyte, in a namespace of its own."""
    shell = 'mount -t tmpfs -o size=512k tmpfs "$0" && shift 0 && "$@" && cp -r "$0/w" "$0.kept"'
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces for users here")
    small = tmp_path / "small"
    small.mkdir()
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell, str(small), *program(FILL, str(small))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the disk is full; nothing half-written was kept. Free some space (`gristmill gc`")
    place = Workspace(tmp_path / "small.kept")
    assert still_wrong(examine(place, deep=True)) == []
    last, again = runs(place)[-2:]
    # Not even the end of the run that failed could be written, or it says why.
    assert last.outcome is None or (last.outcome == "failed" and last.error)
    assert again.outcome == "done" and len(again.productions) == len(CHAIN)


def test_a_damaged_parquet_file_is_one_sentence_whoever_reads_it(tmp_path: Path) -> None:
    import duckdb
    import pyarrow.parquet as pq

    file = tmp_path / "rows.parquet"
    file.write_bytes(b"\x00" * 100)
    for read in (lambda: pq.ParquetFile(file), lambda: duckdb.sql(f"FROM '{file}'")):
        with pytest.raises(Exception) as caught:
            read()
        assert isinstance(said := unreadable(caught.value), ArtifactDamaged)
        assert "cannot be read" in str(said) and "\n" not in str(said)
    assert unreadable(ValueError("x")) is None
    with pytest.raises(duckdb.Error) as mistake:
        duckdb.sql("SELECT nothing")
    assert unreadable(mistake.value) is None  # ours, and so a traceback


def test_a_full_disk_is_known_whoever_says_so() -> None:
    assert isinstance(full_disk(OSError(28, "No space left on device")), DiskFull)
    try:
        try:
            raise RuntimeError("IO Error: Could not write file: No space left on device")
        except RuntimeError as cause:
            raise ValueError("export failed") from cause
    except ValueError as error:
        assert isinstance(full_disk(error), DiskFull)
    assert full_disk(OSError(13, "Permission denied")) is None


def test_a_run_whose_workspace_is_deleted_stops_and_writes_nothing(tmp_path: Path) -> None:
    """A second run may begin in the new folder: the first must not write its journal there."""
    old = Workspace(tmp_path / "w")
    with old.locked():
        shutil.rmtree(tmp_path / "w")
        new = Workspace(tmp_path / "w")
        run_turn(new, recipe(), until="tasks")
        with pytest.raises(WorkspaceLost, match="was deleted or replaced while this run worked in it"):
            old.require_lock()
    with pytest.raises(WorkspaceLost), old.locked():
        old.require_lock()
        shutil.rmtree(tmp_path / "w")
        old.require_lock()
    old.require_lock()  # without a lock there is nothing to lose


def test_a_run_that_lost_its_workspace_does_not_record_its_end_in_the_next(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "w")
    with pytest.raises(ZeroDivisionError), place.locked(), recorded(place, ["improve"], recipe()):
        shutil.rmtree(tmp_path / "w")
        run_turn(Workspace(tmp_path / "w"), recipe(), until="tasks")
        raise ZeroDivisionError
    assert [(run.number, run.outcome) for run in runs(Workspace(tmp_path / "w"))] == [(1, "done")]


def test_a_clock_that_was_set_back_changes_nothing(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    promote(place, run_turn(place, recipe()))
    for path in [*tmp_path.glob("*.jsonl"), *tmp_path.glob("artifacts/*/*/manifest.json")]:
        path.write_text(path.read_text().replace(f'"{time.strftime("%Y")}-', '"2091-'))
    run_turn(place, recipe(seed=1), says="second, dated before the first")
    assert [run.number for run in runs(place)] == [1, 2]
    assert status(place, recipe()).owed == 0 and status(place, recipe(seed=1)).owed == 0
    assert status(place).compared_with == 2
    found = examine(place, deep=True)
    assert still_wrong(found) == []
    assert [one.what for one in found if one.check == "clock"] == [
        f"{len(CHAIN)} artifacts are dated in the future: a clock was set back; nothing depends on the dates"
    ]


def test_two_runs_at_once_never_share_a_number(tmp_path: Path) -> None:
    busy = """
        import sys
        from gristmill.errors import WorkspaceBusy
        from gristmill.workspace import Workspace
        from tests.recorded import recipe, run_turn

        done = 0
        while done < 5:
            try:
                run_turn(Workspace(sys.argv[1]), recipe(seed=int(sys.argv[2])), says=sys.argv[2])
                done += 1
            except WorkspaceBusy:
                pass
        """
    both = [subprocess.Popen(program(busy, str(tmp_path / "w"), str(n)), cwd=ROOT) for n in range(2)]
    assert [one.wait(120) for one in both] == [0, 0]
    found = runs(Workspace(tmp_path / "w"))
    assert [run.number for run in found] == list(range(1, 11))
    assert {run.outcome for run in found} == {"done"}
    lines = (tmp_path / "w" / "runs.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["start", "end"] * 10
