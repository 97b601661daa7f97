"""Flow: the loop. Measures the base policy, takes turns, and writes the report.

The state of turn t follows from the recipe and the turns before it, so running the same recipe again finds every
stage in the cache, and raising `turns` goes on where the last run ended.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from flows.evaluate import base, evaluate, heldout_tasks
from flows.events import finished
from flows.iterate import iterate, require_trainable
from gristmill.artifact import ArtifactRef, now
from gristmill.champions import Champion, register, rolled_back
from gristmill.collect.run import check
from gristmill.environment import source
from gristmill.errors import GateError
from gristmill.loop import Standing, Turn
from gristmill.promotion import read_decision
from gristmill.recipe import Recipe, with_overrides
from gristmill.refresh import Refresh
from gristmill.runs import recorded
from gristmill.stopping import Spent, nothing_left, spent, stop
from gristmill.workspace import Workspace
from tasks.caching import RefSerializer, run
from tasks.cluster import executing
from tasks.collect import make_tasks
from tasks.report import PAGE, write_report
from tasks.sinks import delivering


class Outcome(BaseModel):
    """What a run ended with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    champion: ArtifactRef
    turns: tuple[Turn, ...]
    report: ArtifactRef
    stopped: str | None
    """Why the loop ended before its last turn."""


@flow(name="improve", flow_run_name="{recipe.name}")
def improve(
    recipe: Recipe, workspace: str, overrides: dict[str, Any] | None = None, refresh: Refresh | None = None
) -> Outcome:
    """Run the loop.

    Args:
        recipe: the whole configuration.
        workspace: folder that holds everything the run makes; one run at a time.
        overrides: dotted fields that replace the recipe's, for schedules (Prefect does not merge parameters).
        refresh: stages that are done again although they are cached.
    """
    recipe = with_overrides(recipe, overrides or {})
    check(recipe.policy, recipe.environment, trains=True)
    require_trainable(recipe)
    place = Workspace(workspace)
    engine = flow_run.get_id()
    begun = recorded(place, ["improve"], recipe, refresh=refresh, engine=engine)
    with place.locked(), place.entered(), executing(recipe.execution, place), delivering(place, recipe), begun:
        start, heldout = base(recipe.policy.model), heldout_tasks(recipe)
        measured = evaluate(recipe, start, heldout, 0)
        standing = Standing(base=start, heldout=heldout, champion=start, champion_evaluation=measured.evaluation)
        one_turn = iterate.with_options(
            persist_result=True, result_storage=place.results, result_serializer=RefSerializer()
        )
        undone = rolled_back(place)
        turns: list[Turn] = []
        began = now()
        stopped = None
        before, so_far = Spent(), spent(place.store, [measured.evaluation])
        for number in range(1, recipe.turns + 1):
            stopped = stop(recipe, turns, before, so_far)
            if stopped is None:
                tasks = _tasks(recipe, number, standing)
                stopped = nothing_left(place.store, tasks)
            if stopped is not None:
                break
            turn = one_turn(recipe, number, standing, tasks)
            if turn.decision in undone:
                turn = turn.model_copy(update={"promoted": False})
            turns.append(turn)
            finished(place.store, recipe, turn, since=began)
            if turn.promoted:
                _register(place, recipe, turn)
            standing = standing.after(turn)
            before, so_far = so_far, spent(place.store, [measured.evaluation, *(turn.decision for turn in turns)])
        if not turns:
            raise GateError(f"no turn was begun: {stopped}")
        report = run(
            write_report,
            turns[-1].turn,
            "report",
            recipe=recipe,
            base=start,
            base_evaluation=measured.evaluation,
            base_table=measured.table,
            turns=turns,
            stopped=stopped,
        )
        place.publish(place.store.path(report) / PAGE, place.page(recipe.name))
        return Outcome(champion=standing.champion, turns=tuple(turns), report=report, stopped=stopped)


def _tasks(recipe: Recipe, turn: int, standing: Standing) -> ArtifactRef:
    """The training tasks of a turn."""
    environment = recipe.environment
    return run(
        make_tasks,
        turn,
        "tasks",
        environment=environment,
        source=source(environment),
        seed=recipe.seed,
        split="train",
        turn=turn if environment.fresh else 1,
        earlier=list(standing.tables) if environment.curriculum else [],
        champion=standing.champion if environment.curriculum else None,
    )


def _register(workspace: Workspace, recipe: Recipe, turn: Turn) -> None:
    """Enter a promotion in the registry, once however often the run repeats."""
    register(
        workspace,
        Champion(
            recipe=recipe.name,
            recipe_digest=recipe.digest,
            turn=turn.turn,
            checkpoint=turn.checkpoint,
            replaced=turn.champion,
            decision=turn.decision,
            lift=read_decision(workspace.store, turn.decision).lift,
            time=now(),
        ),
    )
