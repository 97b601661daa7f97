"""Responses items → chat messages: one conversation out of one rollout row.

Reads a row of NeMo Gym's `rollouts.jsonl` (a parsed JSON object) and returns a `Conversation`: plain chat
messages, nested tools, how many messages are the prompt, and what was lost on the way. The semantics are those
of Gym's own `nemo_gym.responses_converter.ResponsesConverter` (tests/test_chat_oracle.py compares the two and
lists each intended difference): reasoning, text and calls gather in one assistant turn, which ends at a tool
result, at a user or system message, and at the end; a turn without text and calls disappears.

Guarantees: whatever has no faithful chat form raises `Unrepresentable` with a `DropReason`, and no other exception
leaves this module for any JSON object. The row is not changed; messages share no mutable value with it but tool
schemas, arguments that were objects already, and token ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn

import orjson

from gristmill.reasons import DropReason

Reasoning = Literal["field", "inline_think", "thinking", "drop"]
"""Where reasoning goes: `reasoning_content` (Qwen, GLM, Nemotron), `<think>…</think>` in the text (Gym's own way),
`thinking` (gpt-oss), or nowhere."""

Developer = Literal["system", "keep"]
Refusals = Literal["keep", "drop"]

Message = dict[str, Any]
Tool = dict[str, Any]

# Gym's vllm_model splices these into the prompt, so the text alone is not what the policy answered.
_AUDIO_KEYS = ("audio_url", "audio_data", "audio_path", "audio_paths")
# The conversation goes on from something that is stored elsewhere.
_STORED_KEYS = ("previous_response_id", "conversation", "prompt")
_TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
_IMAGE_PARTS = frozenset({"input_image", "image_url"})
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# orjson writes at most 254 levels; an export nests arguments and schemas some levels deep itself.
_MAX_DEPTH = 200


class Unrepresentable(ValueError):
    """A row has no faithful chat form. `reason` is what to count it under, `detail` says where and what."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


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

    messages: list[Message]
    """Prompt and response: role system, user, assistant or tool (developer where kept); content is never null."""
    tools: list[Tool]
    """`{"type": "function", "function": {name, description, parameters}}`; absent keys stay absent."""
    prompt_length: int
    """How many leading messages are the prompt: all of instructions and input, and those of the output that
    precede the policy's first message. Equal to `len(messages)` if the policy said nothing."""
    lost: dict[str, int]
    """What the chat form does not hold, counted. `encrypted_reasoning`, `reasoning` (mode drop), `annotations`:
    items or parts left out. `message_boundary`: messages of one turn joined. `token_ids`: unreadable token
    records. `rewritten_history`: transitions that are no prefix of the last. Nothing is lost but worth knowing:
    `literal_think` (think tags in a text, left as they are), `undeclared_tool` (calls to tools not in `tools`)."""
    images: int
    """Image parts in the messages."""
    model_calls: tuple[ModelCall, ...]
    """Empty unless the row carries token ids."""


def convert(
    row: Mapping[str, Any],
    *,
    reasoning: Reasoning = "field",
    developer: Developer = "system",
    refusals: Refusals = "keep",
) -> Conversation:
    """The conversation of a rollout row.

    Args:
        row: a parsed line of a rollouts file.
        reasoning: where reasoning text goes.
        developer: turn the developer role into system (most templates drop it without a word), or keep it.
        refusals: keep a refusal of the policy as its text, or raise for it.

    Raises:
        Unrepresentable: with the reason to drop the row.
    """
    response = row.get("response")
    if not isinstance(response, dict):
        raise Unrepresentable(DropReason.NO_RESPONSE, f"`response` is {_kind(response)}")
    output, earlier = _trajectory(response.get("output"))
    params = row.get("responses_create_params")
    if params is None:
        params = {}
    elif not isinstance(params, dict):
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"`responses_create_params` is {_kind(params)}")
    _refuse_hidden_prompt(params)

    builder = _Builder(reasoning, developer, refusals)
    instructions = params.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise Unrepresentable(DropReason.MALFORMED_ITEM, f"`instructions` is {_kind(instructions)}")
        if instructions:
            builder.add_prompt("system", instructions)
    history = _history(params.get("input"))
    if earlier is not None:
        if rewritten := sum(not _same(items, output[: len(items)]) for items in earlier):
            builder.lost["rewritten_history"] = rewritten
        output = _after_history(output, history)
    builder.feed(history, "input")
    builder.feed(output, "output")
    # Some agents get their tools from the environment's session: then only the response records them.
    tools = _tools(params.get("tools") or response.get("tools"))
    return builder.finish(tools)


