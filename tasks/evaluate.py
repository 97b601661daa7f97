"""Step: score a policy from its rollouts on the held-out tasks."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.environment import read_tasks
from gristmill.evaluation import FILE, Collected, evaluate, scored
from gristmill.store import Store
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step
from tasks.ingest import table_files


@step("evaluate")
def evaluate_policy(
    policy: ArtifactRef, tasks: ArtifactRef, tables: list[ArtifactRef], confidence: float, solved_at: float
) -> ArtifactRef:
    """Rewards by task, their mean with its interval, and results by category, over all tables together."""
    store = Workspace.current().store
    collected = [_collected(store, table) for table in tables]
    samples = sum(one.samples for one in collected)
    result = evaluate(
        policy,
        tasks,
        read_tasks(store, tasks),
        (rollout for files in table_files(tables) for rollout in scored(files)),
        samples=samples,
        confidence=confidence,
        solved_at=solved_at,
        collected=collected,
    )
    with store.draft("evaluation") as draft:
        draft.write_json(FILE, result)
        return draft.commit(
            stage="evaluate",
            parents=[policy, tasks, *tables],
            settings={"samples": samples, "confidence": confidence, "solved_at": solved_at},
            counts={
                "mean_reward": result.estimate.mean,
                "success_rate": result.success_rate.mean,
                "expected": result.expected,
                "missing": result.missing,
            },
        )


def _collected(store: Store, table: ArtifactRef) -> Collected:
    """How a table's rollouts were asked for, as their manifest says."""
    (rollouts,) = (ref for ref in store.manifest(table).parents if ref.kind == "rollouts")
    settings = store.manifest(rollouts).settings
    sampling = dict(settings["sampling"])
    return Collected(samples=sampling.pop("samples"), seed=settings["seed"], sampling=sampling)


artifacts.shown(evaluate_policy, artifacts.evaluation)
