"""The embedded environment: procedural arithmetic in NeMo Gym's row format, with a pure verifier.

`make_tasks` gives dataset rows as Gym reads them, `verify` answers as a Gym resources server would, `response` builds
the OpenAI Responses object that a Gym agent would store. All three are pure: equal arguments give equal bytes.

Guarantees: train and held-out tasks share no problem, whatever the seeds and turns, because a hash of the problem
itself decides its split (`3 + 4` and `4 + 3` are one problem); tasks of one call are distinct; calls that differ only
in `turn` share none.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple

from gristmill.errors import UsageError
from gristmill.identity import digest

ENVIRONMENT = "arithmetic"
AGENT = {"type": "responses_api_agents", "name": "arithmetic_agent"}

Split = Literal["train", "heldout"]

_HELDOUT = (2, 5)
"""So many problems of so many are held out."""


class Problem(NamedTuple):
    """`key` is equal for problems that differ only in the order of commuting operands."""

    key: str
    question: str
    answer: int


class Family(NamedTuple):
    """One task type. `example` is a solved problem outside the family's own, shown before each question."""

    name: str
    example: tuple[str, str]
    problems: Callable[[], Iterator[Problem]]


# Larger numbers are harder. Beyond the small ones each family has what is easy though large (one operand is 0, 1 or a
# ten, or both are equal), so that it has 350 problems and more, of which the embedded model solves about a sixth
# before it is trained.


def _addition() -> Iterator[Problem]:
    for a in range(21):
        yield from (_sum(a, b) for b in range(max(a, 5), 61 if a <= 1 else 21))
    yield from (_sum(2, b) for b in range(21, 51))
    yield from (_sum(a, a) for a in range(21, 51))


def _subtraction() -> Iterator[Problem]:
    for difference in range(1, 41):
        for b in range(1, 21 if difference <= 20 else 2):
            yield Problem(f"{difference + b}-{b}", f"What is {difference + b} - {b}?", difference)


def _multiplication() -> Iterator[Problem]:
    for a in range(1, 13):
        for b in (*range(max(a, 5), 26), *range(30, 101, 10)):
            yield _product(a, b)
    yield from (_product(1, b) for b in range(26, 61) if b % 10)
    yield from (_product(b, 20) for b in range(13, 20))


def _sum(a: int, b: int) -> Problem:
    return Problem(f"{a}+{b}", f"What is {a} + {b}?", a + b)


def _product(a: int, b: int) -> Problem:
    return Problem(f"{a}*{b}", f"What is {a} * {b}?", a * b)


FAMILIES = (
    Family("addition", ("What is 1 + 4?", "1 + 4 = 5."), _addition),
    Family("subtraction", ("What is 9 - 9?", "9 - 9 = 0."), _subtraction),
    Family("multiplication", ("What is 2 * 4?", "2 * 4 = 8."), _multiplication),
)


