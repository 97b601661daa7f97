"""Charts: true numbers, well-formed SVG, safe labels."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from gristmill import charts
from gristmill.charts import Point, decimals_for, moving_average, nice_ticks, number
from gristmill.histogram import Histogram

values = st.floats(min_value=-1e9, max_value=1e9, allow_subnormal=False)
small = st.floats(min_value=-10, max_value=10, allow_subnormal=False)


def parsed(svg: Markup) -> ET.Element:
    """The SVG as XML; a label that was not escaped breaks this."""
    return ET.fromstring(str(svg))


def named(svg: Markup, tag: str, name: str = "") -> list[ET.Element]:
    return [e for e in parsed(svg).iter(tag) if name in (e.get("class") or "").split() or not name]


@given(values, values, st.integers(2, 20))
def test_ticks_enclose_the_range_in_even_steps(a: float, b: float, n: int) -> None:
    low, high = min(a, b), max(a, b)
    ticks = nice_ticks(a, b, n)
    slack = 1e-6 * max(abs(low), abs(high), 1e-3)
    assert ticks[0] <= low + slack and ticks[-1] >= high - slack
    steps = [y - x for x, y in itertools.pairwise(ticks)]
    assert min(steps) > 0 and math.isclose(min(steps), max(steps), rel_tol=1e-6)
    assert 2 <= len(ticks) <= 3 * n + 2


def test_ticks_are_round_numbers() -> None:
    assert nice_ticks(0, 1, 5) == (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    assert nice_ticks(0.07, 0.42, 5) == (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    assert nice_ticks(-3, 2, 5) == (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0)
    flat = nice_ticks(3, 3)  # a range without width has an axis all the same
    assert len(flat) >= 2 and flat[0] < 3 < flat[-1]


@given(st.lists(small, min_size=1, max_size=6))
def test_different_values_never_read_alike(rewards: list[float]) -> None:
    d = decimals_for(*rewards)
    for a, b in itertools.pairwise(sorted({0.0, *rewards})):
        assert number(a, d) != number(b, d) or b - a < 2e-6


def test_numbers_are_set_with_a_minus_sign_and_groups() -> None:
    assert number(-0.5) == "\N{MINUS SIGN}0.50"
    assert number(0.43, sign=True) == "+0.43"
    assert number(-0.0, 2) == number(-0.001, 2) == "0.00"  # no negative zero
    assert number(12345.6) == "12,346"
    assert number(0.004) == "0.004"
    assert number(1e300) == "1e+300"


@given(st.lists(small, min_size=1, max_size=40), st.integers(1, 50))
def test_moving_average_stays_within_the_values_and_keeps_its_ends(series: list[float], window: int) -> None:
    smooth = moving_average(series, window)
    assert len(smooth) == len(series)
    assert min(series) - 1e-9 <= min(smooth) and max(smooth) <= max(series) + 1e-9
    assert math.isclose(smooth[0], series[0], abs_tol=1e-9)


POINTS = [
    Point("base", 0.31, 0.24, 0.38, "base"),
    Point("turn 1", 0.52, 0.44, 0.60, "promoted"),
    Point("turn 2", 0.50, None, None, "rejected"),
]


def test_a_curve_marks_its_points_and_says_them_in_words() -> None:
    svg = charts.curve(POINTS, [0.31, 0.52, 0.52], title="Held-out", interval="95 % interval")
    assert [len(named(svg, "g", mark)) for mark in ("base", "promoted", "rejected")] == [1, 1, 1]
    said = parsed(svg).findtext("desc") or ""
    assert "turn 1 (promoted): 0.52, 95 % interval 0.44 to 0.60" in said
    assert "turn 2 (not promoted): 0.50, no interval" in said
    # Two points have whiskers of three strokes; the third has none.
    assert [len(list(g.iter("line"))) for g in named(svg, "g", "point")] == [3, 3, 0]


@given(st.lists(st.tuples(small, small, small), min_size=1, max_size=12))
def test_every_mark_lies_inside_the_plot(raw: list[tuple[float, float, float]]) -> None:
    points = [Point(str(i), *sorted(t)[1:2], sorted(t)[0], sorted(t)[2], "rejected") for i, t in enumerate(raw)]
    svg = charts.curve(points, [p.mean for p in points], title="t", interval="i", height=100)
    ys = [float(line.get(k) or "nan") for line in parsed(svg).iter("line") for k in ("y1", "y2")]
    assert all(-0.02 <= y <= 100.02 for y in ys)


def test_a_histogram_draws_each_count_to_scale() -> None:
    svg = charts.histogram(Histogram(edges=(0.0, 0.5, 1.0), counts=(5, 10)), title="Rewards", top=10, height=100)
    heights = [float(bar.get("height") or "nan") for bar in named(svg, "rect", "bar")]
    assert heights[0] * 2 == pytest.approx(heights[1])
    hover = [g.findtext("title") for g in parsed(svg).iter("g")]
    assert hover == ["[0.00, 0.50): 5 rollouts", "[0.50, 1.00]: 10 rollouts"]


def test_histograms_of_several_turns_can_share_their_axes() -> None:
    wide = charts.histogram(Histogram(edges=(0.0, 1.0), counts=(5,)), title="t", low=-1, high=1, top=50, height=100)
    (bar,) = named(wide, "rect", "bar")
    assert float((bar.get("x") or "").rstrip("%")) >= 50  # the left half belongs to -1..0
    assert float(bar.get("height") or "nan") <= 10


def test_a_line_keeps_every_spike_however_long_it_is() -> None:
    series = [1.0] * 50_000
    series[31_415] = 9.0
    svg = charts.line(series, title="loss", low=0, high=10, height=100)
    raw, smooth = named(svg, "path", "raw")[0].get("d") or "", named(svg, "path", "smooth")[0].get("d") or ""
    assert ",10" in raw  # the value 9 of 10, on a plot of height 100
    assert len(raw) + len(smooth) < 40_000
    assert "50,000 values over 50,000 steps" in (parsed(svg).findtext("desc") or "")


def test_a_short_line_is_drawn_as_it_is() -> None:
    assert named(charts.line([1.0, 2.0, 1.5], title="t"), "path", "raw") == []
    assert len(named(charts.line([1.0], title="t"), "circle", "dot")) == 1
    assert charts.line([], title="t") == ""
    assert "step 10" in charts.line([1.0, 2.0], title="t", every=10)


def test_bars_grow_from_zero_to_both_sides() -> None:
    svg = charts.bars([(-1.0, "before", "a"), (1.0, "", "b")], title="t", low=-1.0, high=1.0)
    place = [(bar.get("x"), bar.get("width")) for bar in named(svg, "rect", "bar")]
    assert place == [("0%", "50%"), ("50%", "50%")]


def test_labels_cannot_become_markup() -> None:
    bad = '</title><script>alert(1)</script>"><img onerror=x> ]]>'
    svgs = [
        charts.curve([Point(bad, 0.5, 0.4, 0.6, "base")], title=bad, interval=bad),
        charts.histogram(Histogram(edges=(0.0, 1.0), counts=(3,)), title=bad, unit=bad),
        charts.line([1.0, 2.0], title=bad, x_label=bad),
        charts.bars([(0.5, "", bad)], title=bad),
    ]
    for svg in svgs:
        assert not [e.tag for e in parsed(svg).iter() if e.tag in ("script", "img")]
        assert parsed(svg).findtext("title") == bad


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    for draw in (
        lambda: charts.curve([Point("a", bad, None, None, "base")], title="t", interval="i"),
        lambda: charts.curve([Point("a", 1.0, bad, 2.0, "base")], title="t", interval="i"),
        lambda: charts.line([1.0, bad], title="t"),
        lambda: charts.bars([(bad, "", "a")], title="t"),
        lambda: number(bad),
    ):
        with pytest.raises(ValueError, match="finite"):
            draw()


def test_style_names_nothing_outside_the_page() -> None:
    assert "url(" not in charts.STYLE and "@import" not in charts.STYLE
    source = Path(charts.__file__).read_text(encoding="utf-8")
    assert "random" not in source and "datetime" not in source
