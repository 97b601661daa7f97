"""`trace` and `impact`: what made this, and what did this go into, by whatever name; and `taint`, which marks as bad.

A text means an artifact (gristmill/names.py), a row of a dataset (`data v3#17`, `data-v3#validation:2`), a rollout or
a task (its id, or the first six characters), or a rollout file (its name in the tables).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.decisions import effective, read_opinions
from gristmill.decisions import resolve as judged
from gristmill.errors import StoreError, UsageError
from gristmill.lineage import How, Lineage, Origin, Touched, Walk
from gristmill.names import resolve
from gristmill.origins import SHOWN, Rows, Sought, content
from gristmill.review.waiting import log_of
from gristmill.taints import Taint, append, entry, standing
from gristmill.workspace import Workspace

_ROW = re.compile(r"(.+)#(?:(train|validation)[:#])?(\d+)")
_SPLIT_ROW = re.compile(r"(.+)[ :](train|validation)#(\d+)")


class Row(NamedTuple):
    """A row of a dataset."""

    dataset: ArtifactRef
    split: str
    row: int


def point(rows: Rows, text: str) -> ArtifactRef | Row | Sought:
    """What a text means.

    Raises:
        UsageError: nothing, or several things.
    """
    workspace = rows.lineage.workspace
    if said := _ROW.fullmatch(text.strip()) or _SPLIT_ROW.fullmatch(text.strip()):
        dataset = resolve(workspace, said[1])
        if dataset.kind != "dataset":
            raise UsageError(f"{said[1]} is {rows.lineage.named(dataset)}, and only datasets have rows to name by #")
        return Row(dataset, said[2] or "train", int(said[3]))
    try:
        return resolve(workspace, text)
    except UsageError as error:
        if (found := rows.find(text)) is not None:
            return found
        raise UsageError(f"{error} (nor is it a rollout, a task or a rollout file in its tables)") from None


def trace(workspace: Workspace, text: str, *, show: bool = False) -> Walk:
    """Everything that something was made of, up to rollouts, tasks, policies and the recipe.

    Args:
        show: for a row, its content, too.

    Raises:
        UsageError: the text means nothing here, or several things.
    """
    lineage = Lineage(workspace)
    with Rows(lineage) as rows:
        target = point(rows, text)
        bad = _tainted(rows)
        if isinstance(target, ArtifactRef):
            roots: dict[ArtifactRef, How] = {target: "asked"}
            above = lineage.ancestors(target)
            return lineage.walk(text, "up", roots, dict.fromkeys(above, "made of"), bad, recipe=lineage.recipe(target))
        if isinstance(target, Row):
            told = rows.rows(target.dataset, target.row, target.split)
            found = rows.seek([rollout for _, rollout in told])
            origins = _judged(lineage, rows.origins({rollout: role for role, rollout in told}), target.dataset)
            tables = {lineage.by_id(one.table) for one in origins if one.table is not None}
            tables &= lineage.ancestors(target.dataset) | (tables if len(tables) == 1 else set())
            origins = [one for one in origins if one.table is None or lineage.by_id(one.table) in tables]
            above = lineage.ancestors(*tables) | tables
            return lineage.walk(
                text,
                "up",
                {target.dataset: "asked"},
                dict.fromkeys(above | _between(lineage, tables, target.dataset), "made of"),
                bad,
                rollouts=tuple(origins),
                rollouts_found=found,
                recipe=lineage.recipe(target.dataset),
                content=content(lineage, target.dataset, target.row, target.split) if show else None,
            )
        found = rows.seek([target])
        origins = _judged(lineage, rows.origins())
        if target.what == "rollout":
            fates = rows.fates(target.key)
            origins = [one.model_copy(update={"fates": fates}) for one in origins]
        holding = rows.holding()
        return lineage.walk(
            text,
            "up",
            dict.fromkeys(holding, "holds it"),
            dict.fromkeys(lineage.ancestors(*holding), "made of"),
            bad,
            rollouts=tuple(origins),
            rollouts_found=found,
            recipe=lineage.recipe(*holding),
        )


def impact(workspace: Workspace, text: str) -> Walk:
    """Everything that something went into: dataset rows, datasets, models, evaluations, promotions.

    Raises:
        UsageError: the text means nothing here, or several things.
    """
    lineage = Lineage(workspace)
    with Rows(lineage) as rows:
        target = point(rows, text)
        bad = _tainted(rows)
        if isinstance(target, ArtifactRef) and target.kind not in ("table", "rollouts"):
            below = lineage.descendants(target)
            made = {target, *lineage.descendants(target, through_models=False)}
            learned = lineage.learned(
                [one for one in made if one.kind == "dataset"], [target] if target.kind == "checkpoint" else []
            )
            how = _how(lineage, learned, below)
            return lineage.walk(text, "down", {target: "asked"}, how, bad)
        if isinstance(target, ArtifactRef):
            asked: list[Sought | str] = list(rows.files_of(target))
        elif isinstance(target, Row):
            asked = [rollout for _, rollout in rows.rows(target.dataset, target.row, target.split)]
        else:
            asked = [target]
        return _down(rows, text, asked, bad, target if isinstance(target, ArtifactRef) else None)


def _down(
    rows: Rows, text: str, asked: Iterable[Sought | str], bad: set[ArtifactRef], root: ArtifactRef | None
) -> Walk:
    lineage = rows.lineage
    found = rows.seek(asked)
    touched, holding = rows.touched(), rows.holding()
    origins = _judged(lineage, rows.origins())
    if found == 1 and origins:
        fates = rows.fates(origins[0].rollout_id)
        origins = [one.model_copy(update={"fates": fates}) for one in origins]
    learned = lineage.learned(touched)
    measured = {child for table in holding for child in lineage.children.get(table, ()) if child.kind == "evaluation"}
    below = learned | measured | lineage.descendants(*learned, *measured)
    how = _how(lineage, learned, below)
    how |= dict.fromkeys([*measured, *(one for one in lineage.descendants(*measured))], "measured with it")
    how |= dict.fromkeys((*holding, *touched), "holds it")
    for table in holding:
        how |= dict.fromkeys(_between(lineage, {table}, *touched) - how.keys(), "holds it")
    if root is not None:
        how |= dict.fromkeys([root], "asked")
    roots: dict[ArtifactRef, How] = dict.fromkeys([root] if root is not None else holding or touched, "holds it")
    if root is not None:
        roots[root] = "asked"
    return lineage.walk(
        text,
        "down",
        roots,
        how,
        bad,
        rollouts=tuple(origins[:SHOWN]),
        rollouts_found=found,
        touched=tuple(touched.values()),
    )


def _how(lineage: Lineage, learned: set[ArtifactRef], below: set[ArtifactRef]) -> dict[ArtifactRef, How]:
    """Why each of these is below what was asked."""
    told: dict[ArtifactRef, How] = dict.fromkeys(below, "after it")
    told |= dict.fromkeys(learned, "learned from it")
    for ref in below:
        if ref.kind in ("evaluation", "decision"):
            model = lineage.policy(ref) if ref.kind == "evaluation" else lineage.challenger(ref)
            if model in learned:
                told[ref] = "measured with it"
    return told


def _between(lineage: Lineage, tables: set[ArtifactRef], *datasets: ArtifactRef) -> set[ArtifactRef]:
    """Selections on the way from the tables to the datasets."""
    return {
        one
        for one in lineage.ancestors(*datasets)
        if one.kind == "selection" and tables & set(lineage.parents.get(one, ()))
    }


def _judged(lineage: Lineage, origins: Iterable[Origin], dataset: ArtifactRef | None = None) -> list[Origin]:
    """Rollouts with what reviewers decided, then (of a dataset) or by now, and why they are tainted, if they are."""
    held = effective(log_of(lineage.workspace).entries())
    if dataset is not None:
        held = {}
        for ref in lineage.ancestors(dataset):
            if ref.kind == "decisions" and ref in lineage.manifests:
                held |= judged(read_opinions(lineage.workspace.store, ref))
    bad = standing(lineage.workspace)
    return [one.model_copy(update={"review": held.get(one.rollout_id), "tainted": _why(one, bad)}) for one in origins]


def _why(one: Origin, taints: Iterable[Taint]) -> str | None:
    for taint in taints:
        if taint.key in (one.rollout_id, one.task_key, one.run):
            return taint.reason or f"its {taint.what} is marked"
    return None


# ---- taint


class Tainted(NamedTuple):
    """What the taints that stand have reached."""

    datasets: dict[ArtifactRef, Touched]
    models: tuple[ArtifactRef, ...]


def tainted(workspace: Workspace) -> Tainted:
    """Datasets with tainted rows, and the models that learned from them; quick where nothing is tainted."""
    if not standing(workspace):
        return Tainted({}, ())
    lineage = Lineage(workspace)
    with Rows(lineage) as rows:
        return _reached(rows)


def _reached(rows: Rows) -> Tainted:
    lineage = rows.lineage
    rows.seek([Sought(one.what, one.key, one.name, one.agent, one.prompt_key) for one in standing(lineage.workspace)])
    touched = rows.touched()
    return Tainted(touched, tuple(lineage.ordered(lineage.learned(touched))))


def _tainted(rows: Rows) -> set[ArtifactRef]:
    if not standing(rows.lineage.workspace):
        return set()
    found = _reached(rows)
    return {*found.datasets, *found.models}


class Marked(NamedTuple):
    """What `taint` did."""

    entries: tuple[Taint, ...]
    rollouts: int
    """How many there are of it in the workspace."""


def taint(workspace: Workspace, text: str, reason: str = "", *, undo: bool = False, from_turn: int = 0) -> Marked:
    """Mark a rollout, the rollouts of a dataset's row, a task, or a file (or a table's files) as bad; or take it back.

    Raises:
        UsageError: the text means something else, several things or nothing; or there is nothing to take back.
    """
    with Rows(Lineage(workspace)) as rows:
        target = point(rows, text)
        if isinstance(target, Row):
            told = rows.rows(target.dataset, target.row, target.split)
            asked = [Sought("rollout", one, f"rollout {one[:12]} of {text}") for _, one in told]
        elif isinstance(target, Sought):
            asked = [target]
        elif target.kind in ("table", "rollouts"):
            asked = rows.files_of(target)
        else:
            raise UsageError(
                f"{text} is {rows.lineage.named(target)}, which follows from rollouts; mark a rollout, a task, a file, "
                f"a table or a row (`{text}#0`); `gristmill trace {text}` shows them"
                if target.kind == "dataset"
                else f"{text} is {rows.lineage.named(target)}; mark a rollout, a task, a file, a table or a row as bad"
            )
        if not asked:
            raise StoreError(f"{text} has no rollouts in any table of {workspace}; nothing was marked")
        known = {(one.what, one.key): one for one in standing(workspace)}
        if undo and not any((one.what, one.key) in known for one in asked):
            there = ", ".join(f"{one.what}:{one.key[:12]}" for one in known.values()) or "nothing"
            raise UsageError(f"{text} is not marked as bad; {there} is")
        made = []
        for one in asked:
            old = known.get((one.what, one.key))
            if undo and old is not None:
                again = old.model_dump(include={"agent", "prompt_key", "name"})
                made.append(entry("untaint", one.what, one.key, **again, reason=reason))
            elif not undo and (old is None or (old.reason, old.from_turn) != (reason, from_turn)):
                told_of = {"name": one.name, "agent": one.agent, "prompt_key": one.prompt_key}
                made.append(entry("taint", one.what, one.key, **told_of, reason=reason, from_turn=from_turn))
        append(workspace, *made)
        return Marked(tuple(made), rows.seek(asked))
