"""What the checks said, as text for terminals and logs, as Markdown, and as one HTML page.

The page needs nothing else: no script, no reference that leaves it. Whatever stands in the data is escaped; equal
reports give equal pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from gristmill import charts
from gristmill.checks.catalogue import Report
from gristmill.checks.evidence import Environment
from gristmill.checks.finding import Finding
from gristmill.checks.registry import REGISTER, percent
from gristmill.histogram import Histogram
from gristmill.words import many

if TYPE_CHECKING:
    from jinja2 import Template

_PLOTS = 12  # environments with a plot of their own
_MARKS = {"error": ("✗", "bold red"), "warning": ("!", "yellow"), "note": ("·", "cyan")}
SOLVE_RATES = ("never", "up to 1/4", "up to 1/2", "up to 3/4", "below 1", "always")


class Plot(NamedTuple):
    """A chart with its heading."""

    title: str
    chart: Markup


def verdict(report: Report) -> str:
    """One sentence: may training start?"""
    errors, warnings, notes = (report.count(severity) for severity in ("error", "warning", "note"))
    counted = [many(n, what) for n, what in ((errors, "error"), (warnings, "warning"), (notes, "note")) if n]
    said = ", ".join(counted) if counted else "nothing to object to"
    rows = many(report.evidence.examples, "pair" if report.method in ("dpo", "reward") else "row")
    start = f"{rows} for {report.method}: {said}"
    silenced = f"; {len(report.silenced)} silenced" if report.silenced else ""
    return f"{start} ({len(report.passed)} checks had nothing to say{silenced})"


def lines(report: Report) -> RenderableType:
    """For a terminal: the verdict, then each finding with its remedies."""
    parts: list[RenderableType] = [Text(verdict(report), style="bold")]
    for finding in report.findings:
        mark, style = _MARKS[finding.severity]
        head = Text()
        head.append(f"{mark} {finding.id} ", style=style)
        head.append(_printable(finding.message))
        for remedy in finding.remedies:
            head.append(f"\n→ {remedy}", style="green")
        for where in finding.where:
            head.append(f"\n  {_printable(where)}", style="dim")
        parts.append(Padding(head, (1, 0, 0, 0)))
    if report.findings:
        parts.append(
            Padding(
                Text("docs/checks.md explains each; checks.silence: [ID] leaves one out", style="dim"), (1, 0, 0, 0)
            )
        )
    return Group(*parts)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def markdown(report: Report) -> str:
    """For Prefect's artifact: a table of the findings."""

    def cell(text: str) -> str:
        return _printable(text.replace("\n", " ")).replace("|", "\\|").replace("<", "&lt;")

    rows = [f"**{cell(verdict(report))}**"]
    if report.findings:
        rows += ["", "| | check | what is wrong | remedy |", "|---|---|---|---|"]
        rows += [
            f"| {finding.severity} | {finding.id} {cell(finding.title)} | {cell(finding.message)} | "
            f"{'<br>'.join(cell(str(remedy)) for remedy in finding.remedies)} |"
            for finding in report.findings
        ]
    return "\n".join(rows)


def render(report: Report, title: str = "Checks") -> str:
    """The page."""
    evidence = report.evidence
    return _template().render(
        title=title,
        report=report,
        verdict=verdict(report),
        findings=[(finding, _evidence(finding)) for finding in report.findings],
        passed=[REGISTER[id] for id in report.passed],
        silenced=[REGISTER[id] for id in report.silenced],
        environments=[(one, _solve_rates(one)) for one in evidence.environments],
        plots=_plots(report),
        dropped=sorted(evidence.dropped.items(), key=lambda item: (-item[1], item[0])),
        style=charts.STYLE,
        number=charts.number,
        percent=percent,
    )


def _evidence(finding: Finding) -> list[tuple[str, str]]:
    def shown(value: float | int | str) -> str:
        if isinstance(value, str):
            return value
        return charts.number(value) if isinstance(value, float) else f"{value:,}"

    return [(name.replace("_", " "), shown(value)) for name, value in finding.evidence.items()]


def _plots(report: Report) -> list[Plot]:
    evidence = report.evidence
    plots = [
        Plot(f"Rewards of {one.name}", _histogram(one.bins, f"Rewards of {one.name}", "rollouts"))
        for one in evidence.environments[:_PLOTS]
    ]
    for title, bins, unit in (
        ("Gaps of pairs, as shares of the reward range", evidence.pairs and evidence.pairs.gap_bins, "pairs"),
        ("Characters of chosen answers", evidence.answer_bins, "answers"),
        ("Tokens of chosen rows, estimated", evidence.token_bins, "rows"),
    ):
        if bins:
            plots.append(Plot(title, _histogram(bins, title, unit)))
    distinct = [turn.distinct for turn in evidence.turns if turn.distinct is not None]
    if len(distinct) > 1:
        title = "Distinct answers a rollout, by turn"
        plots.append(Plot(title, charts.line(distinct, title=title, low=0, high=1, x_label="turn", height=140)))
    return plots


def _histogram(bins: Histogram, title: str, unit: str) -> Markup:
    return charts.histogram(bins, title=title, unit=unit, height=140)


def _solve_rates(one: Environment) -> Markup:
    rows = [
        (float(count), "before" if label in ("never", "always") else "", f"{label}: {many(count, 'task')}")
        for label, count in zip(SOLVE_RATES, one.solve_rates, strict=True)
    ]
    return charts.bars(rows, title=f"Tasks of {one.name} by solve rate", high=float(max(1, *one.solve_rates)))


def _template() -> Template:
    from jinja2 import Environment as Jinja
    from jinja2 import PackageLoader, StrictUndefined

    jinja = Jinja(
        loader=PackageLoader("gristmill.checks", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return jinja.get_template("checks.html.j2")
