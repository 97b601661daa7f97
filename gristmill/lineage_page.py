"""A walk drawn: as mermaid, and as one HTML page with a graph that one can click and walk through by keyboard.

The page is self-contained: its own script and style, held to by a content security policy with their hashes, and no
reference that leaves the file. What stands in artifacts is escaped, and the script only ever sets text. Columns are the
stages of a turn, bands are turns; equal walks give equal pages.
"""

from __future__ import annotations

import base64
import hashlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.errors import StoreError
from gristmill.lineage import STAGES, Node, Walk
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    from jinja2 import Template

_WIDE, _HIGH = 148, 46  # of a node, in pixels
_GAP_X, _GAP_Y, _BAND = 34, 12, 18
_TOP = 30  # the columns' titles
_ROWS = 10  # of a dataset, shown with it

_SHAPES = {"checkpoint": ("([", "])"), "decision": ("{{", "}}"), "dataset": ("[(", ")]"), "evaluation": ("(", ")")}
_CLASSES = """\
classDef model fill:#cfe3f5,stroke:#0072b2,color:#1f2328
classDef data fill:#dcefe2,stroke:#26734d,color:#1f2328
classDef judged fill:#f6ead2,stroke:#a06a00,color:#1f2328
classDef other fill:#f2f3f5,stroke:#8b949e,color:#1f2328
classDef bad fill:#f8d9cc,stroke:#c4500a,color:#1f2328
classDef asked stroke-width:3px"""
_CLASS_OF = {"checkpoint": "model", "dataset": "data", "evaluation": "judged", "decision": "judged"}


# ---------------------------------------------------------------------------------------------------- mermaid


def mermaid(walk: Walk) -> str:
    """A mermaid flowchart of the walk, as Prefect, GitHub and the hub render it."""
    numbers = {node.id: f"n{at}" for at, node in enumerate(walk.nodes)}
    lines = ["flowchart LR"]
    for node in walk.nodes:
        left, right = _SHAPES.get(node.kind, ("[", "]"))
        kind = "bad" if {"tainted", "gone"} & set(node.marks) else _CLASS_OF.get(node.kind, "other")
        words = "<br/>".join(_escaped(word) for word in _words(node))
        lines.append(f'{numbers[node.id]}{left}"{words}"{right}:::{kind}')
    lines += [f"{numbers[parent]} --> {numbers[child]}" for parent, child in walk.edges]
    asked = [numbers[node.id] for node in walk.nodes if node.how == "asked"]
    if asked:
        lines.append(f"class {','.join(asked)} asked")
    return "\n".join([*lines, *_CLASSES.splitlines()])


def _words(node: Node) -> list[str]:
    """At most four short lines."""
    first = node.label if not node.names else f"{node.label} · {', '.join(node.names)}"
    second = f"turn {node.turn} · {node.digest[:8]}" if node.turn else node.digest[:8]
    return [word for word in (first, second, node.summary, ", ".join(node.marks)) if word]


def _escaped(text: str) -> str:
    """Mermaid reads HTML entities, written with # for &."""
    return "".join(char if char.isalnum() or char in " .,:;+-−·()[]%/_=" else f"#{ord(char)};" for char in text)


# ------------------------------------------------------------------------------------------------------- page


class Box(NamedTuple):
    """A node in its place."""

    node: Node
    x: int
    y: int
    lines: tuple[str, str]
    """Label, and what is below it, cut to fit."""


class Band(NamedTuple):
    """A turn."""

    title: str
    y: int
    height: int


def page(workspace: Workspace, walk: Walk) -> str:
    """The page, as text."""
    boxes, bands, columns = _placed(walk)
    at = {box.node.id: box for box in boxes}
    script, style = (_file(f"lineage.{suffix}") for suffix in ("js", "css"))
    data = {
        "asked": [node.id for node in walk.nodes if node.how == "asked"] or list(walk.roots),
        "edges": walk.edges,
        "nodes": {node.id: {**node.model_dump(mode="json"), "told": _told(workspace, node)} for node in walk.nodes},
    }
    return _template().render(
        title=("What made " if walk.direction == "up" else "What was made of ") + walk.asked,
        walk=walk,
        boxes=boxes,
        bands=bands,
        columns=columns,
        edges=[(parent, child, _curve(at[parent], at[child])) for parent, child in walk.edges],
        width=max((box.x + _WIDE for box in boxes), default=0) + 8,
        height=max((band.y + band.height for band in bands), default=0) + 8,
        box=(_WIDE, _HIGH),
        # `<` would end the element; JSON may say it by its number
        data=orjson.dumps(data).decode().replace("<", "\\u003c"),
        script=script,
        style=style,
        policy=f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
    )


