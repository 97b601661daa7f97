"""Reading one row: each way to be unusable, both ways of decoding, and any bytes at all."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.reasons import DropReason
from gristmill.rollout import Reader, Unreadable, parse
from tests.rows import rollout


def message(text, role="assistant"):
    return {"type": "message", "role": role, "content": [{"type": "output_text", "text": text}]}


def row(**change):
    """A row as NeMo Gym 0.4 writes it; `change` replaces top-level fields, `...` removes one."""
    base = {
        "responses_create_params": {
            "input": [{"role": "user", "content": "2+2?", "type": "message"}],
            "tools": [],
        },
        "response": {
            "id": "r",
            "model": "m",
            "object": "response",
            "output": [message("4")],
            "error": None,
            "incomplete_details": None,
            "usage": {"output_tokens": 3},
        },
        "reward": 1.0,
        "score": 0.5,
        "task_name": "sum",
        "_ng_task_index": 7,
        "_ng_rollout_index": 2,
        "agent_ref": {"type": "responses_api_agents", "name": "a"},
    }
    return {k: v for k, v in (base | change).items() if v is not ...}


def response(**change):
    return row()["response"] | change


def read(value):
    return Reader().read(value if isinstance(value, bytes) else json.dumps(value).encode())


def test_a_plain_row():
    told = read(row())
    assert told.drop_reason is None
    assert (told.agent, told.task_index, told.rollout_index, told.groupable) == ("a", 7, 2, True)
    assert (told.reward, told.model, told.turns, told.tool_calls, told.output_items) == (1.0, "m", 1, 0, 1)
    assert (told.prompt_chars, told.answer_chars, told.output_tokens) == (4, 1, 3)
    assert (told.metrics, told.labels) == ({"score": 0.5}, {"task_name": "sum"})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"<PLACEHOLDER ROW>", "not_json"),
        (b'{"reward": 1', "not_json"),
        (b"\xff\xfe\x00", "not_json"),
        (b'{"a": "\xff"}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"[]", "not_an_object"),
        (b"1", "not_an_object"),
        (row(_ng_failure_class="agent_run_error", reward=0.0), "failure"),
        (row(exception_type="RuntimeError", reward=0.0), "failure"),
        (row(response=...), "no_response"),
        (row(response="text"), "no_response"),
        (row(reward=...), "no_reward"),
        (row(reward=None), "reward_null"),
        (row(reward=math.nan), "reward_not_finite"),
        (row(reward=math.inf), "reward_not_finite"),
        (row(reward=10**400), "reward_not_finite"),
        (row(reward="1.0"), "reward_not_a_number"),
        (row(reward=True), "reward_not_a_number"),
        (row(reward=[1]), "reward_not_a_number"),
        (row(mask_sample=True), "masked"),
        (row(instance_config={"mask_sample": True}), "masked"),
        (row(response=response(error={"code": "server_error"})), "response_error"),
        (row(response=response(output=[])), "empty_output"),
        (row(response=response(output=None)), "empty_output"),
        (row(response=response(output=[[message("a")], []])), "empty_output"),
        (row(response=response(output="text")), "malformed_output"),
        (row(response=response(output=[1])), "malformed_output"),
        (row(response=response(output=[[message("a")], message("b")])), "malformed_output"),
    ],
)
def test_each_reason(value, reason):
    told = read(value)
    assert told.drop_reason == reason
    if told.drop_reason.startswith("reward") or reason == "no_reward":
        assert told.reward is None  # never 0


def test_rewards_outside_0_to_1_and_integers_are_rewards():
    assert [read(row(reward=r)).reward for r in (-100, 19.4, 2, 0)] == [-100.0, 19.4, 2.0, 0.0]


def test_bom_and_carriage_return_are_no_content():
    line = json.dumps(row()).encode()
    assert read(b"\xef\xbb\xbf" + line + b"\r") == read(line)


def test_nan_elsewhere_does_not_cost_the_row():
    told = read(row(score=math.nan))
    assert told.drop_reason is None and told.metrics == {}


def test_what_pythons_json_writes_can_be_parsed_again():
    odd = row(score=math.nan, text="\ud800")
    assert parse(json.dumps(odd).encode())["text"] == "\ud800"
    assert parse(b'{"n": ' + b"9" * 6000 + b"}") == {"n": math.inf}
    with pytest.raises(Unreadable):
        parse(b'{"n": 1} x')


def test_last_of_duplicate_keys_counts():
    assert read(b'{"reward": 1, ' + json.dumps(row(reward=0.25)).encode()[1:]).reward == 0.25


def test_turns_and_calls_follow_the_chat():
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    output = [
        {"type": "reasoning", "summary": []},
        message("let me see"),
        call,
        {**call, "name": "g"},
        {"type": "function_call_output", "call_id": "1", "output": "x" * 500},
        message("4"),
        {"type": "message", "role": "user", "content": "sure?"},
        message("yes"),
    ]
    told = read(row(response=response(output=output)))
    assert (told.turns, told.tool_calls, told.tools_called, told.output_items) == (3, 2, ("f", "g"), 8)
    assert told.answer_chars == len("let me see" + "{}{}" + "4" + "yes")


def test_last_transition_is_the_trajectory():
    whole = [message("task", "user"), message("a"), message("more", "user"), message("b")]
    assert read(row(response=response(output=[whole[:2], whole]))).turns == 2


def test_answer_key_ignores_outer_space_and_ids_only():
    def key(*items):
        return read(row(response=response(output=list(items)))).answer_key

    assert key(message(" 4\n")) == key({**message("4"), "id": "other"})
    assert key(message("4")) != key(message("5"))
    assert key(message("4"), message("x", "user"), message("5")) != key(message("5"))


def test_prompt_key_is_the_same_in_every_version_of_the_row():
    old = {"input": [{"role": "user", "content": "2+2?"}]}
    text = {"input": "2+2?", "metadata": {"extra_body": "seed"}, "instructions": None, "tools": None}
    same = {read(row(responses_create_params=p)).prompt_key for p in (old, text, row()["responses_create_params"])}
    assert len(same) == 1
    assert read(row(responses_create_params={**text, "instructions": "Be brief."})).prompt_key not in same
    assert read(row(responses_create_params={"input": []})).prompt_key is None


def test_rows_without_index_or_without_any_identity_are_ungroupable():
    assert not read(row(_ng_task_index=...)).groupable
    assert read(row(agent_ref=...)).groupable  # index and prompt
    assert not read(row(agent_ref=..., responses_create_params={"input": []})).groupable
    assert not read(row(_ng_task_index=True)).groupable


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def mutated(draw):
    """A row with values replaced by arbitrary ones, anywhere."""
    value = row(mask_sample=False, exception_type=None, reward_components={"a": 1.0}, judge={"x": 1})
    value["response"]["output"] += [{"type": "function_call", "name": "f", "arguments": "{}", "call_id": "c"}]
    for _ in range(draw(st.integers(0, 3))):
        place = value
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            place[key] = draw(json_values)
            break
    return value


@settings(max_examples=300)
@given(mutated())
def test_both_ways_of_decoding_agree(value):
    """The partial structs are a shortcut: a reader that has to parse every line whole says the same."""
    line = json.dumps(value).encode()
    whole = Reader()
    whole._decoder._decode = lambda line: (_ for _ in ()).throw(ValueError)
    learned = Reader()
    assert learned.read(line) == whole.read(line)
    assert learned.read(line) == whole.read(line)  # and once the fields are learned


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(verdict="\ud800"),
        lambda row: row.update({"\ud800": 1.0}),
        lambda row: row["response"]["output"][0].update(content="\ud800"),
        lambda row: row["response"]["output"][0].update(content=["x", {"text": "\ud800"}]),
        lambda row: row["response"].update(model="\ud800"),
        lambda row: row["agent_ref"].update(name="\ud800"),
        lambda row: row["response"]["output"].append(
            {"type": "function_call", "name": "\ud800", "arguments": "\ud800"}
        ),
        lambda row: row["responses_create_params"].update(input="\ud800", instructions="\ud800"),
    ],
)
def test_half_a_surrogate_pair_stops_nothing(change):
    """Python writes it and no file can hold it; found by mutating real rows."""
    value = rollout()
    change(value)
    told = Reader().read(json.dumps(value).encode())
    assert told.drop_reason is None
    texts = (*told.labels, *told.labels.values(), *told.metrics, *told.tools_called, told.model or "", told.agent or "")
    assert "".join(texts).encode() is not None


@settings(max_examples=200)
@given(st.binary(max_size=200) | json_values.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_can_be_read(line):
    """Would fail on any exception; what is kept must also parse."""
    told = Reader().read(line)
    if told.drop_reason not in (DropReason.NOT_JSON, DropReason.NOT_AN_OBJECT):
        assert isinstance(parse(line), dict)


@settings(max_examples=100)
@given(st.data())
def test_real_rows_cut_and_bent_can_be_read(shared, data):
    lines = [line for path in sorted(shared.glob("*.jsonl")) for line in path.read_bytes().splitlines()[:1]]
    line = data.draw(st.sampled_from(lines))
    at = data.draw(st.integers(0, len(line)))
    bent = line[:at] + data.draw(st.binary(max_size=4)) + line[at + data.draw(st.integers(0, 3)) :]
    reader = Reader()
    reader.read(line)
    told = reader.read(bent)
    if told.drop_reason is None:
        assert parse(bent)["response"]["output"]


def test_what_real_files_are_dropped_for(shared):
    expected = {
        "tavily_search": {"not_json": 5},
        "toolsandbox": {"failure": 5},
        "bbq": {"no_response": 5},
        "genrm_compare": {"no_response": 5},
        "swebench": {"empty_output": 5},
        "conversational_tool_use_simulation": {"masked": 2},
    }
    for path in sorted(shared.glob("*.jsonl")):
        reader = Reader()
        found: dict[str, int] = {}
        for line in path.read_bytes().splitlines():
            if (reason := reader.read(line).drop_reason) is not None:
                found[reason] = found.get(reason, 0) + 1
        assert found == expected.get(path.stem, {}), path.name
