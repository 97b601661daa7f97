"""What two conversations of one task differ in: the prompt that they share, and the two sides after it.

The sides begin at the first assistant message that differs; everything before it is shared history and goes to the
prompt. There is no such comparison where prompts or tools differ, where the environment answered differently before
the policy did, or where the sides say the same but for white space, Unicode form or reasoning: a template may drop
reasoning, and both sides would be one. (With `reasoning: drop`, histories that differ in reasoning alone are shared.)
"""

from __future__ import annotations

import unicodedata
from typing import Any, NamedTuple

import orjson

from gristmill.chat import Conversation
from gristmill.example import Message


class Comparison(NamedTuple):
    """The sides, each beginning with an assistant message."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


def compare(chosen: Conversation, rejected: Conversation, *, single: bool) -> Comparison | None:
    """The comparison of two conversations, or None where there is none to make.

    Args:
        single: each side is the one assistant message that differs, else all that follows.
    """
    start = chosen.prompt_length
    if (
        start != rejected.prompt_length
        or chosen.messages[:start] != rejected.messages[:start]
        or chosen.tools != rejected.tools
    ):
        return None
    ours, theirs = chosen.messages, rejected.messages
    at = start
    while at < len(ours) and at < len(theirs) and _same(ours[at], theirs[at]):
        at += 1
    if at == len(ours) or at == len(theirs):
        return None
    if ours[at]["role"] != "assistant" or theirs[at]["role"] != "assistant":
        return None
    stop = at + 1 if single else None
    sides = Comparison(ours[:at], ours[at:stop], theirs[at:stop])
    said = [[_said(message) for message in side if message["role"] == "assistant"] for side in sides[1:]]
    if said[0] == said[1] or not all(any(first) for first, *_ in said):
        return None
    return sides


def length(side: list[Message]) -> int:
    """Characters of text and of call arguments that the policy wrote."""
    total = 0
    for message in side:
        if message["role"] == "assistant":
            total += len(message["content"])
            for call in message.get("tool_calls", ()):
                total += len(orjson.dumps(call["function"]["arguments"]))
    return total


def _same(one: Message, other: Message) -> bool:
    """Equal but for the ids of calls, which differ between rollouts."""
    return one == other or _without_ids(one) == _without_ids(other)


def _without_ids(message: Message) -> dict[str, Any]:
    kept = {key: value for key, value in message.items() if key != "tool_call_id"}
    if "tool_calls" in kept:
        kept["tool_calls"] = [call["function"] for call in kept["tool_calls"]]
    return kept


def _said(message: Message) -> tuple[str, bytes]:
    """What an assistant message says to others, normalised."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    text = " ".join(unicodedata.normalize("NFC", message["content"]).split())
    return text, orjson.dumps(calls, option=orjson.OPT_SORT_KEYS) if calls else b""
