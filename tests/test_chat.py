"""Responses items → chat: meaning, one row for each reason to drop, and no other exception whatever comes in."""

from __future__ import annotations

import contextlib
import copy
import pickle
import random
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.chat import (
    Conversation,
    Unrepresentable,
    answer_text,
    canonical_prompt,
    convert,
    require_trainable,
)
from gristmill.reasons import DropReason
from tests.rows import rollout

ROLLOUTS = Path(__file__).parents[2] / "shared" / "rollouts"

# ChatML with tools, as strict as templates are: it fails on content that is null and on arguments that are text.
CHATML = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False).from_string(
    """\
{%- if tools %}<|im_start|>tools
{% for tool in tools %}{{ tool.function.name }} {{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content is defined %}<think>{{ message.reasoning_content }}</think>{% endif %}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}{{ part.text | default("<image>") }}{% endfor %}{% endif %}
{%- for call in message.tool_calls | default([]) %}
<tool_call>{{ call.function.name }}(
{%- for key, value in call.function.arguments.items() %}{{ key }}={{ value | tojson }},{% endfor %})</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}"""
)


def render(conversation: Conversation) -> str:
    return CHATML.render(messages=conversation.messages, tools=conversation.tools)


# Small rows, written here.


def user(text: Any = "What is 2+2?", role: str = "user") -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def say(*texts: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": parts}


def refuse(text: str = "I will not.") -> dict[str, Any]:
    return {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": text}]}


def call(call_id: str = "c1", name: str = "add", arguments: Any = '{"a": 2, "b": 2}') -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, "status": None}


def result(call_id: str = "c1", output: Any = "4") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output, "id": None}


def think(*texts: str, **more: Any) -> dict[str, Any]:
    return {
        "type": "reasoning",
        "id": "r",
        "summary": [{"type": "summary_text", "text": text} for text in texts],
        **more,
    }


ADD = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}


def row(output: Any, prompt: Any = None, **params: Any) -> dict[str, Any]:
    prompt = [user()] if prompt is None else prompt
    return {"responses_create_params": {"input": prompt, **params}, "response": {"output": output}, "reward": 1.0}


def shape(conversation: Conversation) -> list[str]:
    """One word a message: role, text, calls and reasoning, for expectations that can be read."""
    words = []
    for message in conversation.messages:
        word = f"{message['role']}:{message['content']}"
        if "reasoning_content" in message:
            word += f" [{message['reasoning_content']}]"
        for made in message.get("tool_calls", []):
            word += f" {made['id']}={made['function']['name']}"
        if message["role"] == "tool":
            word += f" <{message['tool_call_id']}={message['name']}"
        words.append(word)
    return words


# Meaning.

TURNS = [
    ("an answer", [say("4")], ["assistant:4"]),
    ("parts are joined without a separator", [say("4", "2")], ["assistant:42"]),
    ("content may be text", [{"role": "assistant", "content": "4"}], ["assistant:4"]),
    ("an empty answer disappears", [say(""), user("well?"), say("4")], ["user:well?", "assistant:4"]),
    (
        "reasoning, text and parallel calls are one turn",
        [think("why"), say("hm"), call("A"), call("B"), result("A"), result("B", "5"), say("4")],
        ["assistant:hm [why] A=add B=add", "tool:4 <A=add", "tool:5 <B=add", "assistant:4"],
    ),
    (
        "results may come in another order",
        [call("A", "x"), call("B", "y"), result("B"), result("A"), say("4")],
        ["assistant: A=x B=y", "tool:4 <B=y", "tool:4 <A=x", "assistant:4"],
    ),
    (
        "reasoning between a call and its result belongs to the call's turn",
        [call(), think("why"), result(), think("so"), say("4")],
        ["assistant: [why] c1=add", "tool:4 <c1=add", "assistant:4 [so]"],
    ),
    ("a last turn of calls is an answer", [say("hm"), call("A"), call("B")], ["assistant:hm A=add B=add"]),
    (
        "words of the environment and of a simulated user stand where they were said",
        [say("hi"), user("go on"), user("now", role="system"), say("4")],
        ["assistant:hi", "user:go on", "system:now", "assistant:4"],
    ),
    ("a conversation may end with the user", [say("hi"), user("done")], ["assistant:hi", "user:done"]),
    (
        "parts of a tool result are joined",
        [call(), result(output=[{"type": "input_text", "text": "4"}, {"type": "output_text", "text": "2"}]), say("ok")],
        ["assistant: c1=add", "tool:42 <c1=add", "assistant:ok"],
    ),
    ("several summaries", [think("a", "", "b"), think("c"), say("4")], ["assistant:4 [a\n\nb\n\nc]"]),
    (
        "reasoning content goes before its summary",
        [think("short", content=[{"type": "reasoning_text", "text": "long"}]), say("4")],
        ["assistant:4 [long]"],
    ),
    ("think tags in a text stay", [say("<think>no</think>4")], ["assistant:<think>no</think>4"]),
    ("a refusal is text", [refuse()], ["assistant:I will not."]),
    ("answers in a row are one turn, as Gym sends them back", [say("a"), say("b")], ["assistant:ab"]),
]


