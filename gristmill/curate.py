"""Curate: choose the rollouts that are worth training on, and say of every other one why not.

Reads rollout tables and writes `selection.parquet` (gristmill/selection.py), and `rules.json`: what exactly was
asked, so that two selections are one artifact only if they were asked alike. Every order is total, so equal input
gives equal bytes, and rows read = rows chosen + Σ rows dropped by reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from gristmill import selection
from gristmill.choosing import Choosing, Chosen, Stage, place
from gristmill.columns import integers, numbers
from gristmill.identity import digest
from gristmill.recipe import CurateRecipe
from gristmill.rules import Rule
from gristmill.selection import RULES
from gristmill.selection import SELECTION as SELECTION

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_BINS = 20
_NO_DECISIONS: Mapping[str, str] = {}


def curate(
    tables: Sequence[Sequence[Path]],
    counted: Sequence[dict[str, Any]],
    recipe: CurateRecipe,
    out: Path,
    *,
    decisions: Mapping[str, str] = _NO_DECISIONS,
    seed: int = 0,
) -> dict[str, Any]:
    """Select over one or more rollout tables.

    Args:
        tables: the Parquet files of each table, in row order.
        counted: each table's own counts (`rows_read`, `rows_kept`, `dropped`), in the same order.
        out: folder that gets the two files.
        decisions: a review's, rollout_id → `accept` | `reject`, and `taint` for what is marked as bad. Rejected and
            tainted rollouts are dropped; accepted ones come first where duplicates, caps and balance must choose.
            Others than those are not affected.
        seed: of the draw within a balanced category.

    Returns:
        Counts: `rows_read`, `rows_kept` (chosen), `dropped` (reason → rows, those of reading included),
        `truncated`, and `rewards` of the usable rollouts: `min`, `max`, `mean`, `histogram` (`edges`, `counts`;
        the last bin is closed). `rules`: every rule and later step in order, with `rule`, `origin`, `reason`,
        `before`, `dropped`, and for rules of one row `alone` (rows that it drops of all usable ones), `only` (rows
        that it and no other rule drops) and `unknown` (rows for which it is null). `warnings`: sentences about
        rules that do nothing or drop everything. `balance`: category → `before`, `kept`; `decisions`: how many of
        the given ones there are of each kind.

    Raises:
        RecipeError: a condition, the balance or a tokenizer cannot be used.
    """
    with Choosing(tables, recipe, decisions, seed) as choosing:
        chosen = choosing.choose()
        codes = fates(choosing, chosen)
        selection.write(_table(choosing, chosen, codes), out / SELECTION)
        steps: list[Rule | Stage] = [*choosing.rules, *chosen.stages]
        asked = {
            "settings": recipe.model_dump(mode="json"),
            "rules": [{"rule": s.text, "origin": s.origin} for s in steps],
            "decisions": {"count": len(decisions), "digest": digest(dict(decisions))},
            "seed": seed,
        }
        (out / RULES).write_bytes(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2))
        return _counts(choosing, chosen, codes, counted, decisions)


def fates(choosing: Choosing, chosen: Chosen) -> np.ndarray[Any, np.dtype[np.int16]]:
    """Of each usable row the number of the rule or step that drops it; -1 if it is chosen."""
    import numpy as np

    fails = numbers(choosing.rows["fails"])
    lowest = fails & (~fails + np.uint64(1))
    codes = np.where(fails > 0, np.log2(np.maximum(lowest, 1)), -1).astype(np.int16)
    for number, stage in enumerate(chosen.stages, start=len(choosing.rules)):
        codes[np.searchsorted(numbers(choosing.rows["spot"]), stage.positions)] = number
    return codes


def _table(choosing: Choosing, chosen: Chosen, codes: np.ndarray[Any, np.dtype[np.int16]]) -> pa.Table:
    import numpy as np
    import pyarrow as pa

    steps: list[Rule | Stage] = [*choosing.rules, *chosen.stages]
    rows = choosing.rows
    spots = numbers(rows["spot"])
    at_table, at_file, at_row = place(spots)
    twins = [twin for stage in chosen.stages for twin in stage.twins or ()]
    which = np.full(len(rows), -1)
    start = 0
    for stage in chosen.stages:
        if stage.twins is not None:
            which[np.searchsorted(spots, stage.positions)] = np.arange(start, start := start + len(stage.twins))
    values = {
        "at_table": integers(at_table, pa.int32()),
        "at_file": integers(at_file, pa.int32()),
        "at_row": integers(at_row),
        "rollout_id": rows["rollout_id"],
        "task_key": rows["task_key"],
        "reward": rows["reward"],
        "reason": selection.named(codes, [str(step.reason) for step in steps]),
        "rule": selection.named(codes, [step.text for step in steps]),
        "twin": selection.named(which, twins),
    }
    return pa.table(values)


def _counts(
    choosing: Choosing,
    chosen: Chosen,
    codes: np.ndarray[Any, np.dtype[np.int16]],
    counted: Sequence[dict[str, Any]],
    decisions: Mapping[str, str],
) -> dict[str, Any]:
    import numpy as np

    steps = tally(choosing, chosen, codes)
    dropped: dict[str, int] = {}
    for table in counted:
        for reason, count in table["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count
    for step in steps:
        if step["dropped"]:
            dropped[step["reason"]] = dropped.get(step["reason"], 0) + step["dropped"]
    rewards = numbers(choosing.rows["reward"])
    low, high = (float(rewards.min()), float(rewards.max())) if len(rewards) else (None, None)
    counts = {
        "rows_read": sum(table["rows_read"] for table in counted),
        "rows_kept": int(np.count_nonzero(codes < 0)),
        "dropped": dict(sorted(dropped.items())),
        "truncated": int(numbers(choosing.rows["truncated"]).sum()),
        "rewards": {
            "min": low,
            "max": high,
            "mean": math.fsum(rewards) / len(rewards) if len(rewards) else None,
            "histogram": _histogram(rewards, low, high),
        },
        "rules": steps,
        "warnings": warnings(steps, len(rewards)),
    }
    if chosen.balance:
        counts["balance"] = chosen.balance
    if decisions:
        values = list(decisions.values())
        counts["decisions"] = {kind: values.count(kind) for kind in sorted(set(values))}
    return counts


def tally(choosing: Choosing, chosen: Chosen, codes: np.ndarray[Any, np.dtype[np.int16]]) -> list[dict[str, Any]]:
    """The rules and later steps in order, with what each drops; the keys are those of `curate`'s `rules`."""
    import numpy as np

    fails, unknown = numbers(choosing.rows["fails"]), numbers(choosing.rows["unknown"])
    steps: list[Rule | Stage] = [*choosing.rules, *chosen.stages]
    drops = np.bincount(codes + 1, minlength=len(steps) + 1)[1:].tolist()
    before = len(fails)
    told: list[dict[str, Any]] = []
    for number, (step, dropped) in enumerate(zip(steps, drops, strict=True)):
        line = {
            "rule": step.text,
            "origin": step.origin,
            "reason": str(step.reason),
            "before": before,
            "dropped": dropped,
        }
        if number < len(choosing.rules):
            bit = np.uint64(1 << number)
            line["alone"] = int(np.count_nonzero(fails & bit))
            line["only"] = int(np.count_nonzero(fails == bit))
            line["unknown"] = int(np.count_nonzero(unknown & bit))
        told.append(line)
        before -= dropped
    return told