def _told(workspace: Workspace, node: Node) -> dict[str, Any]:
    """What a click shows: the manifest, and of a dataset its first rows with their rollouts."""
    ref = ArtifactRef.model_validate({"kind": node.kind, "digest": node.digest})
    try:
        manifest = workspace.store.manifest(ref)
    except StoreError:
        return {}
    told: dict[str, Any] = {
        "made": f"{manifest.created}, in {manifest.seconds:g} s, by stage {manifest.stage} {manifest.step_version} of "
        f"Gristmill {manifest.gristmill}",
        "settings": _text(manifest.settings),
        "counts": _text(manifest.counts),
        "files": [[one.name, one.bytes, one.sha256] for one in manifest.files],
    }
    if node.kind == "dataset":
        from gristmill.dataset.provenance import PROVENANCE

        file = workspace.store.path(ref) / PROVENANCE
        if file.is_file():
            import duckdb

            columns = 'split, "row", role, rollout_id, reward, source, line'
            with duckdb.connect() as db:
                found = db.execute(f"SELECT {columns} FROM read_parquet($1) LIMIT {_ROWS}", [str(file)]).fetchall()
            told["rows"] = [
                [f"{split}#{row}", role, rollout[:12], reward, f"{source}:{line}"]
                for split, row, role, rollout, reward, source, line in found
            ]
    return told


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS).decode() if value else ""


def _placed(walk: Walk) -> tuple[list[Box], list[Band], list[tuple[str, int]]]:
    """Nodes by column (stage) and band (turn); within a cell one below another, in the walk's order."""
    kinds = [kind for kind in _COLUMNS if any(node.kind in kind for node in walk.nodes)]
    x_of = {kind: at * (_WIDE + _GAP_X) + 8 for at, group in enumerate(kinds) for kind in group}
    columns = [(group[0], x_of[group[0]]) for group in kinds]
    by_turn: dict[int, list[Node]] = defaultdict(list)
    for node in walk.nodes:
        by_turn[node.turn or 0].append(node)
    boxes, bands = [], []
    y = _TOP
    for turn in sorted(by_turn):
        filled: dict[int, int] = defaultdict(int)
        for node in by_turn[turn]:
            x = x_of[node.kind]
            place = y + _BAND + filled[x] * (_HIGH + _GAP_Y)
            filled[x] += 1
            boxes.append(Box(node, x, place, (_cut(node.label, 19), _cut(_below(node), 26))))
        height = _BAND + max(filled.values()) * (_HIGH + _GAP_Y)
        bands.append(Band(f"turn {turn}" if turn else "before the turns", y, height))
        y += height + 6
    return boxes, bands, columns


_COLUMNS = [("tasks",), ("rollouts",), ("table",), ("decisions", "sample"), ("selection",), ("dataset", "export")]
_COLUMNS += [("checkpoint",), ("evaluation",), ("decision",), ("report",)]
assert {kind for group in _COLUMNS for kind in group} == set(STAGES)


def _below(node: Node) -> str:
    return ", ".join([*node.names, *node.marks]) or node.summary or node.digest[:12]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _curve(start: Box, end: Box) -> str:
    """From the right side of a parent to the left side of its child; back to the next turn, around below."""
    x1, y1 = start.x + _WIDE, start.y + _HIGH // 2
    x2, y2 = end.x, end.y + _HIGH // 2
    bend = max(24, abs(x2 - x1) // 3) if x2 > x1 else 60
    return f"M{x1},{y1}C{x1 + bend},{y1} {x2 - bend},{y2} {x2},{y2}"


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    jinja = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return jinja.get_template("lineage.html.j2")
