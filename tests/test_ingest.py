"""Ingest: every line accounted for, the same bytes from any number of workers, nothing left running."""

import contextvars
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import ingest as module
from gristmill import segments
from gristmill.errors import GristmillError, InputError
from gristmill.identity import fingerprint
from gristmill.ingest import ingest
from gristmill.inputs import INPUTS
from gristmill.rollout_files import find_rollout_files
from gristmill.table import parts, read_raw, schema


def row(task=0, rollout=0, prompt="q", text="a", reward=1.0, **change):
    value = {
        "responses_create_params": {"input": [{"role": "user", "content": prompt}]},
        "response": {
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}]
        },
        "reward": reward,
        "_ng_task_index": task,
        "_ng_rollout_index": rollout,
        "agent_ref": {"name": "agent"},
    }
    return json.dumps(value | change).encode()


def taken(path, out, **options):
    out.mkdir()
    return ingest([path], out, **options)


def read(out):
    return pa.concat_tables(pq.read_table(path) for path in parts(out))


def digest(out):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in parts(out)]


def test_table_of_a_small_file(tmp_path):
    file = tmp_path / "rollouts.jsonl"
    lines = [
        row(0, 0),
        b"",
        row(0, 1, text="b"),
        b"not json",
        row(1, 0),
        b" \t ",
        row(1, 0, text="again"),
        b'{"rew',
    ]
    file.write_bytes(b"\n".join(lines))
    result = taken(file, tmp_path / "out")
    assert (result.rows_read, result.rows_kept) == (6, 3)
    assert result.dropped == {"not_json": 1, "torn_line": 1, "duplicate_rollout": 1}
    assert result.examples["torn_line"] == ("rollouts.jsonl", 8)
    table = read(tmp_path / "out")
    assert table.schema == schema()
    assert table["line"].to_pylist() == [1, 3, 4, 5, 7, 8]
    assert table["raw"].to_pylist() == [line for line in lines if line.strip()]
    assert table["drop_reason"].to_pylist() == [
        None,
        None,
        "not_json",
        None,
        "duplicate_rollout",
        "torn_line",
    ]
    assert table["rollout_id"][0].as_py() == fingerprint(lines[0])
    first, second, _, other, *_ = table["task_key"].to_pylist()
    assert first == second != other
    assert list(read_raw(result.tables[0], [0, 1, 3])) == [lines[0], lines[2], lines[4]]
    assert list(read_raw(result.tables[0], [])) == []
    (source,) = result.sources
    assert source["rows"] == 6 and source["bytes"] == file.stat().st_size


def test_one_index_with_two_prompts_is_two_tasks(tmp_path):
    """Blackjack deals new cards to each rollout of an index; one prompt under two indices is two tasks."""
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\n".join([row(0, 0, "ace"), row(0, 1, "ten"), row(1, 0, "ten")]))
    taken(file, tmp_path / "out")
    table = read(tmp_path / "out")
    assert len(set(table["task_key"].to_pylist())) == 3
    assert len(set(table["prompt_key"].to_pylist())) == 2


def test_a_failed_first_try_is_no_duplicate_of_the_second(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_bytes(row(0, 0, _ng_failure_class="agent_run_error") + b"\n" + row(0, 0) + b"\n")
    assert taken(file, tmp_path / "out").dropped == {"failure": 1}


def test_the_same_file_twice_is_duplicates_and_another_run_is_not(tmp_path):
    for name, text in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / f"{name}.jsonl").write_bytes(row(text=text) + b"\n")
    result = taken(tmp_path, tmp_path / "out")
    assert (result.rows_kept, result.dropped) == (2, {"duplicate_rollout": 1})
    keys = read(tmp_path / "out").filter(pa.array([True, False, True]))["task_key"].to_pylist()
    assert keys[0] != keys[1]