@pytest.mark.parametrize(("output", "expected"), [turn[1:] for turn in TURNS], ids=[turn[0] for turn in TURNS])
def test_turns(output: list[Any], expected: list[str]) -> None:
    conversation = convert(row(output))
    assert shape(conversation) == ["user:What is 2+2?", *expected]
    assert_sound(conversation)


def test_arguments_are_objects_and_tools_are_nested() -> None:
    conversation = convert(row([call(arguments='{"a": null, "n": 2}'), result(), say("4")], tools=[ADD]))
    function = conversation.messages[1]["tool_calls"][0]["function"]
    assert function == {"name": "add", "arguments": {"a": None, "n": 2}}
    assert conversation.tools == [
        {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object"}}}
    ]
    assert conversation.lost == {}
    nested = convert(row([say("4")], tools=conversation.tools))
    assert nested.tools == conversation.tools


def test_null_keys_of_tools_are_left_out() -> None:
    tool = {"type": "function", "name": "now", "description": None, "parameters": None, "strict": None}
    assert convert(row([say("4")], tools=[tool])).tools == [{"type": "function", "function": {"name": "now"}}]


def test_tools_of_the_environments_session_are_in_the_response() -> None:
    made = row([call(), result(), say("4")], tools=[])
    made["response"]["tools"] = [ADD]
    assert convert(made).tools[0]["function"]["name"] == "add"


def test_reasoning_modes() -> None:
    made = row([think("why"), say("4")])
    assert convert(made).messages[-1] == {"role": "assistant", "content": "4", "reasoning_content": "why"}
    inline = convert(made, reasoning="inline_think").messages[-1]
    assert inline == {"role": "assistant", "content": "<think>why</think>4"}
    assert convert(made, reasoning="thinking").messages[-1]["thinking"] == "why"
    dropped = convert(made, reasoning="drop")
    assert dropped.messages[-1] == {"role": "assistant", "content": "4"}
    assert dropped.lost == {"reasoning": 1}


def test_a_turn_of_dropped_reasoning_only_disappears() -> None:
    made = row([think("why"), user("well?"), say("4")])
    assert shape(convert(made, reasoning="drop")) == ["user:What is 2+2?", "user:well?", "assistant:4"]
    assert convert(made, reasoning="drop").prompt_length == 2
    assert convert(made).prompt_length == 1


def test_encrypted_reasoning_is_counted() -> None:
    conversation = convert(row([think(encrypted_content="gAAA"), say("4")]))
    assert shape(conversation)[-1] == "assistant:4"
    assert conversation.lost == {"encrypted_reasoning": 1}


def test_losses_are_counted() -> None:
    cited = say("<think>4")
    cited["content"][0]["annotations"] = [{"type": "url_citation"}]
    lost = convert(row([cited, say("b"), call(), result(), say("c")])).lost
    assert lost == {"annotations": 1, "literal_think": 1, "message_boundary": 1, "undeclared_tool": 1}


def test_a_leading_run_of_system_messages_becomes_one() -> None:
    made = row([say("4")], [user("b", role="developer"), user("c", role="system"), user("q")], instructions="a")
    assert shape(convert(made)) == ["system:a\n\nb\n\nc", "user:q", "assistant:4"]
    kept = convert(made, developer="keep")
    assert shape(kept) == ["system:a", "developer:b", "system:c", "user:q", "assistant:4"]


def test_text_as_input() -> None:
    assert shape(convert(row([say("4")], "q", instructions="s"))) == ["system:s", "user:q", "assistant:4"]


def test_a_prompt_inside_the_output_is_prompt() -> None:
    conversation = convert(row([user("s", role="system"), user("q"), say("4"), user("more"), say("5")], []))
    assert shape(conversation) == ["system:s", "user:q", "assistant:4", "user:more", "assistant:5"]
    assert conversation.prompt_length == 2


def test_history_in_the_input_is_prompt() -> None:
    history = [user(), think("old"), call("A"), result("A"), say("4"), user("and 3+3?")]
    conversation = convert(row([say("6")], history))
    assert shape(conversation)[-2:] == ["user:and 3+3?", "assistant:6"]
    assert conversation.prompt_length == 5
    assert answer_text(conversation) == "6"


def test_a_call_in_the_input_may_be_answered_in_the_output() -> None:
    conversation = convert(row([result("A"), say("4")], [user(), call("A")]))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.prompt_length == 3


def test_chat_shaped_history() -> None:
    old = {"id": "A", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    history = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "reasoning_content": "why", "tool_calls": [old]},
        {"role": "tool", "tool_call_id": "A", "content": "4"},
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "user", "content": "go"},
    ]
    expected = ["user:q", "assistant: [why] A=add", "tool:4 <A=add", "assistant:No.", "user:go", "assistant:4"]
    assert shape(convert(row([say("4")], history))) == expected


