"""Steps: a turn's sample for people to look at, what they decided on its rollouts, and what is marked as bad.

Decisions in the workspace count whether or not the recipe asks for a review; `review.required` makes the turn wait
until its sample is decided. The wait itself is no cached step: what people say is no function of the inputs. What
they said is one, so that equal decisions find every later stage in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from prefect import State, get_client, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.context import FlowRunContext
from prefect.states import Paused, Running

from gristmill import progress, scan
from gristmill.artifact import ArtifactRef
from gristmill.decisions import FILE, Opinion, read_opinions, resolve, write_opinions
from gristmill.errors import GateError
from gristmill.recipe import Recipe, ReviewRecipe
from gristmill.review import waiting
from gristmill.sample import stratified
from gristmill.taints import rollouts, standing
from gristmill.workspace import Workspace
from tasks.caching import run, step
from tasks.ingest import table_files

AWAITING = "AwaitingReview"
"""Name of the turn's state in Prefect while it waits."""
TAINTED = "tainted.txt"
"""Beside the opinions: ids of rollouts that are marked as bad, one a line."""
_EXPIRES = timedelta(days=365)  # Prefect wants an end to every pause; nothing looks at it


@step("review-sample")
def draw_sample(tables: list[ArtifactRef], sizes: ReviewRecipe, seed: int) -> ArtifactRef:
    """Rollouts of low, middle and high reward."""
    store = Workspace.current().store
    rows = stratified(table_files(tables), low=sizes.low, middle=sizes.middle, high=sizes.high, seed=seed)
    with store.draft("sample") as draft:
        waiting.write_sample(rows, draft.path / waiting.SAMPLE)
        return draft.commit(
            stage="review-sample",
            parents=tables,
            settings={**sizes.model_dump(mode="json"), "seed": seed},
            counts={
                "sampled": len(rows),
                "rollouts": sum(store.manifest(table).counts["rows_kept"] for table in tables),
            },
        )


@step("review")
def keep_decisions(tables: list[ArtifactRef], sample: ArtifactRef | None, held: list[dict[str, Any]]) -> ArtifactRef:
    """What reviewers hold of the tables' rollouts, as an artifact."""
    opinions = [Opinion.model_validate(one) for one in held]
    judged = list(resolve(opinions).values())
    with Workspace.current().store.draft("decisions") as draft:
        write_opinions(opinions, draft.path / FILE)
        return draft.commit(
            stage="review",
            parents=[*tables, *([sample] if sample else [])],
            counts={
                "accepted": judged.count("accept"),
                "rejected": judged.count("reject"),
                "reviewers": len({one.reviewer for one in opinions}),
            },
        )


@step("taints")
def keep_tainted(tables: list[ArtifactRef], decisions: ArtifactRef | None, marked: list[dict[str, Any]]) -> ArtifactRef:
    """The tables' rollouts that are marked as bad, beside the reviewers' decisions, if there are any."""
    store = Workspace.current().store
    with scan.connect(table_files(tables)) as db:
        ids, _ = rollouts(db, marked)
    opinions = read_opinions(store, decisions) if decisions else []
    counts = store.manifest(decisions).counts if decisions else {"accepted": 0, "rejected": 0, "reviewers": 0}
    with store.draft("decisions") as draft:
        write_opinions(opinions, draft.path / FILE)
        (draft.path / TAINTED).write_text("".join(f"{one}\n" for one in ids))
        return draft.commit(
            stage="taints",
            parents=[*tables, *([decisions] if decisions else [])],
            settings={"marked": marked},
            counts={**counts, "tainted": len(ids)},
        )


def reviewed(recipe: Recipe, turn: int, fresh: ArtifactRef, tables: list[ArtifactRef]) -> ArtifactRef | None:
    """The decisions on the tables' rollouts, and which of them are marked as bad; None if there are none.

    Called from a flow.

    Args:
        fresh: the turn's own table, which its sample is drawn from.
        tables: all tables that are chosen from.

    Raises:
        GateError: the review is required, and `GRISTMILL_REVIEW_WAIT` does not let the run wait (longer).
    """
    workspace = Workspace.current()
    sample = None
    if recipe.review.required:
        sample = run(draw_sample, turn, "sample", tables=[fresh], sizes=recipe.review, seed=recipe.seed)
        asked = waiting.Waiting(recipe=recipe.name, turn=turn, seed=recipe.seed, sample=sample, tables=(fresh,))
        _wait(workspace, asked)
    held = waiting.opinions_on(waiting.log_of(workspace), table_files(tables))
    decisions = None
    if held:
        plain = [one.model_dump(mode="json") for one in held]
        decisions = run(keep_decisions, turn, "review", tables=tables, sample=sample, held=plain)
    marked = [one.content() for one in standing(workspace, turn)]
    if marked:
        with scan.connect(table_files(tables)) as db:
            _, marked = rollouts(db, marked)  # others change nothing here, so they are no input
    if marked:
        decisions = run(keep_tainted, turn, "taints", tables=tables, decisions=decisions, marked=marked)
    return decisions


def decisions_of(ref: ArtifactRef | None) -> dict[str, str]:
    """Rollout id → "accept", "reject" or "taint", as `curate` takes them."""
    if ref is None:
        return {}
    store = Workspace.current().store
    found: dict[str, str] = dict(resolve(read_opinions(store, ref)))
    tainted = store.path(ref) / TAINTED
    if tainted.is_file():
        found |= dict.fromkeys(tainted.read_text().split(), "taint")
    return found


def _wait(workspace: Workspace, asked: waiting.Waiting) -> None:
    waiting.announce(workspace, asked)
    if waiting.look(workspace, asked).complete:
        return
    command = waiting.command(workspace, asked.recipe)
    sentence = (
        f"Turn {asked.turn} waits for people to decide on its sample. Run `{command}`; it then goes on by itself."
    )
    get_run_logger().warning(sentence)
    create_markdown_artifact(sentence, key="review")
    with progress.stage(asked.turn, "review"), _paused(sentence):
        try:
            waiting.wait(
                workspace,
                asked,
                progress=lambda done, total: progress.advance(done, total, f"decided: {command}"),
            )
        except GateError:
            progress.emit("failed", note=f"decide first: {command}")
            raise


@contextmanager
def _paused(message: str) -> Iterator[None]:
    """The turn's flow run is shown as paused for the duration of the block."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    run_id = context.flow_run.id

    def show(state: State[Any]) -> None:
        # Forced: the run's own process says so, there is nothing to negotiate.
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(run_id, state, force=True)

    paused: State[Any] = Paused(timeout_seconds=int(_EXPIRES.total_seconds()))
    show(paused.model_copy(update={"name": AWAITING, "message": message}))
    try:
        yield
    finally:
        show(Running())
