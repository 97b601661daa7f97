"""What a run's report says in words: the headline, a turn's decision, estimates with their intervals.

No more is said than the evidence bears: a rise is called one only where its interval is above zero.
"""

from __future__ import annotations

from typing import NamedTuple

from gristmill.charts import decimals_for, number
from gristmill.promotion import Decision, Verdict
from gristmill.report import RunReport, TurnReport
from gristmill.statistics import Estimate
from gristmill.words import many, percent

_TIMES = "\N{MULTIPLICATION SIGN}"


class Headline(NamedTuple):
    """The run in two sentences: what happened, and on what evidence."""

    claim: str
    evidence: str


def headline(report: RunReport) -> Headline:
    """What the evidence says, and no more: a rise is called one only where its interval is above zero."""
    base, champion, lift = report.base_score, report.champion_score, report.lift
    if not report.turns:
        return Headline("No turn was run", "There is nothing to compare yet.")
    if base is None or champion is None:
        return Headline(
            "Nothing is proved: no held-out evaluation of both base and champion",
            "Without scores on held-out tasks there is no evidence for or against the training.",
        )
    if not report.promoted:
        evidence = f"{report.champion} stays champion with a held-out mean reward of {estimate_words(champion)}, "
        evidence += f"{size_words(champion)}."
        tried = [(turn.gate.decision.lift, turn.challenger) for turn in report.turns if turn.gate]
        if tried:
            lift, name = max(tried, key=lambda one: one[0].mean)
            evidence += f" The best challenger, {name}, had a lift of {lift_words(lift, report.confidence)}."
        return Headline("No challenger was promoted", evidence)
    d = decimals_for(base.mean, champion.mean)
    from_to = f"from {number(base.mean, d)} to {number(champion.mean, d)}"
    if lift is None or lift.low is None or lift.high is None:
        return Headline(f"Held-out mean reward went {from_to}", "No interval was computed, so this may be chance.")
    words = f"{lift_words(lift, report.confidence)}, {size_words(champion)}."
    if lift.low > 0:
        return Headline(f"Held-out mean reward rose {from_to}", words)
    if lift.high < 0:
        return Headline(f"Held-out mean reward fell {from_to}", words)
    return Headline(f"Held-out mean reward went {from_to}, which may be chance", f"The interval includes zero: {words}")


def decision_words(turn: TurnReport) -> str:
    """The gate's decision on a turn's challenger, with every number that it rests on."""
    if turn.gate is None:
        return f"The gate made no decision on {turn.challenger}."
    decision, champion = turn.gate.decision, turn.gate.champion_score
    lift, threshold = decision.lift, decision.min_effect
    score = f"scored {estimate_words(turn.score)}" if turn.score else "was not scored by itself"
    facts = (
        f"{turn.challenger} {score}; the champion, {turn.gate.champion}, scored {estimate_words(champion)} "
        f"on {size_words(champion)}. Paired over {many(lift.tasks, 'task')}, the lift is "
        f"{lift_words(lift, decision.confidence)}. "
    )
    if lift.low is None or lift.high is None:
        return f"{facts}Without an interval there is no evidence: it was not promoted and the champion stays."
    d = decimals_for(lift.low, lift.high, threshold)
    low, high = number(lift.low, d, sign=True), number(lift.high, d, sign=True)
    limit = f"the threshold {number(threshold, d, sign=True) if threshold else 0}"
    failed = [guard for guard in decision.guards if not guard.passed]
    if failed and lift.low > threshold:
        which = "; ".join(f"{guard.name}: {guard.evidence}" for guard in failed)
        guarded = f"{many(len(failed), 'guard')} of {len(decision.guards)} failed"
        return f"{facts}The lower bound, {low}, is above {limit}, but {guarded} ({which}): the champion stays."
    held = f" {many(len(decision.guards), 'guard')} held." if decision.guards else ""
    verdict = {
        Verdict.PROMOTED: f"The lower bound, {low}, is above {limit}: it was promoted.{held}",
        Verdict.REJECTED: f"Even the upper bound, {high}, is not above {limit}: it was rejected and the "
        "champion stays.",
        Verdict.INCONCLUSIVE: f"The interval includes {limit}, so this does not decide: it was not promoted "
        f"and the champion stays. {settling_words(decision)}",
    }
    later = " It was rolled back later: the champion before it stands again." if turn.gate.rolled_back else ""
    return facts + verdict[decision.verdict] + later


def settling_words(decision: Decision) -> str:
    """What more evidence would settle an inconclusive decision."""
    if decision.lift.mean <= decision.min_effect:
        return "Nothing suggests a lift that more evidence would confirm."
    ways = [f"{many(decision.needed_tasks, 'held-out task')} in all"] if decision.needed_tasks else []
    ways += [f"{many(decision.needed_samples, 'sample')} of each task"] if decision.needed_samples else []
    if not ways:
        return "No number of tasks within reach would settle it."
    return f"If the lift is what it seems, {' or '.join(ways)} would settle it."


def estimate_words(estimate: Estimate) -> str:
    """'0.31 [0.24, 0.38]'."""
    return f"{number(estimate.mean, _decimals(estimate))}{_bracket(estimate, sign=False)}"


def lift_words(lift: Estimate, confidence: float) -> str:
    """'+0.43, 95% interval [+0.35, +0.51]'."""
    mean, bracket = number(lift.mean, _decimals(lift), sign=True), _bracket(lift, sign=True)
    return f"{mean}, {percent(confidence)} interval{bracket}" if bracket else f"{mean}, no interval"


def lift_figures(lift: Estimate) -> str:
    """'+0.43 [+0.35, +0.51]', for a table."""
    return number(lift.mean, _decimals(lift), sign=True) + _bracket(lift, sign=True)


def size_words(estimate: Estimate) -> str:
    """How many tasks, times how many samples of each; the total where tasks have unequal numbers."""
    each, uneven = divmod(estimate.samples, estimate.tasks)
    if uneven:
        return f"{many(estimate.tasks, 'task')}, {many(estimate.samples, 'sample')}"
    return f"{many(estimate.tasks, 'task')} {_TIMES} {many(each, 'sample')}"


def _decimals(estimate: Estimate) -> int:
    return decimals_for(*(value for value in (estimate.mean, estimate.low, estimate.high) if value is not None))


def _bracket(estimate: Estimate, *, sign: bool) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    d = _decimals(estimate)
    return f" [{number(estimate.low, d, sign=sign)}, {number(estimate.high, d, sign=sign)}]"
