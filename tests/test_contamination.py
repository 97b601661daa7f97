"""Leaks between training and evaluation: copies are found, templates are not taken for them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import arithmetic
from gristmill.checks.contamination import Prompt, find_leaks, prompt_text, task_id
from gristmill.checks.evidence import Contamination
from gristmill.checks.words import ngrams, read_words, split_words

TEXT = (
    "Anna keeps bees in the orchard behind the old mill. Each hive holds forty frames, and every frame "
    "gives two jars of honey in a good summer. After the storm a third of the hives were lost. How many jars fit?"
)


def task(text: str, **fields: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": [{"role": "user", "content": text}]}, **fields}


def prompts(rows: list[dict[str, Any]]) -> list[Prompt]:
    return [Prompt(*prompt_text(row), f"train.jsonl:{line}", 1) for line, row in enumerate(rows, 1)]


def leaks(training: list[dict[str, Any]], evaluation: list[dict[str, Any]], **more: Any) -> Contamination:
    return find_leaks(prompts(training), evaluation, threshold=0.7, **more)


def wrapped(row: dict[str, Any]) -> dict[str, Any]:
    other = copy.deepcopy(row)
    message = other["responses_create_params"]["input"][-1]
    message["content"] = f"Please read this with care. {message['content']} Think step by step, then answer."
    return other


def filler(count: int) -> list[dict[str, Any]]:
    return [
        task(f"unrelated matter number {n} about gardens, ships and the weather of year {n * n}") for n in range(count)
    ]


def test_a_copy_is_exact_whatever_its_case_and_punctuation() -> None:
    found = leaks([*filler(20), task(TEXT.upper().replace(".", " !"))], [task(TEXT)])
    (leak,) = found.exact
    assert (leak.exact, leak.share, leak.where) == (True, 1.0, "train.jsonl:21")
    assert leak.task == task_id(TEXT)


def test_a_copy_with_words_around_it_overlaps_and_shows_the_span() -> None:
    training = [*filler(20), wrapped(task(TEXT))]
    texts = {p.where: p.text for p in prompts(training)}
    found = leaks(training, [task(TEXT)], reread=texts.__getitem__)
    assert found.exact == ()
    (leak,) = found.overlapping
    assert leak.share == 1.0
    assert leak.training.startswith("Anna keeps bees in the orchard")
    assert leak.evaluation.startswith("Anna keeps bees in the orchard")


def test_a_part_counts_from_the_threshold_on() -> None:
    words = TEXT.split()
    most, half = " ".join(words[: int(len(words) * 0.8)]), " ".join(words[: len(words) // 2])
    assert leaks([*filler(20), task(most)], [task(TEXT)]).overlapping[0].share == pytest.approx(0.8, abs=0.05)
    assert leaks([*filler(20), task(half)], [task(TEXT)]).overlapping == ()


def test_the_same_question_under_another_system_prompt_is_exact() -> None:
    other = task(TEXT)
    other["responses_create_params"]["instructions"] = "You are a patient teacher who explains every single step."
    assert len(leaks([*filler(20), other], [task(TEXT)]).exact) == 1


@pytest.mark.parametrize(("train", "heldout"), [(96, 64), (96, 4), (6, 4), (300, 90), (600, 400)])
def test_tasks_of_one_template_do_not_leak_into_each_other(train: int, heldout: int) -> None:
    training = arithmetic.make_tasks(train, 0, "train")
    evaluation = arithmetic.make_tasks(heldout, 0, "heldout")
    found = leaks(training, evaluation)
    assert (found.exact, found.overlapping) == ((), ())
    assert (found.prompts, found.tasks) == (train, heldout)


def test_copies_among_tasks_of_one_template_do() -> None:
    evaluation = arithmetic.make_tasks(64, 0, "heldout")
    training = arithmetic.make_tasks(96, 0, "train")
    found = leaks([*training, *evaluation[:3], wrapped(evaluation[5])], evaluation)
    assert len(found.exact) == 3
    assert {leak.task for leak in found.exact} == {task_id(prompt_text(row)[0]) for row in evaluation[:3]}


def test_real_tasks_of_many_templates(shared: Path) -> None:
    lines = (shared / "live" / "rg" / "rollouts_materialized_inputs.jsonl").read_bytes().splitlines()
    rows = list({row["_ng_task_index"]: row for row in map(orjson.loads, lines)}.values())
    training, evaluation = rows[::2], rows[1::2]
    found = leaks(training, evaluation)
    assert (found.exact, found.overlapping) == ((), ())
    planted = [wrapped(row) for row in evaluation[:10]]
    assert len(leaks([*training, *planted], evaluation).overlapping) == 10


def test_a_leak_that_is_wrapped_in_many_ways_is_no_template() -> None:
    training = [*filler(60), *(wrapped(task(f"Variant {n}, please. {TEXT} This was number {n}.")) for n in range(40))]
    (leak,) = leaks(training, [task(TEXT)]).overlapping
    assert (leak.share, leak.where) == (1.0, "train.jsonl:61")


def test_the_reviewed_list_takes_leaks_out_and_names_what_it_does_not_know() -> None:
    allowed = {task_id(TEXT): "an example of the format", "feedfeedfeedfeed": "gone"}
    found = leaks([*filler(20), task(TEXT)], [task(TEXT)], allowed=allowed)
    assert (found.exact, found.allowed, found.unknown_allowed) == ((), 1, ("feedfeedfeedfeed",))


def test_a_prompt_that_several_evaluation_tasks_share_identifies_none() -> None:
    generic = "Solve the task that the environment shows you."
    evaluation = [task(generic, answer=1), task(generic, answer=2)]
    found = leaks([*filler(20), task(generic)], evaluation)
    assert (found.exact, found.tasks) == ((), 0)


def test_repeats_of_one_evaluation_task_are_one_task() -> None:
    evaluation = [task(TEXT, answer=1, _ng_task_index=0, _ng_rollout_index=n) for n in range(4)]
    assert leaks(filler(20), evaluation).tasks == 1


def test_empty_sides() -> None:
    assert leaks([], [task(TEXT)]).prompts == 0
    assert leaks([task(TEXT)], []).tasks == 0
    assert leaks([task(TEXT)], [task("")]).tasks == 0


def test_operators_tell_formulas_apart() -> None:
    assert read_words("17 + 25").words != read_words("17 - 25").words
    assert read_words("What, is THIS?").words == read_words("what is this").words
    assert read_words("水が来た").words == list("水が来た")


@given(st.text(max_size=80))
@settings(max_examples=100)
def test_both_ways_to_split_agree_on_what_people_write(text: str) -> None:
    plain = text.encode("latin-1", "ignore").decode("latin-1")
    read = read_words(plain)
    assert read.words == split_words(plain)
    assert [read.span(i, i).casefold() for i in range(len(read.words))] == read.words


words = st.lists(st.sampled_from(["a", "b", "c", "dd", "ä", "7"]), max_size=30)


@given(words, st.integers(1, 5))
@settings(max_examples=50)
def test_equal_ngrams_have_equal_numbers_and_different_ones_differ(sequence: list[str], n: int) -> None:
    grams = [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]
    numbers = ngrams(sequence, n).tolist()
    assert len(numbers) == len(grams)
    assert len(set(numbers)) == len(set(grams))
    assert len({*zip(grams, numbers, strict=True)}) == len(set(grams))


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12, unique=True), st.data())
@settings(max_examples=30)
def test_a_planted_copy_is_always_found_and_nothing_else(numbers: list[int], data: st.DataObject) -> None:
    """Long texts of random words: whichever evaluation task is planted is found, and no other."""
    import random

    def text(n: int) -> str:
        return " ".join(f"w{random.Random(f'{n}/{i}').randrange(500)}" for i in range(40))

    evaluation = [task(text(n)) for n in numbers]
    planted = data.draw(st.sets(st.sampled_from(numbers)))
    training = [task(text(1000 + n)) for n in range(15)] + [wrapped(task(text(n))) for n in sorted(planted)]
    found = leaks(training, evaluation)
    assert {leak.task for leak in found.overlapping} == {task_id(text(n)) for n in planted}
