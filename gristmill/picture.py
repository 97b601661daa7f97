"""A chart as a file of its own: an SVG that a Markdown page, a model card or an `<img>` can show.

Reads what gristmill/charts.py draws for a page; adds the size, the colours and a white ground, which there come from
the page. Always light: a picture cannot know the theme of whoever shows it.
"""

from __future__ import annotations

import base64
import re

from markupsafe import Markup

from gristmill import charts

WIDTH = 640  # pixels
_PADDING = (10, 14, 28, 46)  # top, right, bottom, left: `charts._frame`'s, which a file has no CSS box for


def svg(chart: Markup, width: int = WIDTH) -> str:
    """The chart as the text of an .svg file.

    Raises:
        ValueError: it is not a framed chart of gristmill/charts.py.
    """
    opened = re.match(r'<svg class="chart" role="img" style="height:(\d+)px[^>]*>', chart)
    if opened is None:
        raise ValueError("expected a chart of gristmill/charts.py, with its frame")
    top, right, bottom, left = _PADDING
    height = int(opened[1])
    inner = str(chart)[opened.end() : -len("</svg>")]
    words = "".join(re.findall(r"^<title>.*?</title><desc>.*?</desc>", inner, flags=re.DOTALL))
    light = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", str(charts.STYLE))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">{words}<style>{light}.chart {{ width: auto; }}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<svg x="{left}" y="{top}" width="{width - left - right}" height="{height - top - bottom}" '
        f'overflow="visible">{inner.removeprefix(words)}</svg></svg>'
    )


def markdown(chart: Markup, title: str, width: int = WIDTH) -> str:
    """The chart as a Markdown image that holds its own bytes."""
    data = base64.b64encode(svg(chart, width).encode()).decode()
    return f"![{title}](data:image/svg+xml;base64,{data})"
