"""Lines straight to conversations: never another one than by parsing the line whole."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import pytest

from gristmill import chat, plain
from gristmill.rollout import Unreadable, parse
from tests.rows import rollout
from tests.test_chat import RICH, mutate

TOOL = {"type": "function", "name": "add", "parameters": {"type": "object"}, "strict": True}


def call(id: str, name: str = "add", arguments: Any = '{"a": [1, {"b": "ü"}]}') -> dict[str, Any]:
    return {"type": "function_call", "id": None, "call_id": id, "name": name, "arguments": arguments, "status": None}


def result(id: str, output: Any = "5\n") -> dict[str, Any]:
    return {"type": "function_call_output", "id": None, "call_id": id, "output": output, "status": None}


def say(text: str = "four") -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {"type": "message", "role": "assistant", "status": "completed", "content": [part]}


def think(*texts: str) -> dict[str, Any]:
    summary = [{"type": "summary_text", "text": text} for text in texts]
    return {"type": "reasoning", "summary": summary, "content": None, "encrypted_content": None}


def row(*output: dict[str, Any], **params: Any) -> dict[str, Any]:
    made = rollout(output=list(output))
    made["responses_create_params"] |= {"tools": [TOOL], "metadata": {"extra_body": "{}"}} | params
    return made


USUAL = [
    row(say()),
    row(call("A"), call("B"), result("B"), result("A"), call("C", "other"), result("C"), say("日本 \u2028 \x01")),
    row(think("a", "", "b"), call("A"), result("A"), think("c"), say("d")),
    row(think("a"), say("b"), call("A")),
    row(think(), call("A"), think(""), call("B"), result("A"), result("B"), think(), say("b")),
    row(
        say(),
        input=[
            {"role": "developer", "content": "x"},
            {"role": "system", "content": [{"type": "input_text", "text": ""}, {"type": "input_text", "text": "y"}]},
            {"type": "message", "role": "user", "content": "z"},
            {"role": "system", "content": "late"},
        ],
        instructions="first",
    ),
    row(say(), input="one text", instructions=None, tools=None),
    row(say(), input="", instructions="all that was said"),
]
SESSION = row(call("A"), result("A"), say(), tools=[])  # whose tools only the response records
SESSION["response"]["tools"] = [TOOL]
USUAL.append(SESSION)
ODD = [
    row(say("<think>x</think>4")),
    row(say("a"), say("b")),
    row(call("A"), say("and"), result("A")),
    row(call("A"), result("A"), result("A")),
    row(call("A"), call("A"), result("A")),
    row(call("A"), say("a")),
    row(call("A"), result("A", [{"type": "input_text", "text": "5"}])),
    row(say(), input=[{"role": "user", "content": ""}]),
    row(say(), input=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]),
    row(say(), metadata={"audio_url": "x"}),
    row(say(), previous_response_id="x"),
    row(say() | {"generation_token_ids": [1], "prompt_token_ids": [2]}),
    row(say() | {"refusal": "no"}),
    row(think("") | {"content": [{"type": "reasoning_text", "text": "t"}]}, say()),
    row(say("")),
    row(),
]


def told(convert: Any, line: bytes, **settings: Any) -> Any:
    try:
        return convert(line, **settings)
    except (chat.Unrepresentable, Unreadable) as problem:
        return type(problem), str(problem)


def assert_same(line: bytes, **settings: Any) -> None:
    whole = told(lambda line, **settings: chat.convert(parse(line), **settings), line, **settings)
    # repr tells 1 from 1.0 and from true, and shows the order of keys
    assert repr(told(plain.convert, line, **settings)) == repr(whole)


@pytest.mark.parametrize("value", USUAL)
def test_what_is_usual_is_not_parsed_whole(value: dict[str, Any]) -> None:
    for escaped in (True, False):
        line = json.dumps(value, ensure_ascii=escaped).encode()
        assert plain.usual(line) is not None
        for settings in ({}, {"developer": "keep"}, {"reasoning": "inline_think"}, {"reasoning": "drop"}):
            assert_same(line, **settings)


@pytest.mark.parametrize("value", ODD)
def test_what_is_odd_is_left_to_the_whole_converter(value: dict[str, Any]) -> None:
    line = json.dumps(value).encode()
    assert plain.usual(line) is None
    assert_same(line)


def test_mutated_rows_become_the_same() -> None:
    chance = random.Random(3)
    usual = 0
    for number in range(6000):
        made = copy.deepcopy(RICH if number % 10 == 0 else chance.choice(USUAL))
        for _ in range(chance.choice([1, 1, 2, 4])):
            mutate(made, chance)
        line = json.dumps(made, ensure_ascii=number % 2 == 0).encode()
        assert_same(line, developer=chance.choice(["system", "keep"]))
        usual += plain.usual(line) is not None
    assert 1000 < usual < 5000  # both ways are walked


def test_lines_bent_byte_by_byte_become_the_same() -> None:
    chance = random.Random(5)
    lines = [json.dumps(value, ensure_ascii=False).encode() for value in USUAL]
    for _ in range(4000):
        line = bytearray(chance.choice(lines))
        at = chance.randrange(len(line))
        line[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        assert_same(bytes(line))


@pytest.mark.parametrize(
    "piece",
    ['"tools": [{"type": "function", "name": "add", "parameters": {"maximum": 1180591620717411303424}}]', '"tools": 0'],
)
@pytest.mark.parametrize("metric", ["1e999", "NaN", "1"])
def test_numbers_that_parsers_read_differently(piece: str, metric: str) -> None:
    line = json.dumps(row(say())).replace('"tools": [', f'{piece}, "x": [').encode()
    assert piece.encode() in line
    assert_same(line[:-1] + f', "metric": {metric}}}'.encode())


def test_a_key_twice_is_read_as_when_parsed_whole() -> None:
    line = json.dumps(row(say())).encode()
    for piece in (b'"output": null, "output"', b'"output": [{"type": "message", "content": "x"}], "output"'):
        assert_same(line.replace(b'"output"', piece, 1))
        assert_same(line.replace(b'"role": "assistant"', b'"role": "user", "role": "assistant"'))


def test_real_rows_become_the_same(shared: Any) -> None:
    for path in sorted(shared.rglob("*.jsonl")):
        for line in path.read_bytes().splitlines()[:20]:
            assert_same(line)