def test_transitions_convert_the_last_one() -> None:
    first = [user("task"), call("A"), result("A")]
    made = row([first, [*first, say("4")]], [])
    conversation = convert(made)
    assert shape(conversation) == ["user:task", "assistant: A=add", "tool:4 <A=add", "assistant:4"]
    assert conversation.prompt_length == 1
    assert "rewritten_history" not in conversation.lost


def test_transitions_repeat_the_input_once() -> None:
    # Without the cut the task would stand twice in the prompt.
    made = row([[user("s", role="system"), user("task"), say("4")]], [{"role": "system", "content": "s"}])
    assert shape(convert(made)) == ["system:s", "user:task", "assistant:4"]


def test_transitions_with_a_rewritten_history_say_so() -> None:
    made = row([[user("state 1"), say("a")], [user("[hidden]"), say("a"), user("state 2"), say("b")]], [])
    assert convert(made).lost == {"rewritten_history": 1}


def test_images() -> None:
    content = [{"type": "input_text", "text": "see"}, {"type": "input_image", "image_url": "data:x", "detail": "auto"}]
    conversation = convert(row([say("4")], [user(content)]))
    assert conversation.messages[0]["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:x", "detail": "auto"}},
    ]
    assert conversation.images == 1
    again = convert(row([say("4")], [user(conversation.messages[0]["content"])]))
    assert again.messages == conversation.messages


def test_token_records_point_to_their_message() -> None:
    ids = {"prompt_token_ids": [1, 2], "generation_token_ids": [3], "generation_log_probs": [-0.5]}
    made = row(
        [
            think("w"),
            call("A"),
            call("B") | ids,
            result("A"),
            result("B"),
            say("4") | ids | {"generation_log_probs": None},
        ]
    )
    calls = convert(made).model_calls
    assert [(made.message, made.prompt_token_ids, made.generation_log_probs) for made in calls] == [
        (1, [1, 2], [-0.5]),
        (4, [1, 2], None),
    ]
    assert "prompt_token_ids" not in orjson.dumps(convert(made).messages).decode()
    broken = convert(row([say("4") | {"generation_token_ids": "x"}]))
    assert broken.model_calls == () and broken.lost == {"token_ids": 1}


def test_refusals_of_the_policy_only() -> None:
    assert convert(row([say("4")], [user(), refuse(), user("please")]), refusals="drop").prompt_length == 3


def test_large_numbers_in_arguments() -> None:
    # 2**64 would come back from orjson as a float that has lost its last digits.
    assert reason(row([call(arguments='{"n": 18446744073709551617}')])) == DropReason.MALFORMED_ARGUMENTS
    kept = convert(row([call(arguments='{"n": 18446744073709551615, "x": 1e30, "y": -9223372036854775808}')]))
    assert kept.messages[-1]["tool_calls"][0]["function"]["arguments"] == {"n": 2**64 - 1, "x": 1e30, "y": -(2**63)}


# One row for each reason.


def deep(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels):
        value = {"a": value}
    return value


