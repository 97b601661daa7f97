"""Shards on a real Ray cluster of two nodes: the digests of one process, whoever is killed in mid-shard."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from benchmarks.prepare import make_file, synthetic_rows
from tests.ray_cluster import Cluster
from tests.test_loop import recipe

pytestmark = pytest.mark.live

MB = 170  # six parts of the table, and as many shards of the dataset


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    yield made
    made.close()


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in which one row repeats another part's."""
    file = tmp_path_factory.mktemp("rollouts") / "rollouts.jsonl"
    make_file(file, MB * 1_000_000, synthetic_rows())
    with file.open("rb") as read:
        first = read.readline()
    with file.open("ab") as more:
        more.write(b"\n" + first)
    return file


def begin(arguments: list[str], cluster: Cluster | None, cwd: Path) -> subprocess.Popen:
    """The command, on the cluster if one is given."""
    on = ["execution.kind=ray", f"execution.address={cluster.address}"] if cluster else []
    return subprocess.Popen(
        [sys.executable, "-m", "gristmill", *arguments, *on],
        env=cluster.env if cluster else None,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
    )


def end(process: subprocess.Popen) -> str:
    told, _ = process.communicate(timeout=900)
    assert process.returncode == 0, told
    return told


def made(workspace: Path) -> set[str]:
    """Every artifact but reports of runs, which show the recipe."""
    return {
        f"{kind}/{artifact.name}"
        for kind in ("tasks", "rollouts", "table", "selection", "dataset", "checkpoint", "evaluation", "decision")
        for artifact in (workspace / "artifacts" / kind).glob("[0-9a-f]*")
    }


def prepared(rollouts: Path, folder: Path) -> list[str]:
    what = {"name": "prep", "rollouts": [str(rollouts)], "format": {"target": "trl-jsonl"}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(what))
    return ["prepare", "recipe.yaml", "--out", str(folder / "out"), "-w", str(folder / "w")]


@pytest.fixture(scope="module")
def expected(rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """What one machine makes of the file."""
    folder = tmp_path_factory.mktemp("here")
    end(begin(prepared(rollouts, folder), None, folder))
    found = made(folder / "w")
    assert len(found) == 3
    return found


@pytest.mark.parametrize("victim", ["process", "node"])
def test_a_kill_in_mid_shard_changes_nothing(
    cluster: Cluster, rollouts: Path, expected: set[str], tmp_path: Path, victim: str
) -> None:
    """Both nodes have one processor; the second one, or a process of it, dies in mid-shard."""
    second = cluster.add()
    running = begin(prepared(rollouts, tmp_path), cluster, tmp_path)
    kills = 0
    while running.poll() is None:
        if kills == 0 and cluster.shards(second):
            time.sleep(0.3)  # a while into the shard, which takes a second or more
            if busy := cluster.shards(second):
                if victim == "process":
                    busy[0].send_signal(signal.SIGKILL)
                else:
                    cluster.kill(second)
                kills += 1
        time.sleep(0.02)
    end(running)
    assert kills == 1
    assert made(tmp_path / "w") == expected
    assert not list((tmp_path / "w" / "artifacts").rglob(".*/*"))  # nothing of the dead is left


def test_a_turn_of_the_loop_is_the_same_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Collection and evaluation too, whose batches are shards that run a model."""
    second = cluster.add()
    what = recipe(**{"collect.batch_size": 1, "evaluate.batch_size": 1})
    for where, on in (("here", None), ("there", cluster)):
        folder = tmp_path / where
        folder.mkdir()
        (folder / "recipe.yaml").write_text(what.yaml())
        running = begin(["improve", "recipe.yaml", "-w", str(folder / "w")], on, folder)
        seen = 0
        while running.poll() is None:
            seen += bool(on and on.shards(second))
            time.sleep(0.02)
        end(running)
    assert seen  # the second node took part
    assert made(tmp_path / "there" / "w") == made(tmp_path / "here" / "w")


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or bool(subprocess.call(["unshare", "-m", "true"])),
    reason="needs to be root, to give a node another view of the files",
)
def test_a_node_that_does_not_see_the_workspace_is_named(cluster: Cluster, tmp_path: Path) -> None:
    place = tmp_path / "w"
    place.mkdir()
    blind = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {place} && exec "$@"', "sh"]
    cluster.add(under=blind)
    (tmp_path / "recipe.yaml").write_text(recipe().yaml())
    running = begin(["improve", "recipe.yaml", "-w", str(place)], cluster, tmp_path)
    told, _ = running.communicate(timeout=300)
    assert running.returncode == 1
    last = next(line for line in told.splitlines() if line.startswith("error:"))
    assert "does not see the workspace" in last
    assert str(place) in last


def test_an_address_where_nobody_listens_is_refused_at_once(tmp_path: Path) -> None:
    """Ray itself would try for minutes."""
    (tmp_path / "recipe.yaml").write_text(recipe().yaml())
    on = ["execution.kind=ray", "execution.address=127.0.0.1:9"]
    running = begin(["improve", "recipe.yaml", "-w", str(tmp_path / "w"), *on], None, tmp_path)
    told, _ = running.communicate(timeout=200)
    assert running.returncode == 2
    assert "no Ray cluster answers at 127.0.0.1:9" in told


RAISES = """
import sys
from pathlib import Path
from flows.server import prefect_api

workspace, address = sys.argv[1:]
with prefect_api(Path(workspace) / "prefect") as server:
    from prefect import flow
    from gristmill.errors import InputError
    from gristmill.fleet import current, map_on
    from gristmill.recipe import ExecutionRecipe
    from gristmill.workspace import Workspace
    from tasks.cluster import executing
    from tests.test_fleet import Job

    @flow
    def work():
        place = Workspace(workspace)
        with executing(ExecutionRecipe(kind="ray", address=address), place):
            print(list(map_on(current(), "tests.test_fleet:writes", [Job(n, str(place.root)) for n in range(9)])))

    server.wait()
    try:
        work()
    except InputError as error:
        print("raised", error)
"""


def test_what_a_shard_raises_is_raised_here(cluster: Cluster, tmp_path: Path) -> None:
    env = {**cluster.env, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", RAISES, str(tmp_path), cluster.address]
    told = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=True)
    assert told.stdout.splitlines()[-1] == "raised no 5"
    assert not list(tmp_path.glob(".*/*"))
