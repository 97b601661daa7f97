"""One rollout as the page shows it: strings and numbers only, whatever the row holds.

A row that converts is shown as the conversation that would be trained on (gristmill/chat.py); of one that does not,
the items stand as they are, with the reason. Equal rows give equal values, so `Shown.digest` names what a person saw
when they decided.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gristmill.chat import Conversation, Unrepresentable, convert, require_trainable
from gristmill.identity import digest
from gristmill.rollout import parse

_PREVIEW = 280  # characters of an answer in the list of attempts
# Shown elsewhere on the page, or only bookkeeping.
_ELSEWHERE = frozenset({"responses_create_params", "response", "reward", "agent_ref"})


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is indented JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `policy` is true where the policy said it, false in the prompt and for tool results."""

    role: str
    text: str
    policy: bool
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    images: tuple[str, ...] = ()
    name: str = ""
    """The tool's, in a result."""
    answers: str = ""
    """The id of the call, in a result."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A declared tool; `parameters` is indented JSON."""

    name: str
    description: str
    parameters: str


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of a row that has no chat form."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A rollout's content. Without `problem` there are messages; with it, raw items."""

    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    problem: str = ""
    """Why it has no chat form."""
    warning: str = ""
    """Why it cannot be trained on, though it has one."""
    items: tuple[Item, ...] = ()
    fields: str = ""
    """The row's other fields (of the verifier, the judge, the dataset) as indented JSON."""

    @property
    def digest(self) -> str:
        """Names what a person saw."""
        return digest(asdict(self))

    @property
    def preview(self) -> str:
        """The first words of the last answer, to tell attempts apart."""
        if self.problem:
            return self.problem
        for message in reversed(self.messages):
            if message.policy and (text := message.text.strip()):
                return text[:_PREVIEW]
            if message.policy and message.calls:
                return ", ".join(f"{call.name}(…)" for call in message.calls)[:_PREVIEW]
        return ""


def show(line: bytes) -> Shown:
    """The content of a usable row."""
    row = parse(line)
    rest = {k: v for k, v in row.items() if k not in _ELSEWHERE and not k.startswith("_ng_") and v is not None}
    fields = _json(rest) if rest else ""
    try:
        conversation = convert(row)
    except Unrepresentable as error:
        return Shown(problem=_clean(str(error)), items=tuple(_items(row)), fields=fields)
    try:
        require_trainable(conversation)
        warning = ""
    except Unrepresentable as error:
        warning = _clean(str(error))
    tools = tuple(_tool(tool["function"]) for tool in conversation.tools)
    return Shown(tuple(_messages(conversation)), tools, warning=warning, fields=fields)


def _messages(conversation: Conversation) -> list[Message]:
    shown = []
    for index, message in enumerate(conversation.messages):
        text, images = _content(message["content"])
        shown.append(
            Message(
                role=_clean(message["role"]),
                text=text,
                policy=index >= conversation.prompt_length and message["role"] == "assistant",
                reasoning=_clean(message.get("reasoning_content", "")),
                calls=tuple(_call(call) for call in message.get("tool_calls", ())),
                images=images,
                name=_clean(message.get("name", "")),
                answers=_clean(message.get("tool_call_id", "")),
            )
        )
    return shown


def _content(content: str | list[dict[str, Any]]) -> tuple[str, tuple[str, ...]]:
    if isinstance(content, str):
        return _clean(content), ()
    texts = [part["text"] for part in content if part["type"] == "text"]
    images = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
    return _clean("".join(texts)), tuple(map(_clean, images))


def _call(call: Mapping[str, Any]) -> Call:
    return Call(_clean(call["id"]), _clean(call["function"]["name"]), _json(call["function"]["arguments"]))


def _tool(function: Mapping[str, Any]) -> Tool:
    parameters = function.get("parameters")
    return Tool(
        _clean(function["name"]),
        _clean(function.get("description", "")),
        "" if parameters is None else _json(parameters),
    )


def _items(row: Mapping[str, Any]) -> list[Item]:
    """Instructions, input, tools and output, item by item, as they stand."""
    params, response = row.get("responses_create_params"), row.get("response")
    found: list[Item] = []
    for source, names in ((params, ("instructions", "input", "tools")), (response, ("output",))):
        for name in names:
            value = source.get(name) if isinstance(source, dict) else None
            if isinstance(value, list) and name != "tools":
                for index, item in enumerate(value):
                    kind = item.get("type") or item.get("role") if isinstance(item, dict) else None
                    found.append(Item(_clean(f"{name}[{index}]" + (f" {kind}" if kind else "")), _json(item)))
            elif value:
                found.append(Item(name, _clean(value) if isinstance(value, str) else _json(value)))
    return found


def _json(value: Any) -> str:
    try:
        return _clean(json.dumps(value, ensure_ascii=False, indent=2))
    except RecursionError:
        return "(nested too deep to be shown)"


def _clean(text: str) -> str:
    """Text that UTF-8 can hold: JSON may have lone surrogates, which neither a browser nor a digest takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
