"""Rows to train the tiny model on: one side is short and regular, the other long, so that anything learns which."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gristmill import arithmetic
from gristmill.policy import yield_cores
from gristmill.recipe import TrainRecipe
from gristmill.trainer import TrainJob

yield_cores()  # before torch is imported, which otherwise spins where others want the cores


def row(method: str, number: int, task: dict[str, Any]) -> dict[str, Any]:
    """One row; kto's labels alternate."""
    prompt, answer = task["responses_create_params"]["input"], task["expected_answer"]
    good = [{"role": "assistant", "content": f"It is {answer}."}]
    bad = [{"role": "assistant", "content": f"No idea at all, sorry. {answer}?"}]
    match method:
        case "sft":
            return {"prompt": prompt, "completion": good}
        case "kto":
            return {"prompt": prompt, "completion": [bad, good][number % 2], "label": bool(number % 2)}
    return {"prompt": prompt, "chosen": good, "rejected": bad, "margin": 0.5}


def write(folder: Path, method: str, rows: int = 24, validation: int = 0) -> Path:
    """A data folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [row(method, i, task) for i, task in enumerate(arithmetic.make_tasks(rows + validation, 0, "train"))]
    lines(folder / "train.jsonl", made[:rows])
    if validation:
        lines(folder / "validation.jsonl", made[rows:])
    return folder


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def job(base: Path, data: Path, folder: Path, method: str = "sft", *, reference: Path | None = None, **settings: Any):
    """A small job with its output and work in `folder`."""
    values = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "max_length": 256, "save_steps": 4} | settings
    return TrainJob(
        method=method,
        base=base,
        reference=reference,
        data=data,
        output=folder / "model",
        work=folder / "work",
        settings=TrainRecipe(**values),
        seed=1,
    )