def require_trainable(conversation: Conversation) -> None:
    """Refuses a conversation that ends in nothing to learn from; `convert` does not, since people look at these too.

    Raises:
        Unrepresentable: NO_ASSISTANT_MESSAGE, NOT_ENDING_WITH_ASSISTANT or EMPTY_ANSWER.
    """
    messages = conversation.messages
    if all(message["role"] != "assistant" for message in messages[conversation.prompt_length :]):
        raise Unrepresentable(DropReason.NO_ASSISTANT_MESSAGE, "the policy said nothing")
    last = messages[-1]
    if last["role"] != "assistant":
        raise Unrepresentable(
            DropReason.NOT_ENDING_WITH_ASSISTANT, f"the last message is of role {last['role']}"
        )
    if "tool_calls" not in last and not last["content"].strip():
        raise Unrepresentable(DropReason.EMPTY_ANSWER, "the last answer has neither text nor a call")


def answer_text(conversation: Conversation) -> str:
    """Text of the policy's last message, as it is; "" if the policy said nothing or only called tools."""
    for message in reversed(conversation.messages[conversation.prompt_length :]):
        if message["role"] == "assistant":
            return str(message["content"])
    return ""


def canonical_prompt(row: Mapping[str, Any]) -> bytes:
    """Canonical JSON of instructions, input and tools: equal bytes mean the same prompt.

    One half of a task's identity; the task index is the other. Metadata is left out, because Gym writes another
    seed there for each repeat. Any JSON object has one; an absent field, null and an empty list of tools are equal.
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
    except TypeError:  # deeper than orjson writes, an integer over 64 bits, or a lone surrogate
        return _canonical_any(prompt)


def _trajectory(output: Any) -> tuple[list[Any], list[list[Any]] | None]:
    """The output's items, and the earlier transitions if it is a list of transitions (else None).

    With `contains_transitions` each element is the whole trajectory so far, its prompt included: the last one
    is the full one.
    """
    if output is None:
        raise Unrepresentable(DropReason.EMPTY_OUTPUT, "`response.output` is absent or null")
    if not isinstance(output, list):
        raise Unrepresentable(DropReason.MALFORMED_OUTPUT, f"`response.output` is {_kind(output)}")
    if not output:
        raise Unrepresentable(DropReason.EMPTY_OUTPUT, "`response.output` is []")
    if not isinstance(output[0], list):
        return output, None
    for index, items in enumerate(output):
        if not isinstance(items, list):
            raise Unrepresentable(
                DropReason.MALFORMED_OUTPUT,
                f"`response.output` is a list of lists, but [{index}] is {_kind(items)}",
            )
    if not output[-1]:
        raise Unrepresentable(DropReason.EMPTY_OUTPUT, "the last transition of `response.output` is []")
    return output[-1], output[:-1]


def _history(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    if isinstance(value, list):
        return value
    raise Unrepresentable(DropReason.MALFORMED_ITEM, f"`input` is {_kind(value)}, neither text nor a list")


def _after_history(trajectory: list[Any], history: list[Any]) -> list[Any]:
    """What a trajectory adds to the input that it repeats; comparing role, content and call is enough."""
    if not _same(
        [_essence(item) for item in trajectory[: len(history)]], [_essence(item) for item in history]
    ):
        raise Unrepresentable(
            DropReason.MALFORMED_OUTPUT, "the last transition does not begin with the input"
        )
    return trajectory[len(history) :]


def _essence(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return [item.get(key) for key in ("role", "content", "call_id", "name", "arguments", "output", "summary")]


def _same(one: list[Any], other: list[Any]) -> bool:
    try:
        return one == other
    except RecursionError:  # nested too deep to be compared, and so to be used
        return False


def _refuse_hidden_prompt(params: dict[str, Any]) -> None:
    for key in _STORED_KEYS:
        if params.get(key) is not None:
            raise Unrepresentable(
                DropReason.UNSUPPORTED_ITEM, f"`{key}` refers to a prompt that is not in the row"
            )
    metadata = params.get("metadata")
    if isinstance(metadata, dict):
        for key in _AUDIO_KEYS:
            if metadata.get(key):
                raise Unrepresentable(
                    DropReason.UNSUPPORTED_CONTENT,
                    f"the prompt has audio, in `responses_create_params.metadata.{key}`",
                )


class _Builder:
    """The state of one conversion: messages so far, the open assistant turn, and calls that await a result."""

    __slots__ = (
        "answered",
        "call_names",
        "calls",
        "developer",
        "images",
        "in_output",
        "index",
        "lost",
        "messages",
        "model_calls",
        "open",
        "parts",
        "pending",
        "prompt_length",
        "reasoning",
        "refusals",
        "said",
        "text_after_call",
        "thoughts",
        "tokens",
    )

    def __init__(self, reasoning: Reasoning, developer: Developer, refusals: Refusals) -> None:
        self.reasoning = reasoning
        self.developer = developer
        self.refusals = refusals
        self.messages: list[Message] = []
        self.lost: dict[str, int] = {}
        self.images = 0
        self.model_calls: list[ModelCall] = []
        self.prompt_length: int | None = None
        self.in_output = False
        self.index = 0
        # The open turn.
        self.open = False
        self.parts: list[str] = []
        self.thoughts: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.said = 0
        self.text_after_call = False
        self.tokens: list[tuple[list[int], list[int], list[float] | None]] = []
        # Calls by id: all names ever called, and those without a result yet.
        self.call_names: dict[str, str] = {}
        self.pending: dict[str, str] = {}

    def fail(self, reason: DropReason, what: str) -> NoReturn:
        raise Unrepresentable(reason, f"{'output' if self.in_output else 'input'}[{self.index}]: {what}")

    def count(self, key: str) -> None:
        self.lost[key] = self.lost.get(key, 0) + 1

    # Reading items.

    def feed(self, items: list[Any], where: Literal["input", "output"]) -> None:
        self.close_turn()
        self.in_output = where == "output"
        for index, item in enumerate(items):
            self.index = index
            if not isinstance(item, dict):
                self.fail(DropReason.MALFORMED_ITEM, f"is {_kind(item)}, not an object")
            kind = item.get("type")
            if not kind and item.get("role"):
                kind = "message"
            if kind == "message":
                self.message(item)
            elif kind == "function_call":
                self.call(item.get("call_id"), item.get("name"), item.get("arguments"))
            elif kind == "function_call_output":
                self.tool_result(item.get("call_id"), item.get("output"))
            elif kind == "reasoning":
                self.reasoning_item(item)
            elif isinstance(kind, str) and kind:
                self.fail(DropReason.UNSUPPORTED_ITEM, f"an item of type {_short(kind)} has no chat form")
            else:
                self.fail(DropReason.MALFORMED_ITEM, "has neither a type nor a role")
            if "generation_token_ids" in item or "prompt_token_ids" in item:
                self.token_record(item)

    def message(self, item: dict[str, Any]) -> None:
        role = item.get("role")
        if role == "assistant":
            self.assistant(item)
        elif role == "user":
            self.add_prompt("user", self.content(item.get("content")))
        elif role == "system" or role == "developer":
            kept = role if self.developer == "keep" else "system"
            self.add_prompt(kept, self.content(item.get("content")))
        elif role == "tool":
            self.tool_result(item.get("tool_call_id"), item.get("content"))
        elif isinstance(role, str) and role:
            self.fail(DropReason.MALFORMED_ITEM, f"role {_short(role)} is unknown")
        else:
            self.fail(DropReason.MALFORMED_ITEM, f"the role of a message is {_kind(role)}")

    def assistant(self, item: dict[str, Any]) -> None:
        for key in _REASONING_KEYS:  # chat-shaped history
            if thought := item.get(key):
                if not isinstance(thought, str):
                    self.fail(DropReason.MALFORMED_ITEM, f"`{key}` is {_kind(thought)}, not text")
                self.think(thought)
                break
        if item.get("function_call") is not None or item.get("audio") is not None:
            self.fail(DropReason.UNSUPPORTED_CONTENT, "an assistant message with `function_call` or `audio`")
        content = item.get("content")
        calls = item.get("tool_calls")
        refusal = item.get("refusal")
        if isinstance(content, str):
            text = content
        elif isinstance(content, list):
            text = self.assistant_text(content)
        elif content is None and (calls or refusal):
            text = ""
        else:
            self.fail(DropReason.MALFORMED_ITEM, f"the content of a message is {_kind(content)}")
        if refusal:
            text += self.refusal(refusal)
        if text:
            self.open_turn()
            self.parts.append(text)
            if not text.isspace():
                self.said += 1
                if self.calls:
                    self.text_after_call = True
            if self.in_output and "think>" in text:
                self.count("literal_think")
        if calls:
            if not isinstance(calls, list):
                self.fail(DropReason.MALFORMED_ITEM, f"`tool_calls` is {_kind(calls)}")
            for call in calls:
                function = call.get("function") if isinstance(call, dict) else None
                if not isinstance(function, dict):
                    self.fail(DropReason.MALFORMED_ITEM, "a tool call without a function")
                self.call(call.get("id"), function.get("name"), function.get("arguments"))

    def assistant_text(self, parts: list[Any]) -> str:
        texts = []
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                self.fail(DropReason.MALFORMED_ITEM, "a content part without a type")
            if kind in _TEXT_PARTS:
                texts.append(self.part_text(part, "text"))
                if part.get("annotations"):
                    self.count("annotations")
            elif kind == "refusal":
                texts.append(self.refusal(part.get("refusal")))
            else:
                self.fail(
                    DropReason.UNSUPPORTED_CONTENT, f"an assistant's {_short(kind)} part has no chat form"
                )
        return "".join(texts)

    def refusal(self, text: Any) -> str:
        if not isinstance(text, str):
            self.fail(DropReason.MALFORMED_ITEM, f"the text of a refusal is {_kind(text)}")
        # A refusal in the input is part of the task, not an answer.
        if self.in_output and self.refusals == "drop":
            self.fail(DropReason.REFUSED, "the policy refused")
        return text

    def content(self, value: Any) -> str | list[dict[str, Any]]:
        """Content of a user or system message: text, or parts where there is an image among them."""
        if isinstance(value, str):
            return value
        if not isinstance(value, list):
            self.fail(DropReason.MALFORMED_ITEM, f"the content of a message is {_kind(value)}")
        parts: list[dict[str, Any]] = []
        images = 0
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                self.fail(DropReason.MALFORMED_ITEM, "a content part without a type")
            if kind in _TEXT_PARTS:
                parts.append({"type": "text", "text": self.part_text(part, "text")})
            elif kind in _IMAGE_PARTS:
                parts.append({"type": "image_url", "image_url": self.image(part)})
                images += 1
            else:
                self.fail(DropReason.UNSUPPORTED_CONTENT, f"a {_short(kind)} part has no chat form")
        if images:
            self.images += images
            return parts
        return "".join([part["text"] for part in parts])

    def part_text(self, part: dict[str, Any], key: str) -> str:
        text = part.get(key)
        if not isinstance(text, str):
            self.fail(DropReason.MALFORMED_ITEM, f"the text of a content part is {_kind(text)}")
        return text

    def image(self, part: dict[str, Any]) -> dict[str, str]:
        source, detail = part.get("image_url"), part.get("detail")
        if isinstance(source, dict):
            source, detail = source.get("url"), source.get("detail")
        if not isinstance(source, str) or not source:
            self.fail(DropReason.UNSUPPORTED_CONTENT, "an image without a URL (by file id?) has no chat form")
        return {"url": source, "detail": detail} if isinstance(detail, str) else {"url": source}

    def reasoning_item(self, item: dict[str, Any]) -> None:
        """Text in `content` (what the model thought) goes before `summary` (of it; with vLLM the same thing)."""
        content = item.get("content")
        if content:
            if not isinstance(content, list):
                self.fail(DropReason.MALFORMED_ITEM, f"the content of a reasoning item is {_kind(content)}")
            text = "".join([self.reasoning_part(part) for part in content])
            if text:
                self.think(text)
                return
        summary = item.get("summary")
        found = False
        if summary:
            if not isinstance(summary, list):
                self.fail(DropReason.MALFORMED_ITEM, f"the summary of a reasoning item is {_kind(summary)}")
            for part in summary:
                if text := self.reasoning_part(part):
                    self.think(text)
                    found = True
        if not found and item.get("encrypted_content"):
            self.count("encrypted_reasoning")

    def reasoning_part(self, part: Any) -> str:
        if not isinstance(part, dict):
            self.fail(DropReason.MALFORMED_ITEM, f"a reasoning part is {_kind(part)}")
        return self.part_text(part, "text")

    def think(self, text: str) -> None:
        self.open_turn()
        if self.reasoning == "drop":
            self.count("reasoning")
        elif self.reasoning == "inline_think":
            self.parts.append(f"<think>{text}</think>")
        else:
            self.thoughts.append(text)

    def call(self, call_id: Any, name: Any, arguments: Any) -> None:
        if not isinstance(call_id, str) or not call_id:
            self.fail(DropReason.MALFORMED_ITEM, f"the id of a call is {_kind(call_id)}")
        if not isinstance(name, str) or not name:
            self.fail(DropReason.MALFORMED_ITEM, f"the name of a called tool is {_kind(name)}")
        self.open_turn()
        if call_id in self.call_names:
            self.fail(DropReason.DUPLICATE_TOOL_OUTPUT, f"a second call has the id {_short(call_id)}")
        self.call_names[call_id] = name
        self.calls.append(
            {
                "id": call_id,
                "type": "function",
                "function": {"name": name, "arguments": self.arguments(arguments)},
            }
        )

    def arguments(self, value: Any) -> dict[str, Any]:
        parsed = value
        if isinstance(value, str):
            try:
                parsed = orjson.loads(value)
            except orjson.JSONDecodeError:
                self.fail(DropReason.MALFORMED_ARGUMENTS, "the arguments of a call are not JSON")
        if not isinstance(parsed, dict):
            self.fail(
                DropReason.MALFORMED_ARGUMENTS, f"the arguments of a call are {_kind(parsed)}, not an object"
            )
        if parsed and (flaw := _flaw(parsed, value)):
            self.fail(DropReason.MALFORMED_ARGUMENTS, f"the arguments of a call hold {flaw}")
        return parsed

    def tool_result(self, call_id: Any, output: Any) -> None:
        if not isinstance(call_id, str) or not call_id:
            self.fail(DropReason.MALFORMED_ITEM, f"the call id of a tool result is {_kind(call_id)}")
        text = output if isinstance(output, str) else self.tool_text(output)
        self.close_turn()
        name = self.pending.pop(call_id, None)
        if name is None:
            if call_id in self.call_names:
                self.fail(DropReason.DUPLICATE_TOOL_OUTPUT, f"the call {_short(call_id)} has a second result")
            self.fail(DropReason.ORPHAN_TOOL_OUTPUT, f"no call before it has the id {_short(call_id)}")
        self.messages.append({"role": "tool", "tool_call_id": call_id, "name": name, "content": text})

    def tool_text(self, output: Any) -> str:
        if not isinstance(output, list):
            self.fail(DropReason.MALFORMED_ITEM, f"a tool result is {_kind(output)}")
        texts = []
        for part in output:
            kind = part.get("type") if isinstance(part, dict) else None
            if not isinstance(kind, str):
                self.fail(DropReason.MALFORMED_ITEM, "a part of a tool result without a type")
            if kind not in _TEXT_PARTS:
                self.fail(
                    DropReason.UNSUPPORTED_CONTENT,
                    f"a tool result with a {_short(kind)} part has no chat form",
                )
            texts.append(self.part_text(part, "text"))
        return "".join(texts)

    def token_record(self, item: dict[str, Any]) -> None:
        prompt, generation = item.get("prompt_token_ids"), item.get("generation_token_ids")
        log_probs = item.get("generation_log_probs")
        if prompt is None and generation is None:
            return
        if isinstance(prompt, list) and isinstance(generation, list) and self.open and self.in_output:
            self.tokens.append((prompt, generation, log_probs if isinstance(log_probs, list) else None))
        else:
            self.count("token_ids")

    # Writing messages.

    def add_prompt(self, role: str, content: str | list[dict[str, Any]]) -> None:
        """A user, system or developer message: from the input, or from the environment inside the output."""
        self.close_turn()
        if self.pending:
            self.fail(
                DropReason.MISSING_TOOL_OUTPUT,
                f"a {role} message comes before the result of {self.waiting()}",
            )
        if role != "user" and len(self.messages) == 1 and isinstance(content, str):
            # Many templates take one system message, at the start: the leading run becomes one.
            first = self.messages[0]
            if first["role"] == role and isinstance(first["content"], str):
                first["content"] = "\n\n".join([text for text in (first["content"], content) if text])
                return
        self.messages.append({"role": role, "content": content})

    def open_turn(self) -> None:
        if self.open:
            return
        if self.pending:
            self.fail(
                DropReason.MISSING_TOOL_OUTPUT, f"the policy goes on before the result of {self.waiting()}"
            )
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.fail(
                DropReason.AMBIGUOUS_TURN, "the answer goes on from an assistant turn at the end of the input"
            )
        self.open = True
        self.text_after_call = False

    def close_turn(self) -> None:
        if not self.open:
            return
        self.open = False
        if self.said > 1:
            if [message["role"] for message in self.messages[-2:]] == ["user", "user"]:
                self.fail(DropReason.AMBIGUOUS_TURN, "several answers follow several user messages in a row")
            self.lost["message_boundary"] = self.lost.get("message_boundary", 0) + self.said - 1
        text = "".join(self.parts)
        if text or self.calls or self.thoughts:
            if self.in_output and self.prompt_length is None:
                self.prompt_length = len(self.messages)
            for prompt, generation, log_probs in self.tokens:
                self.model_calls.append(ModelCall(len(self.messages), prompt, generation, log_probs))
            message: Message = {"role": "assistant", "content": text}
            if self.thoughts:
                key = "reasoning_content" if self.reasoning == "field" else "thinking"
                message[key] = "\n\n".join(self.thoughts)
                self.thoughts = []
            if self.calls:
                message["tool_calls"] = self.calls
                for call in self.calls:
                    self.pending[call["id"]] = call["function"]["name"]
                self.calls = []
            self.messages.append(message)
        self.parts = []
        self.tokens = []
        self.said = 0

    def waiting(self) -> str:
        return f"the call {_short(next(iter(self.pending)))}"

    def finish(self, tools: list[Tool]) -> Conversation:
        self.close_turn()
        # A last turn of calls is an answer; results for some of them only, or words after them, show a gap.
        if self.pending and (self.text_after_call or self.messages[-1]["role"] != "assistant"):
            self.fail(
                DropReason.MISSING_TOOL_OUTPUT,
                f"the conversation ends without the result of {self.waiting()}",
            )
        prompt_length = len(self.messages) if self.prompt_length is None else self.prompt_length
        if not any(
            m["content"] for m in self.messages[:prompt_length] if m["role"] not in ("assistant", "tool")
        ):
            raise Unrepresentable(DropReason.NO_PROMPT, "no user or system text precedes the first answer")
        if self.call_names:
            declared = {tool["function"]["name"] for tool in tools}
            if undeclared := sum(name not in declared for name in self.call_names.values()):
                self.lost["undeclared_tool"] = undeclared
        return Conversation(
            self.messages, tools, prompt_length, self.lost, self.images, tuple(self.model_calls)
        )


def _tools(value: Any) -> list[Tool]:
    if not value:
        return []
    if not isinstance(value, list):
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"`tools` is {_kind(value)}, not a list")
    return [_tool(tool, index) for index, tool in enumerate(value)]


def _tool(tool: Any, index: int) -> Tool:
    """The nested form of a flat or nested tool. Null keys are left out: templates would print them."""
    where = f"tools[{index}]"
    if not isinstance(tool, dict):
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"{where} is {_kind(tool)}")
    kind = tool.get("type")
    nested = tool.get("function")
    if kind != "function" and (kind or nested is None):
        hosted = isinstance(kind, str)
        raise Unrepresentable(
            DropReason.UNSUPPORTED_ITEM if hosted else DropReason.MALFORMED_ITEM,
            f"{where} is a hosted tool of type {_short(kind)}"
            if hosted
            else f"the type of {where} is {_kind(kind)}",
        )
    source = tool if nested is None else nested
    name = source.get("name") if isinstance(source, dict) else None
    if not isinstance(name, str) or not name:
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"{where} has no name")
    function: dict[str, Any] = {"name": name}
    description, parameters = source.get("description"), source.get("parameters")
    if description is not None:
        if not isinstance(description, str):
            raise Unrepresentable(
                DropReason.MALFORMED_ITEM, f"the description of {where} is {_kind(description)}"
            )
        function["description"] = description
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise Unrepresentable(
                DropReason.MALFORMED_ITEM, f"the parameters of {where} are {_kind(parameters)}"
            )
        if flaw := _flaw(parameters):
            raise Unrepresentable(DropReason.MALFORMED_ITEM, f"the parameters of {where} hold {flaw}")
        function["parameters"] = parameters
    return {"type": "function", "function": function}


def _flaw(value: Any, text: Any = None) -> str | None:
    """Why orjson could not write a value, or did not read it faithfully from `text`; None if all is well."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for container in level:
            for item in container.values() if isinstance(container, dict) else container:
                if isinstance(item, dict | list):
                    deeper.append(item)
                elif isinstance(item, float):
                    if not -(2.0**63) < item < 2.0**63 and (
                        not math.isfinite(item) or _has_long_integer(text)
                    ):
                        return "a number that 64 bits do not hold"
                elif isinstance(item, int) and not -(2**63) <= item < 2**64:
                    return "an integer that 64 bits do not hold"
        if not deeper:
            return None
        level = deeper
    return f"more than {_MAX_DEPTH} levels"


def _has_long_integer(text: Any) -> bool:
    """Whether JSON text holds an integer over 64 bits, which orjson reads as a float: 2**64 + 1 loses its last digits."""
    if not isinstance(text, str):
        return False
    found = False

    def look(digits: str) -> None:
        nonlocal found
        found = found or len(digits) >= 19

    try:
        json.loads(text, parse_int=look)
    except RecursionError:
        return True
    return found


def _canonical_any(value: Any) -> bytes:
    """Canonical form of what orjson refuses, without recursion: one token after the other, keys sorted."""
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


def _kind(value: Any) -> str:
    """What a value is, in JSON's words; short, whatever the value."""
    if value is None:
        return "absent or null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text" if value else "empty text"
    return "a list" if isinstance(value, list) else "an object"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
