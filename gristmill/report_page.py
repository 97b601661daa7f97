"""The page of a run's report: `render(report)`, one HTML page as text.

The page is self-contained (no script, and no reference that leaves the file; a content security policy holds it to
that); whatever a model or a task wrote is escaped and cannot become markup; equal reports give equal pages, because the
page holds no clock and no random id. A part without data says so in a line.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from gristmill import charts
from gristmill.charts import number
from gristmill.report import RunReport
from gristmill.report_words import decision_words, estimate_words, headline, lift_figures, size_words
from gristmill.statistics import Estimate
from gristmill.words import duration, many, percent

FOLD_AFTER = 1200
"""Characters of a question or an answer that are shown before the rest is folded away."""


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