MALFORMED, UNSUPPORTED = DropReason.MALFORMED_ITEM, DropReason.UNSUPPORTED_ITEM
CONTENT, MISSING = DropReason.UNSUPPORTED_CONTENT, DropReason.MISSING_TOOL_OUTPUT
AMBIGUOUS, ARGUMENTS = DropReason.AMBIGUOUS_TURN, DropReason.MALFORMED_ARGUMENTS

DROPPED: list[tuple[DropReason, Any]] = [
    (DropReason.NO_RESPONSE, {}),
    (DropReason.NO_RESPONSE, {"response": "x"}),
    (DropReason.EMPTY_OUTPUT, {"response": {}}),
    (DropReason.EMPTY_OUTPUT, row(None)),
    (DropReason.EMPTY_OUTPUT, row([])),
    (DropReason.EMPTY_OUTPUT, row([[user()], []])),
    (DropReason.MALFORMED_OUTPUT, row("4")),
    (DropReason.MALFORMED_OUTPUT, row({"0": say("4")})),
    (DropReason.MALFORMED_OUTPUT, row([[user()], say("4")])),
    (DropReason.MALFORMED_OUTPUT, row([[user("other"), say("4")]])),
    (DropReason.NO_PROMPT, row([say("4")], [])),
    (DropReason.NO_PROMPT, row([say("4")], "")),
    (DropReason.NO_PROMPT, row([say("4")], [user("")])),
    (DropReason.NO_PROMPT, {"response": {"output": [say("4")]}}),
    (MALFORMED, row([say("4")], 7)),
    (MALFORMED, row([say("4")], instructions=7)),
    (MALFORMED, row([say("4")], tools={"a": 1})),
    (MALFORMED, row([say("4")], tools=["add"])),
    (MALFORMED, row([say("4")], tools=[{"type": "function"}])),
    (MALFORMED, row([say("4")], tools=[ADD | {"parameters": deep(300)}])),
    (MALFORMED, row([say("4")], tools=[ADD | {"description": 7}])),
    (MALFORMED, {"response": {"output": [say("4")]}, "responses_create_params": "x"}),
    (MALFORMED, row([None])),
    (MALFORMED, row(["4"])),
    (MALFORMED, row([{}])),
    (MALFORMED, row([{"type": ["message"]}])),
    (MALFORMED, row([{"type": "message"}])),
    (MALFORMED, row([{"role": "judge", "content": "4"}])),
    (MALFORMED, row([{"role": "assistant"}])),
    (MALFORMED, row([{"role": "assistant", "content": 4}])),
    (MALFORMED, row([{"role": "assistant", "content": ["4"]}])),
    (MALFORMED, row([{"role": "assistant", "content": [{"text": "4"}]}])),
    (MALFORMED, row([{"role": "assistant", "content": [{"type": "output_text"}]}])),
    (MALFORMED, row([{"role": "assistant", "content": [{"type": "output_text", "text": None}]}])),
    (MALFORMED, row([{"role": "assistant", "content": "", "tool_calls": [{"id": "A"}]}])),
    (MALFORMED, row([refuse() | {"content": [{"type": "refusal"}]}])),
    (MALFORMED, row([say("4")], [user(None)])),
    (MALFORMED, row([call() | {"call_id": None}])),
    (MALFORMED, row([call() | {"name": ""}])),
    (MALFORMED, row([call(), result(output=None)])),
    (MALFORMED, row([call(), result(output={"a": 1})])),
    (MALFORMED, row([call(), result() | {"call_id": 7}])),
    (MALFORMED, row([think() | {"summary": "why"}, say("4")])),
    (MALFORMED, row([think() | {"summary": [{"type": "summary_text"}]}, say("4")])),
    (UNSUPPORTED, row([{"type": "web_search_call", "id": "w"}, say("4")])),
    (UNSUPPORTED, row([{"type": "mcp_call", "name": "x", "arguments": "{}", "output": "y"}])),
    (UNSUPPORTED, row([say("4")], tools=[{"type": "web_search"}])),
    (UNSUPPORTED, row([say("4")], previous_response_id="resp_1")),
    (CONTENT, row([say("4")], [user([{"type": "input_audio", "input_audio": {}}])])),
    (CONTENT, row([say("4")], [user([{"type": "input_file", "file_id": "f"}])])),
    (CONTENT, row([say("4")], [user([{"type": "input_image", "file_id": "f", "image_url": None}])])),
    (CONTENT, row([say("4")], [user([{"type": "input_image", "image_url": "data:x"}], role="system"), user()])),
    (CONTENT, row([say("4")], metadata={"audio_url": "data:audio/wav;base64,AA"})),
    (CONTENT, row([call(), result(output=[{"type": "input_image", "image_url": "data:x"}])])),
    (CONTENT, row([say("4") | {"content": [{"type": "output_audio"}]}])),
    (ARGUMENTS, row([call(arguments='{"a": 2')])),
    (ARGUMENTS, row([call(arguments="")])),
    (ARGUMENTS, row([call(arguments="[1]")])),
    (ARGUMENTS, row([call(arguments='"a"')])),
    (ARGUMENTS, row([call(arguments='{"a": NaN}')])),
    (ARGUMENTS, row([call(arguments=None)])),
    (ARGUMENTS, row([call(arguments='{"a":' * 300 + "1" + "}" * 300)])),
    (DropReason.ORPHAN_TOOL_OUTPUT, row([result(), say("4")])),
    (DropReason.ORPHAN_TOOL_OUTPUT, row([result("A"), call("A"), say("4")])),
    (MISSING, row([call(), user("go on"), say("4")])),
    (MISSING, row([call("A"), call("B"), result("A"), say("4")])),
    (MISSING, row([call("A"), call("B"), result("A")])),
    (MISSING, row([call("A"), result("A"), call("B"), user("x")])),
    (MISSING, row([say("a"), call("A"), say("b"), call("B")])),
    (MISSING, row([call("A"), say("4")])),
    (MISSING, row([say("4")], [user(), call("A")])),
    (DropReason.DUPLICATE_TOOL_OUTPUT, row([call(), result(), result(), say("4")])),
    (DropReason.DUPLICATE_TOOL_OUTPUT, row([call(), call(), result(), say("4")])),
    (DropReason.DUPLICATE_TOOL_OUTPUT, row([call(), result(), call(), result(), say("4")])),
    (AMBIGUOUS, row([say("a1"), say("a2")], [user("q1"), user("q2")])),
    (AMBIGUOUS, row([say("4")], [user(), say("The answer is")])),
]


