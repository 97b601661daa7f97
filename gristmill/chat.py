"""Responses items → chat messages: one conversation out of one rollout row.

Reads a row of NeMo Gym's `rollouts.jsonl` (as orjson parses it) and returns a `Conversation`: plain chat
messages, nested tools, how many messages are the prompt, and what was lost. The semantics are those of Gym's
own `ResponsesConverter` (tests/test_chat_oracle.py lists each intended difference): reasoning, text and calls
gather in one assistant turn, which ends at a tool result, at a user or system message, and at the end; a turn
with nothing in it disappears.

Guarantees: what has no faithful chat form raises `Unrepresentable` with a `DropReason`, and for a JSON object
no other exception leaves this module. The row is not changed; a conversation shares with it, read-only, only
the parameters of tools, arguments that were objects already, and token ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import orjson

from gristmill.items import (
    IMAGE_PARTS,
    TEXT_PARTS,
    Unrepresentable,
    after_history,
    describe,
    expect,
    expect_name,
    read_arguments,
    read_image,
    read_parts,
    read_thought,
    read_tool_text,
    read_tools,
    read_trajectory,
    same,
)
from gristmill.reasons import DropReason

__all__ = [
    "Conversation",
    "ModelCall",
    "Reasoning",
    "Unrepresentable",
    "answer_text",
    "canonical_prompt",
    "convert",
    "require_trainable",
]

Reasoning = Literal["field", "inline_think", "thinking", "drop"]
"""Where reasoning goes: key `reasoning_content` (most templates), `<think>…</think>` in the text (Gym's way),
key `thinking` (gpt-oss), nowhere."""

# Gym's vllm_model splices these into the prompt, so that the text alone is not what the policy answered.
_AUDIO_KEYS = ("audio_url", "audio_data", "audio_path", "audio_paths")
# The conversation goes on from something that is stored elsewhere.
_STORED_KEYS = ("previous_response_id", "conversation", "prompt")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class ModelCall(NamedTuple):
    """Token-level record of one model call, as Gym's `vllm_model_for_training` keeps it."""

    message: int
    """Index in `Conversation.messages` of the assistant message that the call gave."""
    prompt_token_ids: list[int]
    """The whole history, as the model saw it."""
    generation_token_ids: list[int]
    generation_log_probs: list[float] | None


@dataclass(frozen=True, slots=True)
class Conversation:
    """A whole conversation in chat form."""

    messages: list[dict[str, Any]]
    """Prompt and response. Roles: system, user, assistant, tool (developer, if kept). Content is not null."""
    tools: list[dict[str, Any]]
    """`{"type": "function", "function": {name, description, parameters}}`, without keys that are null."""
    prompt_length: int
    """How many leading messages are the prompt: all of instructions and input, and those of the output that
    precede the policy's first message. Equal to `len(messages)` if the policy said nothing."""
    lost: dict[str, int]
    """What the chat form does not hold, counted. `encrypted_reasoning`, `reasoning` (mode drop) and
    `annotations`: left out. `message_boundary`: messages joined in one turn. `token_ids`: unreadable records.
    `rewritten_history`: transitions that do not begin the last one. Not lost but worth knowing:
    `literal_think` (tags in a text, left as they are), `undeclared_tool` (calls to tools not in `tools`)."""
    images: int
    """Image parts in the messages."""
    model_calls: tuple[ModelCall, ...]
    """Empty unless the row carries token ids."""


def convert(
    row: Mapping[str, Any],
    *,
    reasoning: Reasoning = "field",
    developer: Literal["system", "keep"] = "system",
    refusals: Literal["keep", "drop"] = "keep",
) -> Conversation:
    """The conversation of a rollout row.

    Args:
        row: a parsed line of a rollouts file.
        reasoning: where reasoning text goes.
        developer: turn the developer role into system (many templates drop it without a word), or keep it.
        refusals: keep a refusal of the policy as its text, or raise for it.

    Raises:
        Unrepresentable: with the reason to drop the row.
    """
    response = row.get("response")
    if not isinstance(response, dict):
        raise Unrepresentable(DropReason.NO_RESPONSE, f"`response` is {describe(response)}")
    output, earlier = read_trajectory(response.get("output"))
    params = expect(row.get("responses_create_params") or {}, dict, "`responses_create_params`")
    _refuse_hidden_prompt(params)

    builder = _Builder(reasoning, developer, refusals)
    if instructions := expect(params.get("instructions") or "", str, "`instructions`"):
        builder.context("system", instructions)
    history = params.get("input") or []
    if isinstance(history, str):
        history = [{"role": "user", "content": history}]
    expect(history, list, "`input`")
    if earlier is not None:
        if rewritten := sum(not same(items, output[: len(items)]) for items in earlier):
            builder.lost["rewritten_history"] = rewritten
        output = after_history(output, history)
    builder.read(history, "input")
    builder.read(output, "output")
    # Some agents get their tools from the environment's session: then only the response records them.
    return builder.finish(read_tools(params.get("tools") or response.get("tools") or []))


def require_trainable(conversation: Conversation) -> None:
    """Refuses a conversation that ends in nothing to learn from; `convert` keeps it, for people to look at.

    Raises:
        Unrepresentable: NO_ASSISTANT_MESSAGE, NOT_ENDING_WITH_ASSISTANT or EMPTY_ANSWER.
    """
    answer = conversation.messages[conversation.prompt_length :]
    if all(message["role"] != "assistant" for message in answer):
        raise Unrepresentable(DropReason.NO_ASSISTANT_MESSAGE, "the policy said nothing")
    last = answer[-1]
    if last["role"] != "assistant":
        raise Unrepresentable(DropReason.NOT_ENDING_WITH_ASSISTANT, f"the last message has the role {last['role']}")
    if "tool_calls" not in last and not last["content"].strip():
        raise Unrepresentable(DropReason.EMPTY_ANSWER, "the last answer has neither text nor a call")


def answer_text(conversation: Conversation) -> str:
    """Text of the policy's last message, as it is; "" if it said nothing or only called tools there."""
    for message in reversed(conversation.messages[conversation.prompt_length :]):
        if message["role"] == "assistant":
            return str(message["content"])
    return ""


def canonical_prompt(row: Mapping[str, Any]) -> bytes:
    """Canonical JSON of instructions, input and tools: equal bytes mean the same prompt.

    One half of a task's identity; the task index is the other. Metadata is left out: Gym writes another seed
    there for each repeat. Every JSON object has one; absent, null and empty instructions or tools are equal.
    """
    params = row.get("responses_create_params")
    if not isinstance(params, dict):
        params = {}
    prompt = {
        "input": params.get("input"),
        "instructions": params.get("instructions") or None,
        "tools": params.get("tools") or None,
    }
    try:
        return orjson.dumps(prompt, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # over 254 levels, an integer over 64 bits, or a lone surrogate
        return _canonical_any(prompt)


class _Builder:
    """One conversion: the messages so far, the open assistant turn, and the calls that await a result."""

    def __init__(self, reasoning: str, developer: str, refusals: str) -> None:
        self.reasoning = reasoning
        self.developer = developer
        self.refusals = refusals
        self.messages: list[dict[str, Any]] = []
        self.lost: dict[str, int] = {}
        self.images = 0
        self.model_calls: list[ModelCall] = []
        self.prompt_length: int | None = None
        self.in_output = False
        # Calls by id: the name of each ever made, and those that await a result.
        self.called: dict[str, str] = {}
        self.pending: dict[str, str] = {}
        self.open = False
        # Whether some text may be one that no file can hold: only such as is not ASCII.
        self.unsure = False

    # The open turn, or the last one.
    texts: list[str]
    thoughts: list[str]
    calls: list[dict[str, Any]]
    tokens: list[tuple[list[int], list[int], list[float] | None]]
    messages_said: int
    said_after_call: bool

    def count(self, key: str, n: int = 1) -> None:
        self.lost[key] = self.lost.get(key, 0) + n

    def read(self, items: list[Any], where: Literal["input", "output"]) -> None:
        self.close_turn()
        self.in_output = where == "output"
        for index, item in enumerate(items):
            try:
                self.item(expect(item, dict, "an item"))
            except Unrepresentable as error:
                raise Unrepresentable(error.reason, f"{where}[{index}]: {error.detail}") from None

    def item(self, item: dict[str, Any]) -> None:
        kind = item.get("type")
        if kind == "message" or (not kind and item.get("role")):
            self.message(item)
        elif kind == "function_call":
            self.call(item.get("call_id"), item.get("name"), item.get("arguments"))
        elif kind == "function_call_output":
            self.tool_result(item.get("call_id"), item.get("output"))
        elif kind == "reasoning":
            self.reasoning_item(item)
        else:
            kind = expect_name(kind, "the type of an item without a role")
            raise Unrepresentable(DropReason.UNSUPPORTED_ITEM, f"an item of type {kind!r:.80} has no chat form")
        if "generation_token_ids" in item or "prompt_token_ids" in item:
            self.token_record(item)

    def message(self, item: dict[str, Any]) -> None:
        role, content = item.get("role"), item.get("content")
        if role == "assistant":
            self.assistant(item, content)
        elif role == "user":
            self.context("user", content if isinstance(content, str) else self.content(content, images=True))
        elif role == "system" or role == "developer":
            text = content if isinstance(content, str) else self.content(content, images=False)
            self.context(role if self.developer == "keep" else "system", text)
        elif role == "tool":
            self.tool_result(item.get("tool_call_id"), content)
        else:
            role = expect_name(role, "the role of a message")
            raise Unrepresentable(DropReason.MALFORMED_ITEM, f"the role {role!r:.80} is unknown")

    def context(self, role: str, content: str | list[dict[str, Any]]) -> None:
        """A message that is not the policy's: from the input, or from the environment inside the output."""
        self.close_turn()
        if not isinstance(content, str) or not content.isascii():
            self.unsure = True
        if self.pending:
            raise Unrepresentable(
                DropReason.MISSING_TOOL_OUTPUT,
                f"a {role} message comes before the result of {self.waiting()}",
            )
        if role != "user" and len(self.messages) == 1 and isinstance(content, str):
            # Many templates take one system message, at the start: the leading run becomes one.
            first = self.messages[0]
            if first["role"] == role:
                first["content"] = "\n\n".join([text for text in (first["content"], content) if text])
                return
        self.messages.append({"role": role, "content": content})

    def content(self, value: Any, *, images: bool) -> str | list[dict[str, Any]]:
        """Content that is a list: its text, or parts where an image is among them (chat has them for users only)."""
        parts: list[dict[str, Any]] = []
        found = 0
        for kind, part in read_parts(value):
            if kind in TEXT_PARTS:
                parts.append({"type": "text", "text": expect(part.get("text"), str, "the text of a part")})
            elif kind in IMAGE_PARTS and images:
                parts.append({"type": "image_url", "image_url": read_image(part)})
                found += 1
            else:
                raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, f"a part of type {kind!r:.80} has no chat form")
        self.images += found
        return parts if found else "".join([part["text"] for part in parts])

    def assistant(self, item: dict[str, Any], content: Any) -> None:
        for key in _REASONING_KEYS:  # chat-shaped history
            if thought := item.get(key):
                self.think(expect(thought, str, "the reasoning of a message"))
                break
        if item.get("function_call") is not None or item.get("audio") is not None:
            raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, "a message with `function_call` or `audio`")
        calls, refusal = item.get("tool_calls"), item.get("refusal")
        if isinstance(content, str):
            self.say(content)
        elif content is not None or not (calls or refusal):
            self.say(self.assistant_text(content))
        if refusal:
            self.say(self.refusal(refusal))
        for call in expect(calls or [], list, "`tool_calls`"):
            function: Any = expect(call, dict, "a tool call").get("function")
            expect(function, dict, "the function of a tool call")
            self.call(call.get("id"), function.get("name"), function.get("arguments"))

    def assistant_text(self, content: Any) -> str:
        texts = []
        for kind, part in read_parts(content):
            if kind in TEXT_PARTS:
                texts.append(expect(part.get("text"), str, "the text of a part"))
                if part.get("annotations"):
                    self.count("annotations")
            elif kind == "refusal":
                texts.append(self.refusal(part.get("refusal")))
            else:
                raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, f"a part of type {kind!r:.80} in an answer")
        return "".join(texts)

    def refusal(self, text: Any) -> str:
        # A refusal in the input is part of the task, not an answer.
        if self.in_output and self.refusals == "drop":
            raise Unrepresentable(DropReason.REFUSED, "the policy refused")
        return expect(text, str, "the text of a refusal")

    def say(self, text: str) -> None:
        if not text:
            return
        self.open_turn()
        self.texts.append(text)
        if not text.isascii():
            self.unsure = True
        if not text.isspace():
            self.messages_said += 1
            self.said_after_call = bool(self.calls)
            if self.in_output and "think>" in text:
                self.count("literal_think")

    def reasoning_item(self, item: dict[str, Any]) -> None:
        """`content` (what the model thought) goes before `summary` (of it; from vLLM, the very same)."""
        content = expect(item.get("content") or [], list, "the content of a reasoning item")
        thoughts = ["".join([read_thought(part) for part in content])]
        if not thoughts[0]:
            summary = expect(item.get("summary") or [], list, "the summary of a reasoning item")
            thoughts = [read_thought(part) for part in summary]
        for thought in thoughts:
            self.think(thought)
        if item.get("encrypted_content") and not any(thoughts):
            self.count("encrypted_reasoning")

    def think(self, text: str) -> None:
        if not text:
            return
        self.open_turn()
        if not text.isascii():
            self.unsure = True
        if self.reasoning == "drop":
            self.count("reasoning")
        elif self.reasoning == "inline_think":
            self.texts.append(f"<think>{text}</think>")
        else:
            self.thoughts.append(text)

    def call(self, call_id: Any, name: Any, arguments: Any) -> None:
        call_id = expect_name(call_id, "the id of a call")
        name = expect_name(name, "the name of a called tool")
        self.open_turn()
        if call_id in self.called:
            raise Unrepresentable(DropReason.DUPLICATE_TOOL_OUTPUT, f"a second call has the id {call_id!r:.80}")
        self.called[call_id] = name
        if not isinstance(arguments, str) or not (call_id.isascii() and name.isascii()):
            self.unsure = True
        function = {"name": name, "arguments": read_arguments(arguments)}
        self.calls.append({"id": call_id, "type": "function", "function": function})

    def tool_result(self, call_id: Any, output: Any) -> None:
        call_id = expect_name(call_id, "the call id of a tool result")
        text = output if isinstance(output, str) else read_tool_text(output)
        if not text.isascii():
            self.unsure = True
        self.close_turn()
        name = self.pending.pop(call_id, None)
        if name is None:
            if call_id in self.called:
                raise Unrepresentable(DropReason.DUPLICATE_TOOL_OUTPUT, f"a second result for {call_id!r:.80}")
            raise Unrepresentable(DropReason.ORPHAN_TOOL_OUTPUT, f"no call before it has the id {call_id!r:.80}")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": text})

    def token_record(self, item: dict[str, Any]) -> None:
        prompt, generation = item.get("prompt_token_ids"), item.get("generation_token_ids")
        log_probs = item.get("generation_log_probs")
        if isinstance(prompt, list) and isinstance(generation, list) and self.open and self.in_output:
            self.tokens.append((prompt, generation, log_probs if isinstance(log_probs, list) else None))
        elif prompt is not None or generation is not None:
            self.count("token_ids")

    def open_turn(self) -> None:
        if self.open:
            return
        if self.pending:
            raise Unrepresentable(
                DropReason.MISSING_TOOL_OUTPUT, f"the policy goes on before the result of {self.waiting()}"
            )
        if self.messages and self.messages[-1]["role"] == "assistant":
            raise Unrepresentable(DropReason.AMBIGUOUS_TURN, "goes on from an assistant turn that ends the input")
        self.open = True
        self.texts, self.thoughts, self.calls, self.tokens = [], [], [], []
        self.messages_said = 0
        self.said_after_call = False

    def close_turn(self) -> None:
        if not self.open:
            return
        self.open = False
        if self.messages_said > 1:
            if [message["role"] for message in self.messages[-2:]] == ["user", "user"]:
                raise Unrepresentable(
                    DropReason.AMBIGUOUS_TURN,
                    "several answers in a row come after several user messages in a row",
                )
            self.count("message_boundary", self.messages_said - 1)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.texts)}
        if self.thoughts:
            key = "reasoning_content" if self.reasoning == "field" else "thinking"
            message[key] = "\n\n".join(self.thoughts)
        if self.calls:
            message["tool_calls"] = self.calls
            for call in self.calls:
                self.pending[call["id"]] = call["function"]["name"]
        if not message["content"] and len(message) == 2:
            return  # only reasoning that is dropped
        index = len(self.messages)
        if self.in_output and self.prompt_length is None:
            self.prompt_length = index
        self.model_calls += [ModelCall(index, *record) for record in self.tokens]
        self.messages.append(message)

    def waiting(self) -> str:
        return f"the call {next(iter(self.pending))!r:.80}"

    def finish(self, tools: list[dict[str, Any]]) -> Conversation:
        self.close_turn()
        # A last turn of calls is an answer. Results for only some of them, or words after them, show a gap.
        if self.pending and (self.said_after_call or self.messages[-1]["role"] != "assistant"):
            raise Unrepresentable(DropReason.MISSING_TOOL_OUTPUT, f"it ends without the result of {self.waiting()}")
        if self.unsure:
            try:
                orjson.dumps(self.messages)
            except TypeError as error:  # Python's json reads and writes half a surrogate pair
                raise Unrepresentable(DropReason.MALFORMED_ITEM, f"the messages cannot be written: {error}") from None
        length = len(self.messages) if self.prompt_length is None else self.prompt_length
        if not any(m["content"] for m in self.messages[:length] if m["role"] not in ("assistant", "tool")):
            raise Unrepresentable(DropReason.NO_PROMPT, "no user or system text precedes the first answer")
        if self.called:
            declared = {tool["function"]["name"] for tool in tools}
            if undeclared := sum(name not in declared for name in self.called.values()):
                self.lost["undeclared_tool"] = undeclared
        return Conversation(self.messages, tools, length, self.lost, self.images, tuple(self.model_calls))


def _refuse_hidden_prompt(params: dict[str, Any]) -> None:
    for key in _STORED_KEYS:
        if params.get(key) is not None:
            raise Unrepresentable(DropReason.UNSUPPORTED_ITEM, f"`{key}` refers to a prompt that is not in the row")
    metadata = params.get("metadata")
    if isinstance(metadata, dict):
        for key in _AUDIO_KEYS:
            if metadata.get(key):
                raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, f"the prompt has audio, in `metadata.{key}`")


def _canonical_any(value: Any) -> bytes:
    """Canonical form of what orjson refuses, without recursion: a token a line, keys sorted, sizes first."""
    tokens: list[str] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            tokens.append(f"{{{len(item)}")
            for key in sorted(item, reverse=True):
                stack += (item[key], key)
        elif isinstance(item, list):
            tokens.append(f"[{len(item)}")
            stack += reversed(item)
        else:
            # Python refuses to write very long integers in decimal.
            tokens.append(hex(item) if type(item) is int else repr(item))
    return "\n".join(tokens).encode("utf-8", "backslashreplace")
