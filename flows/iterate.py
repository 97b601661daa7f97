"""Flow: one turn of the mill.

    collect → ingest → review → curate → format → validate → train → collect (held-out) → ingest → evaluate
    → promote

Wiring only. Every stage is a cached task that takes and returns artifact references, so a turn that was killed or
repeated redoes nothing that finished.
"""

from __future__ import annotations

from prefect import flow

from flows.evaluate import judge
from flows.train_step import train
from gristmill import trainer
from gristmill.artifact import ArtifactRef
from gristmill.errors import RecipeError
from gristmill.loop import Standing, Turn
from gristmill.promotion import read_decision
from gristmill.recipe import Recipe
from gristmill.workspace import Workspace
from tasks.caching import run
from tasks.collect import collect_rollouts
from tasks.curate import curate_rollouts
from tasks.format import format_dataset
from tasks.ingest import ingest_rollouts
from tasks.review import reviewed
from tasks.validate import validate_dataset


def require_trainable(recipe: Recipe) -> None:
    """Refuse, before anything is collected, what the loop cannot train or could not put to the gate.

    Raises:
        RecipeError: no such trainer, or the recipe's format or settings are not for it.
    """
    form = recipe.format
    if form.method == "reward":
        raise RecipeError(
            "a reward model is no policy that the gate could judge; `gristmill prepare` and `gristmill train` make one"
        )
    chosen = trainer.get(recipe.train.trainer)
    if form.method not in chosen.methods or form.target not in chosen.targets or form.token_ids:
        what = "token ids" if form.token_ids else f"{form.method} for {form.target}"
        raise RecipeError(
            f"train.trainer {chosen.name} trains by {', '.join(sorted(chosen.methods))} on rows for "
            f"{', '.join(sorted(chosen.targets))}, and the recipe's format is {what}"
        )
    chosen.check(form.method, recipe.train)


@flow(name="iterate", flow_run_name="{recipe.name}-turn-{turn}")
def iterate(recipe: Recipe, turn: int, standing: Standing, tasks: ArtifactRef) -> Turn:
    """Collect with the champion, train a challenger on what was worth keeping, let the gate decide."""
    rollouts = run(
        collect_rollouts,
        turn,
        "collect",
        policy=standing.champion,
        tasks=tasks,
        acting=recipe.policy,
        environment=recipe.environment,
        sampling=recipe.collect.at(turn),
        requests=recipe.requests,
        # The same tasks again need other answers; fresh tasks do not.
        seed=recipe.seed + turn if recipe.environment.again else recipe.seed,
    )
    table = run(ingest_rollouts, turn, "ingest", rollouts=rollouts)
    tables = standing.tables_of(recipe, table)
    decisions = reviewed(recipe, turn, table, tables)
    selection = run(
        curate_rollouts,
        turn,
        "curate",
        tables=tables,
        settings=recipe.curate,
        decisions=decisions,
        seed=recipe.seed,
    )
    dataset = run(
        format_dataset,
        turn,
        "format",
        selection=selection,
        tables=tables,
        settings=recipe.format,
        seed=recipe.seed,
    )
    run(
        validate_dataset,
        turn,
        "validate",
        dataset=dataset,
        selection=selection,
        tables=tables,
        heldout=standing.heldout,
        base=standing.base,
        curation=recipe.curate,
        format=recipe.format,
        checks=recipe.checks,
        samples=recipe.collect.samples,
        max_length=recipe.train.max_length,
        seed=recipe.seed,
        decisions=decisions,
    )
    checkpoint = train(
        recipe,
        turn,
        dataset=dataset,
        base=standing.start(recipe),
        reference=standing.reference(recipe),
        settings=recipe.train,
        method=recipe.format.method,
        seed=recipe.seed,
    )
    measured, decision = judge(
        recipe, checkpoint, standing.champion, standing.champion_evaluation, standing.heldout, turn
    )
    return Turn(
        turn=turn,
        champion=standing.champion,
        champion_evaluation=standing.champion_evaluation,
        rollouts=rollouts,
        table=table,
        selection=selection,
        dataset=dataset,
        checkpoint=checkpoint,
        evaluation=measured.evaluation,
        heldout_table=measured.table,
        decision=decision,
        promoted=read_decision(Workspace.current().store, decision).promoted,
    )
