"""NeMo Gym: tasks to attempt again, as its own datasets have them; the portable RL export.

    rl    responses_create_params, agent_ref, and what the verifier needs

`gym eval run` collects rollouts on them. NeMo RL (target nemo-rl adds its config), verl (recipe nemo_gym), Axolotl
(plugin nemo_gym) and Unsloth train on the same file. Rows carry no metadata of ours: whatever stands in a row goes to
the environment's server; provenance.parquet says which rollouts a task was found in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gristmill.example import Example, Method, RlTask
from gristmill.targets.files import line, render, write_lines
from gristmill.targets.protocol import Export, Row


@dataclass(frozen=True, slots=True)
class Gym:
    """Task rows."""

    name: str = "gym"
    methods: frozenset[Method] = frozenset(("rl",))
    suffix: Literal["jsonl", "parquet"] = "jsonl"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        return task_line(example)

    def write(self, rows: Sequence[Row], path: Path) -> None:
        write_lines(rows, path)

    def finish(self, export: Export) -> None:
        render("gym.sh.j2", export, "collect.sh")


def task_line(example: Example) -> bytes:
    """A task row as a line of JSON."""
    if not isinstance(example, RlTask):
        raise TypeError(f"rl takes tasks, not {type(example).__name__}")
    return line(example.row)


GYM = Gym()
