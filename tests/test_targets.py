"""Targets: rows as each framework wants them, launch files word by word, and what no format may lose silently.

Golden files are under tests/golden/targets; with GRISTMILL_GOLDEN=write this test writes them anew: read the diff.
The frameworks' own loaders read the same exports in tests/test_targets_trl.py and tests/live/test_frameworks.py.
"""

from __future__ import annotations

import json
import os
import runpy
from pathlib import Path
from typing import Any, get_args

import orjson
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gristmill import targets
from gristmill.chat import Unrepresentable
from gristmill.errors import UsageError
from gristmill.example import Example, Method, Preference, Sft
from gristmill.reasons import DropReason
from gristmill.targets import BUILT_IN, Launch, Target
from gristmill.targets.protocol import LEARNING_RATES
from tests import conversations as talk

GOLDEN = Path(__file__).parent / "golden" / "targets"
WRITE = os.environ.get("GRISTMILL_GOLDEN") == "write"
METHODS = get_args(Method)
COMBINATIONS = [(name, method) for name in BUILT_IN for method in METHODS if method in targets.get(name).methods]


def readable(path: Path) -> bytes:
    """A file as golden text: Parquet as its schema and a row a line."""
    if path.suffix != ".parquet":
        return path.read_bytes()
    table = pq.read_table(path)
    fields = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
    rows = [orjson.dumps(row) for row in table.to_pylist()]
    return b"\n".join([fields.encode(), *rows]) + b"\n"


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_an_export_is_as_it_was_agreed(tmp_path: Path, name: str, method: Method) -> None:
    talk.export(targets.get(name), method, tmp_path)
    golden = GOLDEN / f"{name}-{method}"
    found = {path.name: readable(path) for path in tmp_path.iterdir() if "validation" not in path.name}
    if WRITE:
        golden.mkdir(parents=True, exist_ok=True)
        for path in golden.iterdir():
            path.unlink()
        for file, content in found.items():
            (golden / f"{file}.golden").write_bytes(content)
    assert found == {path.name.removesuffix(".golden"): path.read_bytes() for path in golden.iterdir()}


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_equal_examples_give_equal_bytes_and_no_path(tmp_path: Path, name: str, method: Method) -> None:
    for folder in ("one", "two"):
        talk.export(targets.get(name), method, tmp_path / folder)
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in ("one", "two"))
    assert one == two
    assert not any(str(tmp_path).encode() in content for content in one.values())


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
def test_nothing_is_null_that_was_not(tmp_path: Path, name: str, method: Method) -> None:
    """The only null in the corpus is a seat; a format that unifies keys would make many."""
    export, kept, _ = talk.export(targets.get(name), method, tmp_path)
    written = b"".join(readable(tmp_path / file) for file in export.train).replace(b"\\", b"")
    seats = sum(str(example).count("'seat': None") for example in kept)
    assert written.count(b"null") == seats == written.count(b'"seat":null')


def refused(name: str, example: Example) -> str | None:
    try:
        targets.get(name).row(example)
    except Unrepresentable as problem:
        return str(problem.reason)
    return None


@pytest.mark.parametrize(
    ("example", "refusing"),
    [
        (talk.PLAIN, []),
        (talk.WITH_TOOLS, []),
        (talk.TEXT_AND_CALL, []),
        (talk.REASONING, []),
        (talk.PARALLEL, ["nemo-rl"]),
        (talk.ANSWERED_BEFORE, ["llamafactory", "nemo-rl", "openrlhf", "unsloth"]),
        (talk.TOKENS[0], ["llamafactory", "nemo-rl", "openrlhf"]),
        (talk.PAIRS[3], ["axolotl", "llamafactory", "nemo-rl", "openrlhf", "trl", "trl-jsonl", "unsloth"]),
    ],
)
def test_what_a_format_cannot_hold_is_refused_for_that_reason(example: Example, refusing: list[str]) -> None:
    method = "dpo" if isinstance(example, Preference) else "sft"
    names = [name for name, its in COMBINATIONS if its == method]
    assert [name for name in names if refused(name, example) == DropReason.TARGET_FORMAT] == refusing
    assert {refused(name, example) for name in names} <= {None, DropReason.TARGET_FORMAT}


@pytest.mark.parametrize("name", [name for name, method in COMBINATIONS if method == "sft"])
def test_images_have_no_column_anywhere(name: str) -> None:
    assert refused(name, talk.IMAGE) == DropReason.UNSUPPORTED_CONTENT