def test_line_ends_and_bom(tmp_path):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + row(0) + b"\r\n" + row(1, text="a\u2028b") + b"\r\n\r\n")
    result = taken(file, tmp_path / "out")
    assert (result.rows_read, result.rows_kept) == (2, 2)


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of a few kB, so that small files have many."""
    monkeypatch.setattr(segments, "PART_BYTES", 2000)


def many(path, count=200):
    with path.open("wb") as file:
        for i in range(count):
            file.write(row(i // 4, i % 4, f"question {i // 4}", "x" * (i * 37 % 900), i % 3 / 2) + b"\n")
            if i % 50 == 0:
                file.write(b"\n{broken\n" + row(i // 4, i % 4, f"question {i // 4}", "twice") + b"\n")


def test_same_bytes_from_any_number_of_workers(tmp_path, small_parts):
    file = tmp_path / "r.jsonl"
    many(file)
    results = {n: taken(file, tmp_path / str(n), workers=n) for n in (1, 2, 8)}
    assert len(results[1].tables) > 10
    assert digest(tmp_path / "1") == digest(tmp_path / "2") == digest(tmp_path / "8")
    for result in results.values():
        assert result.rows_read == 208 and result.dropped == {"not_json": 4, "duplicate_rollout": 4}
    table = read(tmp_path / "2")
    lines = file.read_bytes().split(b"\n")
    assert all(lines[n - 1] == raw for n, raw in zip(table["line"].to_pylist(), table["raw"].to_pylist(), strict=True))


def test_compressed_copies_give_the_same_rows_in_the_same_parts(tmp_path, small_parts):
    file = tmp_path / "r.jsonl"
    many(file)
    text = file.read_bytes()
    half = len(text) // 2
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text[:half]) + gzip.compress(text[half:]))
    with pa.CompressedOutputStream(str(tmp_path / "r.jsonl.zst"), "zstd") as stream:
        stream.write(text)
    tables = {}
    for name in ("r.jsonl", "r.jsonl.gz", "r.jsonl.zst"):
        result = taken(tmp_path / name, tmp_path / f"{name}.out", workers=2)
        tables[name] = [pq.read_table(path, columns=["line", "raw", "drop_reason"]) for path in result.tables]
    assert tables["r.jsonl"] == tables["r.jsonl.gz"] == tables["r.jsonl.zst"]


def test_progress_is_heard_where_the_caller_listens(tmp_path, small_parts):
    """Parts end in several threads; each call comes in the caller's context and in rising order."""
    file = tmp_path / "r.jsonl"
    many(file)
    listener = contextvars.ContextVar("listener", default=None)
    heard = []
    listener.set(heard)
    taken(file, tmp_path / "out", workers=3, progress=lambda done, total: listener.get().append((done, total)))
    size = file.stat().st_size
    assert heard == sorted(heard) and heard[-1] == (size, size)
    assert len(heard) == len(parts(tmp_path / "out"))


def test_a_table_without_copies_gives_the_same_lines_while_the_files_last(tmp_path, small_parts):
    """Two plain files share parts; the third is compressed, so its lines are copied all the same."""
    many(tmp_path / "a.jsonl", 30)
    (tmp_path / "b.jsonl").write_bytes(b"\n\r\n" + row(0, 0, "é") + b"\r\n" + row(0, 1, "last, without a line end"))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(row(0, 0, "c") + b"\n"))
    full = taken(tmp_path, tmp_path / "full")
    lean = taken(tmp_path, tmp_path / "lean", copy=False, workers=2, quarantine=tmp_path / "q")
    assert (lean.dropped, lean.sources) == (full.dropped, full.sources)
    columns = [name for name in schema().names if name != "raw"]
    for one, other in zip(full.tables, lean.tables, strict=True):
        table = pq.read_table(one)
        assert table.select(columns) == pq.read_table(other, columns=columns)
        every_other = list(range(0, len(table), 2))
        assert list(read_raw(other, every_other)) == table["raw"].take(every_other).to_pylist()
    assert pq.read_table(lean.tables[0])["raw"].null_count == len(pq.read_table(lean.tables[0]))
    assert b"{broken\n" in (tmp_path / "q" / "dropped.jsonl").read_bytes()
    with (tmp_path / "a.jsonl").open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(InputError, match=r"a\.jsonl changed while it was worked on"):
        list(read_raw(lean.tables[0], [0]))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read again"):
        list(read_raw(lean.tables[0], [0]))


