"""NeMo RL: JSONL for its own dataset classes, and a config that sets what its shipped ones get wrong for tools.

    sft            messages, tools, meta                    openai_format, with use_preserving_dataset
    dpo, reward    context, completions [rank 0, rank 1], meta                PreferenceDataset
    rl             Gym task rows                                              NemoGymDataset

`meta` is JSON as text, so that `datasets` finds one type for it. Every assistant turn of an SFT row carries loss, so
that answers in a prompt are refused. Messages are rendered one by one, so that results of parallel calls are refused.
Preferences carry loss on their last message, and tools are never given to the template: they stand in the system text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.example import Example, Labelled, Method, Preference, RlTask, Sft, Tokens
from gristmill.targets.files import line, render, write_lines
from gristmill.targets.fold import fold_tools
from gristmill.targets.gym import task_line
from gristmill.targets.limits import (
    require_no_earlier_answers,
    require_no_token_ids,
    require_single,
    require_single_results,
    require_text,
)
from gristmill.targets.protocol import Export, Row

_SCRIPTS: dict[Method, str] = {"sft": "run_sft", "dpo": "run_dpo", "reward": "run_rm"}


@dataclass(frozen=True, slots=True)
class NemoRl:
    """Rows for examples/run_sft.py, run_dpo.py, run_rm.py and nemo_gym/run_grpo_nemo_gym.py."""

    name: str = "nemo-rl"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "reward", "rl"))
    suffix: Literal["jsonl", "parquet"] = "jsonl"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        match example:
            case Sft(prompt, completion, tools, meta):
                require_text(prompt, completion)
                require_no_earlier_answers(prompt)
                messages = prompt + completion
                require_single_results(messages)
                row: dict[str, Any] = {"messages": messages, "tools": tools}
            case Preference(prompt, chosen, rejected, tools, _, meta):
                require_text(prompt, chosen, rejected)
                require_single(chosen, rejected)
                require_single_results(prompt)
                sides = [{"rank": rank, "completion": side} for rank, side in enumerate((chosen, rejected))]
                row = {"context": fold_tools(prompt, tools), "completions": sides}
            case RlTask():
                return task_line(example)
            case Tokens():
                require_no_token_ids()
            case Labelled():
                raise TypeError("nemo-rl has no kto")
        return line({**row, "meta": orjson.dumps(meta).decode()})

    def write(self, rows: Sequence[Row], path: Path) -> None:
        write_lines(rows, path)

    def finish(self, export: Export) -> None:
        if export.method == "rl":
            render("nemo_rl_grpo.yaml.j2", export, "grpo.yaml")
            render("nemo_rl.sh.j2", export, "train.sh", config="grpo", script="nemo_gym/run_grpo_nemo_gym")
        else:
            render("nemo_rl.yaml.j2", export, f"{export.method}.yaml")
            render("nemo_rl.sh.j2", export, "train.sh", config=export.method, script=_SCRIPTS[export.method])


NEMO_RL = NemoRl()