def reason(made: Any, **options: Any) -> DropReason:
    with pytest.raises(Unrepresentable) as caught:
        convert(made, **options)
    return caught.value.reason


@pytest.mark.parametrize(("expected", "made"), DROPPED)
def test_dropped(expected: DropReason, made: Any) -> None:
    assert reason(made) == expected


def test_a_refusal_is_dropped_if_the_recipe_says_so() -> None:
    assert reason(row([refuse()]), refusals="drop") == DropReason.REFUSED


def test_an_error_says_where_and_survives_pickling() -> None:
    with pytest.raises(Unrepresentable) as caught:
        convert(row([say("4"), {"type": "web_search_call"}]))
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.reason is DropReason.UNSUPPORTED_ITEM
    assert str(again) == str(caught.value)
    assert "output[1]" in again.detail and "web_search_call" in again.detail
    assert isinstance(again, ValueError)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([say("")], DropReason.NO_ASSISTANT_MESSAGE),
        ([user("hello?")], DropReason.NO_ASSISTANT_MESSAGE),
        ([say("4"), user("done")], DropReason.NOT_ENDING_WITH_ASSISTANT),
        ([call(), result()], DropReason.NOT_ENDING_WITH_ASSISTANT),
        ([think("why")], DropReason.EMPTY_ANSWER),
        ([say("\n")], DropReason.EMPTY_ANSWER),
        ([say("4")], None),
        ([call()], None),
    ],
)
def test_trainable(output: list[Any], expected: DropReason | None) -> None:
    conversation = convert(row(output))
    if expected is None:
        require_trainable(conversation)
        return
    with pytest.raises(Unrepresentable) as caught:
        require_trainable(conversation)
    assert caught.value.reason == expected


def test_answer_text() -> None:
    assert answer_text(convert(row([say("a"), user("x"), say("b"), user("bye")]))) == "b"
    assert answer_text(convert(row([call()]))) == ""
    # An answer in the input is not the policy's.
    assert answer_text(convert(row([user("hello?")], [user(), say("old")]))) == ""


# Prompt identity.


