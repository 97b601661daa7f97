"""One rollout row: what a line of NeMo Gym's `rollouts.jsonl` means.

`Reader.read` gives a `Reading`: what selection needs to know (identity, scores, shape, flags, reason to drop) and
nothing of the payload. How a line is decoded stands in gristmill/decode.py; `parse` gives a whole row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import orjson
from xxhash import xxh3_128_digest

from gristmill.chat import canonical_prompt
from gristmill.decode import (
    FAILURE_FIELDS,
    LABEL_CHARS,
    Decoder,
    Item,
    Params,
    Part,
    Row,
    Unreadable,
    clean,
    parse,
    value_of,
)
from gristmill.identity import fingerprint
from gristmill.reasons import DropReason

__all__ = ["FAILURE_FIELDS", "Reader", "Reading", "Unreadable", "parse"]

_INT64 = 1 << 63
_MEMO_MAX = 2048  # prompts that one reader remembers: repeats of a task carry byte-equal prompts


class Reading(msgspec.Struct, frozen=True, gc=False):  # thousands live at a time: not to be walked by the collector
    """What one line says, apart from its payload."""

    drop_reason: DropReason | None
    agent: str | None = None
    task_index: int | None = None
    rollout_index: int | None = None
    prompt_key: str | None = None
    """Digest of instructions, input and tools; null when they are empty: the task then stands elsewhere."""
    prompt_chars: int = 0
    """Characters of text in instructions and input."""
    groupable: bool = False
    """A task index, and an agent's name or a prompt, so that the row's task is known within its run."""
    reward: float | None = None
    """Null unless a finite number."""
    model: str | None = None
    turns: int = 0
    """Assistant messages as in a chat: text and calls up to the next tool result or user message are one."""
    tool_calls: int = 0
    tools_called: tuple[str, ...] = ()
    """The name of each call, in order; a hosted tool's item type stands for its name."""
    output_items: int = 0
    answer_key: str | None = None
    """Digest of what the policy wrote: text and calls of every turn; no reasoning, no outer white space."""
    answer_chars: int = 0
    """Characters of the same: text and call arguments."""
    output_tokens: int | None = None
    incomplete: str | None = None
    """Why the answer is cut: `max_output_tokens`, `content_filter`, …"""
    masked: bool = False
    metrics: Mapping[str, float] = {}
    """Top-level numbers and booleans (as 0 and 1), and `reward_components.<name>`; finite ones only."""
    labels: Mapping[str, str] = {}
    """Top-level strings of at most 80 characters."""


class Reader:
    """Reads lines one after another, and remembers their prompts, which repeats of a task share.

    What it returns for a line does not depend on the lines before.
    """

    def __init__(self) -> None:
        self._decoder = Decoder()
        self._prompts: dict[tuple[bytes, bytes, bytes], _Prompt] = {}

    def read(self, line: bytes) -> Reading:
        """Read one line, with or without its newline. Never raises on any bytes."""
        try:
            row = self._decoder.decode(line)
        except Unreadable as problem:
            return Reading(problem.reason)
        return self._summary(row)

    def _summary(self, row: Row) -> Reading:
        metrics, labels = _scores(row)
        reward, reward_reason = _reward(row.reward)
        prompt = self._prompt(row.params)
        task_index = row.task_index if row.task_index is None or -_INT64 <= row.task_index < _INT64 else None
        rollout_index = row.rollout_index
        if rollout_index is not None and not -_INT64 <= rollout_index < _INT64:
            rollout_index = None
        told = _NO_ANSWER
        model = incomplete = tokens = None
        items: list[Item] = []
        malformed = error = False
        if (response := row.response) is not None:
            model = response.model
            error = bytes(response.error) != b"null"
            if response.usage is not None and (count := response.usage.output_tokens) is not None:
                tokens = count if 0 <= count < _INT64 else None
            if response.incomplete_details is not None:
                incomplete = response.incomplete_details.reason or "unknown"
            items, malformed = _items(response.output or [])
            told = _answer(items)
        reason = None
        if row.failed:
            reason = DropReason.FAILURE
        elif response is None:
            reason = DropReason.NO_RESPONSE
        elif reward_reason is not None:
            reason = reward_reason
        elif row.mask:
            reason = DropReason.MASKED
        elif error:
            reason = DropReason.RESPONSE_ERROR
        elif malformed or not row.output_ok:
            reason = DropReason.MALFORMED_OUTPUT
        elif not items:
            reason = DropReason.EMPTY_OUTPUT
        return Reading(
            reason,
            row.agent,
            task_index,
            rollout_index,
            prompt.key,
            prompt.chars,
            task_index is not None and (row.agent is not None or prompt.key is not None),
            reward,
            model,
            told.turns,
            told.calls,
            told.names,
            len(items),
            told.key,
            told.chars,
            tokens,
            incomplete,
            row.mask,
            metrics,
            labels,
        )

    def _prompt(self, params: Params | None) -> _Prompt:
        if params is None:
            return _NO_PROMPT
        # their fingerprints, because to hash and compare kilobytes of text for each row is what costs
        source = xxh3_128_digest(params.input), xxh3_128_digest(params.tools), xxh3_128_digest(params.instructions)
        known = self._prompts.get(source)
        if known is None:
            known = _prompt(bytes(params.instructions), bytes(params.input), bytes(params.tools))
            if len(self._prompts) >= _MEMO_MAX:
                self._prompts.clear()
            self._prompts[source] = known
        return known