def make_tasks(count: int, seed: int, split: Split, turn: int = 0) -> list[dict[str, Any]]:
    """`count` dataset rows, the families in rotation.

    Turn t takes the t-th run of `count` problems from one order per family that `seed` sets, so that turns with the
    same count and seed share no problem.

    Raises:
        UsageError: a family has not that many problems in the split, for this turn and those before it.
    """
    if count < 0 or turn < 0:
        raise UsageError(f"Arithmetic tasks need count and turn of at least 0, found count={count}, turn={turn}.")
    tasks = []
    # A run is rounded up to whole rotations: every family then starts each turn at the same place of its order.
    each = -(-count // len(FAMILIES))
    orders = [_order(family, seed, split) for family in FAMILIES]
    for i in range(count):
        which = i % len(FAMILIES)
        family, order, at = FAMILIES[which], orders[which], turn * each + i // len(FAMILIES)
        if at >= len(order):
            most = len(FAMILIES) * min(len(order) for order in orders)
            raise UsageError(
                f"Arithmetic has {most} {split} tasks in {len(FAMILIES)} equal families; {count} tasks in turn {turn} "
                f"would need {(turn + 1) * count}: lower the number of tasks or of turns."
            )
        tasks.append(_row(family, order[at], random.Random(f"{seed}/{order[at].key}")))
    return tasks


def verify(task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """Scores a response: reward 1.0 if it states the expected answer and no other, else 0.0.

    What counts is the concatenated output text, of at most 2,000 characters. The answer is the last number
    in it, if that is an integer (ASCII digits, optional minus; `1,234` is 1234). A text with more than three numbers
    (as `14 + 15 = 29` has) has no extracted answer, so that listing guesses does not score.

    Returns:
        `reward`, `extracted_answer` (canonical digits, or None), `expected_answer`, `task_type`.
    """
    expected = str(task["expected_answer"])
    extracted = _extract(_output_text(response))
    return {
        "reward": 1.0 if extracted == expected else 0.0,
        "extracted_answer": extracted,
        "expected_answer": expected,
        "task_type": task["task_type"],
    }


def response(text: str, *, model: str, prompt_tokens: int, completion_tokens: int, truncated: bool) -> dict[str, Any]:
    """An OpenAI Responses object with one assistant message.

    `created_at` is 0 and the ids come from the content, because rollout files are content-addressed: the same
    sampling must give the same bytes, or a rerun would count as new data.
    """
    body = {
        "text": text,
        "model": model,
        "tokens": [prompt_tokens, completion_tokens],
        "truncated": truncated,
    }
    name = digest(body)[:32]
    status = "incomplete" if truncated else "completed"
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if truncated else None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": [
            {
                "type": "message",
                "id": f"msg_{name}",
                "role": "assistant",
                "status": status,
                "content": [{"type": "output_text", "text": text, "annotations": []}],
            }
        ],
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt_tokens + completion_tokens,
        },
    }


@cache
def _split_problems(family: Family, split: Split) -> tuple[Problem, ...]:
    wanted = split == "heldout"
    return tuple(
        problem
        for problem in family.problems()
        if (hashlib.sha256(problem.key.encode()).digest()[0] % _HELDOUT[1] < _HELDOUT[0]) == wanted
    )


def _order(family: Family, seed: int, split: Split) -> list[Problem]:
    problems = list(_split_problems(family, split))
    # Seeded with text: Python hashes other objects with a salt that changes from process to process.
    random.Random(f"{seed}/{family.name}/{split}").shuffle(problems)
    return problems


def _row(family: Family, problem: Problem, rng: random.Random) -> dict[str, Any]:
    question = problem.question
    if family.name != "subtraction" and rng.random() < 0.5:
        question = _SWAP.sub(r"\3\2\1", question)
    shown, solved = family.example
    # The example stands in the system message: as turns of their own it would cost a fifth more prompt, and training
    # would have to mask an assistant turn that the policy never said.
    messages = [
        {"role": "system", "content": f"User: {shown}\nAssistant: {solved}"},
        {"role": "user", "content": question},
    ]
    return {
        "responses_create_params": {"input": messages},
        "agent_ref": dict(AGENT),
        "task_type": family.name,
        "question": question,
        "expected_answer": str(problem.answer),
    }


_SWAP = re.compile(r"(\d+)( \D+ )(\d+)")
_LIMIT = 2_000
_MOST_NUMBERS = 3
"""`14 + 15 = 29` has three."""

# A decimal point or a comma between digits belongs to the number. Bounded digits keep hostile text cheap.
_NUMBER = re.compile(r"-?\d+(?:[.,]\d+)*", re.ASCII)
_INTEGER = re.compile(r"-?(\d{1,10}|\d{1,3}(,\d{3}){1,2})", re.ASCII)


def _extract(text: str) -> str | None:
    found = _NUMBER.findall(text) if len(text) <= _LIMIT else []
    if not 1 <= len(found) <= _MOST_NUMBERS or not _INTEGER.fullmatch(found[-1]):
        return None
    return str(int(found[-1].replace(",", "")))


def _output_text(response: dict[str, Any]) -> str:
    parts = []
    for item in response.get("output") or []:
        if isinstance(item, dict) and item.get("type") == "message" and item.get("role") == "assistant":
            content = item.get("content")
            for part in content if isinstance(content, list) else []:
                if isinstance(part, dict) and isinstance(part.get("text"), str):
                    parts.append(part["text"])
    return "".join(parts)
