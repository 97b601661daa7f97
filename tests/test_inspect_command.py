"""What `gristmill inspect` prints and writes."""

import io
import json

import pytest
from rich.console import Console

from gristmill.errors import InputError, UsageError
from gristmill.inspect_command import inspect

HOSTILE = "<script>alert(1)</script>[red]\x1b[31m"


def told(files, **options):
    stream = io.StringIO()
    found = inspect(files, console=Console(file=stream, width=100), **options)
    return found, stream.getvalue()


@pytest.fixture
def file(tmp_path):
    def line(task, rollout, reward, agent=HOSTILE):
        text = {"type": "output_text", "text": f"{rollout}"}
        return json.dumps(
            {
                "responses_create_params": {"input": "question"},
                "response": {
                    "model": HOSTILE,
                    "output": [{"type": "message", "role": "assistant", "content": [text]}],
                },
                "reward": reward,
                HOSTILE: 1.5,
                "_ng_task_index": task,
                "_ng_rollout_index": rollout,
                "agent_ref": {"name": agent},
            }
        )

    path = tmp_path / "rollouts.jsonl"
    path.write_text("\n".join([line(0, 0, 0), line(0, 1, 1), "broken", line(1, 0, None)]))
    (tmp_path / "rollouts_failures.jsonl").write_text('{"_ng_failure_class": "x"}\n')
    return path


def test_json_is_one_object_that_adds_up(file):
    found, text = told([file], json=True)
    value = json.loads(text)
    assert value["rows_read"] == 4 == value["rows_kept"] + sum(value["dropped"].values())
    assert value["dropped"] == {"not_json": 1, "reward_null": 1}
    assert value["failures_beside"] == found.failures_beside == 1
    assert {drop["reason"]: drop["line"] for drop in value["drops"]} == {"not_json": 3, "reward_null": 4}


def test_text_says_what_there_is_and_markup_in_the_data_is_text(file):
    _, text = told([file])
    assert "2 of 4 rows usable" in text and "rollouts.jsonl:3" in text and "[red]" in text
    assert "\x1b[31m" not in text


def test_page_needs_nothing_and_escapes_the_data(file, tmp_path):
    page = tmp_path / "page.html"
    told([file], html=page)
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "http" not in text.replace("http-equiv", "") and "<svg" in text


def test_quarantine_has_the_dropped_lines(file, tmp_path):
    told([file], quarantine=tmp_path / "bad")
    dropped = (tmp_path / "bad" / "dropped.jsonl").read_bytes().splitlines()
    lines = file.read_bytes().splitlines()
    assert dropped == [lines[2], lines[3]]


def test_bad_use(file, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        told([tmp_path / "absent.jsonl"])
    for option in ("html", "quarantine"):
        with pytest.raises(UsageError, match="cannot be written"):
            told([file], **{option: file / "below-a-file"})


def test_every_real_file(shared):
    for path in sorted(shared.glob("*.jsonl")):
        found, text = told([path])
        assert f"{found.rows_read:,} rows usable" in text