def test_equal_prompts_have_equal_bytes() -> None:
    one = row([say("4")], "q", tools=[], metadata={"extra_body": '{"seed": 0}'}, temperature=1.0)
    other = row([say("5")], "q", tools=None, instructions="", metadata={"extra_body": '{"seed": 1}'})
    assert canonical_prompt(one) == canonical_prompt(other) == b'{"input":"q","instructions":null,"tools":null}'
    shuffled = [dict(reversed(user("q").items()))]
    assert canonical_prompt(row([], [user("q")])) == canonical_prompt(row([], shuffled))


def test_different_prompts_have_different_bytes() -> None:
    rows = [
        row([], "q"),
        row([], [user("q")]),
        row([], "q", instructions="s"),
        row([], "q", tools=[ADD]),
        row([], "q", tools=[deep(300)]),
        row([], "q", tools=[deep(301)]),
        row([], "q", tools=[deep(300), 2**70]),
        row([], "q", tools=[deep(300), "2"]),
        row([], "q\ud800"),
    ]
    assert len({canonical_prompt(made) for made in rows}) == len(rows)


# Whatever comes in.

# What orjson can read: no NaN, no lone surrogates.
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
)
words = st.sampled_from(
    [
        "message",
        "reasoning",
        "function_call",
        "function_call_output",
        "user",
        "assistant",
        "tool",
        "system",
        "A",
        "{}",
        "output_text",
        "input_text",
        "input_image",
        "refusal",
        "summary_text",
        "function",
        "web_search_call",
        "developer",
    ]
)
keys = st.sampled_from(
    [
        "type",
        "role",
        "content",
        "text",
        "call_id",
        "name",
        "arguments",
        "output",
        "summary",
        "refusal",
        "tool_calls",
        "id",
        "function",
        "parameters",
        "image_url",
        "tool_call_id",
        "encrypted_content",
        "annotations",
        "detail",
    ]
)
values = st.recursive(
    scalars | words, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5), max_leaves=12
)
fuzzed_items = st.lists(st.dictionaries(keys, values | words, max_size=6) | values, max_size=5)
fuzzed_rows = st.fixed_dictionaries(
    {
        "responses_create_params": st.fixed_dictionaries(
            {"input": fuzzed_items | values},
            optional={"instructions": values, "tools": fuzzed_items, "metadata": values},
        )
        | values,
        "response": st.fixed_dictionaries({"output": fuzzed_items | st.lists(fuzzed_items, max_size=3)}) | values,
    }
)


def assert_sound(conversation: Conversation) -> None:
    """What every exporter and chat template may rely on."""
    messages = conversation.messages
    orjson.dumps([messages, conversation.tools])
    render(conversation)
    awaited: set[str] = set()
    seen: set[str] = set()
    for index, message in enumerate(messages):
        assert None not in message.values()
        assert message["role"] in {"system", "user", "assistant", "tool", "developer"}
        assert isinstance(message["content"], str) or message["role"] == "user"
        if message["role"] == "tool":
            assert message["tool_call_id"] in awaited
            awaited.remove(message["tool_call_id"])
        else:
            assert not awaited, "a call without its result"
        if message["role"] == "assistant":
            assert message["content"] or "tool_calls" in message or "reasoning_content" in message
            assert index == 0 or messages[index - 1]["role"] != "assistant"
        for made in message.get("tool_calls", []):
            assert isinstance(made["function"]["arguments"], dict)
            assert made["id"] not in seen
            seen.add(made["id"])
            awaited.add(made["id"])
    assert not awaited or messages[-1]["role"] == "assistant"
    assert 1 <= conversation.prompt_length <= len(messages)
    if conversation.prompt_length < len(messages):
        assert messages[conversation.prompt_length]["role"] == "assistant"


def assert_total(made: dict[str, Any]) -> bool:
    """No exception but ours, the row as it was, and soundness if it is kept."""
    before = canonical_prompt({"responses_create_params": {"input": made}})
    canonical_prompt(made)
    try:
        conversation = convert(made)
    except Unrepresentable as problem:
        assert isinstance(problem.reason, DropReason) and len(problem.detail) < 300
        return False
    assert canonical_prompt({"responses_create_params": {"input": made}}) == before
    assert_sound(conversation)
    return True


@settings(max_examples=400)
@given(fuzzed_rows)
def test_any_object_is_kept_or_has_a_reason(made: dict[str, Any]) -> None:
    assert_total(made)


