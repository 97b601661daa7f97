"""Preference pairs: which two answers to one task are worth comparing.

Pure: takes the rollouts of one task, returns positions. Guarantees, whatever the strategy: both sides are of this
task and usable (not masked, failed or cut), their answers differ, the chosen side's reward is greater, by at least
`min_gap` of the environment's scale; with `metrics`, that holds of each of them too. The result does not depend on
the order of the rollouts, since every order in here is total by content (reward, length, id).

Where rewards tie, the chosen side is the shortest of the best, and the rejected side, of the poorest, the one
nearest to it in length: preference training learns length all too easily (Park et al. 2024, "Disentangling Length
from Quality in Direct Preference Optimization").
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from gristmill.reasons import DropReason
from gristmill.recipe import PairsRecipe
from gristmill.scale import Scale

_TOLERANCE = 1e-9  # of a scale's unit: 0.7 − 0.5 is a gap of 0.2


class Candidate(NamedTuple):
    """What pairing needs to know of a rollout."""

    id: str
    """Identity by content; equal ids are one rollout."""
    reward: float
    answer: str | None
    """Digest of the normalised answer; None: it said nothing."""
    length: int
    """Characters of the answer."""
    unusable: DropReason | None = None
    """Why it may serve on neither side: cut, masked, failed, or without a chat form."""
    metrics: Mapping[str, float] = {}


class Pair(NamedTuple):
    """Positions in the group."""

    chosen: int
    rejected: int


class Paired(NamedTuple):
    """What became of a group: each rollout is on a side of a pair, or has a reason why not."""

    pairs: list[Pair]
    dropped: dict[int, DropReason]


def pair(
    group: Sequence[Candidate],
    settings: PairsRecipe,
    reward: Scale,
    *,
    metrics: Mapping[str, Scale] | None = None,
    seed: int = 0,
    refused: Set[Pair] = frozenset(),
) -> Paired:
    """Pairs among the rollouts of one task.

    Args:
        group: the task's rollouts, in any order.
        settings: strategy, gap, cap.
        reward: scale of the environment's rewards.
        metrics: scale of each metric that the settings name.
        seed: orders the pairs of strategy `random`.
        refused: pairs that may not be made (their histories differ, say).
    """
    rules = _Rules(group, settings, reward, metrics or {}, refused)
    distinct, dropped = _distinct(group, rules)
    if settings.strategy == "best_worst":
        found = _best_worst(distinct, rules)
    elif settings.strategy == "folded":
        half = len(distinct) // 2
        folded = zip(distinct[:half], reversed(distinct), strict=False)
        found = [Pair(a, b) for a, b in folded if rules.allow(a, b)]
    else:
        found = list(_all(distinct, rules))
        if settings.strategy == "all":
            found.sort(key=lambda p: (-rules.gap(*p), rules.order(p.chosen), rules.order(p.rejected)))
        else:
            found.sort(key=lambda p: _shuffled(seed, group[p.chosen].id, group[p.rejected].id))
    found = found[: settings.per_task]
    used = {side for one in found for side in one}
    for position in distinct:
        if position not in used:
            dropped[position] = _why_not(position, distinct, rules)
    return Paired(found, dropped)


class _Rules:
    """When two rollouts of a group may be a pair."""

    def __init__(
        self,
        group: Sequence[Candidate],
        settings: PairsRecipe,
        reward: Scale,
        metrics: Mapping[str, Scale],
        refused: Set[Pair],
    ) -> None:
        self.group = group
        self.refused = refused
        self.names = settings.metrics
        self.need = settings.min_gap * reward.unit - _TOLERANCE * reward.unit
        self.needs = [(settings.min_gap - _TOLERANCE) * metrics[name].unit for name in self.names if name in metrics]
        self.min_chosen = settings.min_chosen

    def order(self, position: int) -> tuple[float, int, str]:
        """Best first, then short, then by content."""
        one = self.group[position]
        return -one.reward, one.length, one.id

    def gap(self, chosen: int, rejected: int) -> float:
        return self.group[chosen].reward - self.group[rejected].reward

    def may_be_chosen(self, position: int) -> bool:
        return self.min_chosen is None or self.group[position].reward >= self.min_chosen

    def allow(self, chosen: int, rejected: int) -> bool:
        gap = self.gap(chosen, rejected)
        if not (gap > 0 and gap >= self.need and self.may_be_chosen(chosen)):
            return False
        if (chosen, rejected) in self.refused:
            return False
        if not self.names:
            return True
        better, worse = self.group[chosen].metrics, self.group[rejected].metrics
        if len(self.needs) < len(self.names) or any(n not in better or n not in worse for n in self.names):
            return False
        gaps = [better[name] - worse[name] for name in self.names]
        return all(gap > 0 and gap >= need for gap, need in zip(gaps, self.needs, strict=True))


def _distinct(group: Sequence[Candidate], rules: _Rules) -> tuple[list[int], dict[int, DropReason]]:
    """Usable rollouts, one an answer, in order; and why the others are not among them."""
    dropped: dict[int, DropReason] = {}
    same: dict[str, list[int]] = defaultdict(list)
    for position, one in enumerate(group):
        if one.unusable is not None:
            dropped[position] = one.unusable
        elif one.answer is None:
            dropped[position] = DropReason.EMPTY_ANSWER
        else:
            same[one.answer].append(position)
    distinct = []
    for positions in same.values():
        positions.sort(key=lambda p: (rules.order(p), p))
        spread = rules.gap(positions[0], positions[-1])
        if spread > 0 and spread >= rules.need:
            # Whatever made the difference, it was not this answer.
            dropped.update(dict.fromkeys(positions, DropReason.CONTRADICTORY_REWARD))
            continue
        distinct.append(positions[0])
        dropped.update(dict.fromkeys(positions[1:], DropReason.DUPLICATE_ANSWER))
    distinct.sort(key=rules.order)
    return distinct, dropped


def _best_worst(distinct: Sequence[int], rules: _Rules) -> list[Pair]:
    """The best rollout that has any partner, with its poorest one."""
    for chosen in distinct:
        length = rules.group[chosen].length

        def poorest(position: int, length: int = length) -> tuple[float, int, str]:
            one = rules.group[position]
            return one.reward, abs(one.length - length), one.id

        partners = [position for position in distinct if rules.allow(chosen, position)]
        if partners:
            return [Pair(chosen, min(partners, key=poorest))]
        if not (rules.names or rules.refused):
            break  # whoever comes after has smaller gaps still
    return []


def _all(distinct: Sequence[int], rules: _Rules) -> Iterator[Pair]:
    for first, chosen in enumerate(distinct):
        for rejected in distinct[first + 1 :]:
            if rules.allow(chosen, rejected):
                yield Pair(chosen, rejected)


def _why_not(position: int, distinct: Sequence[int], rules: _Rules) -> DropReason:
    if len(distinct) == 1:
        return DropReason.NO_PARTNER
    # by reward alone, whoever has a partner has one in the best or in the poorest
    others = distinct if rules.names or rules.refused else (distinct[0], distinct[-1])
    if any(rules.allow(position, other) or rules.allow(other, position) for other in others):
        return DropReason.NOT_PAIRED
    return DropReason.NO_GAP


def _shuffled(seed: int, chosen: str, rejected: str) -> bytes:
    return hashlib.sha256(f"{seed}\x1f{chosen}\x1f{rejected}".encode()).digest()
