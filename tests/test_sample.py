"""The review sample: strata by reward, seeded, and the same whatever the order of the rows."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from gristmill.errors import UsageError
from gristmill.sample import stratified
from tests.rows import rollout, table


def test_thirds_of_the_range_of_rewards(tmp_path: Path) -> None:
    rewards = [-100.0, -70.0, -50.0, -40.0, 0.0, 19.4]
    files, _ = table(tmp_path, [rollout(str(i), task=i, reward=r) for i, r in enumerate(rewards)])
    found = stratified([files], low=9, middle=9, high=9, seed=0)
    assert [row.stratum for row in found] == ["low", "low", "middle", "middle", "high", "high"]
    assert sorted(row.reward for row in found) == rewards


def test_each_environment_has_its_own_scale(tmp_path: Path) -> None:
    rows = [rollout(str(i), task=i, reward=r, agent_ref={"name": "binary"}) for i, r in enumerate([0.0, 1.0])]
    rows += [rollout(str(i), task=i, reward=r, agent_ref={"name": "points"}) for i, r in enumerate([0.0, 5.0, 10.0])]
    rows += [rollout("same", task=i, reward=7.0, agent_ref={"name": "constant"}) for i in range(2)]
    rows += [rollout("solved", reward=1.0, agent_ref={"name": "always"})]
    files, _ = table(tmp_path, rows)
    found = stratified([files], low=9, middle=9, high=9, seed=0)
    assert Counter((row.stratum, row.reward) for row in found) == {
        ("low", 0.0): 2,
        ("middle", 5.0): 1,
        ("middle", 7.0): 2,
        ("high", 1.0): 2,
        ("high", 10.0): 1,
    }


def test_sizes_and_edges(tmp_path: Path) -> None:
    files, _ = table(tmp_path, [rollout(str(i), task=i, reward=i / 10) for i in range(11)])
    found = stratified([files], low=2, middle=0, high=99, seed=1, edges=(0.3, 0.8))
    assert Counter(row.stratum for row in found) == {"low": 2, "high": 3}
    with pytest.raises(UsageError, match="rise"):
        stratified([files], low=1, middle=1, high=1, seed=0, edges=(1, 0))
    with pytest.raises(UsageError, match="0 or more"):
        stratified([files], low=-1, middle=1, high=1, seed=0)


def test_a_second_rollout_of_a_task_comes_after_the_first_of_all(tmp_path: Path) -> None:
    rows = [rollout(f"{task} {repeat}", task=task, repeat=repeat) for task in range(4) for repeat in range(5)]
    files, _ = table(tmp_path, rows)
    found = stratified([files], low=0, middle=0, high=4, seed=3)
    assert {row.at_row // 5 for row in found} == {0, 1, 2, 3}


def test_the_seed_decides_and_the_order_of_rows_does_not(tmp_path: Path) -> None:
    rows = [rollout(str(i), task=i, reward=float(i % 2)) for i in range(40)]
    shuffled = random.Random(0).sample(rows, len(rows))
    one, _ = table(tmp_path / "one", rows)
    two, _ = table(tmp_path / "two", shuffled)
    draw = {
        seed: [row.rollout_id for row in stratified([files], low=5, middle=0, high=5, seed=seed)]
        for files, seed in ((one, 0), (one, 1))
    }
    assert [row.rollout_id for row in stratified([two], low=5, middle=0, high=5, seed=0)] == draw[0]
    assert draw[0] != draw[1]
    halves, _ = table(tmp_path / "half", rows[:20])
    rest, _ = table(tmp_path / "rest", rows[20:] + rows[:2])  # two rows stand in both
    split = stratified([halves, rest], low=5, middle=0, high=5, seed=0)
    assert [row.rollout_id for row in split] == draw[0]


def test_more_rollouts_displace_few(tmp_path: Path) -> None:
    rows = [rollout(str(i), task=i) for i in range(110)]
    few, _ = table(tmp_path / "few", rows[:100])
    more, _ = table(tmp_path / "more", rows)
    one, two = (
        {row.rollout_id for row in stratified([files], low=0, middle=0, high=20, seed=0)} for files in (few, more)
    )
    assert len(one & two) >= 14  # of 20, about 18 are expected to stay
