"""The judging half of a turn: a policy on the held-out tasks, and the gate.

    collect held-out → ingest → evaluate → promote

Wiring only, shared by the base policy's measurement and every turn's.
"""

from __future__ import annotations

from typing import NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.recipe import Recipe
from tasks.caching import run
from tasks.collect import collect_rollouts
from tasks.evaluate import evaluate_policy
from tasks.ingest import ingest_rollouts
from tasks.promote import decide_promotion


class Measured(NamedTuple):
    """A policy on the held-out tasks."""

    evaluation: ArtifactRef
    table: ArtifactRef


def evaluate(recipe: Recipe, policy: ArtifactRef, heldout: ArtifactRef, turn: int) -> Measured:
    """Held-out rollouts of a policy, and its evaluation. Same tasks, sampling and seeds for every policy."""
    rollouts = run(
        collect_rollouts,
        turn,
        "collect held-out",
        policy=policy,
        tasks=heldout,
        acting=recipe.policy,
        environment=recipe.environment,
        sampling=recipe.evaluate,
        requests=recipe.requests,
        seed=recipe.seed,
    )
    table = run(ingest_rollouts, turn, "ingest held-out", rollouts=rollouts)
    evaluation = run(
        evaluate_policy,
        turn,
        "evaluate",
        policy=policy,
        tasks=heldout,
        table=table,
        samples=recipe.evaluate.samples,
        confidence=recipe.promote.confidence,
        solved_at=recipe.environment.solved_at,
    )
    return Measured(evaluation, table)


class Judged(NamedTuple):
    """A challenger measured, and the gate's decision."""

    measured: Measured
    decision: ArtifactRef


def judge(
    recipe: Recipe, challenger: ArtifactRef, champion_evaluation: ArtifactRef, heldout: ArtifactRef, turn: int
) -> Judged:
    """Measure a challenger on the held-out tasks and let the gate decide between it and the champion."""
    measured = evaluate(recipe, challenger, heldout, turn)
    decision = run(
        decide_promotion,
        turn,
        "promote",
        challenger=measured.evaluation,
        champion=champion_evaluation,
        settings=recipe.promote,
    )
    return Judged(measured, decision)
