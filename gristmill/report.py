"""The page of a run: what was run, what the evidence says, and everything needed to check it.

Reads: one `RunReport`, plain frozen data that is JSON-able, filled from evaluations, decisions, funnels and
the journal. Writes: `render(report)`, one HTML page as text.

Guarantees: the page is self-contained (no script, and no reference that leaves the file; a content security
policy holds it to that); whatever a model or a task wrote is escaped and cannot become markup; equal reports
give equal pages, because the page holds no clock and no random id. A part without data says so in a line. NaN
and infinity are refused when the report is built, and so is a funnel that does not add up.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gristmill import charts
from gristmill.charts import decimals_for, number
from gristmill.histogram import Histogram
from gristmill.identity import canonical
from gristmill.promotion import Decision, Verdict
from gristmill.statistics import Estimate
from gristmill.words import duration, many

TIMES = "\N{MULTIPLICATION SIGN}"
FOLD_AFTER = 1200
"""Characters of a question or an answer that are shown before the rest is folded away."""


def _without_surrogates(value: object) -> object:
    """JSON may hold half a surrogate pair, UTF-8 may not: U+FFFD stands for it."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_without_surrogates)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gate(_Frozen):
    """The gate's decision on one challenger, and the champion that it was measured against."""

    champion: str = Field(description="Name of the policy that was champion before the decision.")
    champion_score: Estimate
    decision: Decision
    rolled_back: bool = Field(default=False, description="Whether a promotion was taken back later.")


class Funnel(_Frozen):
    """Rows read = rows kept + Σ rows dropped by reason; anything else is refused."""

    rows_read: int = Field(ge=0)
    rows_kept: int = Field(ge=0)
    dropped: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    examples: int | None = Field(default=None, ge=0, description="Training examples made of the kept rows.")

    @model_validator(mode="after")
    def _conserves(self) -> Funnel:
        if self.rows_read != self.rows_kept + self.rows_dropped:
            raise ValueError(
                f"expected rows_read = rows_kept + rows dropped, found {self.rows_read} ≠ "
                f"{self.rows_kept} + {self.rows_dropped}"
            )
        return self

    @property
    def rows_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Reasons that dropped a row, the largest first."""
        return sorted(((r, n) for r, n in self.dropped.items() if n), key=lambda item: (-item[1], item[0]))


class Rewards(Histogram):
    """Of a turn's training rollouts."""

    mean: float | None = None


class TurnReport(_Frozen):
    """One turn of the mill; what it did not do is None or empty."""

    turn: int = Field(ge=1)
    challenger: str = Field(description="Name of the policy that the turn trained.")
    score: Estimate | None = Field(default=None, description="The challenger on the held-out tasks.")
    gate: Gate | None = None
    funnel: Funnel | None = None
    rewards: Rewards | None = None
    loss: tuple[float, ...] = Field(default=(), description="Training loss, in order of steps.")
    loss_every: int = Field(default=1, ge=1, description="Steps between two values of `loss`.")

    @property
    def promoted(self) -> bool:
        return self.gate is not None and self.gate.decision.promoted and not self.gate.rolled_back


class CategoryRow(_Frozen):
    """Held-out mean reward of one kind of task, before (base) and after (`RunReport.after`)."""

    category: Text
    before: Estimate
    after: Estimate
    lift: Estimate | None = Field(default=None, description="Paired; None shows the plain difference.")


class Answer(_Frozen):
    """One sampled answer as its policy wrote it; `reward` is None where the sample has none."""

    text: Text
    reward: float | None = None


class Transcript(_Frozen):
    """The same held-out task, answered before (base) and after (`RunReport.after`)."""

    task: Text = Field(description="Task key, or another short name.")
    question: Text
    before: Answer
    after: Answer
    category: Text = ""


class StageRow(_Frozen):
    """One stage of the run, as the journal has it."""

    stage: str
    turn: int | None = Field(default=None, description="None for what belongs to no turn.")
    cached: bool | None = Field(default=None, description="None where the page must not depend on it.")
    seconds: float = Field(ge=0)
    kind: str | None = None
    digest: str | None = None


