"""What a framework must have made of the rows of tests/conversations.py, whatever its format and the chat template."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gristmill.example import Example, Labelled, Method, Preference, Sft, Tokens

LOADERS = Path(__file__).parent / "loaders"
# What stands before and after an answer in the templates that are used here.
_ANSWER = {
    "chatml": r"<\|im_start\|>assistant\n(.*?<\|im_end\|>)",
    "llama": r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?<\|e(?:ot|om)_id\|>)",
}


def template(name: str) -> Path:
    """A chat template out of TRL's package, which holds those of the model families byte by byte."""
    spec = find_spec("trl")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "chat_templates" / f"{name}.jinja"


def ask(python: Path | str, loader: str, jobs: Sequence[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """The answers of a loader program (tests/loaders) to its jobs."""
    folder.mkdir(parents=True, exist_ok=True)
    asked, answered = folder / "jobs.json", folder / "answers.json"
    asked.write_text(
        json.dumps([{**job, "export": str(job["export"]), "template": str(job["template"])} for job in jobs])
    )
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "HF_HOME": str(folder / "home")}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [str(python), str(LOADERS / f"load_{loader}.py"), str(asked), str(answered)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=folder)
    assert ran.returncode == 0, ran.stderr[-3000:]
    answers: list[dict[str, Any]] = json.loads(answered.read_text())
    return answers


def problems(answer: dict[str, Any], kept: Sequence[Example], method: Method, template: Path) -> list[str]:
    """Everything that is wrong with what a loader made of an export's rows; empty if nothing is."""
    if "error" in answer:
        return [answer["error"]]
    rows = answer["rows"]
    if len(rows) != len(kept):
        return [f"{len(rows)} rows of {len(kept)}: some were dropped without a word"]
    found = []
    for number, (row, example) in enumerate(zip(rows, kept, strict=True)):
        for side, made in row.items():
            if isinstance(example, Tokens):
                wanted = (example.input_ids, [label != -100 for label in example.labels])
                if (made["ids"], made["mask"]) != wanted:
                    found.append(f"row {number}: {made['ids']} and {made['mask']}, not {wanted}")
                continue
            for problem in _side(example, side, made["learned"], made["whole"], method, template.name):
                found.append(f"row {number} {side}: {problem}")
    return found


def _side(example: Example, side: str, learned: str, whole: str, method: Method, name: str) -> list[str]:
    prompt, answers, tools = _messages(example, side)
    found = []
    if "CONTEXT" in learned and method != "reward":  # a reward model scores the whole
        found.append(f"context carries loss: {learned!r}")
    for message in [*prompt, *answers]:
        where = "learned" if message in answers and message["role"] == "assistant" else "whole"
        text = learned if where == "learned" else whole
        wanted = [message["content"]]
        if message in answers:
            wanted.append(message.get("reasoning_content", ""))
        for call in message.get("tool_calls", []):
            function = call["function"]
            # Exact: neither encoded twice, nor with a key more.
            wanted += [function["name"], json.dumps(function["arguments"], ensure_ascii=False)]
        found += [f"{piece!r} is not in what is {where}: {text!r}" for piece in wanted if piece.strip() not in text]
    for tool in tools:
        shown = json.dumps(tool["function"]["description"], ensure_ascii=False)
        if shown not in whole:
            found.append(f"the schema of {tool['function']['name']} is lost: {whole!r}")
    if method != "reward":
        turns = re.findall(_ANSWER["llama" if "llama" in name else "chatml"], whole, re.DOTALL)
        wanted_turns = turns[-sum(message["role"] == "assistant" for message in answers) :]
        # NeMo RL counts the header to a preference's answer; it begins both sides and cancels out of DPO's loss.
        said = learned.removeprefix("<|im_start|>assistant\n") if method == "dpo" else learned
        if _closed(said) != _closed("".join(wanted_turns)):
            found.append(f"loss is on {learned!r}, the policy's turns are {wanted_turns!r}")
    return found


def _closed(turns: str) -> str:
    """Without white space between turns, which templates count to the one before, the one after, or to none."""
    return re.sub(r"\s*(<\|(?:im_end|eot_id|eom_id)\|>)\s*", r"\1", turns).strip()


def _messages(example: Example, side: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    match example:
        case Sft(prompt, completion, tools, _) | Labelled(prompt, completion, tools, _, _):
            return prompt, completion, tools
        case Preference(prompt, chosen, rejected, tools, _, _):
            return prompt, chosen if side == "chosen" else rejected, tools
    raise TypeError(type(example).__name__)