RICH = row(
    [
        think("w"),
        say("hm"),
        call("A"),
        call("B"),
        result("A"),
        result("B", [{"type": "input_text", "text": "5"}]),
        say("<think>x</think>4"),
        user("more?"),
        think("x", content=[{"type": "reasoning_text", "text": "y"}]),
        refuse(),
    ],
    [
        user("dev", role="developer"),
        user([{"type": "input_text", "text": "q"}]),
        say("old"),
        user("q2"),
        {"role": "assistant", "content": "", "tool_calls": [{"id": "Z", "function": {"name": "f", "arguments": {}}}]},
        {"role": "tool", "tool_call_id": "Z", "content": "z"},
        user([{"type": "input_image", "image_url": "data:x"}]),
    ],
    instructions="s",
    tools=[ADD],
    metadata={"extra_body": "{}"},
)
JUNK: list[Any] = [None, True, 0, -1.5, "", "x", [], {}, [[]], [None], {"type": "x"}, {"a": 1}, deep(220), "[" * 2000]


def mutate(value: Any, chance: random.Random) -> None:
    """One random change somewhere in a JSON value: delete, replace, duplicate, move, wrap."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        node = stack.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                stack.append(node[key])
    node, key = chance.choice(places)
    kind = chance.randrange(6)
    if kind == 0:
        del node[key]
    elif kind == 1:
        node[key] = copy.deepcopy(chance.choice(JUNK))
    elif kind == 2:
        node[key] = [node[key]]
    elif kind == 3 and isinstance(node, list):
        node.insert(chance.randrange(len(node) + 1), copy.deepcopy(node[key]))
    elif kind == 4 and isinstance(node, list):
        chance.shuffle(node)
    else:
        other, place = chance.choice(places)
        if place in other if isinstance(other, dict) else place < len(other):
            # Python's own recursion limit stands in the way of copying what is copied into itself many times.
            with contextlib.suppress(RecursionError):
                node[key] = copy.deepcopy(other[place])


def test_mutated_rows_are_kept_or_have_a_reason() -> None:
    chance = random.Random(7)
    assert assert_total(copy.deepcopy(RICH))
    kept = 0
    for _ in range(1500):
        made = copy.deepcopy(RICH)
        for _ in range(chance.choice([1, 1, 2, 5])):
            mutate(made, chance)
        kept += assert_total(made)
    assert 100 < kept < 1400  # both ways are walked


@st.composite
def turns(draw: st.DrawFn) -> tuple[list[Any], list[str]]:
    """Items of a well-formed output, each text a word of its own, and these words in order."""
    items: list[Any] = []
    said: list[str] = []

    def word() -> str:
        said.append(f"w{len(said)};")
        return said[-1]

    for turn in range(draw(st.integers(1, 4))):
        if turn:
            items.append(user(word()))
        for step in range(draw(st.integers(0, 2))):
            if draw(st.booleans()):
                items.append(think(word()))
            if draw(st.booleans()):
                items.append(say(word()))
            ids = [f"{turn}.{step}.{n}" for n in range(draw(st.integers(1, 3)))]
            items += [call(call_id, arguments=orjson.dumps({"x": word()}).decode()) for call_id in ids]
            items += [result(call_id, word()) for call_id in ids]
        items.append(say(word()))
    return items, said


@settings(max_examples=100)
@given(turns())
def test_nothing_said_is_lost_or_moved(made: tuple[list[Any], list[str]]) -> None:
    items, said = made
    conversation = convert(row(items, tools=[ADD]))
    assert_sound(conversation)
    assert conversation.lost == {}
    text = render(conversation)
    places = [text.index(word) for word in said]
    assert places == sorted(places)
    assert all(text.count(word) == 1 for word in said)


# Real rows.

# File → reasons that convert gives, and reasons that require_trainable gives; every other row is kept and trainable.
REAL: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "asr_with_pc.jsonl": ({"unsupported_content": 5}, {}),
    "aviary.jsonl": ({}, {"not_ending_with_assistant": 1}),
    "bbq.jsonl": ({"no_response": 5}, {}),
    "finance_agent_v2.jsonl": ({}, {"not_ending_with_assistant": 5}),
    "finance_sec_search.jsonl": ({}, {"not_ending_with_assistant": 5}),
    "gdpval.jsonl": ({"missing_tool_output": 3}, {}),
    "genrm_compare.jsonl": ({"no_response": 5}, {}),
    "grl_sokoban.jsonl": ({}, {"not_ending_with_assistant": 4}),
    "ruler.jsonl": ({}, {"empty_answer": 5}),
    "speed_bench.jsonl": ({"ambiguous_turn": 2}, {}),
    "swebench.jsonl": ({"empty_output": 5}, {}),
    "toolsandbox.jsonl": ({"empty_output": 5}, {}),
}
SIDECARS = ("_materialized_inputs", "_failures", "_reward_profiling")


def real_files() -> list[Path]:
    return [path for path in sorted(ROLLOUTS.rglob("*.jsonl")) if not path.stem.endswith(SIDECARS)]


def real_rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError:
            assert path.name == "tavily_search.jsonl"
    return rows


needs_rollouts = pytest.mark.skipif(not ROLLOUTS.is_dir(), reason="no ../shared/rollouts")


@needs_rollouts
@pytest.mark.parametrize("path", real_files(), ids=lambda path: str(path.relative_to(ROLLOUTS)))
def test_real_rows(path: Path) -> None:
    dropped: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for made in real_rows(path):
        try:
            conversation = convert(made)
        except Unrepresentable as problem:
            dropped[problem.reason] += 1
            continue
        assert_sound(conversation)
        assert_nothing_lost(made, conversation)
        try:
            require_trainable(conversation)
        except Unrepresentable as problem:
            refused[problem.reason] += 1
    assert (dropped, refused) == REAL.get(path.name, ({}, {}))


def assert_nothing_lost(made: dict[str, Any], conversation: Conversation) -> None:
    """Each text, result, call and thought of a real row stands in the messages, letter for letter."""
    output = made["response"]["output"]
    output = output[-1] if isinstance(output[0], list) else output
    prompt = made["responses_create_params"]["input"]
    items = [*(prompt if isinstance(prompt, list) else [user(prompt)]), *output]
    joined = "\0".join(texts_of(conversation.messages))
    for item in items:
        content = item.get("content") or []
        for part in content if isinstance(content, list) else [{"text": content}]:
            assert part.get("text", "") in joined
        for part in item.get("summary") or []:
            assert part["text"] in joined
        if item.get("type") == "function_call_output":
            assert item["output"] in joined
    made_calls = [call for message in conversation.messages for call in message.get("tool_calls", [])]
    calls = [item for item in items if item.get("type") == "function_call"]
    assert [(c["id"], c["function"]["name"]) for c in made_calls] == [(i["call_id"], i["name"]) for i in calls]
    assert [c["function"]["arguments"] for c in made_calls] == [orjson.loads(i["arguments"]) for i in calls]


def texts_of(messages: list[dict[str, Any]]) -> list[str]:
    texts = []
    for message in messages:
        content = message["content"]
        texts += [content] if isinstance(content, str) else [part.get("text", "") for part in content]
        texts.append(message.get("reasoning_content", ""))
    return texts


@needs_rollouts
def test_mutated_real_rows() -> None:
    chance = random.Random(11)
    for path in real_files():
        small = [made for made in real_rows(path) if len(orjson.dumps(made)) < 40_000]
        for made in chance.sample(small, min(3, len(small))):
            for _ in range(12):
                changed = copy.deepcopy(made)
                for _ in range(chance.choice([1, 2, 6])):
                    mutate(changed, chance)
                assert_total(changed)


@needs_rollouts
def test_real_token_records() -> None:
    for made in real_rows(ROLLOUTS / "live" / "tool" / "rollouts.jsonl"):
        conversation = convert(made)
        answers = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        assert [call.message for call in conversation.model_calls] == answers
        assert all(call.prompt_token_ids and call.generation_token_ids for call in conversation.model_calls)


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row["responses_create_params"].update(input="\ud800"),
        lambda row: row["response"]["output"][0]["content"][0].update(text="a\udfff"),
        lambda row: row["response"]["output"].insert(0, {"type": "reasoning", "summary": [{"text": "\ud800"}]}),
        lambda row: row["response"]["output"].append(
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": ["\ud800"]}}
        ),
        lambda row: row["response"]["output"].append(
            {"type": "function_call", "call_id": "\ud800", "name": "f", "arguments": "{}"}
        ),
    ],
)
def test_half_a_surrogate_pair_has_no_chat_form(change: Any) -> None:
    """Python's json writes it and UTF-8 does not hold it: the row is refused here and not in some writer."""
    value = rollout()
    change(value)
    with pytest.raises(Unrepresentable) as caught:
        convert(value)
    assert caught.value.reason is DropReason.MALFORMED_ITEM