def test_llamafactory_refuses_what_its_loader_would_skip_or_misread() -> None:
    twice = Sft([talk.user("a"), talk.user("b")], [talk.said("LEARN c")], [], {})
    late = Sft([talk.user("a"), talk.system("b")], [talk.said("LEARN c")], [], {})
    tagged = Sft([talk.user("a")], [talk.calls(("book", {"note": "<tool_call>"}))], [talk.BOOK], {})
    for example in (twice, late, tagged):
        assert refused("llamafactory", example) == DropReason.TARGET_FORMAT
    assert refused("llamafactory", Sft([talk.user("a")], [talk.said("<tool_call> is a tag")], [], {})) is None


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
@pytest.mark.parametrize("plain", [True, False], ids=["no validation, all weights", "named modules"])
def test_launch_files_are_valid_in_every_setting(tmp_path: Path, name: str, method: Method, plain: bool) -> None:
    launch = Launch(lora_rank=0) if plain else Launch(lora_targets=("q_proj", "v_proj"), epochs=1.5)
    talk.export(targets.get(name), method, tmp_path, launch=launch, validation=not plain)
    for path in tmp_path.glob("*.yaml"):
        values = yaml.safe_load(path.read_text())
        assert isinstance(values, dict), path
        assert not [value for value in leaves(values) if isinstance(value, str) and value.startswith("1e-")]
    for path in tmp_path.glob("*.py"):
        compile(path.read_text(), str(path), "exec")
    for path in tmp_path.glob("*.sh"):
        assert os.system(f"bash -n {path}") == 0


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for inner in value.values() for leaf in leaves(inner)]
    return [leaf for inner in value for leaf in leaves(inner)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_without_a_learning_rate_gets_the_methods_own(method: Method) -> None:
    assert Launch(lora_rank=0).rate(method) == LEARNING_RATES[method]["full"]
    assert Launch(lora_rank=8).rate(method) == LEARNING_RATES[method]["lora"]
    assert Launch(learning_rate=0.5).rate(method) == 0.5


text = st.text(max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(text, values, max_size=3)


PLAIN_ROWS = [targets.get(name) for name in ("trl", "trl-jsonl", "verl", "axolotl", "nemo-rl", "unsloth", "openrlhf")]
LLAMAFACTORY = targets.get("llamafactory")


@given(question=text, answer=text, wanted=arguments, output=text)
def test_texts_and_arguments_survive_every_format(question: str, answer: str, wanted: Any, output: str) -> None:
    """Read back from each row's own encoding, they are equal, whatever characters or nesting they have."""
    call = talk.calls(("book", wanted))
    prompt = [{"role": "user", "content": question}]
    completion = [call, {**talk.result(call, ""), "content": output}, talk.said(answer)]
    for target in PLAIN_ROWS:
        row = target.row(Sft(prompt, completion, [], {}))
        whole = orjson.loads(row) if isinstance(row, bytes) else row
        found = [message for column in ("prompt", "completion", "messages") for message in decoded(whole.get(column))]
        if target.name == "axolotl":
            function = found[1]["tool_calls"][0]["function"]
            function["arguments"] = orjson.loads(function["arguments"])
        assert found == prompt + completion, target.name


def decoded(column: Any) -> list[Any]:
    """Messages of a row, which may be JSON as a whole or one by one."""
    held = orjson.loads(column) if isinstance(column, bytes) else column or []
    return [orjson.loads(message) if isinstance(message, bytes) else message for message in held]


@given(wanted=arguments, answer=st.text(min_size=1, max_size=20), before=text)
def test_llamafactorys_calls_hold_exact_arguments(wanted: Any, answer: str, before: str) -> None:
    call = talk.calls(("book", wanted), text=before)
    example = Sft([talk.user("q")], [call, talk.result(call, "x"), talk.said(answer)], [talk.BOOK], {})
    try:
        turns = orjson.loads(LLAMAFACTORY.row(example))["conversations"]
    except Unrepresentable:
        assert "tool_call>" in str(example)
        return
    value = turns[1]["value"]
    found, _, rest = value.rpartition("\n<tool_call>") if before else ("", "", value)
    assert found == before
    assert orjson.loads(rest.removesuffix("</tool_call>")) == [{"name": "book", "arguments": wanted}]
    assert turns[-1]["value"] == answer


def test_an_unknown_target_names_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no target is called 'verll'; did you mean 'verl'\? there are: axolotl, gym"):
        targets.get("verll")


def test_entry_points_declare_what_the_source_tree_has() -> None:
    import tomllib

    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert declared["project"]["entry-points"][targets.GROUP] == BUILT_IN


def test_another_package_adds_a_target_by_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gristmill.targets]\ntheirs = theirs_target:TARGET\n"
        "broken = theirs_target:NO_TARGET\ntrl = theirs_target:TARGET\n"
    )
    (tmp_path / "theirs_target.py").write_text(
        "class Mine:\n"
        "    name, methods, suffix, single_message = 'theirs', frozenset(['sft']), 'jsonl', False\n"
        "    def row(self, example): return b'{}\\n'\n"
        "    def write(self, rows, path): path.write_bytes(b''.join(rows))\n"
        "    def finish(self, export): pass\n"
        "TARGET, NO_TARGET = Mine(), 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in targets.names()
    assert isinstance(targets.get("theirs"), Target)
    with pytest.raises(UsageError, match=r"'broken' .* is a int without"):
        targets.get("broken")
    with pytest.raises(UsageError, match="'trl' is offered more than once"):
        targets.get("trl")


def test_tools_in_the_system_text_are_as_qwens_template_writes_them() -> None:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    from gristmill.targets.fold import fold_tools
    from tests.learned import template

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    # As transformers has it: json.dumps, and no escapes for HTML.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    render = environment.from_string(template("qwen3").read_text()).render
    tools = [talk.WEATHER, talk.BOOK]
    for messages in ([talk.user("q")], [talk.system("Be brief."), talk.user("q")]):
        assert render(messages=fold_tools(messages, tools)) == render(messages=messages, tools=tools)


@pytest.mark.parametrize("name", ["trl", "trl-jsonl"])
def test_the_launch_follows_the_rows(tmp_path: Path, name: str) -> None:
    """Masks within a completion only where there is something to mask, which asks more of the chat template."""
    target = targets.get(name)
    wanted = {"several": [talk.PLAIN, talk.WITH_TOOLS], "single": [talk.PLAIN, talk.REASONING], "ids": talk.TOKENS}
    for case, examples in wanted.items():
        talk.export(target, "sft", tmp_path / case, examples)
        assert ("assistant_only_loss" in (tmp_path / case / "train.py").read_text()) == (case == "several")
    talk.export(target, "kto", tmp_path / "kto")
    program = (tmp_path / "kto" / "train.py").read_text()
    assert "desirable_weight=1.0,  # 3 desirable rows against 1" in program and "undesirable_weight=3.0" in program


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda text: text.replace('{"city"', '"{\\"city\\"'), "is not in what is learned"),
        (lambda text: text.replace("2, ", '2, "city": null, '), "is not in what is learned"),
        (lambda text: text.replace("<|im_end|>LEARN", "<|im_end|>CONTEXT 22 LEARN"), "context carries loss"),
        (lambda text: text.replace("LEARN It is 22 °C.", ""), "is not in what is learned"),
        (lambda text: text + "<|im_start|>user", "loss is on"),
    ],
    ids=["encoded twice", "null filled", "a result is learned", "an answer is not", "runs into the next turn"],
)
def test_the_checks_on_loaders_see_every_fault(fault: Any, complaint: str) -> None:
    from tests.learned import problems, template

    def row(example: Sft) -> dict[str, Any]:
        turns = [
            message["content"]
            + "".join(
                f"<tool_call>{json.dumps(call['function']['arguments'], ensure_ascii=False)}{call['function']['name']}"
                for call in message.get("tool_calls", [])
            )
            + "<|im_end|>"
            for message in example.completion
            if message["role"] == "assistant"
        ]
        whole = "".join(json.dumps(tool, ensure_ascii=False) for tool in example.tools)
        whole += "".join(m["content"] for m in example.prompt + example.completion if m["role"] != "assistant")
        whole += "".join(f"<|im_start|>assistant\n{turn}" for turn in turns)
        return {"": {"learned": "".join(turns), "whole": whole}}

    kept = [talk.WITH_TOOLS, talk.TEXT_AND_CALL]
    rows = [row(example) for example in kept]
    path = template("qwen3")
    assert problems({"rows": rows}, kept, "sft", path) == []
    assert "dropped without a word" in problems({"rows": rows[:1]}, kept, "sft", path)[0]
    broken = [{"": {**made[""], "learned": fault(made[""]["learned"])}} for made in rows]
    assert complaint in " ".join(problems({"rows": broken}, kept, "sft", path))


def test_the_table_of_verified_targets_is_made_from_the_record_of_the_live_tests() -> None:
    docs = Path(__file__).parents[1] / "docs"
    made = runpy.run_path(str(docs / "targets_table.py"))
    entries = json.loads((docs / "targets.json").read_text())
    assert made["table"](entries) in (docs / "targets.md").read_text()
    # NeMo RL's GRPO takes the rows that the target gym is verified with; its config takes a cluster to verify.
    assert {(entry["target"], entry["method"]) for entry in entries} == {*COMBINATIONS} - {("nemo-rl", "rl")}
