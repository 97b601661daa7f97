"""Explain: what each rule of a selection costs, in order and on its own; writes nothing.

Counts are of usable rollouts. `before`, `dropped` and `left` follow the order of the rules; the rest does not:
`alone` rows fail the rule, whatever the others say; `only` rows fail it and no other; without it, `regained` more
rollouts would be chosen in the end (fewer than `only` where the task's cap or a duplicate takes the place).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from gristmill.choosing import Choosing
from gristmill.curate import fates, tally, warnings
from gristmill.recipe import CurateRecipe

if TYPE_CHECKING:
    from rich.console import RenderableType

_NO_DECISIONS: Mapping[str, str] = {}
# how a recipe says that a later step is left out
_OFF = {"deduplicate": False, "per_task": None, "balance": None}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Step(_Model):
    """One rule, or one later step."""

    rule: str
    origin: str = Field(description="The recipe's field, with a preset's name.")
    reason: str
    before: int
    dropped: int
    left: int
    alone: int | None = Field(description="Rows that fail it, of all usable ones; null for steps after the rules.")
    only: int | None = Field(description="Rows that fail it and no other rule.")
    unknown: int | None = Field(description="Rows for which it is neither true nor false: a name that they lack.")
    regained: int | None = Field(
        description="More rollouts that would be chosen without it (fewer if below 0); null where the payload would "
        "have to be read to know."
    )


class Explained(_Model):
    """A recipe's rules over some tables."""

    rows: int = Field(description="Usable rollouts.")
    chosen: int
    steps: tuple[Step, ...]
    balance: dict[str, dict[str, int]] = Field(description="Category → rollouts `before` balancing and `kept`.")
    warnings: tuple[str, ...]

    def table(self) -> RenderableType:
        """For the terminal."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("rule", overflow="fold")
        for name in ("rows", "dropped", "left", "alone", "only this", "without it"):
            table.add_column(name, justify="right", no_wrap=True)
        for step in self.steps:
            counts = (step.before, step.dropped, step.left, step.alone, step.only)
            without = "" if step.regained is None else f"{step.regained:+,}"
            preset = f"  ({step.origin})" if step.origin.startswith("preset") else ""
            table.add_row(
                Text(step.rule + preset),
                *("" if count is None else f"{count:,}" for count in counts),
                without,
                style=None if step.dropped else "dim",
            )
        parts: list[RenderableType] = [table, Text(f"{self.chosen:,} of {self.rows:,} usable rollouts chosen", "bold")]
        if self.balance:
            shares = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
            shares.add_column("category", overflow="fold")
            shares.add_column("rows", justify="right")
            shares.add_column("kept", justify="right")
            for name, counted in self.balance.items():
                shares.add_row(Text(name), f"{counted['before']:,}", f"{counted['kept']:,}")
            parts += [Text(), shares]
        parts += [Text(f"warning: {warning}", "yellow") for warning in self.warnings]
        return Group(*parts)


def explain(
    tables: Sequence[Sequence[Path]],
    recipe: CurateRecipe,
    *,
    decisions: Mapping[str, str] = _NO_DECISIONS,
    seed: int = 0,
) -> Explained:
    """What the rules of a recipe do to the tables' usable rollouts; arguments and errors as for `curate`."""
    with Choosing(tables, recipe, decisions, seed) as choosing:
        chosen = choosing.choose()
        told = tally(choosing, chosen, fates(choosing, chosen))
        reads_payload = bool(recipe.near_duplicates or recipe.max_tokens)
        steps = []
        for number, line in enumerate(told):
            regained = None
            if not reads_payload:
                if number < len(choosing.rules):
                    regained = line["only"] and choosing.choose(without=1 << number).rows - chosen.rows
                else:
                    off = recipe.model_copy(update={line["origin"]: _OFF[line["origin"]]})
                    regained = line["dropped"] and choosing.choose(recipe=off).rows - chosen.rows
            steps.append(
                Step(
                    **{name: line.get(name) for name in Step.model_fields if name not in ("left", "regained")},
                    left=line["before"] - line["dropped"],
                    regained=regained,
                )
            )
        rows = len(choosing.rows)
        return Explained(
            rows=rows,
            chosen=chosen.rows,
            steps=tuple(steps),
            balance=chosen.balance,
            warnings=tuple(warnings(told, rows)),
        )
