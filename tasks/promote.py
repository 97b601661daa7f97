"""Step: the gate's decision on a challenger."""

from __future__ import annotations

from gristmill.artifact import ArtifactRef
from gristmill.evaluation import read_evaluation
from gristmill.promotion import FILE, weigh
from gristmill.recipe import PromoteRecipe
from gristmill.workspace import Workspace
from tasks import artifacts
from tasks.caching import step


@step("promote")
def decide_promotion(
    challenger: ArtifactRef, champion: ArtifactRef, settings: PromoteRecipe, look: int = 1
) -> ArtifactRef:
    """Compare two evaluations on the same tasks; who becomes champion is the flow's doing."""
    store = Workspace.current().store
    ours, theirs = read_evaluation(store, challenger), read_evaluation(store, champion)
    found, decision = weigh(ours, theirs, settings, look)
    with store.draft("decision") as draft:
        draft.write_json(
            FILE,
            {
                **decision.model_dump(mode="json"),
                "comparison": found.model_dump(mode="json"),
                "challenger": ours.policy.model_dump(mode="json"),
                "champion": theirs.policy.model_dump(mode="json"),
            },
        )
        ref = draft.commit(
            stage="promote",
            parents=[challenger, champion],
            settings=settings.model_dump(mode="json"),
            counts={"verdict": decision.verdict, "lift": decision.lift.mean},
        )
    return ref


artifacts.shown(decide_promotion, artifacts.gate)
