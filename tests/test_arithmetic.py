"""The embedded environment: disjoint splits, determinism, and a verifier that cannot be talked round."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import arithmetic
from gristmill.errors import UsageError
from gristmill.identity import canonical


def _problems(tasks: list[dict]) -> set[tuple]:
    """Content of each task, with commuting operands in one order."""
    found = set()
    for task in tasks:
        numbers = [word.strip("?,") for word in task["question"].split() if word.strip("?,").isdigit()]
        commutes = task["task_type"] != "subtraction"
        found.add((task["task_type"], *(sorted(numbers) if commutes else numbers)))
    return found


def _reward(task: dict, text: str) -> float:
    answer = arithmetic.response(text, model="m", prompt_tokens=1, completion_tokens=1, truncated=False)
    return arithmetic.verify(task, answer)["reward"]


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 1), st.integers(0, 1))
def test_train_and_heldout_share_no_problem(seed, other, turn, heldout_turn):
    train = _problems(arithmetic.make_tasks(100, seed, "train", turn))
    assert not train & _problems(arithmetic.make_tasks(40, other, "heldout", heldout_turn))


@settings(max_examples=20)
@given(st.integers(0, 10**9), st.integers(1, 120))
def test_tasks_of_a_call_are_distinct_and_turns_are_disjoint(seed, count):
    turns = [_problems(arithmetic.make_tasks(count, seed, "train", turn)) for turn in range(3)]
    assert [len(problems) for problems in turns] == [count] * 3
    assert len(set.union(*turns)) == 3 * count


def test_tasks_are_the_same_in_every_process():
    # Would fail with Python's hash(), which is salted per process.
    script = (
        "from gristmill import arithmetic, identity;print(identity.digest(arithmetic.make_tasks(40, 7, 'train', 1)))"
    )
    runs = {subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


def test_every_expected_answer_is_right():
    for task in arithmetic.make_tasks(400, 3, "train"):
        a, b = (int(word.strip("?,")) for word in task["question"].split() if word.strip("?,").isdigit())
        right = {"addition": a + b, "subtraction": a - b, "multiplication": a * b}
        assert int(task["expected_answer"]) == right[task["task_type"]]


def test_there_are_enough_tasks_for_four_turns_and_a_sharp_evaluation():
    assert len(_problems(arithmetic.make_tasks(420, 0, "heldout"))) == 420
    assert len(_problems(arithmetic.make_tasks(600, 0, "train"))) == 600
    for family in arithmetic.FAMILIES:
        keys = [problem.key for problem in family.problems()]
        assert len(set(keys)) == len(keys)
        assert family.example[0] not in {problem.question for problem in family.problems()}


def test_too_many_tasks_is_a_usage_error():
    with pytest.raises(UsageError, match="lower the number"):
        arithmetic.make_tasks(5000, 0, "train")
    with pytest.raises(UsageError, match="at least 0"):
        arithmetic.make_tasks(-1, 0, "train")


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("14 + 15 = 29.", 1.0),
        ("29", 1.0),
        ("The answer is 29, as you can see.", 1.0),
        ("029", 1.0),
        ("", 0.0),
        ("twenty-nine", 0.0),
        ("29.5", 0.0),
        ("2,9", 0.0),
        ("-29", 0.0),
        ("29 or 30", 0.0),
        # Lists of guesses must not score, wherever the right one stands.
        (" ".join(map(str, range(20, 30))), 0.0),
        ("27 28 30 29", 0.0),
        ("9" * 5000, 0.0),
        ("²⁹", 0.0),
        ("٢٩", 0.0),  # other digits than ASCII are no answer
        ("29" + " " * 3000, 0.0),
    ],
)
def test_what_counts_as_the_answer(text, reward):
    assert _reward({"expected_answer": "29", "task_type": "addition"}, text) == reward


@given(st.text(max_size=300))
def test_verify_takes_any_text(text):
    task = {"expected_answer": "29", "task_type": "addition"}
    assert _reward(task, text) in (0.0, 1.0)


@pytest.mark.parametrize(
    "output", [None, [], [None], [{"type": "message", "role": "assistant", "content": None}], [{}]]
)
def test_verify_takes_malformed_responses(output):
    verdict = arithmetic.verify({"expected_answer": "29", "task_type": "addition"}, {"output": output})
    assert verdict["reward"] == 0.0 and verdict["extracted_answer"] is None


def test_a_question_in_the_output_does_not_answer():
    # Only assistant messages count: an echoed user message with the number in it must not score.
    echoed = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "29"}]}
    assert arithmetic.verify({"expected_answer": "29", "task_type": "addition"}, {"output": [echoed]})["reward"] == 0.0


def test_responses_are_reproducible_and_tell_truncation():
    first, again, cut = (
        arithmetic.response("29", model="m", prompt_tokens=9, completion_tokens=3, truncated=truncated)
        for truncated in (False, False, True)
    )
    assert canonical(first) == canonical(again)
    assert first["id"] != cut["id"]
    assert first["incomplete_details"] is None
    assert cut["incomplete_details"] == {"reason": "max_output_tokens"}
    assert cut["usage"]["total_tokens"] == 12
