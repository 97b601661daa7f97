"""The gate and the registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from gristmill.artifact import ArtifactRef
from gristmill.champions import Champion, champions, register, registry, roll_back, rolled_back
from gristmill.comparison import Guard
from gristmill.errors import RecipeError, UsageError, WorkspaceBusy
from gristmill.power import Needed
from gristmill.promotion import Verdict, decide
from gristmill.recipe import PromoteRecipe, build
from gristmill.statistics import Estimate
from gristmill.workspace import Workspace


def lift(mean: float, low: float | None, high: float | None) -> Estimate:
    return Estimate(mean=mean, low=low, high=high, standard_error=None, tasks=10, samples=80)


@pytest.mark.parametrize(
    ("estimate", "min_effect", "verdict"),
    [
        (lift(0.3, 0.1, 0.5), 0.0, Verdict.PROMOTED),
        (lift(0.3, 0.1, 0.5), 0.2, Verdict.INCONCLUSIVE),
        (lift(0.3, 0.0, 0.6), 0.0, Verdict.INCONCLUSIVE),  # touching is not exceeding
        (lift(-0.3, -0.5, -0.1), 0.0, Verdict.REJECTED),
        (lift(0.0, 0.0, 0.0), 0.0, Verdict.REJECTED),
        (lift(0.9, None, None), 0.0, Verdict.INCONCLUSIVE),  # one task proves nothing
    ],
)
def test_only_a_lower_bound_above_the_floor_promotes(estimate: Estimate, min_effect: float, verdict: Verdict) -> None:
    decision = decide(estimate, PromoteRecipe(min_effect=min_effect))
    assert decision.verdict is verdict
    assert decision.promoted is (verdict is Verdict.PROMOTED)
    assert decision.reason


def test_a_failed_guard_refuses_a_better_mean() -> None:
    held = Guard(name="length", passed=True, evidence="1.1 times as long")
    failed = Guard(name="pass@4", passed=False, evidence="-0.200, a drop of at most 0")
    better = lift(0.3, 0.1, 0.5)
    assert decide(better, PromoteRecipe(), (held,)).promoted
    decision = decide(better, PromoteRecipe(), (held, failed))
    assert decision.verdict is Verdict.REJECTED
    assert "pass@4: -0.200" in decision.reason and "1.1 times" not in decision.reason


def test_an_inconclusive_verdict_says_what_would_settle_it() -> None:
    unsure = lift(0.05, -0.02, 0.12)
    decision = decide(unsure, PromoteRecipe(), (), Needed(48, 7))
    assert (decision.verdict, decision.needed_tasks, decision.needed_samples) == (Verdict.INCONCLUSIVE, 48, 7)
    assert decision.reason.endswith(
        "it includes +0.000; if the lift is what it seems, 48 held-out tasks (38 more) or 7 samples a task would "
        "settle it"
    )
    assert decision.worth_more_samples
    hopeless = decide(unsure, PromoteRecipe(), (), Needed(48, None))
    assert "48 held-out tasks (38 more) would settle it, more samples of these tasks would not" in hopeless.reason
    assert not hopeless.worth_more_samples
    once = decide(unsure.model_copy(update={"samples": 20}), PromoteRecipe(), (), Needed(48, None))
    assert "one sample a task does not say what more would do" in once.reason and once.worth_more_samples
    below = decide(lift(-0.01, -0.1, 0.08), PromoteRecipe(), (), Needed(None, None))
    assert "nothing suggests a lift above +0.000" in below.reason and not below.worth_more_samples
    settled = decide(lift(0.3, 0.1, 0.5), PromoteRecipe(), (), Needed(11, 5))
    assert (settled.needed_tasks, settled.needed_samples, settled.worth_more_samples) == (None, None, False)


def test_two_looks_share_the_error() -> None:
    once, twice = PromoteRecipe(), PromoteRecipe(on_inconclusive="collect_more")
    assert (once.look_confidence, twice.look_confidence) == (0.95, 0.975)
    assert (twice.samples_in_all(4), PromoteRecipe(most_samples=6).samples_in_all(4)) == (16, 6)
    decision = decide(lift(0.3, 0.1, 0.5), twice, look=2)
    assert decision.look == 2 and decision.confidence == 0.975
    assert "97.5% interval" in decision.reason
    assert decision.reason.endswith("(second of at most two looks, which hold together at 95%)")
    with pytest.raises(RecipeError, match=r"no more than evaluate.samples \(8\)"):
        build({"promote": {"on_inconclusive": "collect_more", "most_samples": 8}})


def champion(turn: int, digit: str) -> Champion:
    return Champion(
        recipe="r",
        recipe_digest="d",
        turn=turn,
        checkpoint=ArtifactRef(kind="checkpoint", digest=digit * 64),
        replaced=ArtifactRef(kind="checkpoint", digest="0" * 64),
        decision=ArtifactRef(kind="decision", digest="f" * 64),
        lift=lift(0.3, 0.1, 0.5),
        time="2026-01-01T00:00:00+00:00",
    )


def test_a_decision_enters_the_registry_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert champions(workspace) == []
    assert register(workspace, champion(1, "a"))
    assert not register(workspace, champion(1, "a"))
    assert register(workspace, champion(2, "b"))
    assert [c.turn for c in champions(workspace)] == [1, 2]


def test_a_rollback_takes_the_last_promotion_back_for_good(tmp_path: Path) -> None:
    """The same run repeated finds the promotion again and must not enter it again."""
    workspace = Workspace(tmp_path)
    with pytest.raises(UsageError, match="no promotion to roll back"):
        roll_back(workspace, "")
    one = champion(1, "a")
    two = champion(2, "b").model_copy(update={"decision": ArtifactRef(kind="decision", digest="e" * 64)})
    register(workspace, one)
    register(workspace, two)
    taken = roll_back(workspace, "it repeats itself")
    assert (taken.checkpoint, taken.back_to, taken.reason) == (two.checkpoint, two.replaced, "it repeats itself")
    assert champions(workspace) == [one] and rolled_back(workspace) == {two.decision}
    assert not register(workspace, two)
    assert champions(workspace) == [one]
    assert registry(workspace) == [one, two, taken], "nothing is erased"
    roll_back(workspace, "")
    assert champions(workspace) == []
    with workspace.locked(), pytest.raises(WorkspaceBusy):
        roll_back(workspace, "")
