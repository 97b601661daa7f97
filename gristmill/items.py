"""Responses items, read strictly: the pieces of a rollout row in the form that chat messages need.

Each function takes what a parsed JSON row holds at some place, whatever it is, and returns the checked value
or raises `Unrepresentable`: nothing is coerced, filled in or passed over. gristmill/chat.py puts the pieces
together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, TypeVar

import orjson

from gristmill.reasons import DropReason

TEXT_PARTS = frozenset({"input_text", "output_text", "text"})
IMAGE_PARTS = frozenset({"input_image", "image_url"})
# orjson writes at most 254 levels, and an export nests arguments and schemas some levels deep itself.
_MAX_DEPTH = 200

T = TypeVar("T")


class Unrepresentable(ValueError):
    """A row has no faithful chat form. `reason` is what to count it under, `detail` says where and what."""

    def __init__(self, reason: DropReason, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def read_trajectory(output: Any) -> tuple[list[Any], list[list[Any]] | None]:
    """The output's items, and the earlier transitions if it is a list of transitions (else None).

    With `contains_transitions` each element is the trajectory so far, with its prompt; the last is whole.
    """
    if output is None or output == []:
        raise Unrepresentable(DropReason.EMPTY_OUTPUT, "`response.output` is absent or empty")
    if not isinstance(output, list):
        raise Unrepresentable(DropReason.MALFORMED_OUTPUT, f"`response.output` is {describe(output)}")
    if not isinstance(output[0], list):
        return output, None
    if not all(isinstance(items, list) for items in output):
        raise Unrepresentable(DropReason.MALFORMED_OUTPUT, "`response.output` has transitions and other things")
    if not output[-1]:
        raise Unrepresentable(DropReason.EMPTY_OUTPUT, "the last transition of `response.output` is empty")
    return output[-1], output[:-1]


def after_history(trajectory: list[Any], history: list[Any]) -> list[Any]:
    """What a trajectory adds to the input that it repeats, where one may have default values filled in."""

    def essence(item: Any) -> Any:
        keys = ("role", "content", "call_id", "name", "arguments", "output", "summary")
        return [item.get(key) for key in keys] if isinstance(item, dict) else item

    if not same([essence(item) for item in trajectory[: len(history)]], [essence(item) for item in history]):
        raise Unrepresentable(DropReason.MALFORMED_OUTPUT, "the last transition does not begin with the input")
    return trajectory[len(history) :]


def same(one: list[Any], other: list[Any]) -> bool:
    try:
        return one == other
    except RecursionError:  # nested too deep to be compared, hence to be used
        return False


def read_parts(content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in expect(content, list, "the content of a message or tool result"):
        yield (
            expect_name(expect(part, dict, "a content part").get("type"), "the type of a content part"),
            part,
        )


def read_image(part: dict[str, Any]) -> dict[str, str]:
    source: Any = part.get("image_url")
    detail = part.get("detail")
    if isinstance(source, dict):
        source, detail = source.get("url"), source.get("detail")
    if not isinstance(source, str) or not source:
        raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, "an image without a URL (by file id?) has no chat form")
    return {"url": source, "detail": detail} if isinstance(detail, str) else {"url": source}


def read_thought(part: Any) -> str:
    return expect(expect(part, dict, "a reasoning part").get("text"), str, "the text of a reasoning part")


def read_tool_text(output: Any) -> str:
    texts = []
    for kind, part in read_parts(output):
        if kind not in TEXT_PARTS:
            raise Unrepresentable(DropReason.UNSUPPORTED_CONTENT, f"a part of type {kind!r:.80} in a tool result")
        texts.append(expect(part.get("text"), str, "the text of a part"))
    return "".join(texts)


def read_arguments(value: Any) -> dict[str, Any]:
    parsed = value
    if isinstance(value, str):
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Unrepresentable(DropReason.MALFORMED_ARGUMENTS, "the arguments of a call are not JSON") from None
    if not isinstance(parsed, dict):
        raise Unrepresentable(DropReason.MALFORMED_ARGUMENTS, f"the arguments of a call are {describe(parsed)}")
    if flaw := _flaw(parsed, value):
        raise Unrepresentable(DropReason.MALFORMED_ARGUMENTS, f"the arguments of a call hold {flaw}")
    return parsed


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Flat (Responses) or nested (chat) tools as nested ones; templates would print null keys."""
    nested = []
    for tool in expect(tools, list, "`tools`"):
        kind = expect(tool, dict, "a tool").get("type", "function")
        if kind != "function":
            kind = expect_name(kind, "the type of a tool")
            raise Unrepresentable(DropReason.UNSUPPORTED_ITEM, f"a hosted tool of type {kind!r:.80} has no chat form")
        source = expect(tool.get("function") or tool, dict, "the function of a tool")
        function: dict[str, Any] = {"name": expect_name(source.get("name"), "the name of a tool")}
        if (description := source.get("description")) is not None:
            function["description"] = expect(description, str, "the description of a tool")
        if (parameters := source.get("parameters")) is not None:
            function["parameters"] = expect(parameters, dict, "the parameters of a tool")
        nested.append({"type": "function", "function": function})
    try:
        orjson.dumps([[[[[[[[nested]]]]]]]])  # an export nests them a few levels deep
    except TypeError as error:
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"`tools` cannot be written: {error}") from None
    return nested


def _flaw(value: Any, text: Any) -> str | None:
    """Why orjson could not write a value, or did not read it faithfully from `text`; None if all is well."""
    level = [value]
    for _ in range(_MAX_DEPTH):
        deeper: list[Any] = []
        for container in level:
            for item in container.values() if isinstance(container, dict) else container:
                if type(item) is str:
                    continue
                if isinstance(item, dict | list):
                    deeper.append(item)
                elif isinstance(item, float):
                    if not -(2.0**63) < item < 2.0**63 and (not math.isfinite(item) or _has_long_integer(text)):
                        return "a number that 64 bits do not hold"
                elif isinstance(item, int) and not -(2**63) <= item < 2**64:
                    return "an integer that 64 bits do not hold"
        if not deeper:
            return None
        level = deeper
    return f"more than {_MAX_DEPTH} levels"


def _has_long_integer(text: Any) -> bool:
    """Whether JSON text holds an integer over 64 bits: orjson reads it as a float, less its last digits."""
    found = False

    def look(digits: str) -> None:
        nonlocal found
        found = found or len(digits) > 20 or not -(2**63) <= int(digits) < 2**64

    if isinstance(text, str):
        try:
            json.loads(text, parse_int=look)
        except RecursionError:
            return True
    return found


def expect(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"{what} is {describe(value)}")
    return value


def expect_name(value: Any, what: str) -> str:
    if not value or not isinstance(value, str):
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"{what} is {describe(value)}")
    return value


def describe(value: Any) -> str:
    """What a value is, in JSON's words; short, whatever the value."""
    if value is None:
        return "absent or null"
    if isinstance(value, str):
        return "text" if value else "empty text"
    for kind, words in ((bool, "a boolean"), (int | float, "a number"), (list, "a list")):
        if isinstance(value, kind):
            return words
    return "an object"