class ArtifactRow(_Frozen):
    """A dataset, checkpoint or evaluation that came out of the run."""

    label: str
    kind: str
    digest: str


class RunReport(_Frozen):
    """All that the page shows. `lift` is champion minus base at the end; None when nothing was promoted."""

    title: str
    run_id: str = ""
    base: str = Field(description="Name of the policy that the run began from.")
    environment: str
    turns: tuple[TurnReport, ...] = ()
    base_score: Estimate | None = None
    lift: Estimate | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of every interval on the page.")
    categories: tuple[CategoryRow, ...] = ()
    transcripts: tuple[Transcript, ...] = ()
    compared: str = Field(default="", description="Who is 'after' in these two; '' for the last champion.")
    stages: tuple[StageRow, ...] = ()
    artifacts: tuple[ArtifactRow, ...] = ()
    recipe: Text = Field(default="", description="The resolved recipe as YAML.")
    training: str = Field(default="", description="What each turn trains from and on, in words.")
    stopped: str | None = Field(default=None, description="Why the loop ended before its last turn.")
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = Field(default=None, ge=0, description="Wall time of the run.")

    @model_validator(mode="after")
    def _finite(self) -> RunReport:
        # Estimates come from elsewhere and may hold NaN; canonical JSON refuses it wherever it stands.
        canonical(self.model_dump())
        return self

    @property
    def promoted(self) -> tuple[TurnReport, ...]:
        return tuple(turn for turn in self.turns if turn.promoted)

    @property
    def champion(self) -> str:
        """Name of the champion at the end."""
        if self.promoted:
            return self.promoted[-1].challenger
        return next((turn.gate.champion for turn in self.turns if turn.gate), self.base)

    @property
    def after(self) -> str:
        """Name of the policy that categories and transcripts set against the base."""
        return self.compared or self.champion

    @property
    def champion_score(self) -> Estimate | None:
        if self.promoted:
            return self.promoted[-1].score
        return next((turn.gate.champion_score for turn in self.turns if turn.gate), self.base_score)


# ------------------------------------------------------------------------------------------------------ words


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
    """'+0.43, 95 % interval [+0.35, +0.51]'."""
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
    return f"{many(estimate.tasks, 'task')} {TIMES} {many(each, 'sample')}"


def percent(confidence: float) -> str:
    """'95 %', '99.5 %'."""
    return f"{confidence * 100:.4g} %"


# Control characters as their pictures (U+2400 …): HTML cannot hold most, and a reader should see them.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """`text` with control characters made visible; line ends become '\\n'."""
    return text.replace("\r\n", "\n").translate(_VISIBLE)


class Folded(NamedTuple):
    """A text cut in two: `head` is shown, `rest` is folded away ('' when nothing is)."""

    head: str
    rest: str