def test_a_killed_worker_is_one_sentence(tmp_path, small_parts, monkeypatch):
    """The out-of-memory killer takes a child: the ingest ends with an error and not with a short table."""
    file = tmp_path / "r.jsonl"
    many(file)
    start = module.Worker.__init__

    def doomed(self):
        start(self)
        self._process.kill()

    monkeypatch.setattr(module.Worker, "__init__", doomed)
    with pytest.raises(GristmillError, match="worker process died with exit code -9"):
        taken(file, tmp_path / "out", workers=2)


pieces = st.sampled_from(
    [
        row(0, 0),
        row(0, 1),
        row(1, 0, reward=None),
        b"",
        b"\r",
        b"{",
        b"[]",
        b"x",
        row(2, 0)[:-3],
        b"\xff",
        b"null",
    ]
)


@settings(max_examples=60)
@given(st.lists(pieces, min_size=1, max_size=30), st.booleans(), st.integers(50, 3000))
def test_every_line_is_accounted_for(tmp_path_factory, monkeypatch, lines, newline, size):
    """rows_read = rows_kept + Σ dropped = lines that are not blank, however the input falls into parts."""
    folder = tmp_path_factory.mktemp("case")
    file = folder / "r.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n" * newline)
    monkeypatch.setattr(segments, "PART_BYTES", size)
    rows = [line for line in lines if line.strip()]
    if not rows:
        with pytest.raises(InputError):
            taken(file, folder / "out")
        return
    result = taken(file, folder / "out", quarantine=folder / "quarantine")
    assert result.rows_read == len(rows) == result.rows_kept + sum(result.dropped.values())
    table = read(folder / "out")
    assert table["raw"].to_pylist() == rows
    assert table["drop_reason"].null_count == result.rows_kept
    dropped = [r for r, why in zip(rows, table["drop_reason"].to_pylist(), strict=True) if why is not None]
    assert (folder / "quarantine" / "dropped.jsonl").read_bytes() == b"".join(line + b"\n" for line in dropped)
    why = [json.loads(line) for line in (folder / "quarantine" / "reasons.jsonl").read_bytes().splitlines()]
    assert [w["reason"] for w in why] == [r for r in table["drop_reason"].to_pylist() if r is not None]


def test_a_line_longer_than_a_part(tmp_path, small_parts):
    file = tmp_path / "r.jsonl"
    file.write_bytes(b"\n".join([row(0), row(1, text="x" * 20_000), row(2), row(3)]))
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(file.read_bytes()))
    for name in ("r.jsonl", "r.jsonl.gz"):
        assert taken(tmp_path / name, tmp_path / f"{name}.out").rows_kept == 4


def test_finding_files(tmp_path):
    for name in (
        "a/rollouts.jsonl",
        "a/rollouts_materialized_inputs.jsonl",
        "a/rollouts_failures.jsonl",
        "a/rollouts_reward_profiling.jsonl",
        "a/rollouts_aggregate_metrics.json",
        "b.jsonl.gz",
        "c.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    found = [path.relative_to(tmp_path).as_posix() for path in find_rollout_files([tmp_path])]
    assert found == ["a/rollouts.jsonl", "b.jsonl.gz"]
    assert find_rollout_files([f"{tmp_path}/*/*.jsonl"]) == [tmp_path / "a" / "rollouts.jsonl"]
    failures = tmp_path / "a" / "rollouts_failures.jsonl"
    assert find_rollout_files([failures, failures]) == [failures]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"PAR1\x00\x00", "binary"),
        (b"\x1f\x8b\x08\x00 damaged", "damaged"),
        (gzip.compress(b'{"a": 1}\n' * 1000)[:-20], "damaged"),
        (b"\x28\xb5\x2f\xfd damaged", "damaged"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, content, said):
    file = tmp_path / "r.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        taken(file, tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_a_folder_without_rollouts(tmp_path):
    with pytest.raises(InputError, match="holds no rollout files"):
        find_rollout_files([tmp_path])


