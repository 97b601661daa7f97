"""Refresh: stages that a run does again although they are cached, as `--from` and `--force` name them.

A stage is named as the terminal shows it, with the turn behind a colon where it is not the last: `train`, `collect:2`,
`evaluate:0` (of the base). `redo_from` redoes the stage and all that the same turn runs after it; `force` redoes the
stage alone. A stage that comes out equal to the byte is the same artifact, and what follows it stays cached.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

from pydantic import BaseModel, ConfigDict, Field

from gristmill.errors import UsageError

BEFORE = ("base policy", "held-out tasks", "collect held-out", "ingest held-out", "evaluate")
TURN = (
    *("tasks", "collect", "ingest", "sample", "review", "taints", "curate", "format", "validate", "train"),
    *("collect held-out", "ingest held-out", "evaluate", "promote"),
)
REPORT = "report"
PREPARE = ("read", "sample", "review", "taints", "curate", "format", "validate")
REVIEWING = frozenset({"sample", "review"})
"""Stages that a run has only where people review."""
OPTIONAL = REVIEWING | {"taints"}
"""And where rollouts of the turn are marked as bad."""


class Refresh(BaseModel):
    """What is done again. As a flow parameter: `{"redo_from": "train:2", "force": ["report"]}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redo_from: str | None = Field(None, description="This stage, and all after it in its turn.")
    force: tuple[str, ...] = Field((), description="These stages alone.")
    done: tuple[str, ...] = Field((), description="`stage:turn`, done again already by the run that is resumed.")

    def __bool__(self) -> bool:
        return self.redo_from is not None or bool(self.force)

    def resolved(self, *, turns: int, last: int, known: Collection[str] = ()) -> Refresh:
        """The same with the turn of every stage.

        Args:
            turns: of the recipe.
            last: the turn that a stage without one means.
            known: further stages that this workspace has seen.

        Raises:
            UsageError: no such stage or turn; names near ones.
        """

        def whole(text: str) -> str:
            return named(*place(text, turns=turns, last=last, known=known))

        return self.model_copy(
            update={
                "redo_from": None if self.redo_from is None else whole(self.redo_from),
                "force": tuple(whole(text) for text in self.force),
            }
        )


class Refreshing:
    """Answers, stage by stage in the order of the run, whether this one is done again."""

    def __init__(self, refresh: Refresh) -> None:
        """`refresh` is resolved."""
        self._refresh = refresh
        self._from = None if refresh.redo_from is None else _split(refresh.redo_from)
        self._force = {_split(text) for text in refresh.force}
        self._done = {_split(text) for text in refresh.done}
        self._reached = False

    def __call__(self, turn: int, stage: str) -> bool:
        at = (_plain(stage), turn)
        after = self._from is not None and turn == self._from[1] and (self._reached or _reaches(at[0], self._from[0]))
        self._reached = self._reached or after
        return (after or at in self._force) and at not in self._done


def named(turn: int, stage: str) -> str:
    """`collect:2`; the inverse of `place`."""
    return f"{_plain(stage)}:{turn}"


def place(text: str, *, turns: int, last: int, known: Collection[str] = ()) -> tuple[int, str]:
    """Turn and stage that a person named.

    Raises:
        UsageError: there is none such.
    """
    wanted, turn = _split(text)
    stages = {_plain(name): name for name in (*BEFORE, *TURN, REPORT, *known)}
    if wanted not in stages:
        near = difflib.get_close_matches(wanted, stages, n=2, cutoff=0.6)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"no stage is called {text!r}{hint} (stages: {', '.join(stages)})")
    stage = stages[wanted]
    if turn is None:
        turn = 0 if stage in BEFORE and stage not in TURN else last
    if not 0 <= turn <= turns:
        raise UsageError(f"stage {text!r}: there is no turn {turn}; the recipe has {turns}, and 0 is the base")
    if turn == 0 and stage in TURN and stage not in BEFORE and stage not in PREPARE:
        raise UsageError(f"stage {text!r}: turn 0 is the base's, and has only {', '.join(map(_plain, BEFORE))}")
    if turn > 0 and stage in BEFORE and stage not in TURN:
        raise UsageError(f"stage {text!r}: {_plain(stage)} is done once, in turn 0")
    return turn, stage


def order(stages: Sequence[str]) -> list[str]:
    """Stages in the order of a turn; unknown ones last, as they came."""
    return sorted(stages, key=lambda name: _ORDER.get(_plain(name), len(_ORDER)))


def _reaches(stage: str, wanted: str) -> bool:
    """Whether a stage is the wanted one or comes after it, which this run may not have."""
    if stage in _ORDER and wanted in _ORDER:
        return _ORDER[stage] >= _ORDER[wanted]
    return stage == wanted


def _split(text: str) -> tuple[str, int | None]:
    name, colon, turn = text.strip().partition(":")
    if not colon:
        return _plain(name), None
    if not turn.strip().isdecimal():
        raise UsageError(f"stage {text!r}: expected a turn behind the colon, such as {_plain(name)}:2")
    return _plain(name), int(turn)


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "-")


_ORDER = {_plain(name): number for number, name in enumerate((*BEFORE[:2], "read", *TURN, REPORT))}
