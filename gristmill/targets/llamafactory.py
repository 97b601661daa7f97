"""LLaMA-Factory: ShareGPT JSONL and the `dataset_info.json` that registers it; all that varies is JSON as text.

    sft            conversations, system, tools, meta
    dpo, reward    conversations, chosen, rejected, system, tools, meta
    kto            conversations, kto_tag, system, tools, meta

Turns must alternate: human or observation, then gpt or function_call; a row that does not is skipped by the framework
with a warning, so it is refused here. Text and reasoning before a call stand before `<tool_call>[…]</tool_call>` in
the function_call turn (FunctionFormatter of 0.9.5 reads that form). Results of parallel calls are joined as the Qwen
templates write them. Every answer of a row carries loss, so that answers in an SFT prompt are refused. The framework
renders by its own named templates, never by the tokenizer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from gristmill.example import Example, Labelled, Method, Preference, RlTask, Sft, Tokens
from gristmill.targets.files import line, render, write_lines
from gristmill.targets.limits import (
    refuse,
    require_no_earlier_answers,
    require_no_token_ids,
    require_single,
    require_text,
)
from gristmill.targets.protocol import Export, Row

INFO = "dataset_info.json"
_CALL, _END_OF_CALL = "<tool_call>", "</tool_call>"
_NEXT_RESULT = "\n</tool_response>\n<tool_response>\n"
_ASKING, _ANSWERING = ("human", "observation"), ("gpt", "function_call")
_STAGES: dict[Method, str] = {"sft": "sft", "dpo": "dpo", "kto": "kto", "reward": "rm"}
# By the model's name: the framework's template; the first that fits.
_TEMPLATES = (
    ("qwen3.5", "qwen3_5_nothink"),
    ("qwen3", "qwen3_nothink"),
    ("qwen2", "qwen"),
    ("llama-3", "llama3"),
    ("gemma-3", "gemma3"),
    ("gpt-oss", "gpt_oss"),
)


@dataclass(frozen=True, slots=True)
class LlamaFactory:
    """Rows for `llamafactory-cli train`."""

    name: str = "llamafactory"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "kto", "reward"))
    suffix: Literal["jsonl", "parquet"] = "jsonl"
    single_message: bool = True

    def row(self, example: Example) -> Row:
        match example:
            case Sft(prompt, completion, tools, meta):
                require_no_earlier_answers(prompt)
                row = _row(prompt + completion, tools, answered=True)
            case Preference(prompt, chosen, rejected, tools, _, meta):
                require_single(chosen, rejected)
                row = _row(prompt, tools, answered=False)
                row["chosen"], row["rejected"] = _turn(chosen[0]), _turn(rejected[0])
            case Labelled(prompt, completion, tools, label, meta):
                require_single(completion)
                row = {**_row(prompt + completion, tools, answered=True), "kto_tag": label}
            case Tokens():
                require_no_token_ids()
            case RlTask():
                raise TypeError("llamafactory has no rl")
        return line({**row, "meta": orjson.dumps(meta).decode()})

    def write(self, rows: Sequence[Row], path: Path) -> None:
        write_lines(rows, path)

    def finish(self, export: Export) -> None:
        splits = {"train": export.train, "validation": export.validation}
        names = {split: f"gristmill_{split}" for split, parts in splits.items() if parts}
        info = {name: _registered(export.method, splits[split][0]) for split, name in names.items()}
        (export.folder / INFO).write_bytes(orjson.dumps(info, option=orjson.OPT_INDENT_2) + b"\n")
        render(
            "llamafactory.yaml.j2",
            export,
            f"{export.method}.yaml",
            stage=_STAGES[export.method],
            template=_template(export),
        )


def _row(messages: list[dict[str, Any]], tools: list[dict[str, Any]], *, answered: bool) -> dict[str, Any]:
    require_text(messages)
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    turns: list[dict[str, str]] = []
    for message in rest:
        turn = _turn(message)
        if turns and turn["from"] == turns[-1]["from"] == "observation":
            turns[-1] = {"from": "observation", "value": turns[-1]["value"] + _NEXT_RESULT + turn["value"]}
        else:
            turns.append(turn)
    for index, turn in enumerate(turns):
        if turn["from"] not in (_ASKING, _ANSWERING)[index % 2]:
            refuse(f"turn {index} is of {turn['from']}; human or observation must alternate with the policy's turns")
    if len(turns) % 2 == answered:
        refuse(f"a conversation of {len(turns)} turns")
    functions = orjson.dumps([tool["function"] for tool in tools]).decode() if tools else ""
    return {"conversations": turns, "system": system, "tools": functions}


def _turn(message: dict[str, Any]) -> dict[str, str]:
    role, content = message["role"], message["content"]
    if role == "user":
        return {"from": "human", "value": content}
    if role == "tool":
        return {"from": "observation", "value": content}
    if role != "assistant":
        refuse(f"a {role} message after the first")
    if type(content) is not str:
        require_text([message])
    thought = message.get("reasoning_content") or message.get("thinking") or ""
    before = f"<think>\n{thought}\n</think>\n\n{content}" if thought else content
    calls = message.get("tool_calls")
    if not calls:
        if not before:
            refuse("an empty answer, which the framework takes for none")
        return {"from": "gpt", "value": before}
    functions = orjson.dumps([call["function"] for call in calls]).decode()
    if any(tag in text for tag in (_CALL, _END_OF_CALL) for text in (before, functions)):
        refuse(f"{_CALL} within a call's arguments or in the text before it")
    if not before:
        return {"from": "function_call", "value": functions}
    gap = "\n" if content else ""  # as Qwen's own templates have it; after reasoning alone there is a gap already
    return {"from": "function_call", "value": f"{before}{gap}{_CALL}{functions}{_END_OF_CALL}"}


def _registered(method: Method, file: str) -> dict[str, Any]:
    columns = {"messages": "conversations", "system": "system", "tools": "tools"}
    ranking = method in ("dpo", "reward")
    if ranking:
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    if method == "kto":
        columns["kto_tag"] = "kto_tag"
    return {"file_name": file, "formatting": "sharegpt", "ranking": ranking, "columns": columns}


def _template(export: Export) -> str:
    """The framework's template for the model; of Qwen 3's, the one that adds no empty thought to every answer."""
    model = export.launch.model.lower()
    name = next((template for part, template in _TEMPLATES if part in model), "qwen3_nothink")
    if name.endswith("_nothink") and _thinks(export):
        return name.removesuffix("_nothink")
    return name


def _thinks(export: Export) -> bool:
    for name in export.train:
        with (export.folder / name).open("rb") as file:
            if any(b"<think>\\n" in row for row in file):
                return True
    return False


LLAMAFACTORY = LlamaFactory()
