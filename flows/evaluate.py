"""The judging half of a turn, and a flow of its own: policies on the held-out tasks, and the gate.

    collect held-out → ingest → evaluate → promote [→ collect more → ingest → evaluate → promote]

Wiring only, over the same cached steps everywhere: what a run of the loop has measured, `gristmill evaluate` and
`compare` find, and the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from prefect import flow
from prefect.runtime import flow_run

from gristmill import model
from gristmill.artifact import ArtifactRef
from gristmill.collect.run import check
from gristmill.environment import source
from gristmill.identity import digest
from gristmill.promotion import read_decision
from gristmill.recipe import EvaluateRecipe, Recipe
from gristmill.runs import EVALUATE, recorded
from gristmill.workspace import Workspace
from tasks.caching import run
from tasks.cluster import executing
from tasks.collect import base_policy, collect_rollouts, make_tasks
from tasks.evaluate import evaluate_policy
from tasks.ingest import ingest_rollouts
from tasks.promote import decide_promotion
from tasks.sinks import delivering


class Measured(NamedTuple):
    """A policy on the held-out tasks."""

    evaluation: ArtifactRef
    table: ArtifactRef


class Judged(NamedTuple):
    """A challenger measured, and the gate's decision."""

    measured: Measured
    """At the first look, as every policy is: what the next challenger is compared with."""
    decision: ArtifactRef
    """The last one. Its parents are the two evaluations that it rests on."""


@flow(name="evaluate", flow_run_name="{recipe.name}-evaluate")
def evaluate_policies(recipe: Recipe, workspace: str, policies: Sequence[ArtifactRef | str]) -> tuple[ArtifactRef, ...]:
    """Evaluations of policies on a recipe's held-out tasks; what the workspace has already is not made again.

    Args:
        policies: checkpoints of the workspace, or names of models as in `policy.model`.
    """
    check(recipe.policy, recipe.environment, trains=True)
    place = Workspace(workspace)
    identities = {policy: model.identity(policy) for policy in policies if isinstance(policy, str)}
    names = [_name(policy, identities[policy]) if isinstance(policy, str) else str(policy) for policy in policies]
    begun = recorded(place, [EVALUATE, *names], recipe, engine=flow_run.get_id())
    sinks = delivering(place, recipe, last=len(policies) - 1)
    with place.locked(), place.entered(), executing(recipe.execution, place), sinks, begun:
        heldout = heldout_tasks(recipe)
        found = []
        for number, policy in enumerate(policies):
            ref = policy if isinstance(policy, ArtifactRef) else base(policy, number, identities[policy])
            found.append(evaluate(recipe, ref, heldout, number).evaluation)
        return tuple(found)


def base(name: str, turn: int = 0, identity: str | None = None) -> ArtifactRef:
    """A model that was not trained here, by its name, as a checkpoint of the current workspace."""
    return run(base_policy, turn, "base policy", model_name=name, identity=identity or model.identity(name))


def _name(model_name: str, identity: str) -> str:
    """What a run says of a model: no folder of this machine, and no two models alike."""
    return f"{Path(model_name).name}@{identity[:12]}"


def heldout_tasks(recipe: Recipe) -> ArtifactRef:
    """The recipe's held-out tasks."""
    return run(
        make_tasks,
        0,
        "held-out tasks",
        environment=recipe.environment,
        source=source(recipe.environment),
        seed=recipe.seed,
        split="heldout",
        turn=0,
        earlier=[],
        champion=None,
    )


def evaluate(recipe: Recipe, policy: ArtifactRef, heldout: ArtifactRef, turn: int) -> Measured:
    """Held-out rollouts of a policy, and its evaluation. Same tasks, sampling and seeds for every policy."""
    table = _sample(recipe, policy, heldout, turn, "held-out", recipe.evaluate, recipe.seed)
    return Measured(_score(recipe, policy, heldout, turn, "evaluate", [table]), table)


def judge(
    recipe: Recipe,
    challenger: ArtifactRef,
    champion: ArtifactRef,
    champion_evaluation: ArtifactRef,
    heldout: ArtifactRef,
    turn: int,
) -> Judged:
    """Measure a challenger on the held-out tasks and let the gate decide between it and the champion.

    With `promote.on_inconclusive: collect_more` an inconclusive first look is followed by one second look, on more
    samples of both, if these could promote. A champion's further samples are made once, for all its challengers.
    """
    measured = evaluate(recipe, challenger, heldout, turn)
    settings = recipe.promote
    decision = run(
        decide_promotion,
        turn,
        "promote",
        challenger=measured.evaluation,
        champion=champion_evaluation,
        settings=settings,
    )
    store = Workspace.current().store
    if settings.on_inconclusive == "hold" or not read_decision(store, decision).worth_more_samples:
        return Judged(measured, decision)
    champion_table = next(ref for ref in store.manifest(champion_evaluation).parents if ref.kind == "table")
    again = run(
        decide_promotion,
        turn,
        "promote on all samples",
        challenger=_more(recipe, challenger, heldout, turn, "challenger", measured.table),
        champion=_more(recipe, champion, heldout, turn, "champion", champion_table),
        settings=settings,
        look=2,
    )
    return Judged(measured, again)


def _more(
    recipe: Recipe, policy: ArtifactRef, heldout: ArtifactRef, turn: int, who: str, first: ArtifactRef
) -> ArtifactRef:
    """The evaluation of a policy on its first samples and on more, drawn with a seed of their own."""
    sampling = recipe.evaluate
    extra = sampling.model_copy(update={"samples": recipe.promote.samples_in_all(sampling.samples) - sampling.samples})
    seed = int(digest({"seed": recipe.seed, "look": 2})[:7], 16)
    more = _sample(recipe, policy, heldout, turn, f"more of the {who}", extra, seed)
    return _score(recipe, policy, heldout, turn, f"evaluate all of the {who}", [first, more])


def _sample(
    recipe: Recipe,
    policy: ArtifactRef,
    heldout: ArtifactRef,
    turn: int,
    what: str,
    sampling: EvaluateRecipe,
    seed: int,
) -> ArtifactRef:
    """A table of the policy's rollouts on the held-out tasks."""
    rollouts = run(
        collect_rollouts,
        turn,
        f"collect {what}",
        policy=policy,
        tasks=heldout,
        acting=recipe.policy,
        environment=recipe.environment,
        sampling=sampling,
        requests=recipe.requests,
        seed=seed,
    )
    return run(ingest_rollouts, turn, f"ingest {what}", rollouts=rollouts)


def _score(
    recipe: Recipe, policy: ArtifactRef, heldout: ArtifactRef, turn: int, label: str, tables: list[ArtifactRef]
) -> ArtifactRef:
    return run(
        evaluate_policy,
        turn,
        label,
        policy=policy,
        tasks=heldout,
        tables=tables,
        confidence=recipe.promote.confidence,
        solved_at=recipe.environment.solved_at,
    )
