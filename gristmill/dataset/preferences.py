"""Preferences of a shard: all rollouts of a task together become pairs, and pairs become rows (dpo, reward).

Where a pair cannot be written (a side has no chat form, the answers do not part from one history, it is too long), the
task's other rollouts are paired again, a few rounds at most; a rollout that ends in no pair has one reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gristmill import chat, targets
from gristmill.dataset.compare import compare, length
from gristmill.dataset.shards import Chosen, firsts
from gristmill.example import Preference
from gristmill.pairs import Candidate, Pair, pair
from gristmill.reasons import DropReason
from gristmill.scale import UNSCALED

if TYPE_CHECKING:
    from gristmill.dataset.writer import Sheet

_ROUNDS = 16  # of pairing a task again after a pair could not be written


class Preferences:
    """Writes the pairs of a shard's tasks."""

    def __init__(self, sheet: Sheet) -> None:
        self.sheet = sheet

    def write(self, units: Sequence[list[Chosen]]) -> None:
        """Pair every task; where a pair cannot be written, look for another one, for all tasks at once."""
        tasks = [_Task(unit, first) for unit, first in zip(units, firsts(units), strict=True)]
        waiting = tasks
        for _ in range(_ROUNDS):
            for task in waiting:
                self.pair(task)
            wanted = {
                (one.file, one.row): one
                for task in waiting
                for pair in task.pairs
                for side in pair
                if side not in task.conversations and not task.failed.get(side)
                for one in [task.rollouts[side]]
            }
            found: dict[tuple[int, int], chat.Conversation | DropReason] = {}
            for one, raw in self.sheet.raw([wanted[at] for at in sorted(wanted)]):
                try:
                    found[one.file, one.row] = self.sheet.conversation(raw)
                except chat.Unrepresentable as problem:
                    found[one.file, one.row] = problem.reason
            waiting = [task for task in waiting if not self.settle(task, found)]
            if not waiting:
                break
        for task in waiting:  # what was found until now
            task.pairs = [pair for pair in task.pairs if pair in task.ready]
        for task in tasks:
            self.finish(task)

    def pair(self, task: _Task) -> None:
        settings = self.sheet.recipe.pairs
        group = [
            Candidate(
                one.rollout_id,
                one.reward,
                one.answer_key,
                one.answer_chars,
                task.failed.get(position) or (DropReason(one.reason) if one.reason else None),
                one.metrics or {},
            )
            for position, one in enumerate(task.rollouts)
        ]
        environment = task.rollouts[0].environment
        paired = pair(
            group,
            settings,
            self.sheet.job.scales.get(environment, UNSCALED),
            metrics=self.sheet.job.metric_scales.get(environment),
            seed=self.sheet.job.seed,
            refused=task.refused.keys(),
        )
        task.pairs, task.dropped = paired.pairs, paired.dropped

    def settle(self, task: _Task, found: dict[tuple[int, int], chat.Conversation | DropReason]) -> bool:
        """Make the examples of a task's pairs; False if some cannot be made, so that it must be paired again."""
        well = True
        for side in {side for one in task.pairs for side in one}:
            if side in task.conversations:
                continue
            rollout = task.rollouts[side]
            got = found[rollout.file, rollout.row]
            if isinstance(got, DropReason):
                task.failed[side] = got
                well = False
            else:
                task.conversations[side] = got
        for one in task.pairs:
            if one in task.ready or not all(side in task.conversations for side in one):
                continue
            try:
                task.ready[one] = self.preference(task, one)
            except chat.Unrepresentable as problem:
                task.refused[one] = problem.reason
                well = False
        return well

    def preference(self, task: _Task, one: Pair) -> tuple[Preference, targets.Row, int | None]:
        better, worse = task.rollouts[one.chosen], task.rollouts[one.rejected]
        conversation = task.conversations[one.chosen]
        sides = compare(conversation, task.conversations[one.rejected], single=self.sheet.target.single_message)
        if sides is None:
            raise chat.Unrepresentable(DropReason.NO_DIVERGENCE, "the answers do not part from one history")
        meta = {
            "chosen": self.sheet.told(better),
            "rejected": self.sheet.told(worse),
            "task_key": better.task_key,
            "task_type": better.environment,
        }
        example = Preference(
            sides.prompt, sides.chosen, sides.rejected, conversation.tools, better.reward - worse.reward, meta
        )
        fitted, size = self.sheet.fitted(example)
        assert isinstance(fitted, Preference)
        return fitted, self.sheet.target.row(fitted), size

    def finish(self, task: _Task) -> None:
        used = set()
        for one in task.pairs:
            example, row, size = task.ready[one]
            used |= set(one)
            roles = [("chosen", task.first + one.chosen), ("rejected", task.first + one.rejected)]
            self.sheet.emit(example, row, size, task.rollouts[one.chosen].validation, roles)
            self.sheet.gaps.append(example.margin)
            self.sheet.lengths.append((length(example.chosen), length(example.rejected)))
        for position in range(len(task.rollouts)):
            if position not in used:
                self.sheet.dropped[task.why_not(position)] += 1


class _Task:
    """The rollouts of one task while they are paired; positions are those in `rollouts`, whose first is the shard's
    `first`."""

    def __init__(self, rollouts: list[Chosen], first: int) -> None:
        self.rollouts = rollouts
        self.first = first
        self.pairs: list[Pair] = []
        self.dropped: dict[int, DropReason] = {}
        self.failed: dict[int, DropReason] = {}
        self.refused: dict[Pair, DropReason] = {}
        self.conversations: dict[int, chat.Conversation] = {}
        self.ready: dict[Pair, tuple[Preference, targets.Row, int | None]] = {}

    def why_not(self, position: int) -> DropReason:
        reason = self.dropped.get(position, DropReason.NOT_PAIRED)
        if reason is DropReason.NO_GAP:
            for one, why in self.refused.items():
                if position in one:
                    return why
        return reason
