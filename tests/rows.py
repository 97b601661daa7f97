"""Small rollout rows in NeMo Gym's shape, written here for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from gristmill.ingest import ingest


def rollout(
    answer: str = "42",
    *,
    task: int = 0,
    repeat: int = 0,
    reward: Any = 1.0,
    question: str | None = None,
    truncated: bool = False,
    output: list[dict[str, Any]] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """One scored attempt: a question and one answer, unless `output` says otherwise."""
    message = {
        "type": "message",
        "id": "m",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": answer, "annotations": []}],
    }
    return {
        "responses_create_params": {"input": [{"role": "user", "content": question or f"question {task}?"}]},
        "response": {
            "id": "r",
            "object": "response",
            "model": "tester",
            "output": [message] if output is None else output,
            "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        },
        "reward": reward,
        "_ng_task_index": task,
        "_ng_rollout_index": repeat,
        "agent_ref": {"name": "agent"},
        **more,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A rollouts.jsonl."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def table(folder: Path, rows: list[dict[str, Any]]) -> tuple[list[Path], dict[str, Any]]:
    """Ingest rows; the table's files and its counts as a manifest would have them."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "table"
    out.mkdir()
    result = ingest([write(folder / "rollouts.jsonl", rows)], out)
    counts = {
        "rows_read": result.rows_read,
        "rows_kept": result.rows_kept,
        "dropped": {str(reason): count for reason, count in result.dropped.items()},
    }
    return result.tables, counts