# ---- the parts of a summary


class _Prompt(NamedTuple):
    key: str | None
    chars: int


class _Answer(NamedTuple):
    turns: int = 0
    calls: int = 0
    names: tuple[str, ...] = ()
    key: str | None = None
    chars: int = 0


_NO_PROMPT = _Prompt(None, 0)
_NO_ANSWER = _Answer()


def _without_defaults(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {k: v for k, v in item.items() if v is not None and not (k == "type" and v == "message")}


def _prompt(instructions: bytes, items: bytes, tools: bytes) -> _Prompt:
    values = [value_of(part) for part in (instructions, items, tools)]
    if not values[0] and not values[1]:
        return _NO_PROMPT
    chars = _chars(values[0]) + _chars(values[1])
    text = canonical_prompt({"responses_create_params": _plain_params(*values)})
    return _Prompt(fingerprint(text), chars)


def _plain_params(instructions: Any, items: Any, tools: Any) -> dict[str, Any]:
    """A prompt in the one form that rows of all versions of NeMo Gym share, so that it is equal across runs.

    Null fields are left out, and `type: "message"`, which is the default; a string is one user message.
    """
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if isinstance(items, list):
        items = [_without_defaults(item) for item in items]
    if isinstance(tools, list):
        tools = [_without_defaults(tool) for tool in tools]
    return {"instructions": instructions, "input": items, "tools": tools}


def _chars(value: Any) -> int:
    """Characters of text in a prompt: strings under `content`, `text`, `arguments` and `output`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_chars(item) for item in value if isinstance(item, dict | str))
    if isinstance(value, dict):
        return sum(_chars(value.get(name)) for name in ("content", "text", "arguments", "output"))
    return 0


def _reward(value: Any) -> tuple[float | None, DropReason | None]:
    if type(value) is float and math.isfinite(value):
        return value, None
    if value is msgspec.UNSET:
        return None, DropReason.NO_REWARD
    if value is None:
        return None, DropReason.REWARD_NULL
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, DropReason.REWARD_NOT_A_NUMBER
    number = _number(value)
    return number, DropReason.REWARD_NOT_FINITE if number is None else None


def _number(value: int | float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _scores(row: Row) -> tuple[dict[str, float], dict[str, str]]:
    metrics: dict[str, float] = {}
    labels: dict[str, str] = {}
    for name, value in row.extra:
        if type(value) is str:
            if len(value) <= LABEL_CHARS:
                labels[name] = value if value.isascii() else clean(value)
        elif isinstance(value, (int, float)) and not name.startswith("_ng_"):
            number = _number(value)
            if number is not None:
                metrics[name] = number
    if row.components:
        for name, value in row.components.items():
            if isinstance(value, int | float) and (number := _number(value)) is not None:
                metrics[f"reward_components.{name}"] = number
    return metrics, labels


def _items(output: list[Item | list[Item]]) -> tuple[list[Item], bool]:
    """The items of an output, and whether it is malformed. Of transitions (lists) the last is the whole."""
    if list not in map(type, output):
        return output, False  # type: ignore[return-value]  # no list is among them
    last = output[-1]
    return (last, False) if all(type(one) is list for one in output) and isinstance(last, list) else ([], True)


def _answer(items: list[Item]) -> _Answer:
    """Turns, calls and the key of what the policy wrote."""
    turns = 0
    speaking = False
    names: list[str] = []
    written: list[Any] = []  # one list a turn
    turn: list[Any] = []
    chars = 0
    for item in items:
        kind = item.type
        if kind == "function_call_output":
            speaking = False
            continue
        said: Any = None
        if kind == "message" or kind is None:
            if item.role != "assistant":
                speaking = False
                continue
            said = _said(item.content)
            chars += len(said)
        elif kind == "function_call" or kind.endswith("_call"):
            name, arguments = item.name or kind, item.arguments or ""
            said = [name, arguments]
            names.append(name)
            chars += len(arguments)
        elif kind != "reasoning":
            speaking = False
            continue
        if not speaking:
            speaking = True
            turns += 1
            turn = []
            written.append(turn)
        if said is not None:
            turn.append(said)
    if not turns:
        return _NO_ANSWER
    if turns == 1 and len(turn) == 1 and type(turn[0]) is str:
        key = fingerprint(turn[0].encode())  # the usual case: one plain message
    else:
        key = fingerprint(orjson.dumps(written))
    return _Answer(turns, len(names), tuple(names), key, chars)


def _said(content: list[Part] | str | None) -> str:
    if content is None:
        return ""
    if type(content) is str:
        return content.strip()
    if len(content) == 1:
        part: Any = content[0]
        return (part.text or part.refusal or "").strip()
    return "".join([part.text or part.refusal or "" for part in content]).strip()  # type: ignore[union-attr]  # a list
