"""Redo: which stages of a recipe a workspace holds already, and which setting makes the others run again.

A report's manifest has the resolved recipe of a run that ended. The recipe at hand is compared with the nearest of
them, the one that differs in the fewest fields; whatever a differing field feeds, and all that follows from it, runs
again. Stages are cached by their own inputs, so a stage may turn out to be cached though this says otherwise (another
run made it); never the other way round, as long as nothing was deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gristmill.artifact import Manifest
from gristmill.stages import flat, reads, shown

# What feeds what within a turn; the challenger's evaluation decides who collects in the next.
FOLLOWS: dict[str, tuple[str, ...]] = {
    "held-out tasks": ("evaluate",),
    "tasks": ("collect",),
    "collect": ("curate",),
    "curate": ("format",),
    "format": ("validate", "train"),
    "validate": (),
    "train": ("evaluate",),
    "evaluate": ("promote",),
    "promote": (),
}
# What of a run's stages one of these stands for, as far as it costs something.
_OF: dict[str, tuple[str, ...]] = {
    "collect": ("base policy", "collect"),
    "curate": ("sample", "review", "curate"),
    "train": ("base policy", "train"),
    "evaluate": ("base policy", "collect held-out"),
}
# Stages run again for these, and give what they gave.
_EQUAL: dict[str, tuple[str, ...]] = {
    "held-out tasks": ("environment.tasks", "environment.fresh", "environment.curriculum"),
    "tasks": ("environment.heldout",),
}


class Redo(NamedTuple):
    """What a workspace makes of a recipe."""

    turns: int
    """Turns of the nearest run that ended; 0 if none did."""
    changed: tuple[str, ...]
    """Fields that differ from it, as `train.epochs: 2 → 1`."""
    again: dict[str, str]
    """Stage → the change that makes it run again, from the first turn on."""

    def state(self, stage: str, turns: int) -> str:
        """In words, for a stage of a recipe with so many turns."""
        if not self.turns:
            return "new"
        if stage in self.again:
            change = self.again[stage]
            # the base is still what it was, and so is its score
            base = stage == "evaluate" and not change.startswith(("environment.", "evaluate.", "policy.", "seed"))
            return f"base cached, challengers again: {change}" if base else f"again: {change}"
        later = [change for other, change in self.again.items() if other in ("train", "evaluate", "promote")]
        if later and stage in ("collect", "curate", "format", "validate", "train") and turns > 1:
            return f"cached in turn 1, then again: {later[0]}"
        if turns > self.turns and stage not in ("held-out tasks",):
            return f"cached for {self.turns} turn{'' if self.turns == 1 else 's'}, then new"
        return "cached"


def redo(resolved: Mapping[str, Any], reports: list[Manifest]) -> Redo:
    """Compare a resolved recipe with those of runs that ended."""
    fields = flat(resolved)
    nearest: list[tuple[int, str, dict[str, Any]]] = []
    for report in reports:
        before = flat(report.settings)
        if "turns" in before:
            nearest.append(
                (sum(fields.get(k) != before.get(k) for k in fields.keys() | before.keys()), report.digest, before)
            )
    if not nearest:
        return Redo(0, (), {})
    _, _, before = min(nearest, key=lambda one: one[:2])
    changed = {
        name: f"{name}: {shown(before.get(name))} → {shown(fields.get(name))}"
        for name in sorted(fields.keys() | before.keys())
        if fields.get(name) != before.get(name)
    }
    again: dict[str, str] = {}
    for name, text in changed.items():
        for stage in FOLLOWS:
            if any(reads(part, name) for part in _OF.get(stage, (stage,))) and not name.startswith(
                _EQUAL.get(stage, ())
            ):
                _mark(stage, text, again)
    return Redo(int(before["turns"]), tuple(changed.values()), again)


def _mark(stage: str, text: str, again: dict[str, str]) -> None:
    if stage not in again:
        again[stage] = text
        for after in FOLLOWS[stage]:
            _mark(after, text, again)
