"""TRL's own trainers on our exports: every turn there, arguments exact, loss on the policy's tokens alone, no row lost.

Each job runs the export's own train.py on a tiny model (SFT to a trained and saved one). The other frameworks have the
same checks in tests/live/test_frameworks.py, in environments of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from gristmill import targets
from gristmill.example import Method
from tests import conversations as talk
from tests.learned import ask, problems, template

# What these templates leave out of what they are given: Qwen 2.5's reasoning, Llama 3.1's the text before a call.
NO_REASONING = [row for row in talk.SFT if row is not talk.REASONING]
NO_TEXT_BEFORE_A_CALL = [row for row in talk.PAIRS if talk.BOOKED not in row.chosen]
JOBS: list[tuple[str, Method, str, list[Any] | None]] = [
    ("trl", "sft", "qwen3", None),
    ("trl-jsonl", "sft", "qwen2_5", NO_REASONING),
    ("trl", "dpo", "qwen3", None),
    ("trl-jsonl", "dpo", "llama3_1", NO_TEXT_BEFORE_A_CALL),
    ("trl", "kto", "qwen3", None),
    ("trl-jsonl", "reward", "qwen3", None),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Any], list[Any]]]:
    folder = tmp_path_factory.mktemp("trl")
    asked, kept = [], []
    for number, (name, method, chat, examples) in enumerate(JOBS):
        export, held, _ = talk.export(targets.get(name), method, folder / f"{number}", examples, validation=False)
        asked.append({"export": export.folder, "method": method, "template": template(chat)})
        kept.append(held)
    return list(zip(ask(sys.executable, "trl", asked, folder / "loader"), kept, strict=True))


@pytest.mark.parametrize("number", range(len(JOBS)), ids=[f"{n}-{m}-{t}" for n, m, t, _ in JOBS])
def test_the_trainer_learns_the_answers_and_nothing_else(made: Any, number: int, tmp_path: Path) -> None:
    _, method, chat, _ = JOBS[number]
    answer, kept = made[number]
    assert problems(answer, kept, method, template(chat)) == []
