"""Chat completions as OpenAI Responses objects, so that every collector's rows have one shape (facts: NeMo Gym's).

As Gym's `ResponsesConverter` has it: reasoning (its own field, or `<think>` in the text), then the message, then the
calls; an empty reply is a message with empty text. Ids come from the content, so equal replies are equal rows.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from gristmill.collect.failure import Failed, FailureClass
from gristmill.identity import digest

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)


def from_chat(completion: Any, model: str) -> dict[str, Any]:
    """The Responses object of a chat completion with one choice.

    Raises:
        Failed: it is no chat completion.
    """
    try:
        choice = completion["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content") or ""
        thoughts = [message[key] for key in ("reasoning_content", "reasoning") if message.get(key)][:1]
        calls = [
            (call["id"], call["function"]["name"], _text(call["function"]["arguments"]))
            for call in message.get("tool_calls") or []
        ]
        usage = completion.get("usage") or {}
        refusal = message.get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Failed(
            FailureClass.INVALID_REPLY, f"no chat completion ({error!r}): {orjson.dumps(completion)[:200]!r}"
        ) from None
    if not isinstance(text, str):
        raise Failed(FailureClass.INVALID_REPLY, f"message content is a {type(text).__name__}, expected text")
    thoughts += _THINK.findall(text)
    text = _THINK.sub("", text)
    output: list[dict[str, Any]] = []
    if thoughts:
        output.append({"type": "reasoning", "summary": [{"type": "summary_text", "text": t} for t in thoughts]})
    if refusal:
        output.append(_message({"type": "refusal", "refusal": refusal}))
    elif text or not calls:
        output.append(_message({"type": "output_text", "text": text, "annotations": []}))
    output += [
        {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": "completed"}
        for call_id, name, arguments in calls
    ]
    name = digest({"output": output, "model": model})[:32]
    for number, item in enumerate(output):
        item["id"] = f"{ {'message': 'msg', 'reasoning': 'rs', 'function_call': 'fc'}[item['type']] }_{name}_{number}"
    cut = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(str(finish))
    prompt, generated = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 0,
        "status": "incomplete" if cut else "completed",
        "error": None,
        "incomplete_details": {"reason": cut} if cut else None,
        "model": model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + generated,
        },
    }


def _message(part: dict[str, Any]) -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "status": "completed", "content": [part]}


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
