"""Step: score a policy from its rollouts on the held-out tasks."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.environment import read_tasks
from gristmill.evaluation import FILE, evaluate, scored
from gristmill.workspace import Workspace
from tasks.caching import step
from tasks.ingest import table_files


@step("evaluate", version="2")
def evaluate_policy(
    policy: ArtifactRef, tasks: ArtifactRef, table: ArtifactRef, samples: int, confidence: float, solved_at: float
) -> ArtifactRef:
    """Rewards by task, their mean with its interval, and results by category."""
    store = Workspace.current().store
    (files,) = table_files([table])
    result = evaluate(
        policy,
        tasks,
        read_tasks(store, tasks),
        scored(files),
        samples=samples,
        confidence=confidence,
        solved_at=solved_at,
    )
    with store.draft("evaluation") as draft:
        draft.write_json(FILE, result)
        return draft.commit(
            stage="evaluate",
            parents=[policy, tasks, table],
            settings={"samples": samples, "confidence": confidence, "solved_at": solved_at},
            counts={
                "mean_reward": result.estimate.mean,
                "success_rate": result.success_rate.mean,
                "expected": result.expected,
                "missing": result.missing,
            },
        )
