"""What formats cannot hold: checks that targets share, each of which refuses a row instead of changing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NoReturn

from gristmill.items import Unrepresentable
from gristmill.reasons import DropReason

Messages = Sequence[dict[str, Any]]


def refuse(detail: str) -> NoReturn:
    """Raises `Unrepresentable` under TARGET_FORMAT."""
    raise Unrepresentable(DropReason.TARGET_FORMAT, detail)


def require_text(*conversations: Iterable[dict[str, Any]]) -> None:
    """Refuse parts (images): no target here has a column for them.

    Raises:
        Unrepresentable: UNSUPPORTED_CONTENT.
    """
    for messages in conversations:
        for message in messages:
            if type(message["content"]) is not str:
                raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, f"a {message['role']} message with images")


def require_single(*sides: Messages) -> None:
    """Refuse a side of several messages, where all of a side carries loss (tool results too) or only its last."""
    for side in sides:
        if len(side) != 1:
            refuse(f"a side of {len(side)} messages, all of which would carry loss")


def require_no_earlier_answers(prompt: Messages) -> None:
    """Refuse a prompt with answers in it, where every answer of a row carries loss."""
    if any(message["role"] == "assistant" for message in prompt):
        refuse("the prompt has assistant turns, which would carry loss")


def require_single_results(messages: Messages) -> None:
    """Refuse several tool results in a row, where messages are rendered one by one: templates group such results."""
    for before, message in pairwise(messages):
        if before["role"] == message["role"] == "tool":
            refuse("results of parallel calls stand side by side")


def require_no_token_ids() -> NoReturn:
    """Refuse rows of token ids."""
    refuse("the framework takes no token ids")
