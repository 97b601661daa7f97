"""What a plan counts, and at which confidence: as the gate that it plans for."""

from __future__ import annotations

import pytest

from gristmill.planner import Plan, Stage, plan_recipe
from gristmill.power import assumed, detectable
from gristmill.recipe import build


def plan(**promote: object) -> Plan:
    settings = {"tasks": 32, "heldout": 40}
    return plan_recipe(
        build({"turns": 3, "environment": settings, "evaluate": {"samples": 2}, "promote": promote}, source="a test")
    )


def stage(found: Plan, name: str) -> Stage:
    (one,) = [one for one in found.stages if one.stage == name]
    return one


def test_rollouts_in_all_are_those_of_the_stages() -> None:
    found = plan()
    assert (stage(found, "evaluate").rows, stage(found, "evaluate").times) == (80, 4)
    assert found.rollouts == 4 * 80 + 3 * (stage(found, "collect").rows or 0)
    assert found.looks == 1 and [one.confidence for one in found.power] == [0.95]
    assert not [one for one in found.stages if one.stage == "look again"]


@pytest.mark.parametrize(("most", "samples"), [(None, 8), (5, 5)])
def test_a_second_look_is_counted_and_shares_the_error(most: int | None, samples: int) -> None:
    once, found = plan(), plan(on_inconclusive="collect_more", most_samples=most)
    again = stage(found, "look again")
    # each policy's further samples are made once, whether it is challenger or champion
    assert (again.rows, again.times) == (40 * (samples - 2), 4)
    assert found.rollouts == once.rollouts + 4 * 40 * (samples - 2)
    assert found.tokens == once.tokens + 4 * (again.tokens or 0) and again.bound
    first, second = found.power
    assert (first.samples, second.samples, first.tasks, second.tasks) == (2, samples, 40, 40)
    assert first.confidence == second.confidence == 0.975
    assert first.detectable == detectable(assumed(), 40, 2, confidence=0.975)
    assert "97.5% interval" in stage(found, "promote").what