def test_a_folder_that_is_closed_is_not_passed_over(tmp_path, monkeypatch):
    """Rollouts in it would be missing without a word."""
    inner = tmp_path / "inner"
    inner.mkdir()
    many(tmp_path / "r.jsonl")
    many(inner / "r.jsonl")
    assert find_rollout_files([tmp_path]) == [inner / "r.jsonl", tmp_path / "r.jsonl"]
    if os.getuid():
        inner.chmod(0)
    else:  # root reads everything
        scan = os.scandir

        def closed(path):
            if Path(path) == inner:
                raise PermissionError(13, "Permission denied", str(path))
            return scan(path)

        monkeypatch.setattr(os, "scandir", closed)
    try:
        with pytest.raises(InputError, match="inner cannot be read: Permission denied; make it readable"):
            find_rollout_files([tmp_path])
    finally:
        inner.chmod(0o755)


def test_an_error_in_a_worker_ends_the_ingest(tmp_path, small_parts, monkeypatch):
    """The file shrinks after it was cut into parts: some worker finds out, and no thread waits for ever."""
    file = tmp_path / "r.jsonl"
    many(file)
    cut = module.cut_parts

    def late(files, out, copy):
        work = list(cut(files, out, copy))
        os.truncate(file, file.stat().st_size // 2)
        return iter(work)

    monkeypatch.setattr(module, "cut_parts", late)
    with pytest.raises(InputError, match="became shorter"):
        taken(file, tmp_path / "out", workers=3)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """The parent is killed while its children wait for work; they see the pipe close."""
    code = (
        "import sys, time\n"
        "from gristmill.workers import Worker\n"
        "workers = [Worker(), Worker()]\n"
        "print(*(w._process.pid for w in workers), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(pid) for pid in parent.stdout.readline().split()]
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    deadline = time.monotonic() + 20
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_real_folder(shared, tmp_path):
    result = taken(shared, tmp_path / "out")
    lines = sum(bool(line.strip()) for path in find_rollout_files([shared]) for line in path.read_bytes().split(b"\n"))
    assert result.rows_read == lines == result.rows_kept + sum(result.dropped.values())
    assert result.examples["duplicate_rollout"] == ("graphwalks.jsonl", 5)
    table = read(tmp_path / "out")
    multi = table.filter(pa.array(["blackjack" in name for name in table["source"].to_pylist()]))
    assert len(set(multi["task_key"].to_pylist())) == 19  # one index, 20 rollouts, 19 prompts


def test_materialized_inputs_beside_the_file_are_joined(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(row(5, 1) + b"\n")
    inputs = [
        {"_ng_task_index": 5, "_ng_rollout_index": 1, "responses_create_params": {}, "difficulty": "hard"},
        {"_ng_task_index": 5, "_ng_rollout_index": 1, "difficulty": "second"},
        {"_ng_task_index": "5", "_ng_rollout_index": 1},
    ]
    text = "\n".join(map(json.dumps, inputs)) + "\n\n{torn"
    (tmp_path / "r_materialized_inputs.jsonl").write_text(text)
    result = taken(tmp_path / "r.jsonl", tmp_path / "out")
    assert result.inputs == (1, 2)
    (joined,) = duckdb.sql(
        f"SELECT fields->>'difficulty' FROM read_parquet('{tmp_path}/out/part-*.parquet') "
        f"JOIN read_parquet('{tmp_path}/out/{INPUTS}') USING (run, task_index, rollout_index)"
    ).fetchall()
    assert joined == ("hard",)


def test_real_inputs_match_their_rollouts(shared, tmp_path):
    assert taken(shared / "live" / "rg", tmp_path / "out").inputs == (800, 0)
