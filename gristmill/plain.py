"""From a line to its conversation, and for the usual line without parsing what a conversation does not hold.

`convert` means what `chat.convert` of the parsed line means, always: that function is the definition. A line is usual
if it fits the structs below: an input of plain messages; an output of texts, calls with one result each, and
reasoning; nothing that needs a judgement. It then becomes a conversation here, at a third of the time. Whatever else
it has, or if anything is odd, it is parsed whole and given to `chat.convert`, which says what is wrong.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import msgspec
import orjson
from xxhash import xxh3_128_digest

from gristmill import chat
from gristmill.items import Unrepresentable, read_arguments, read_tools
from gristmill.rollout import parse

_TOOLS_MAX = 256  # tool lists that are remembered: the rows of an environment carry byte-equal ones


def convert(
    line: bytes,
    *,
    reasoning: chat.Reasoning = "field",
    developer: Literal["system", "keep"] = "system",
    refusals: Literal["keep", "drop"] = "keep",
) -> chat.Conversation:
    """The conversation of a line, without its newline; the settings are those of `chat.convert`.

    Raises:
        Unreadable: it is no row.
        Unrepresentable: with the reason to drop the row.
    """
    found = usual(line, developer) if reasoning == "field" else None
    if found is None:
        found = chat.convert(parse(line), reasoning=reasoning, developer=developer, refusals=refusals)
    return found


def usual(line: bytes, developer: Literal["system", "keep"] = "system") -> chat.Conversation | None:
    """The conversation of a usual line; None if it is not one, or has none."""
    try:
        if not line.isascii():
            line.decode()  # msgspec does not look at the encoding of what it skips
        return _conversation(_decode(line), developer)
    except (_Unusual, Unrepresentable, msgspec.MsgspecError, ValueError, RecursionError):
        return None


class _Unusual(Exception):
    """A line that `chat.convert` must see."""


# ---- what is usual: a field of type None may be there, and must then be null


class _Part(msgspec.Struct, gc=False):
    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: tuple[()] | None = None


class _Thought(msgspec.Struct, gc=False):
    text: str


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    content: list[_Part] | str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    summary: list[_Thought] | None = None
    encrypted_content: None = None
    reasoning_content: None = None
    reasoning: None = None
    thinking: None = None
    function_call: None = None
    audio: None = None
    refusal: None = None
    tool_calls: None = None
    generation_token_ids: None = None
    prompt_token_ids: None = None


class _Metadata(msgspec.Struct, gc=False):
    audio_url: None = None
    audio_data: None = None
    audio_path: None = None
    audio_paths: None = None


class _Params(msgspec.Struct, gc=False):
    input: list[_Item] | str
    instructions: str | None = None
    tools: msgspec.Raw = msgspec.Raw(b"null")
    metadata: _Metadata | None = None
    previous_response_id: None = None
    conversation: None = None
    prompt: None = None


class _Response(msgspec.Struct, gc=False):
    output: list[_Item]
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Row(msgspec.Struct, gc=False):
    response: _Response
    responses_create_params: _Params


_decode = msgspec.json.Decoder(_Row).decode


class _Tools(NamedTuple):
    nested: list[dict[str, Any]]
    names: frozenset[str]


_known: dict[bytes, _Tools] = {}  # by digest


def _tools(raw: msgspec.Raw) -> _Tools:
    key = xxh3_128_digest(raw)
    found = _known.get(key)
    if found is None:
        text = bytes(raw)
        parsed = orjson.loads(text)
        # a row that orjson refuses elsewhere is parsed by json, to which long integers are something else
        if repr(json.loads(text)) != repr(parsed):
            raise _Unusual
        nested = read_tools(parsed) if parsed else []
        found = _Tools(nested, frozenset(tool["function"]["name"] for tool in nested))
        if len(_known) >= _TOOLS_MAX:
            _known.clear()
        _known[key] = found
    return found


def _conversation(row: _Row, developer: str) -> chat.Conversation:
    """The conversation of a line that fits the structs."""
    params = row.responses_create_params
    messages: list[dict[str, Any]] = []
    if params.instructions:
        messages.append({"role": "system", "content": params.instructions})
    history = params.input
    if type(history) is str:
        history = [_Item(role="user", content=history)] if history else []
    for item in history:
        role: Any = item.role  # type: ignore[union-attr]  # a list's
        if item.type != "message" and item.type is not None:  # type: ignore[union-attr]
            raise _Unusual
        if role == "developer" and developer != "keep":
            role = "system"
        elif role not in ("user", "system", "developer"):
            raise _Unusual
        content = _text(item.content)  # type: ignore[union-attr]
        if role != "user" and len(messages) == 1 and messages[0]["role"] == role:
            messages[0]["content"] = "\n\n".join([text for text in (messages[0]["content"], content) if text])
        else:
            messages.append({"role": role, "content": content})
    start = len(messages)
    if not any(message["content"] for message in messages):
        raise _Unusual
    tools = _tools(params.tools)
    if not tools.nested:
        tools = _tools(row.response.tools)
    undeclared = _answer(row.response.output, messages, tools.names)
    lost = {"undeclared_tool": undeclared} if undeclared else {}
    return chat.Conversation(messages, tools.nested, start, lost, 0, ())


def _answer(items: list[_Item], messages: list[dict[str, Any]], declared: frozenset[str]) -> int:
    """Append the policy's turns and the results of its calls; how many calls are to tools that are not declared."""
    undeclared = 0
    called: set[str] = set()
    pending: dict[str, str] = {}
    turn: dict[str, Any] | None = None
    for item in items:
        kind = item.type
        if kind == "function_call_output":
            turn = None
            if item.output is None or (name := pending.pop(item.call_id, "")) == "":  # type: ignore[arg-type]
                raise _Unusual
            messages.append({"role": "tool", "tool_call_id": item.call_id, "name": name, "content": item.output})
            continue
        thoughts = None
        if kind == "reasoning":
            thoughts = [thought.text for thought in item.summary or () if thought.text]
            if item.content:
                raise _Unusual
            if not thoughts:
                continue
        if turn is None:
            if pending:
                raise _Unusual
            turn = {"role": "assistant", "content": ""}
            messages.append(turn)
        if kind == "function_call":
            call_id, name = item.call_id, item.name or ""
            if not call_id or not name or call_id in called:
                raise _Unusual
            called.add(call_id)
            pending[call_id] = name
            undeclared += name not in declared
            function = {"name": name, "arguments": read_arguments(item.arguments)}
            call = {"id": call_id, "type": "function", "function": function}
            if "tool_calls" in turn:
                turn["tool_calls"].append(call)
            else:
                turn["tool_calls"] = [call]
        # several messages or thoughts in a turn, and words after a call, are for the whole converter to judge
        elif turn["content"] or "tool_calls" in turn:
            raise _Unusual
        elif thoughts and "reasoning_content" not in turn:
            turn["reasoning_content"] = "\n\n".join(thoughts)
        elif kind == "message" and item.role == "assistant":
            content = _text(item.content)
            if not content or content.isspace() or "think>" in content:
                raise _Unusual
            turn["content"] = content
        else:
            raise _Unusual
    if turn is None:
        raise _Unusual
    return undeclared


def _text(content: list[_Part] | str | None) -> str:
    if type(content) is str:
        return content
    if not content:
        raise _Unusual
    return content[0].text if len(content) == 1 else "".join([part.text for part in content])  # type: ignore[union-attr]
