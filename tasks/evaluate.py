"""Step: score a policy from its rollouts on the held-out tasks."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.evaluation import FILE, Evaluation, evaluate, scored
from gristmill.workspace import Workspace
from tasks.caching import step
from tasks.collect import task_rows
from tasks.ingest import table_files


@step("evaluate")
def evaluate_policy(
    policy: ArtifactRef, tasks: ArtifactRef, table: ArtifactRef, samples: int, confidence: float
) -> ArtifactRef:
    """Rewards by task, their mean with its interval, and results by category."""
    store = Workspace.current().store
    (files,) = table_files([table])
    result = evaluate(
        policy,
        tasks,
        task_rows(tasks),
        scored(files),
        samples=samples,
        confidence=confidence,
    )
    with store.draft("evaluation") as draft:
        draft.write_json(FILE, result)
        return draft.commit(
            stage="evaluate",
            parents=[policy, tasks, table],
            settings={"samples": samples, "confidence": confidence},
            counts={
                "mean_reward": result.estimate.mean,
                "expected": result.expected,
                "missing": result.missing,
            },
        )


def read_evaluation(ref: ArtifactRef) -> Evaluation:
    """An evaluation from the store."""
    return Evaluation.model_validate(Workspace.current().store.read_json(ref, FILE))
