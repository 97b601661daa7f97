"""Shards on a cluster: the same bytes as in one process, whatever dies, and files whole or not at all.

The cluster here is two processes that run some jobs twice, as happens where one dies after its work and before it could
say so; tests/live/test_ray.py has a real one.
"""

from __future__ import annotations

import gzip
import itertools
import random
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

import orjson
import pytest

from gristmill import ingest, segments
from gristmill.errors import InputError
from gristmill.fleet import map_on, sent_to
from gristmill.table import parts
from gristmill.workers import Worker
from tests.rows import rollout

REPEATED = 5


class Processes:
    """A fleet of two processes; each job is run once or twice, and the last result counts."""

    width = 2

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(self.width)
        self.idle = SimpleQueue()
        self.workers = [Worker() for _ in range(self.width)]
        for worker in self.workers:
            self.idle.put(worker)
        self.chance = random.Random(0)
        self.sent: list[str] = []

    def submit(self, function, job, *, threads=1, generates=False):
        self.sent.append(job[0])
        again = self.chance.random() < 0.5

        def work():
            worker = self.idle.get()
            try:
                if again:
                    worker.run(function, job)
                return worker.run(function, job)
            finally:
                self.idle.put(worker)

        running: Future = self.pool.submit(work)
        return running

    def close(self):
        self.pool.shutdown()
        for worker in self.workers:
            worker.close()


@pytest.fixture
def cluster():
    made = Processes()
    yield made
    made.close()


class Job(NamedTuple):
    number: int
    folder: str


def writes(job):
    (Path(job.folder) / f"{job.number}.txt").write_text(str(job.number))
    if job.number == REPEATED:
        raise InputError("no 5")
    return job.number


def counts(job):
    return job


def test_results_come_in_order_and_files_whole(cluster, tmp_path):
    jobs = [Job(number, str(tmp_path)) for number in range(REPEATED)]
    assert list(map_on(cluster, "tests.test_fleet:writes", jobs)) == list(range(REPEATED))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.txt" for n in range(REPEATED)]


def test_a_job_that_fails_leaves_no_file_and_is_raised(cluster, tmp_path):
    jobs = [Job(number, str(tmp_path)) for number in range(REPEATED + 1)]
    with pytest.raises(InputError, match="no 5"):
        list(map_on(cluster, "tests.test_fleet:writes", jobs))
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}.txt" for n in range(REPEATED)]


def test_jobs_are_begun_only_so_far_ahead(cluster):
    results = map_on(cluster, "tests.test_fleet:counts", itertools.count())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    assert len(cluster.sent) <= 3 + 2 * cluster.width
    results.close()


def test_one_job_stays_here_unless_it_runs_a_model(cluster):
    assert list(map_on(cluster, "tests.test_fleet:counts", [7])) == [7]
    assert len(cluster.sent) == 0
    assert list(map_on(cluster, "tests.test_fleet:counts", [7], generates=True)) == [7]
    assert len(cluster.sent) == 1


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("packed", [False, True])
def test_a_table_is_the_same_on_a_cluster(cluster, tmp_path, monkeypatch, copy, packed):
    """Duplicates stand in other parts than what they repeat; lines are counted across parts, blank ones too."""
    monkeypatch.setattr(segments, "PART_BYTES", 4000)
    monkeypatch.setattr(ingest, "_PARALLEL_FROM", 0)
    rows = [orjson.dumps(rollout(task=number // 2, index=number % 2)) for number in range(40)]
    lines = [*rows, b"", b"not json", *rows[3:6], b'{"reward": 1', rows[0][:50]]
    text = b"\n".join(lines)
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"] if packed else [tmp_path / "a.jsonl"]
    files[0].write_bytes(text)
    if packed:
        files[1].write_bytes(gzip.compress(b"\n".join([*rows[7:9], b"\n", *rows])))
    here = ingest.ingest(files, tmp_path / "here", copy=copy, workers=1)
    with sent_to(cluster):
        there = ingest.ingest(files, tmp_path / "there", copy=copy)
    assert (there.rows_read, there.rows_kept, there.dropped) == (here.rows_read, here.rows_kept, here.dropped)
    assert (there.examples, there.sources) == (here.examples, here.sources)
    assert here.dropped["duplicate_rollout"] >= 3
    assert len(parts(tmp_path / "here")) > 3
    assert "gristmill.part:write_counted" in cluster.sent
    told = [{path.name: path.read_bytes() for path in (tmp_path / where).iterdir()} for where in ("here", "there")]
    assert told[0] == told[1]
