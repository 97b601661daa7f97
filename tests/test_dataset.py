"""Formatting: nothing mangled, nothing null-filled, every row knows its rollout; read back by `datasets` itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from gristmill.curate import SELECTION, curate
from gristmill.dataset import PROVENANCE, TRAIN, write_sft
from gristmill.ingest import ingest
from gristmill.recipe import CurateRecipe
from tests.rows import rollout, table

CALL = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Zürich", "days": null}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "22°C"}
SAID = {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "22 degrees"}]}
TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}]


def with_tools(task: int) -> dict[str, Any]:
    row = rollout(task=task, output=[CALL, RESULT, SAID])
    row["responses_create_params"]["tools"] = TOOLS
    return row


def dataset(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    files, counts = table(folder, rows)
    selected = curate([files], [counts], CurateRecipe(min_reward=None, deduplicate=False, per_task=None), folder)
    return write_sft(folder / SELECTION, [files], selected, folder)


def test_rows_read_back_by_the_trainers_library_are_exact(tmp_path: Path) -> None:
    from datasets import Dataset

    counts = dataset(tmp_path, [rollout("plain", task=0), with_tools(1)])
    assert counts["examples"] == 2
    loaded = Dataset.from_parquet(str(tmp_path / TRAIN), cache_dir=str(tmp_path / "cache"))
    plain, tools = loaded[0], loaded[1]
    assert plain["prompt"] == [{"role": "user", "content": "question 0?"}]
    assert plain["completion"] == [{"role": "assistant", "content": "plain"}]
    call, result, said = tools["completion"]
    assert call["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Zürich", "days": None}}
    assert call["content"] == ""
    assert (result["role"], result["content"], result["tool_call_id"]) == ("tool", "22°C", "c1")
    assert said == {"role": "assistant", "content": "22 degrees"}
    assert tools["tools"][0]["function"]["name"] == "weather"
    assert "tool_calls" not in plain["completion"][0]  # no key of another row


def test_what_has_no_chat_form_is_dropped_with_its_reason(tmp_path: Path) -> None:
    hosted = rollout(task=1, output=[{"type": "web_search_call", "id": "w", "status": "completed"}, SAID])
    broken = rollout(task=2, output=[{**CALL, "arguments": "{city"}, RESULT, SAID])
    counts = dataset(tmp_path, [rollout(task=0), hosted, broken])
    assert counts["dropped"] == {"malformed_arguments": 1, "unsupported_item": 1}
    assert counts["rows_read"] == counts["rows_kept"] + sum(counts["dropped"].values())
    assert counts["examples"] == 1


def test_every_row_knows_its_rollout(tmp_path: Path) -> None:
    rows = [rollout(f"answer {i}", task=i) for i in range(20)]
    dataset(tmp_path, rows)
    written = pq.read_table(tmp_path / TRAIN).to_pylist()
    origins = pq.read_table(tmp_path / PROVENANCE).to_pylist()
    assert [o["row"] for o in origins] == list(range(20))
    lines = (tmp_path / "rollouts.jsonl").read_bytes().splitlines()
    parts = pq.read_table(tmp_path / "table", columns=["rollout_id", "line"]).to_pylist()
    line_of = {part["rollout_id"]: part["line"] for part in parts}
    for row, origin in zip(written, origins, strict=True):
        source = orjson.loads(lines[line_of[origin["rollout_id"]] - 1])
        said = source["response"]["output"][0]["content"][0]["text"]
        completion = row["completion"][0]
        assert (completion if isinstance(completion, dict) else orjson.loads(completion))["content"] == said


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    rows = [rollout(f"answer {i}", task=i) for i in range(50)]
    dataset(tmp_path / "one", rows)
    dataset(tmp_path / "two", rows)
    for name in (TRAIN, PROVENANCE):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_nothing_selected_is_an_empty_dataset_not_a_crash(tmp_path: Path) -> None:
    counts = dataset(tmp_path, [rollout(reward=None)])
    assert (counts["examples"], counts["rows_read"]) == (0, 1)
    assert pq.read_table(tmp_path / TRAIN).num_rows == 0


def test_a_row_with_a_byte_order_mark_is_formatted_as_it_was_read(tmp_path: Path) -> None:
    files, _ = table(tmp_path, [rollout("plain")])
    path = tmp_path / "rollouts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    again = tmp_path / "again"
    again.mkdir()
    result = ingest([path], again)
    counts = {"rows_read": result.rows_read, "dropped": {}}
    selected = curate([result.tables], [counts], CurateRecipe(), tmp_path)
    assert write_sft(tmp_path / SELECTION, [result.tables], selected, tmp_path)["examples"] == 1
    assert files != result.tables