def fold(text: str, limit: int = FOLD_AFTER) -> Folded:
    """Cut a long text at white space near `limit`; head + rest is the whole text."""
    shown = visible(text)
    if len(shown) <= limit * 1.25:
        return Folded(shown, "")
    cut = max(shown.rfind(" ", limit // 2, limit), shown.rfind("\n", limit // 2, limit)) + 1 or limit
    return Folded(shown[:cut], shown[cut:])


def _decimals(estimate: Estimate) -> int:
    return decimals_for(*(value for value in (estimate.mean, estimate.low, estimate.high) if value is not None))


def _bracket(estimate: Estimate, *, sign: bool) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    d = _decimals(estimate)
    return f" [{number(estimate.low, d, sign=sign)}, {number(estimate.high, d, sign=sign)}]"


# ------------------------------------------------------------------------------------------------------- page


def render(report: RunReport) -> str:
    """The page as HTML text; equal reports give equal text."""
    return _template().render(
        report=report,
        headline=headline(report),
        curve=_curve(report),
        histograms=_histograms(report),
        losses=_losses(report),
        category_bars=_category_bars(report),
    )


def _curve(report: RunReport) -> Markup:
    """Base and every scored challenger, with the champion's mean after each decision."""
    points, champion = [], []
    if report.base_score is not None:
        points.append(_chart_point("base", report.base_score, "base"))
        champion.append(report.base_score.mean)
    for turn in report.turns:
        if turn.score is None:
            continue
        points.append(_chart_point(f"turn {turn.turn}", turn.score, "promoted" if turn.promoted else "rejected"))
        if turn.promoted:
            champion.append(turn.score.mean)
        elif turn.gate is not None:
            champion.append(turn.gate.champion_score.mean)
        else:
            champion.append(champion[-1] if champion else turn.score.mean)
    if len(points) > 7:
        # Thirteen labels of 'turn 12' do not fit a phone; the axis says 'turn' once.
        points = [point._replace(label=point.label.removeprefix("turn ")) for point in points]
    return charts.curve(
        points,
        champion,
        title="Held-out mean reward of base and of each turn's challenger",
        interval=f"{percent(report.confidence)} interval",
    )


def _chart_point(label: str, score: Estimate, mark: charts.Mark) -> charts.Point:
    return charts.Point(label, score.mean, score.low, score.high, mark)


def _histograms(report: RunReport) -> dict[int, Markup]:
    """One histogram a turn, all on the same axes."""
    shown = {turn.turn: turn.rewards for turn in report.turns if turn.rewards is not None}
    if not shown:
        return {}
    low, high = min(h.edges[0] for h in shown.values()), max(h.edges[-1] for h in shown.values())
    top = max(max(h.counts) for h in shown.values())
    return {
        turn: charts.histogram(
            h,
            title=f"Rewards of the training rollouts of turn {turn}",
            low=low,
            high=high,
            top=top,
        )
        for turn, h in shown.items()
    }


def _losses(report: RunReport) -> dict[int, Markup]:
    """One loss curve a turn, all on one value axis that starts at zero."""
    shown = {turn.turn: turn for turn in report.turns if turn.loss}
    if not shown:
        return {}
    low, high = min(min(t.loss) for t in shown.values()), max(max(t.loss) for t in shown.values())
    return {
        n: charts.line(t.loss, title=f"Training loss of turn {n}", every=t.loss_every, low=min(low, 0.0), high=high)
        for n, t in shown.items()
    }


def _category_bars(report: RunReport) -> list[Markup]:
    """Before and after as two thin bars, on one scale for all categories."""
    values = [value for row in report.categories for value in (row.before.mean, row.after.mean)]
    low, high = min([0.0, *values]), max([0.0, *values])
    if low == 0.0 and high <= 1.0:
        high = 1.0
    drawn = []
    for row in report.categories:
        before, after = f"before: {estimate_words(row.before)}", f"after: {estimate_words(row.after)}"
        pair = [(row.before.mean, "before", before), (row.after.mean, "", after)]
        title = f"{visible(row.category)}, {before}, {after}"
        drawn.append(charts.bars(pair, title=title, low=low, high=high))
    return drawn


def _share_bar(part: int, whole: int, name: str, label: str) -> Markup:
    said = f"{visible(label)}: {part:,} of {whole:,} rows"
    return charts.bars([(float(part), name, said)], title=said, high=float(max(whole, 1)))


def _finalize(value: object) -> object:
    """Jinja calls this on whatever the template prints."""
    return visible(value) if type(value) is str else value


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Jinja cannot tell from .j2 that the file is HTML, so escaping is said outright.
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        CHART_STYLE=charts.STYLE,
        count=many,
        decision_words=decision_words,
        duration=duration,
        estimate_words=estimate_words,
        fold=fold,
        lift_figures=lift_figures,
        percent=percent,
        number=number,
        share_bar=_share_bar,
        size_words=size_words,
    )
    return environment.get_template("report.html.j2")
