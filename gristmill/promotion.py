"""The gate: a challenger replaces the champion on paired evidence only.

A challenger is promoted if the lower end of its lift's interval exceeds the minimum effect and no guard fails. `weigh`
is pure; who was promoted, the registry remembers (gristmill/champions.py).

With `promote.on_inconclusive: collect_more` the gate may look twice, the second time on more samples of the same tasks.
Each look has half of the error (Bonferroni): whatever the dependence of the two, a challenger that is no better is then
promoted no more often than by one look. Pocock's bound for two looks equally far apart (1977, "Group Sequential Methods
in the Design and Analysis of Clinical Trials", Biometrika 64(2)) would be 97.06 % instead of 97.5 % at 95 %; how far
apart these looks are depends on the tasks, and is not known before. benchmarks/gate.py simulates both.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from gristmill.artifact import ArtifactRef
from gristmill.comparison import Comparison, Guard, compare, guards
from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation
from gristmill.power import Needed, needed
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate
from gristmill.store import Store
from gristmill.words import percent

FILE = "decision.json"


class Verdict(StrEnum):
    """What the gate says."""

    PROMOTED = "promoted"
    """The interval of the lift lies above the minimum effect, and no guard failed."""
    REJECTED = "rejected"
    """The interval lies at or below the minimum effect, or a guard failed: better on average is not all."""
    INCONCLUSIVE = "inconclusive"
    """The interval includes the minimum effect: the champion stays, more evidence could settle it."""


class Decision(BaseModel):
    """A verdict and the evidence it rests on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    lift: Estimate
    min_effect: float
    confidence: float
    """Of the interval at this look."""
    reason: str
    guards: tuple[Guard, ...] = ()
    needed_tasks: int | None = None
    """Inconclusive: held-out tasks in all that would settle it, at the same samples, if the lift is what it seems."""
    needed_samples: int | None = None
    """Inconclusive: samples a task in all that would, on the same tasks; null if no number of them would."""
    look: int = 1
    """2 if more samples were collected after a first look that was inconclusive."""

    @property
    def promoted(self) -> bool:
        return self.verdict is Verdict.PROMOTED

    @property
    def worth_more_samples(self) -> bool:
        """Whether a second look on the same tasks could promote: no if the lift seems too small, or the tasks too few.

        Not to look again never promotes more often, so this may depend on what was seen.
        """
        hopeful = self.lift.low is not None and self.lift.mean > self.min_effect
        return (
            self.verdict is Verdict.INCONCLUSIVE and hopeful and (self.needed_samples is not None or _once(self.lift))
        )


class Weighed(NamedTuple):
    """Two evaluations compared, and what the gate says of them."""

    comparison: Comparison
    decision: Decision


def weigh(challenger: Evaluation, champion: Evaluation, recipe: PromoteRecipe, look: int = 1) -> Weighed:
    """Compare two evaluations at the confidence of one look, and decide.

    Raises:
        UsageError: as `compare`.
    """
    found = compare(challenger, champion, recipe.look_confidence)
    more = needed(challenger.rewards, champion.rewards, min_effect=recipe.min_effect, confidence=recipe.look_confidence)
    return Weighed(found, decide(found.lift, recipe, guards(found, recipe), more, look))


def decide(
    lift: Estimate, recipe: PromoteRecipe, guards: tuple[Guard, ...] = (), more: Needed | None = None, look: int = 1
) -> Decision:
    """Compare the interval of the paired lift with the minimum effect, and look at the guards.

    Args:
        lift: with an interval at `recipe.look_confidence`.
        more: what would settle it, should it be inconclusive.
        look: 2 after more samples were collected.
    """
    floor = recipe.min_effect
    if lift.low is None or lift.high is None:
        verdict = Verdict.INCONCLUSIVE
        reason = f"{lift.tasks} task allows no interval; evaluate on more held-out tasks"
    else:
        interval = (
            f"{percent(recipe.look_confidence)} interval {lift.low:+.3f} to {lift.high:+.3f} over {lift.tasks} tasks"
        )
        if lift.low > floor:
            failed = [f"{guard.name}: {guard.evidence}" for guard in guards if not guard.passed]
            verdict = Verdict.REJECTED if failed else Verdict.PROMOTED
            reason = f"lift {lift.mean:+.3f}, {interval}: its lower end exceeds {floor:+.3f}"
            if failed:
                reason += f", but {'; '.join(failed)}"
        elif lift.high <= floor:
            verdict = Verdict.REJECTED
            reason = f"lift {lift.mean:+.3f}, {interval}: not above {floor:+.3f}"
        else:
            verdict = Verdict.INCONCLUSIVE
            reason = f"lift {lift.mean:+.3f}, {interval}: it includes {floor:+.3f}; {_settling(lift, floor, more)}"
    if recipe.on_inconclusive == "collect_more":
        which = "first" if look == 1 else "second"
        reason += f" ({which} of at most two looks, which hold together at {percent(recipe.confidence)})"
    settles = more if verdict is Verdict.INCONCLUSIVE and more is not None else Needed(None, None)
    return Decision(
        verdict=verdict,
        lift=lift,
        min_effect=floor,
        confidence=recipe.look_confidence,
        reason=reason,
        guards=guards,
        needed_tasks=settles.tasks,
        needed_samples=settles.samples,
        look=look,
    )


def _settling(lift: Estimate, floor: float, more: Needed | None) -> str:
    """What would settle it, as a clause."""
    if more is None:
        return "more tasks could settle it"
    if lift.mean <= floor:
        return f"nothing suggests a lift above {floor:+.3f}, so more tasks would sooner refuse it"
    if more.tasks is None:
        return "if the lift is what it seems, no number of tasks within reach would settle it"
    tasks = f"{more.tasks:,} held-out tasks ({more.tasks - lift.tasks:,} more)"
    if more.samples is None and _once(lift):
        return (
            f"if the lift is what it seems, {tasks} would settle it; one sample a task does not say what more would do"
        )
    if more.samples is None:
        return f"if the lift is what it seems, {tasks} would settle it, more samples of these tasks would not"
    return f"if the lift is what it seems, {tasks} or {more.samples:,} samples a task would settle it"


def _once(lift: Estimate) -> bool:
    """Whether each policy attempted each task once, so that chance and difference cannot be told apart."""
    return lift.samples == 2 * lift.tasks


def read_decision(store: Store, ref: ArtifactRef) -> Decision:
    """A decision from the store; its file also names challenger and champion.

    Raises:
        UsageError: another version of Gristmill wrote it.
        ArtifactDamaged: it is not what was written.
    """
    value = store.read_json(ref, FILE)
    try:
        return Decision.model_validate({name: value[name] for name in Decision.model_fields if name in value})
    except (ValidationError, TypeError) as error:
        store.verify(ref)
        found = store.manifest(ref).gristmill
        raise UsageError(
            f"{ref} was written by gristmill {found}, whose decisions this version does not read"
        ) from error
