"""Tokens: exact counts, cuts at turns only, what carries loss, and what a template does without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gristmill.dataset.tokens import Counting, counting, tokenizer_identity
from gristmill.errors import UsageError
from gristmill.example import Labelled, Preference, Sft, Tokens
from gristmill.items import Unrepresentable
from tests.rows import rollout
from tests.test_dataset import EVERYTHING, dataset, lines, multi_turn

USER = {"role": "user", "content": "hello there"}
ANSWERS = [{"role": "assistant", "content": word * 5} for word in ("one ", "two ", "three ")]
TALK = [ANSWERS[0], USER, ANSWERS[1], USER, ANSWERS[2]]
META: dict[str, Any] = {}

# Shows everything that a conversation can hold, in one line.
FULL = (
    "{% for tool in tools or [] %}<tool>{{ tool.function.name }}: {{ tool.function.description }}</tool>{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "<call>{{ c.function.name }} {{ c.function.arguments | tojson }}</call>{% endfor %}"
    "</assistant>{% endgeneration %}{% else %}{{ m.content }}</{{ m.role }}>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tiny() -> Counting:
    return counting("tiny-random")


def with_template(template: str) -> Counting:
    from gristmill.dataset.tokens import load_tokenizer

    tokenizer = load_tokenizer("tiny-random")
    tokenizer.chat_template = template
    return Counting(tokenizer)


def test_counts_are_those_of_the_tokenizer_itself(tiny: Counting) -> None:
    whole = tiny.tokenizer.apply_chat_template([USER, *TALK], tokenize=True)["input_ids"]
    assert tiny.size(Sft([USER], TALK, [], META)) == len(whole)
    long, short = [ANSWERS[2]], [ANSWERS[0]]
    both = [tiny.count([USER, *side], []) for side in (long, short)]
    assert tiny.size(Preference([USER], short, long, [], 1.0, META)) == max(both)
    assert tiny.size(Labelled([USER], short, [], True, META)) == both[1]
    assert tiny.size(Tokens([1, 2, 3], [-100, 2, 3], META)) == 3


def test_a_cut_is_the_longest_beginning_that_ends_with_an_assistant(tiny: Counting) -> None:
    example = Sft([USER], TALK, [], META)
    sizes = [tiny.size(Sft([USER], TALK[:end], [], META)) for end in (1, 3, 5)]
    for most, kept in ((sizes[0] - 1, None), (sizes[0], 1), (sizes[1] - 1, 1), (sizes[1], 3), (sizes[2], 5)):
        cut = tiny.cut(example, most)
        assert (cut and (len(cut[0].completion), cut[1])) == (kept and (kept, sizes[(1, 3, 5).index(kept)]))


def test_over_length_rows_are_dropped_or_cut_and_counted(tmp_path: Path, tiny: Counting) -> None:
    long = rollout("word " * 100, task=0)
    again = {"role": "user", "content": "and?", "type": "message"}
    two = rollout(task=1, output=[say("short"), again, say("word " * 100)])
    rows = [long, two, rollout("fine", task=2)]
    options: dict[str, Any] = {"tokenizer": "tiny-random", "max_tokens": 400}
    dropped = dataset(tmp_path / "drop", rows, **options)
    assert dropped["dropped"] == {"over_length": 2} and dropped["tokens"]["count"] == 1
    cut = dataset(tmp_path / "cut", rows, **options, over_length="cut")
    assert cut["dropped"] == {"over_length": 1} and cut["notes"] == {"cut_to_length": 1}
    assert [line["completion"][-1]["content"] for line in lines(tmp_path / "cut")] == ["short", "fine"]
    assert cut["tokens"]["max"] <= 400


def say(text: str) -> dict[str, Any]:
    return {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": text}]}


def test_what_carries_loss_is_marked() -> None:
    full = with_template(FULL)
    ((_, pieces),) = full.pieces(Sft([USER], TALK[:3], [], META))
    assert [piece.text for piece in pieces if piece.trained] == [f"{m['content']}</assistant>" for m in ANSWERS[:2]]
    assert "".join(piece.text for piece in pieces) == full.render([USER, *TALK[:3]], [])
    (_, chosen), (_, rejected) = full.pieces(Preference([USER], [ANSWERS[0]], [ANSWERS[1]], [], 1.0, META))
    assert chosen[1].trained and chosen[1].text.startswith("one ") and rejected[1].text.startswith("two ")
    ((_, tokens),) = full.pieces(Tokens(full.ids("abc"), [-100, -100, full.ids("abc")[-1]], META))
    assert [(piece.text, piece.trained) for piece in tokens] == [("ab", False), ("c", True)]


def test_earlier_turns_of_the_prompt_carry_none() -> None:
    ((_, pieces),) = with_template(FULL).pieces(Sft([USER, ANSWERS[0], USER], [ANSWERS[1]], [], META))
    assert [piece.text for piece in pieces if piece.trained] == [f"{ANSWERS[1]['content']}</assistant>"]


def test_a_template_that_shows_everything_has_no_trap() -> None:
    assert with_template(FULL).traps() == []


@pytest.mark.parametrize(
    ("template", "trap"),
    [
        (
            FULL.replace("{% for m in messages %}", "{% for m in messages if m.role != 'developer' %}"),
            "developer_dropped",
        ),
        (FULL.replace("{{ tool.function.description }}", ""), "tools_not_rendered"),
        (FULL.replace("{{ c.function.arguments | tojson }}", ""), "calls_not_rendered"),
        (FULL.replace("arguments | tojson", "arguments | tojson | tojson"), "arguments_double_encoded"),
        (FULL.replace("{{ m.content }}</{{", "</{{"), "results_not_rendered"),
        (FULL.replace("{{ m.reasoning_content }}", ""), "reasoning_dropped"),
        (FULL.replace("m.content or ''", "m.content + ''"), "content_null"),
        (FULL.replace("{% generation %}", "").replace("{% endgeneration %}", ""), "generation_markers_missing"),
        ("{{ messages | length }}" + FULL, "not_prefix_preserving"),
        (
            FULL.replace("<{{ m.role }}>", "{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"),
            "tools_refused",
        ),
    ],
)
def test_every_trap(template: str, trap: str) -> None:
    assert trap in {one.id for one in with_template(template).traps()}


def test_a_template_that_refuses_is_a_reason_to_drop() -> None:
    with pytest.raises(Unrepresentable, match="template_refused: no"):
        with_template("{{ raise_exception('no') }}").count([USER], [])


def test_the_export_shows_rows_as_they_are_trained_on(tmp_path: Path) -> None:
    counts = dataset(tmp_path, [multi_turn(0, "warm", 1.0)], tokenizer="tiny-random")
    sample = (tmp_path / "export" / "sample.txt").read_text()
    assert "⟦warm<|im_end|>⟧" in sample and "row 0" in sample
    assert "calls_not_rendered" in counts["tokens"]["traps"]


def test_tokenizers_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="neither smollm2-135m nor tiny-random nor a folder"):
        counting(str(tmp_path))
    with pytest.raises(UsageError, match="neither smollm2-135m"):
        tokenizer_identity("nope")
    assert EVERYTHING.min_reward is None and len(tokenizer_identity("tiny-random")) == 64
