"""reasoning-gym as an environment: procedural tasks with verifiers, over a hundred families (extra `reasoning-gym`).

Rows and scoring are those of NeMo Gym's reasoning_gym server, so the same tasks run there too; only an error of a
scorer is a failure here, where the server gives 0. Families rotate. A question belongs to one split by its content, and
turn t takes the t-th run of each family's stream, so splits and turns share no question.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from gristmill.environment import Split
from gristmill.errors import RecipeError, UsageError

FAMILIES = ("chain_sum", "gcd", "letter_counting")
AGENT = {"type": "responses_api_agents", "name": "reasoning_gym_simple_agent"}

_HELDOUT_SHARE = 5
_STREAM = 10_000_000
_TIRED = 2_000
"""So many draws without a new question: the family has no more."""
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^}]+)\}")


def make_tasks(
    count: int, seed: int, split: Split, turn: int = 0, families: Sequence[str] = FAMILIES
) -> list[dict[str, Any]]:
    """`count` dataset rows, the families in rotation.

    Raises:
        RecipeError: reasoning-gym is not installed, or has no such family.
        UsageError: a family has not that many questions.
    """
    each = -(-count // len(families))
    runs = []
    for family in families:
        run = list(islice(_questions(family, seed, split), turn * each, (turn + 1) * each))
        if len(run) < each:
            raise UsageError(
                f"reasoning-gym's {family} has fewer than {(turn + 1) * each} different {split} questions: lower "
                "environment.tasks or turns, or name more environment.families"
            )
        runs.append(run)
    return [runs[i % len(families)][i // len(families)] for i in range(count)]


def verify(task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """The family's own score, 0 to 1, of the text in `<answer>`, else in `\\boxed{}`, else of all text."""
    name = task["metadata"]["source_dataset"]
    answer = _extract(response)
    entry = {key: task[key] for key in ("question", "answer", "metadata")}
    score = float(_library().get_score_answer_fn(name)(answer=answer, entry=entry))
    return {"reward": score, "score": score, "task_name": name, "extracted_answer": answer, "task_type": name}


def _questions(family: str, seed: int, split: Split) -> Iterator[dict[str, Any]]:
    """The different questions of a split, without end as far as the family has any."""
    library = _library()
    try:
        dataset = library.create_dataset(family, seed=seed, size=_STREAM)
    except ValueError as error:
        raise RecipeError(f"environment.families: reasoning-gym has no {family!r} ({error})") from error
    seen: set[str] = set()
    fruitless = 0
    for index in range(_STREAM):
        entry = dataset[index]
        question = entry["question"]
        held = hashlib.sha256(question.encode()).digest()[0] % _HELDOUT_SHARE == 0
        if question in seen or held != (split == "heldout"):
            fruitless += 1
            if fruitless > _TIRED:
                return
            continue
        seen.add(question)
        fruitless = 0
        yield {
            "responses_create_params": {"input": [{"role": "user", "content": question}]},
            "question": question,
            "answer": entry["answer"],
            "metadata": entry["metadata"],
            "agent_ref": dict(AGENT),
            "task_type": family,
        }


def _extract(response: dict[str, Any]) -> str:
    text = "".join(
        str(part.get("text", ""))
        for item in response["output"]
        if item.get("type") == "message"
        for part in (item["content"] if isinstance(item["content"], list) else [{"text": item["content"]}])
    )
    for pattern in (_ANSWER, _BOXED):
        if found := pattern.findall(text):
            return str(found[-1]).strip()
    return text.strip()


def _library() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a requirement of it compares with `is`
            import reasoning_gym
    except ImportError as error:
        raise RecipeError(
            "environment.name: reasoning-gym is not installed; `pip install 'gristmill[reasoning-gym]'` (one of its "
            "requirements, bfi, needs a C compiler)"
        ) from error
    return reasoning_gym
