"""`gristmill trace`, `impact`, `tag` and `note`: lineage for the terminal, for programs, as mermaid and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from gristmill.lineage import Node, Origin, Walk
from gristmill.taints import standing
from gristmill.tracing import impact, taint, tainted, trace
from gristmill.words import many
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

_MARKED = {"tainted": "red", "gone": "red", "rolled back": "yellow", "rejected": "yellow", "inconclusive": "yellow"}
_ROLLOUTS = 8  # shown one by one


def run(
    what: list[str],
    *,
    down: bool,
    workspace: Path,
    show: bool = False,
    json: bool = False,
    mermaid: bool = False,
    html: Path | None = None,
    console: Console,
) -> None:
    """Walk up or down and print."""
    place, text = Workspace(workspace), " ".join(what)
    walk = impact(place, text) if down else trace(place, text, show=show)
    if html is not None:
        from gristmill.lineage_page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page(place, walk), encoding="utf-8")
    if json:
        console.file.write(walk.model_dump_json() + "\n")
    elif mermaid:
        from gristmill.lineage_page import mermaid as draw

        console.file.write(draw(walk) + "\n")
    else:
        tell(walk, console)
        if html is not None:
            console.print(f"\npage: {html}", style="dim", highlight=False)


def tell(walk: Walk, console: Console) -> None:
    """For people: what was asked, as a tree, and below it the rollouts."""
    from rich.text import Text

    if walk.direction == "down":
        _told_down(walk, console)
    for tree in _trees(walk):
        console.print(tree)
    if walk.rollouts and (walk.direction == "up" or walk.rollouts_found == 1):
        said = "1 rollout" if walk.rollouts_found == 1 else f"{walk.rollouts_found:,} rollouts"
        console.print()
        console.print(Text(said, "bold"))
        for one in walk.rollouts[:_ROLLOUTS]:
            console.print(_rollout(one))
        if walk.rollouts_found > _ROLLOUTS:
            console.print(Text(f"  … and {walk.rollouts_found - _ROLLOUTS:,} more", "dim"))
    if walk.recipe is not None and walk.direction == "up":
        console.print(Text.assemble("\n", ("recipe ", "bold"), walk.recipe.name, ("  --json has all of it", "dim")))
    if walk.content is not None:
        console.print(Text(f"\n{walk.asked}", "bold"))
        console.print_json(orjson.dumps(walk.content).decode())


def _told_down(walk: Walk, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    labels = {node.id: node for node in walk.nodes}
    if walk.rollouts_found:
        said = "1 rollout" if walk.rollouts_found == 1 else f"{walk.rollouts_found:,} rollouts"
        rows = sum(one.rows for one in walk.touched)
        where = f"{rows:,} rows of {many(len(walk.touched), 'dataset')}" if walk.touched else "no dataset row"
        console.print(Text.assemble((walk.asked, "bold"), f": {said}, in {where}"))
    if walk.touched:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("dataset", "rows", "of", "share", "first"):
            table.add_column(title, justify="left" if title in ("dataset", "first") else "right", style=None)
        for one in walk.touched:
            first = ", ".join(one.first) + (" …" if one.rows > len(one.first) else "")
            share = f"{one.share:.1%}" if one.share >= 0.0005 or not one.rows else "<0.1%"
            table.add_row(Text(one.label), f"{one.rows:,}", f"{one.of:,}", share, Text(first, "dim"))
        console.print(table)
    models = [node for node in walk.nodes if node.kind == "checkpoint" and node.how in ("learned from it", "asked")]
    for node in models:
        line = Text.assemble(("asked " if node.how == "asked" else "learned from it ", "dim"), *_node(node))
        console.print(line)
    for entry in walk.promotions:
        if entry.model in {node.id for node in models}:
            state = "is champion" if entry.champion else "was promoted" if entry.holds else "was rolled back"
            said = f"{labels[entry.model].label} {state}: {entry.recipe} turn {entry.turn}, {entry.time}"
            console.print(Text(said))
    console.print()


def _trees(walk: Walk) -> list[Tree]:
    """Each artifact once; where it would stand again, its name only."""
    from rich.text import Text
    from rich.tree import Tree

    nodes = {node.id: node for node in walk.nodes}
    at = 0 if walk.direction == "up" else 1
    below: dict[str, list[str]] = {}
    for edge in walk.edges:
        below.setdefault(edge[1 - at], []).append(edge[at])
    shown: set[str] = set()

    def grow(tree: Tree, id: str) -> None:
        for other in below.get(id, ()):
            if other in shown:
                if below.get(other):
                    tree.add(Text.assemble((f"{nodes[other].label} {other} (above)", "dim")))
                else:
                    tree.add(Text.assemble(*_node(nodes[other])))
                continue
            shown.add(other)
            grow(tree.add(Text.assemble(*_node(nodes[other]))), other)

    trees = []
    for root in walk.roots:
        if root in shown:
            continue
        shown.add(root)
        tree = Tree(Text.assemble(*_node(nodes[root])), guide_style="dim")
        grow(tree, root)
        trees.append(tree)
    return trees


def _node(node: Node) -> list[tuple[str, str]]:
    parts = [(node.label, "bold" if node.label != node.kind else "")]
    if node.label == node.kind:
        parts.append((f":{node.id.partition(':')[2]}", ""))
    else:
        parts.append((f" {node.id}", "dim"))
    parts += [(f" [{name}]", "green") for name in node.names]
    if node.turn:
        parts.append((f"  turn {node.turn}", "dim"))
    if node.summary:
        parts.append((f"  {node.summary}", ""))
    parts += [(f"  {mark}", _MARKED.get(mark.split(" in ")[0], "green")) for mark in node.marks]
    parts += [(f"  “{note}”", "italic") for note in node.notes]
    return parts


def _rollout(one: Origin) -> Text:
    from rich.text import Text

    text = Text("  ")
    text.append(one.rollout_id[:12], "bold")
    if one.role and one.role != "only":
        text.append(f" {one.role}")
    if one.reward is not None:
        text.append(f"  reward {one.reward:g}")
    if one.task is not None:
        attempt = "" if one.attempt is None else f", attempt {one.attempt}"
        text.append(f"  task {one.task}{attempt}")
    if one.agent:
        text.append(f"  {one.agent}")
    if one.policy or one.model:
        text.append(f"  by {one.policy or one.model}")
    where = "" if one.line is None else f"{one.source} line {one.line}"
    if one.table:
        where += f" of {one.table}"
    text.append(f"\n    {where}", "dim")
    if one.task_key:
        text.append(f"  task key {one.task_key[:12]}", "dim")
    if one.drop_reason:
        text.append(f"\n    dropped when it was read: {one.drop_reason}", "yellow")
    if one.review:
        text.append(f"\n    review: {one.review}", "yellow" if one.review == "reject" else "green")
    if one.tainted is not None:
        text.append(f"\n    tainted: {one.tainted}", "red")
    for fate in one.fates:
        if fate.chosen:
            text.append(f"\n    chosen in {fate.selection}", "dim")
        else:
            text.append(f"\n    left out of {fate.selection}: {fate.reason} ({fate.rule})", "dim")
    return text


def mark(
    what: list[str],
    *,
    undo: bool,
    reason: str,
    from_turn: int,
    workspace: Path,
    json: bool,
    console: Console,
) -> None:
    """Mark as bad, or take it back; say what that reaches."""
    from rich.text import Text

    place = Workspace(workspace)
    made = taint(place, " ".join(what), reason, undo=undo, from_turn=from_turn)
    reached = tainted(place)
    from gristmill.champions import champions

    line = champions(place)
    champion = bool(line) and line[-1].checkpoint in reached.models
    if json:
        value = {
            "entries": [one.model_dump(mode="json") for one in made.entries],
            "rollouts": made.rollouts,
            "datasets": [{**one.model_dump(mode="json"), "share": one.share} for one in reached.datasets.values()],
            "models": [str(one) for one in reached.models],
            "champion_tainted": champion,
        }
        console.file.write(orjson.dumps(value).decode() + "\n")
        return
    for one in made.entries:
        done = "is no longer marked" if one.action == "untaint" else "is marked as bad"
        console.print(Text(f"{one.name} {done}" + (f": {one.reason}" if one.reason else "")))
    if not made.entries:
        console.print("it was marked so already; nothing was written")
    if not reached.datasets:
        left = "nothing in this workspace was trained on what is marked" if standing(place) else "nothing is marked now"
        console.print(Text(left, "dim"))
        return
    console.print(Text("\ntainted now, by all marks together:", "bold"))
    from gristmill.lineage import Lineage

    lineage = Lineage(place)
    for ref, found in reached.datasets.items():
        console.print(Text(f"  {lineage.named(ref)}: {found.rows:,} of {found.of:,} rows ({found.share:.1%})"))
    for ref in reached.models:
        said = ", ".join((*lineage.labels.get(ref, ())[1:], *lineage.standing(ref).marks))
        console.print(Text(f"  {lineage.named(ref)}" + (f": {said}" if said else "")))
    if champion:
        console.print(Text("the champion learned from it; `gristmill champion rollback` steps back", "yellow"))
    since = min((one.from_turn for one in made.entries if one.action == "taint"), default=0)
    console.print(
        Text(
            "the next run leaves it out: "
            + (
                f"turns from {since} on are made without it, the turns before keep it"
                if since
                else "the turns that used it are made again without it (--from-turn N keeps those before N)"
            ),
            "dim",
        )
    )


def name(words: list[str], *, remove: bool, note: bool, workspace: Path, json: bool, console: Console) -> None:
    """`tag` and `note`: the last word is the tag's name or the text, those before it say what."""
    from rich.text import Text

    from gristmill import names
    from gristmill.errors import UsageError
    from gristmill.lineage import Lineage

    place = Workspace(workspace)
    if remove:
        made = names.give(place, words[-1], None)
    elif len(words) < 2:
        raise UsageError(f"give what is meant, then the {'text' if note else 'tag'}: `gristmill tag model-v3 good`")
    else:
        ref = names.resolve(place, " ".join(words[:-1]))
        made = names.note(place, ref, words[-1]) if note else names.give(place, words[-1], ref)
    if json:
        console.file.write(made.model_dump_json() + "\n")
    elif made.ref is None:
        console.print(Text(f"the tag {made.name} is taken away"))
    else:
        said = f"“{made.text}”" if note else made.name
        console.print(Text(f"{Lineage(place).named(made.ref)}: {said}"))
