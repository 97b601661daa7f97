"""Flows run from the command line: a Prefect API for as long as it takes, a table of the stages, the result told."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gristmill.cli.output import print_json

if TYPE_CHECKING:
    from flows.improve import Outcome
    from flows.prepare import PreparedRun
    from gristmill.artifact import ArtifactRef
    from gristmill.prepare_command import Request
    from gristmill.recipe import Recipe
    from gristmill.refresh import Refresh
    from gristmill.terminal import StageTable
    from gristmill.workspace import Workspace

T = TypeVar("T")


def run_improve(recipe: Recipe, workspace: Path, as_json: bool, again: Refresh) -> None:
    """The loop of a recipe, and what came of it."""
    started = time.monotonic()
    # Before the seconds that Prefect takes: a model or a stage that is not there is wrong use.
    from gristmill import model
    from gristmill.collect.run import check
    from gristmill.resume_command import refresh_of
    from gristmill.sinks import check as check_sinks
    from gristmill.workspace import Workspace, called

    if again:
        again = refresh_of(Workspace(workspace), recipe, again)

    model.identity(recipe.policy.model)
    check(recipe.policy, recipe.environment, trains=True)
    check_sinks(recipe.sinks)

    def load() -> Callable[[Workspace], Outcome]:
        from flows.improve import improve as flow

        return lambda place: flow(recipe, place.location, refresh=again)

    place, table, outcome = _run_flow(
        load, f"{recipe.name}: {recipe.turns} turns in {called(workspace)}", workspace, as_json
    )
    _tell_outcome(outcome, place, table, time.monotonic() - started, as_json)


def evaluated(
    path: Path, names: Sequence[str], overrides: Sequence[str], workspace: Path, as_json: bool
) -> tuple[Workspace, tuple[ArtifactRef, ...], Recipe]:
    """Evaluations of policies by a recipe, as a Prefect flow over the loop's own steps."""
    from gristmill.evaluate_command import request
    from gristmill.workspace import called

    recipe, policies = request(path, names, overrides, workspace)

    def load() -> Callable[[Workspace], tuple[ArtifactRef, ...]]:
        from flows.evaluate import evaluate_policies as flow

        return lambda place: flow(recipe, place.location, list(policies))

    title = f"{recipe.name}: evaluate {' and '.join(names)} in {called(workspace)}"
    place, _, found = _run_flow(load, title, workspace, as_json)
    return place, found, recipe


def prepare_recipe(request: Request, out: Path, workspace: Path, force: bool, as_json: bool) -> None:
    """The same as a Prefect flow, every stage cached in the workspace; then a copy at its place."""
    from gristmill.prepare import publish_run
    from gristmill.prepare_command import tell_result
    from gristmill.workspace import called

    def load() -> Callable[[Workspace], PreparedRun]:
        from flows.prepare import prepare as flow

        return lambda place: flow(request.recipe, place.location, files=list(request.files))

    place, _, made = _run_flow(load, f"{request.recipe.name}: prepare in {called(workspace)}", workspace, as_json)
    done = publish_run(place.store, made.table, made.dataset, made.report, out, request.recipe, force=force)
    tell_result(done.folder, request.recipe, done.counts, done.report, json=as_json)


def _run_flow(
    load: Callable[[], Callable[[Workspace], T]], title: str, workspace: Path, as_json: bool
) -> tuple[Workspace, StageTable, T]:
    """Run a flow under a Prefect API, shown as a table of its stages; `load` imports it while the server starts."""
    from rich.console import Console

    from flows.server import prefect_api
    from gristmill import progress
    from gristmill.resume_command import go_on
    from gristmill.terminal import StageTable
    from gristmill.workspace import Workspace, called

    place = Workspace(workspace)
    if as_json or not sys.stderr.isatty():
        # Nobody is there to be asked: a required review ends the run with 3, and the same command goes on later.
        os.environ.setdefault("GRISTMILL_REVIEW_WAIT", "0")
    table = StageTable(Console(stderr=True), title)
    with prefect_api(place.root / "prefect") as embedded, progress.listening(table), table.shown():
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        start = load()
        if embedded:
            embedded.wait()
        # The heartbeat thread makes every flow last a second longer, and nobody watches an embedded server's flows.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if embedded else {}):
            try:
                return place, table, start(place)
            except KeyboardInterrupt:
                print(f"interrupted; to go on: {go_on(sys.argv[1:], called(workspace))}", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                # A gate or wrong use says itself what to change; the rest goes on where it was.
                if getattr(error, "exit_code", 1) == 1:
                    error.add_note(f"to go on: {go_on(sys.argv[1:], called(workspace))}")
                raise


def _tell_outcome(outcome: Outcome, workspace: Workspace, table: StageTable, seconds: float, as_json: bool) -> None:
    """The result: for people the curve and where the report lies, for programs one object."""
    result: dict[str, Any] = workspace.store.read_json(outcome.report, "summary.json")
    report = workspace.page(result["recipe"])
    if as_json:
        result |= {"cached": table.cached, "seconds": round(seconds, 1), "report": str(report)}
        print_json(result)
        return
    from gristmill.words import percent

    lift = result["lift"]
    width = 40
    print()
    for name, mean, mark in [
        ("base", result["base"]["mean"], ""),
        *((f"turn {t['turn']}", t["mean_reward"], t["verdict"]) for t in result["turns"]),
    ]:
        bar = "█" * round(width * max(0.0, min(1.0, mean)))
        print(f"{name:>8}  {mean:6.3f}  {bar:<{width}}  {mark}")
    print()
    interval = ""
    if lift["low"] is not None:
        interval = f", {percent(lift['confidence'])} interval {lift['low']:+.3f} to {lift['high']:+.3f}"
    print(f"champion − base on {lift['tasks']} held-out tasks: {lift['mean']:+.3f}{interval}")
    if result["stopped"]:
        print(f"stopped after turn {len(result['turns'])}: {result['stopped']}")
    done = len(table.rows) - table.cached
    again = (
        "nothing had changed, nothing was done again" if done == 0 else f"{done} stages ran, {table.cached} were cached"
    )
    print(f"{again}; {seconds:.0f} s")
    print(f"report: {_shown(report)}")


def _shown(path: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)