def warnings(steps: Sequence[Mapping[str, Any]], rows: int) -> list[str]:
    """What is odd about the rules that a user wrote: true or false for every rollout, or null for some."""
    found = []
    for step in steps:
        if not rows or step["reason"] not in ("filtered", "below_reward"):
            continue
        said = f"`{step['rule']}` ({step['origin']})"
        if step["unknown"] == rows:
            found.append(f"{said} is unknown (null) for every rollout, so it drops all {rows}")
        elif step["alone"] == rows:
            found.append(f"{said} is true for no rollout, so it drops all {rows}")
        elif step["alone"] == 0 and step["origin"] != "min_reward":  # which has a default
            found.append(f"{said} is true for every rollout, so it does nothing")
        elif step["unknown"]:
            found.append(
                f"{said} is unknown (null) for {step['unknown']} of {rows} rollouts, and drops them; "
                f"write `({step['rule']}) IS NOT FALSE` to keep them"
            )
    return found


def _histogram(rewards: Any, low: float | None, high: float | None) -> dict[str, list[float]]:
    """Equal bins over the observed range, the last one closed; rewards within 0..1 get the range 0..1."""
    import numpy as np

    if low is None or high is None:
        return {"edges": [], "counts": []}
    limits = (0.0, 1.0) if low >= 0 and high <= 1 else (low, high) if high > low else (low - 0.5, high + 0.5)
    counts, edges = np.histogram(rewards, bins=_BINS, range=limits)
    return {"edges": [float(e) for e in edges], "counts": [int(c) for c in counts]}
