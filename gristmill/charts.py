"""Small charts as inline SVG: curve with intervals, histogram, line, bars. Pure and deterministic.

Each function takes plain finite numbers and returns `Markup`, safe to print in an autoescaped page; labels
are escaped here. Text keeps its size at every page width: x positions are per cents of the plot and y
positions are pixels, so a chart fits a phone and a desktop without scaling. Colours are classes, defined once
in `STYLE` for light, dark and print (a blue and a vermilion that colour-blind readers tell apart: Okabe and
Ito, 2008); a page that shows a chart includes `STYLE`. Shape says again what colour says, and each chart has
a `<title>` and a `<desc>` for those who do not see it.

Errors: ValueError when a value is NaN or infinite.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from markupsafe import Markup

if TYPE_CHECKING:
    from gristmill.histogram import Histogram

MINUS = "\N{MINUS SIGN}"
STYLE = Markup("""
.chart { --ink: #1f2328; --soft: #59636e; --rule: #d9dde2; --paper: #fff; --blue: #0072b2; --red: #c4500a;
  --pale: #b9c4ce; display: block; box-sizing: border-box; width: 100%; overflow: visible;
  font: 12px/1 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
@media (prefers-color-scheme: dark) { .chart { --ink: #e6e8eb; --soft: #a3abb5; --rule: #383e46;
  --paper: #16191d; --blue: #56b4e9; --red: #f08a4b; --pale: #56606b; } }
@media print { .chart { --ink: #000; --soft: #444; --rule: #ccc; --paper: #fff; --blue: #0072b2;
  --red: #c4500a; --pale: #b9c4ce; break-inside: avoid; print-color-adjust: exact; } }
.chart text { fill: var(--soft); }
.chart text.value { fill: var(--ink); font-weight: 600; stroke: var(--paper); stroke-width: 4px;
  paint-order: stroke; }
.chart .grid { stroke: var(--rule); }
.chart .axis { stroke: var(--soft); }
.chart .champion { stroke: var(--blue); stroke-width: 1.5; stroke-dasharray: 1 4; stroke-linecap: round; }
.chart .base { stroke: var(--soft); fill: var(--soft); }
.chart .promoted { stroke: var(--blue); fill: var(--blue); }
.chart .rejected { stroke: var(--red); fill: var(--paper); }
.chart .point { stroke-width: 2; }
.chart .bar { fill: var(--blue); }
.chart .bar.before { fill: var(--pale); }
.chart .bar.lost { fill: var(--red); }
.chart .raw { fill: none; stroke: var(--pale); stroke-width: 1; }
.chart .smooth { fill: none; stroke: var(--blue); stroke-width: 2; stroke-linejoin: round; }
.chart .dot { fill: var(--blue); }
""")

Mark = Literal["base", "promoted", "rejected"]

# 10 px symbols around the origin: a square, a disc, a diamond.
_SYMBOLS: dict[Mark, str] = {
    "base": "M-4.5,-4.5h9v9h-9z",
    "promoted": "M-5.5,0a5.5,5.5 0 1,0 11,0a5.5,5.5 0 1,0 -11,0z",
    "rejected": "M0,-6.5L6.5,0L0,6.5L-6.5,0z",
}


class Point(NamedTuple):
    """One measured policy: mean and its interval; `low` and `high` are None where there is no interval."""

    label: str
    mean: float
    low: float | None
    high: float | None
    mark: Mark


# ---------------------------------------------------------------------------------------------------- numbers


def decimals_for(*values: float) -> int:
    """Decimals with which all `values` are printed together, 0 to 6.

    Two significant places or so after the largest value; more where a non-zero value would read as 0 or two
    different ones as equal (a lower bound of 0.004 must not be shown as 0.00).
    """
    _require_finite(values)
    largest = max((abs(value) for value in values), default=0.0)
    decimals = 0 if largest >= 100 else 1 if largest >= 10 else 2
    apart = [pair for pair in itertools.pairwise(sorted({0.0, *values})) if pair[1] - pair[0] > 1e-6]
    while decimals < 6 and any(round(a, decimals) == round(b, decimals) for a, b in apart):
        decimals += 1
    return decimals


def number(value: float, decimals: int | None = None, *, sign: bool = False) -> str:
    """`value` with `decimals` (default: `decimals_for` it), thousands grouped and a real minus sign."""
    _require_finite((value,))
    if decimals is None:
        decimals = decimals_for(value)
    text = f"{abs(value):.3g}" if abs(value) >= 1e15 else f"{abs(value):,.{decimals}f}"
    if not text.strip("0.,"):
        return text
    if value < 0:
        return MINUS + text
    return "+" + text if sign else text


def nice_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About `count` round tick values, evenly spaced by 1, 2 or 5 times 10^k, whose ends enclose [low, high].

    Source: Heckbert, 'Nice numbers for graph labels', Graphics Gems (1990). A range without width is widened.
    """
    _require_finite((low, high))
    low, high = min(low, high), max(low, high)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
        margin = max(abs(low), abs(high)) * 0.1 or 0.5
        low, high = low - margin, high + margin
    rough = (high / count - low / count) * count / (count - 1)
    power = math.floor(math.log10(rough))
    fraction = rough / 10.0**power
    step = (1 if fraction < 1.5 else 2 if fraction < 3.5 else 5 if fraction < 7.5 else 10) * 10.0**power
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # One rounding, at the step's own precision, so that 3 * 0.1 is the tick 0.3.
    digits = max(0, -math.floor(math.log10(step)))
    return tuple(round(i * step, digits) for i in range(first, last + 1))


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values (made odd); at the ends the window shrinks on both sides alike."""
    half = window // 2
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    smooth = []
    for i in range(len(values)):
        reach = min(half, i, len(values) - 1 - i)
        smooth.append((sums[i + reach + 1] - sums[i - reach]) / (2 * reach + 1))
    return smooth


# ----------------------------------------------------------------------------------------------------- charts


def curve(
    points: Sequence[Point], champion: Sequence[float] = (), *, title: str, interval: str, height: int = 240
) -> Markup:
    """Means with their intervals from left to right, and a dotted step line of who is champion.

    `champion[i]` is the champion's mean once point i was decided; `interval` is what an interval is called in
    words ('95 % interval'). The axis starts at 0 when all values lie in
    0..1.
    """
    ends = [end for point in points for end in (point.mean, point.low, point.high) if end is not None]
    _require_finite((*ends, *champion))
    if not ends:
        return Markup("")
    unit = min(ends) >= 0 and max(ends) <= 1
    axis = _Axis.over(0.0 if unit else min(ends), max(ends), height)
    slot = 100 / len(points)
    parts = [axis.grid(), _baseline(height)]
    for i, mean in enumerate(champion):
        y = axis.y(mean)
        start = slot * (i + 0.5)
        parts.append(_line("champion", start, y, min(start + slot, 100.0), y))
        if i and champion[i - 1] != mean:
            parts.append(_line("champion", start, axis.y(champion[i - 1]), start, y))
    decimals = decimals_for(*(point.mean for point in points))
    for i, point in enumerate(points):
        parts.append(_point(point, slot * (i + 0.5), axis, decimals, interval, named=len(points) <= 8))
        parts.append(_text(point.label, slot * (i + 0.5), height + 18, "middle"))
    said = "; ".join(describe(point, interval) for point in points)
    return _frame(title, said, parts, height)


def describe(point: Point, interval: str) -> str:
    """The point in words, as it is read aloud and shown on hover."""
    word = {"base": "base", "promoted": "promoted", "rejected": "not promoted"}[point.mark]
    name = point.label if point.label == word else f"{point.label} ({word})"
    if point.low is None or point.high is None:
        return f"{name}: {number(point.mean)}, no interval"
    d = decimals_for(point.mean, point.low, point.high)
    return f"{name}: {number(point.mean, d)}, {interval} {number(point.low, d)} to {number(point.high, d)}"


def histogram(
    bins: Histogram,
    *,
    title: str,
    low: float | None = None,
    high: float | None = None,
    top: int | None = None,
    unit: str = "rollouts",
    height: int = 120,
) -> Markup:
    """Bars over the value axis. `low`, `high`, `top` widen the axes so that charts compare."""
    edges, counts = bins.edges, bins.counts
    left, right = (
        min(edges[0], edges[0] if low is None else low),
        max(edges[-1], edges[-1] if high is None else high),
    )
    axis = _Axis.over(0, max(1, *counts, top or 0), height, count=3, whole=True)
    parts = [axis.grid()]

    def x(value: float) -> float:
        return (value - left) / (right - left) * 100

    decimals = decimals_for(*edges)
    for i, count in enumerate(counts):
        closing = "]" if i == len(counts) - 1 else ")"
        where = f"[{number(edges[i], decimals)}, {number(edges[i + 1], decimals)}{closing}"
        y = axis.y(count)
        # A tenth of the bar is air; an empty bin still has its hover text.
        width = x(edges[i + 1]) - x(edges[i])
        parts.append(
            Markup('<g><title>{}: {:,} {}</title><rect class="bar" x="{}" y="{}" width="{}" height="{}"/></g>').format(
                where, count, unit, _pc(x(edges[i]) + width * 0.05), _px(y), _pc(width * 0.9), _px(height - y)
            )
        )
    parts.append(_baseline(height))
    ticks = [tick for tick in nice_ticks(left, right, 5) if left <= tick <= right]
    spread = decimals_for(*ticks)
    parts += [_text(_tick(tick, _tick_decimals(ticks, spread)), x(tick), height + 16, "middle") for tick in ticks]
    said = "; ".join(
        f"{number(edges[i], decimals)} to {number(edges[i + 1], decimals)}: {count}" for i, count in enumerate(counts)
    )
    return _frame(title, f"{sum(counts):,} {unit}. {said}", parts, height)


def line(
    values: Sequence[float],
    *,
    title: str,
    every: int = 1,
    low: float | None = None,
    high: float | None = None,
    x_label: str = "step",
    height: int = 120,
) -> Markup:
    """A series over its steps: each value (pale) and a moving average over a tenth of them (dark).

    Value i belongs to step (i + 1) * `every`. Fewer than five values are drawn without an average.
    """
    _require_finite(values)
    if not values:
        return Markup("")
    ends = [*values, *(end for end in (low, high) if end is not None)]
    axis = _Axis.over(min(ends), max(ends), height, count=4)
    last = max(len(values) - 1, 1)
    window = max(3, len(values) // 10) if len(values) >= 5 else 1
    parts = [axis.grid(), _baseline(height)]
    if len(values) == 1:
        parts.append(Markup('<circle class="dot" cx="50%" cy="{}" r="3.5"/>').format(_px(axis.y(values[0]))))
    else:
        series = [("raw", values), ("smooth", moving_average(values, window))] if window > 1 else [("smooth", values)]
        paths = Markup("").join(
            Markup('<path class="{}" vector-effect="non-scaling-stroke" d="{}"/>').format(
                name, _path([(i / last * 1000, axis.y(value)) for i, value in _thinned(shown)])
            )
            for name, shown in series
        )
        parts.append(
            Markup('<svg viewBox="0 0 1000 {0}" preserveAspectRatio="none" width="100%" height="{0}">{1}</svg>').format(
                height, paths
            )
        )
    if len(values) == 1:
        parts.append(_text(f"{x_label} {every:,}", 50, height + 16, "middle"))
    else:
        parts.append(_text(f"{x_label} {every:,}", 0, height + 16, "start"))
        parts.append(_text(f"{len(values) * every:,}", 100, height + 16, "end"))
    d = decimals_for(values[0], values[-1], min(values))
    said = (
        f"{len(values):,} values over {len(values) * every:,} {x_label}s: first {number(values[0], d)}, "
        f"last {number(values[-1], d)}, lowest {number(min(values), d)}"
    )
    return _frame(title, said, parts, height)


def bars(rows: Sequence[tuple[float, str, str]], *, title: str, low: float = 0.0, high: float = 1.0) -> Markup:
    """Thin horizontal bars one under the other, from zero, for a table's cell.

    Each row is (value, class, text on hover); classes that `STYLE` knows: '' (blue), 'before' (grey),
    'lost' (red).
    `low` and `high` are the common scale of the column; zero is always on it.
    """
    _require_finite((low, high, *(value for value, _, _ in rows)))
    low, high = min(low, 0.0), max(high, 0.0)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return (min(max(value, low), high) - low) / span * 100

    height = 8 * len(rows)
    drawn = Markup("").join(
        Markup('<g><title>{}</title><rect class="bar {}" x="{}" y="{}" width="{}" height="6"/></g>').format(
            said, name, _pc(x(min(value, 0.0))), 8 * i + 1, _pc(abs(x(value) - x(0.0)))
        )
        for i, (value, name, said) in enumerate(rows)
    )
    zero = _line("axis", x(0.0), 0, x(0.0), height)
    return Markup('<svg class="chart" role="img" style="height:{}px"><title>{}</title>{}{}</svg>').format(
        height, title, drawn, zero
    )


# ------------------------------------------------------------------------------------------------------ parts


class _Axis(NamedTuple):
    """A vertical value axis: round ticks, top of the plot = highest tick, bottom = lowest."""

    ticks: tuple[float, ...]
    height: int

    @classmethod
    def over(cls, low: float, high: float, height: int, count: int = 5, *, whole: bool = False) -> _Axis:
        ticks = nice_ticks(low, high, count)
        if whole:
            kept = tuple(tick for tick in ticks if tick == round(tick))
            ticks = kept if len(kept) >= 2 and kept[-1] >= high else (math.floor(low), math.ceil(high))
        return cls(ticks, height)

    def y(self, value: float) -> float:
        first, last = self.ticks[0], self.ticks[-1]
        return self.height * (1 - (value / 2 - first / 2) / (last / 2 - first / 2))

    def grid(self) -> Markup:
        decimals = _tick_decimals(self.ticks, decimals_for(*self.ticks))
        rows = (
            _line("grid", 0, self.y(tick), 100, self.y(tick))
            + Markup('<text x="-8" y="{}" dy="0.35em" text-anchor="end">{}</text>').format(
                _px(self.y(tick)), _tick(tick, decimals)
            )
            for tick in self.ticks
        )
        return Markup("").join(rows)


def _point(point: Point, x: float, axis: _Axis, decimals: int, interval: str, *, named: bool) -> Markup:
    y = axis.y(point.mean)
    low = axis.y(point.mean if point.low is None else point.low)
    high = axis.y(point.mean if point.high is None else point.high)
    # A nested <svg> takes a per-cent position, which a path cannot.
    whisker = (
        Markup('<line x1="0" x2="0" y1="{0}" y2="{1}"/><line x1="-5" x2="5" y1="{0}" y2="{0}"/>').format(
            _px(low), _px(high)
        )
        + Markup('<line x1="-5" x2="5" y1="{0}" y2="{0}"/>').format(_px(high))
        if point.low is not None and point.high is not None
        else Markup("")
    )
    value = (
        Markup('<text class="value" x="11" y="{}" dy="0.35em">{}</text>').format(_px(y), number(point.mean, decimals))
        if named
        else Markup("")
    )
    return Markup(
        '<svg x="{}" y="0" overflow="visible"><g class="point {}"><title>{}</title>{}'
        '<path d="{}" transform="translate(0 {})"/>{}</g></svg>'
    ).format(_pc(x), point.mark, describe(point, interval), whisker, Markup(_SYMBOLS[point.mark]), _px(y), value)


def _frame(title: str, said: str, parts: Sequence[Markup], height: int) -> Markup:
    """The outer SVG: padding holds the axis labels, so per cents count the plot alone."""
    return Markup(
        '<svg class="chart" role="img" style="height:{}px;padding:10px 14px 28px 46px">'
        "<title>{}</title><desc>{}</desc>{}</svg>"
    ).format(height + 38, title, said, Markup("").join(parts))


def _baseline(height: int) -> Markup:
    return _line("axis", 0, height, 100, height)


def _line(name: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(name, _pc(x1), _px(y1), _pc(x2), _px(y2))


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_pc(x), _px(y), anchor, text)


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{_px(x)},{_px(y)}" for x, y in points)


def _thinned(values: Sequence[float], most: int = 600) -> list[tuple[int, float]]:
    """At most about `most` (index, value) pairs: each bucket's lowest and highest, so no spike is lost."""
    if len(values) <= most:
        return list(enumerate(values))
    width = math.ceil(2 * len(values) / most)
    kept: set[int] = {0, len(values) - 1}
    for start in range(0, len(values), width):
        bucket = range(start, min(start + width, len(values)))
        kept |= {min(bucket, key=values.__getitem__), max(bucket, key=values.__getitem__)}
    return [(i, values[i]) for i in sorted(kept)]


def _tick(value: float, decimals: int) -> str:
    """A tick's label, short enough for the margin."""
    return number(value, decimals) if abs(value) < 1e6 else f"{value:.3g}".replace("-", MINUS).replace("e+0", "e")


def _tick_decimals(ticks: Sequence[float], most: int) -> int:
    """The fewest decimals that print the ticks as they are."""
    return next((d for d in range(most) if all(math.isclose(round(t, d), t, abs_tol=1e-12) for t in ticks)), most)


def _px(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")


def _pc(value: float) -> str:
    return _px(value) + "%"


def _require_finite(values: Iterable[float]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"a chart shows finite numbers only, found {value}")
