"""Pairs: whatever the group, every pair is worth comparing, and every rollout is on a side or has a reason."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.pairs import Candidate, Pair, Paired, pair
from gristmill.reasons import DropReason
from gristmill.recipe import PairsRecipe
from gristmill.scale import Scale, scale

UNIT = Scale(0.0, 1.0)
STRATEGIES = ("best_worst", "folded", "all", "random")


def answers(*rewards: float, **more: object) -> list[Candidate]:
    """Distinct answers of equal length with these rewards."""
    return [Candidate(f"{i:032x}", reward, f"a{i}", 10, **more) for i, reward in enumerate(rewards)]  # type: ignore[arg-type]


@st.composite
def groups(draw: st.DrawFn) -> list[Candidate]:
    count = draw(st.integers(0, 9))
    reward = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.7, 1.0]) | st.floats(0, 1)
    return [
        Candidate(
            id=f"{i:032x}",
            reward=draw(reward),
            answer=draw(st.sampled_from(["a", "b", "c", "d", "e", "f", None])),
            length=draw(st.integers(0, 50)),
            unusable=draw(st.sampled_from([None, None, None, DropReason.TRUNCATED])),
            metrics=draw(st.dictionaries(st.sampled_from(["m", "n"]), st.sampled_from([0.0, 0.5, 1.0]))),
        )
        for i in range(count)
    ]


settings = st.builds(
    PairsRecipe,
    strategy=st.sampled_from(STRATEGIES),
    min_gap=st.sampled_from([0.0, 0.2, 0.5]),
    per_task=st.none() | st.integers(1, 3),
    min_chosen=st.none() | st.just(0.5),
    metrics=st.sampled_from([(), ("m",), ("m", "n")]),
)


@given(groups(), settings, st.integers(0, 3))
def test_every_pair_is_worth_comparing(group: list[Candidate], recipe: PairsRecipe, seed: int) -> None:
    found = pair(group, recipe, UNIT, metrics={"m": UNIT, "n": UNIT}, seed=seed)
    for one in found.pairs:
        better, worse = group[one.chosen], group[one.rejected]
        assert better.reward > worse.reward
        assert better.reward - worse.reward >= recipe.min_gap - 1e-9
        assert better.answer is not None and worse.answer is not None and better.answer != worse.answer
        assert better.unusable is None and worse.unusable is None
        assert recipe.min_chosen is None or better.reward >= recipe.min_chosen
        for name in recipe.metrics:
            assert better.metrics[name] > worse.metrics[name]
            assert better.metrics[name] - worse.metrics[name] >= recipe.min_gap - 1e-9
    assert len(set(found.pairs)) == len(found.pairs)
    assert recipe.per_task is None or len(found.pairs) <= recipe.per_task
    used = {side for one in found.pairs for side in one}
    assert used | set(found.dropped) == set(range(len(group))) and not used & set(found.dropped)


@given(groups(), settings, st.randoms())
def test_the_order_of_the_rollouts_does_not_matter(
    group: list[Candidate], recipe: PairsRecipe, rng: random.Random
) -> None:
    shuffled = list(group)
    rng.shuffle(shuffled)

    def named(rollouts: list[Candidate]) -> tuple[list[tuple[str, str]], dict[str, DropReason]]:
        found = pair(rollouts, recipe, UNIT, metrics={"m": UNIT, "n": UNIT})
        ids = [one.id for one in rollouts]
        return [(ids[a], ids[b]) for a, b in found.pairs], {ids[at]: why for at, why in found.dropped.items()}

    assert named(group) == named(shuffled)


@given(groups(), settings)
def test_a_refused_pair_is_not_made_and_the_rest_is_paired_again(group: list[Candidate], recipe: PairsRecipe) -> None:
    scales = {"m": UNIT, "n": UNIT}
    refused: set[Pair] = set()
    while found := pair(group, recipe, UNIT, metrics=scales, refused=refused).pairs:
        assert not refused & set(found)
        refused |= set(found)
    every = pair(group, recipe.model_copy(update={"strategy": "all", "per_task": None}), UNIT, metrics=scales).pairs
    assert refused == set(every) or recipe.strategy == "folded"


def pairs(group: list[Candidate], **recipe: object) -> list[tuple[int, int]]:
    found: Paired = pair(group, PairsRecipe(**recipe), UNIT)  # type: ignore[arg-type]
    return [tuple(one) for one in found.pairs]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("best_worst", [(3, 0)]),
        ("folded", [(3, 0), (2, 1)]),
        ("all", [(3, 0), (3, 1), (2, 0), (2, 1)]),
    ],
)
def test_strategies(strategy: str, expected: list[tuple[int, int]]) -> None:
    assert pairs(answers(0.0, 0.25, 0.75, 1.0), strategy=strategy, min_gap=0.5) == expected


def test_random_depends_on_the_seed_alone() -> None:
    group = answers(0.0, 0.0, 0.0, 1.0, 1.0, 1.0)
    recipe = PairsRecipe(strategy="random", per_task=2)
    seen = {tuple(pair(group, recipe, UNIT, seed=seed).pairs) for seed in range(20)}
    assert len(seen) > 5
    assert pair(group, recipe, UNIT, seed=3) == pair(group, recipe, UNIT, seed=3)


def test_ties_never_pair_whatever_the_gap() -> None:
    assert pairs(answers(1.0, 1.0, 1.0), min_gap=0.0) == []


def test_the_gap_is_on_the_environments_own_scale() -> None:
    group = answers(-100.0, 0.0, 19.0)
    wide = scale(-100.0, 19.4)
    assert pair(group[1:], PairsRecipe(min_gap=0.2), wide).pairs == []  # 19 of 119.4 is less than a fifth
    assert pair(group, PairsRecipe(min_gap=0.2), wide).pairs == [(2, 0)]
    assert pairs(answers(0.5, 0.7)) == [(1, 0)]  # 0.7 − 0.5 is not quite 0.2 in binary


def test_an_answer_with_two_rewards_serves_on_no_side() -> None:
    group = answers(1.0, 0.0, 0.5)
    group[1] = group[1]._replace(answer=group[0].answer)
    found = pair(group, PairsRecipe(), UNIT)
    assert found.pairs == []
    assert found.dropped == {
        0: DropReason.CONTRADICTORY_REWARD,
        1: DropReason.CONTRADICTORY_REWARD,
        2: DropReason.NO_PARTNER,
    }


def test_among_equal_rewards_lengths_are_kept_near() -> None:
    lengths = [30, 20, 90, 25, 70]
    group = [one._replace(length=n) for one, n in zip(answers(1.0, 1.0, 0.0, 0.0, 0.0), lengths, strict=True)]
    assert pairs(group) == [(1, 3)]


def test_what_is_cut_serves_on_no_side() -> None:
    group = answers(1.0, 0.5, 0.0)
    group[2] = group[2]._replace(unusable=DropReason.TRUNCATED)
    assert pairs(group) == [(0, 1)]


def test_every_reason() -> None:
    def why(group: list[Candidate], **recipe: object) -> dict[int, DropReason]:
        return pair(group, PairsRecipe(**recipe), UNIT).dropped  # type: ignore[arg-type]

    assert why(answers(1.0)) == {0: DropReason.NO_PARTNER}
    assert why(answers(1.0, 0.9)) == {0: DropReason.NO_GAP, 1: DropReason.NO_GAP}
    assert why(answers(1.0, 0.5, 0.0)) == {1: DropReason.NOT_PAIRED}
    assert why(answers(0.4, 0.0), min_chosen=0.5) == {0: DropReason.NO_GAP, 1: DropReason.NO_GAP}
    same = [one._replace(answer="x") for one in answers(1.0, 1.0)]
    assert why(same) == {0: DropReason.NO_PARTNER, 1: DropReason.DUPLICATE_ANSWER}
    assert why([one._replace(answer=None) for one in answers(1.0)]) == {0: DropReason.EMPTY_ANSWER}


def test_metrics_make_tiers() -> None:
    both = [{"m": 1.0, "n": 1.0}, {"m": 1.0, "n": 0.0}, {"m": 0.0, "n": 0.0}, {}]
    group = [one._replace(metrics=held) for one, held in zip(answers(0.9, 1.0, 0.0, 0.0), both, strict=True)]
    recipe = PairsRecipe(metrics=("m", "n"), strategy="all")
    assert pair(group, recipe, UNIT, metrics={"m": UNIT, "n": UNIT}).pairs == [(0, 2)]
    assert pair(group, recipe, UNIT, metrics={"m": UNIT}).pairs == []  # nobody has n


def test_scales() -> None:
    assert scale(0.2, 0.9) == Scale(0.0, 1.0)
    assert scale(0.0, 1.0, True) == Scale(0.0, 1.0, True) and scale(0.0, 1.0, True).solved_at == 1.0
    assert scale(-1.0, 3.0).quality(1.0) == 0.5 and scale(-1.0, 3.0).solved_at == 1.0
    assert scale(7.0, 7.0).quality(7.0) is None
