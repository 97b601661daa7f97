"""A run as data, with everything needed to check it: what was run, what the evidence says.

One `RunReport`, plain and frozen, that is JSON-able and filled from evaluations, decisions, funnels and the journal
(gristmill/run_report.py). NaN and infinity are refused when it is built, and so is a funnel that does not add up. It is
told by gristmill/report_words.py and drawn by gristmill/report_page.py.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gristmill.histogram import Histogram
from gristmill.identity import canonical
from gristmill.promotion import Decision
from gristmill.statistics import Estimate


def _without_surrogates(value: object) -> object:
    """JSON may hold half a surrogate pair, UTF-8 may not: U+FFFD stands for it."""
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", value) if isinstance(value, str) else value


Text = Annotated[str, BeforeValidator(_without_surrogates)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Gate(_Frozen):
    """The gate's decision on one challenger, and the champion that it was measured against."""

    champion: str = Field(description="Name of the policy that was champion before the decision.")
    champion_score: Estimate
    decision: Decision
    rolled_back: bool = Field(default=False, description="Whether a promotion was taken back later.")


class Funnel(_Frozen):
    """Rows read = rows kept + Σ rows dropped by reason; anything else is refused."""

    rows_read: int = Field(ge=0)
    rows_kept: int = Field(ge=0)
    dropped: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    examples: int | None = Field(default=None, ge=0, description="Training examples made of the kept rows.")

    @model_validator(mode="after")
    def _conserves(self) -> Funnel:
        if self.rows_read != self.rows_kept + self.rows_dropped:
            raise ValueError(
                f"expected rows_read = rows_kept + rows dropped, found {self.rows_read} ≠ "
                f"{self.rows_kept} + {self.rows_dropped}"
            )
        return self

    @property
    def rows_dropped(self) -> int:
        return sum(self.dropped.values())

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Reasons that dropped a row, the largest first."""
        return sorted(((r, n) for r, n in self.dropped.items() if n), key=lambda item: (-item[1], item[0]))


class Rewards(Histogram):
    """Of a turn's training rollouts."""

    mean: float | None = None


class TurnReport(_Frozen):
    """One turn of the mill; what it did not do is None or empty."""

    turn: int = Field(ge=1)
    challenger: str = Field(description="Name of the policy that the turn trained.")
    score: Estimate | None = Field(default=None, description="The challenger on the held-out tasks.")
    gate: Gate | None = None
    funnel: Funnel | None = None
    rewards: Rewards | None = None
    loss: tuple[float, ...] = Field(default=(), description="Training loss, in order of steps.")
    loss_every: int = Field(default=1, ge=1, description="Steps between two values of `loss`.")

    @property
    def promoted(self) -> bool:
        return self.gate is not None and self.gate.decision.promoted and not self.gate.rolled_back


class CategoryRow(_Frozen):
    """Held-out mean reward of one kind of task, before (base) and after (`RunReport.after`)."""

    category: Text
    before: Estimate
    after: Estimate
    lift: Estimate | None = Field(default=None, description="Paired; None shows the plain difference.")


class Answer(_Frozen):
    """One sampled answer as its policy wrote it; `reward` is None where the sample has none."""

    text: Text
    reward: float | None = None


class Transcript(_Frozen):
    """The same held-out task, answered before (base) and after (`RunReport.after`)."""

    task: Text = Field(description="Task key, or another short name.")
    question: Text
    before: Answer
    after: Answer
    category: Text = ""


class StageRow(_Frozen):
    """One stage of the run, as the journal has it."""

    stage: str
    turn: int | None = Field(default=None, description="None for what belongs to no turn.")
    cached: bool | None = Field(default=None, description="None where the page must not depend on it.")
    seconds: float = Field(ge=0)
    kind: str | None = None
    digest: str | None = None


class ArtifactRow(_Frozen):
    """A dataset, checkpoint or evaluation that came out of the run."""

    label: str
    kind: str
    digest: str


class RunReport(_Frozen):
    """All that the page shows. `lift` is champion minus base at the end; None when nothing was promoted."""

    title: str
    run_id: str = ""
    base: str = Field(description="Name of the policy that the run began from.")
    environment: str
    turns: tuple[TurnReport, ...] = ()
    base_score: Estimate | None = None
    lift: Estimate | None = None
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of every interval on the page.")
    categories: tuple[CategoryRow, ...] = ()
    transcripts: tuple[Transcript, ...] = ()
    compared: str = Field(default="", description="Who is 'after' in these two; '' for the last champion.")
    stages: tuple[StageRow, ...] = ()
    artifacts: tuple[ArtifactRow, ...] = ()
    recipe: Text = Field(default="", description="The resolved recipe as YAML.")
    training: str = Field(default="", description="What each turn trains from and on, in words.")
    stopped: str | None = Field(default=None, description="Why the loop ended before its last turn.")
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: float | None = Field(default=None, ge=0, description="Wall time of the run.")

    @model_validator(mode="after")
    def _finite(self) -> RunReport:
        # Estimates come from elsewhere and may hold NaN; canonical JSON refuses it wherever it stands.
        canonical(self.model_dump())
        return self

    @property
    def promoted(self) -> tuple[TurnReport, ...]:
        return tuple(turn for turn in self.turns if turn.promoted)

    @property
    def champion(self) -> str:
        """Name of the champion at the end."""
        if self.promoted:
            return self.promoted[-1].challenger
        return next((turn.gate.champion for turn in self.turns if turn.gate), self.base)

    @property
    def after(self) -> str:
        """Name of the policy that categories and transcripts set against the base."""
        return self.compared or self.champion

    @property
    def champion_score(self) -> Estimate | None:
        if self.promoted:
            return self.promoted[-1].score
        return next((turn.gate.champion_score for turn in self.turns if turn.gate), self.base_score)
