"""reasoning-gym as an environment, where it is installed."""

from __future__ import annotations

import importlib.util
import warnings

import pytest

from gristmill import reasoning
from gristmill.collect.responses import from_chat
from gristmill.errors import RecipeError, UsageError

installed = importlib.util.find_spec("reasoning_gym") is not None
needs = pytest.mark.skipif(not installed, reason="the extra reasoning-gym is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning")


@pytest.mark.skipif(installed, reason="reasoning-gym is installed")
def test_its_absence_is_one_sentence() -> None:
    with pytest.raises(RecipeError, match=r"pip install 'gristmill\[reasoning-gym\]'.*C compiler"):
        reasoning.make_tasks(1, 0, "train")


@needs
def test_splits_and_turns_share_no_question() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [reasoning.make_tasks(9, 0, "train", turn) for turn in (0, 1)] + [reasoning.make_tasks(9, 0, "heldout")]
        assert reasoning.make_tasks(9, 0, "train", 1) == parts[1]
    assert len({row["question"] for part in parts for row in part}) == 27
    assert [row["task_type"] for row in parts[0][:3]] == list(reasoning.FAMILIES)


@needs
def test_the_family_scores() -> None:
    for task in reasoning.make_tasks(6, 1, "train"):
        replies = [f"so <answer>{task['answer']}</answer>", f"\\boxed{{{task['answer']}}}", str(task["answer"]), "none"]
        rewards = [
            reasoning.verify(task, from_chat({"choices": [{"message": {"content": text}}]}, "m"))["reward"]
            for text in replies
        ]
        assert rewards[:3] == [1.0, 1.0, 1.0] and rewards[3] < 1


@needs
def test_what_it_lacks_is_said() -> None:
    with pytest.raises(RecipeError, match=r"environment.families: reasoning-gym has no 'chess_boxing'"):
        reasoning.make_tasks(1, 0, "train", families=["chess_boxing"])
    with pytest.raises(UsageError, match="has fewer than"):
        reasoning.make_tasks(100_000, 0, "train", families=["coin_flip"])
