"""What a workspace has to tell, as sinks receive it.

Derived from what runs leave anyway: `runs.jsonl` (starts and ends), `journal.jsonl` (one line a production),
`champions.jsonl` (promotions and rollbacks) and the store. Nothing is written for sinks alone, so one that is added
later hears of everything that the workspace still holds. These files only grow: how many lines of each were told is
all that a sink must remember (`Position`).

An event's id follows from what it says: the same recipe run again in the same workspace says the same of what is
cached, and that is told once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import ArtifactRef, Manifest
from gristmill.champions import Champion, Rollback, registry
from gristmill.errors import ArtifactMissing
from gristmill.evaluation import Evaluation, read_evaluation
from gristmill.identity import digest
from gristmill.promotion import Decision, read_decision
from gristmill.runs import EVALUATE, JOURNAL, RUNS, Outcome, Production
from gristmill.workspace import Workspace

IDENTITY = "sinks/workspace.jsonl"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RunOf(_Frozen):
    """The run that an event belongs to. Interrupted and begun again, or with more sinks, it is the same one."""

    name: str
    """Of the recipe."""
    key: str
    """Identity of workspace and recipe, and of the policies of an evaluation on its own, 64 hexadecimal digits."""
    policies: tuple[str, ...] = ()
    """What an evaluation on its own (`gristmill evaluate`, `compare`) is of, one a turn from 0 on; empty: a loop."""


class Input(_Frozen):
    """An artifact that a stage took."""

    ref: ArtifactRef
    stage: str
    """The stage that made it, as the terminal shows it."""
    manifest: Manifest


class _Event(_Frozen):
    id: str = Field(description="Equal events have one id: a receiver that knows it may ignore the second.")
    time: str = Field(description="UTC, ISO 8601.")
    run: RunOf


class RunStarted(_Event):
    """A run began, or went on."""

    number: int
    recipe: dict[str, Any]
    """Resolved, without its sinks."""
    gristmill: str


class RunEnded(_Event):
    """A run ended; one that was killed says nothing."""

    number: int
    outcome: Outcome
    error: str | None


class Produced(_Event):
    """A stage ended with an artifact; three kinds of them say more."""

    number: int
    """Of the workspace's run that said it first; 0 where the journal does not tell."""
    turn: int
    """0 before the first turn."""
    stage: str
    cached: bool
    """It was there already, from this recipe or another."""
    manifest: Manifest
    inputs: tuple[Input, ...]

    @property
    def ref(self) -> ArtifactRef:
        return self.manifest.ref


class Trained(Produced):
    """A checkpoint with its losses, one a step, as far as the trainer tells."""

    losses: tuple[float, ...]


class Evaluated(Produced):
    """A policy measured on held-out tasks."""

    evaluation: Evaluation


class Decided(Produced):
    """The gate's decision on a challenger."""

    decision: Decision
    challenger: ArtifactRef
    champion: ArtifactRef


class Promoted(_Event):
    """A challenger became champion."""

    champion: Champion


class RolledBack(_Event):
    """A promotion was taken back."""

    rollback: Rollback


Event = RunStarted | RunEnded | Produced | Promoted | RolledBack
Source = Literal["runs", "journal", "champions"]


class Position(_Frozen):
    """Lines of each file that were told."""

    runs: int = 0
    journal: int = 0
    champions: int = 0

    def past(self, source: Source) -> Position:
        return self.model_copy(update={source: getattr(self, source) + 1})


class Told(NamedTuple):
    """One line: where one stands after it, and what it says (None: told before, or nothing of it is left)."""

    after: Position
    event: Event | None


class _Line(NamedTuple):
    run: int
    rank: int  # within a run: its start, productions, promotions, its end
    source: Source
    value: Any


def identity(workspace: Workspace) -> str:
    """A name for the workspace that lasts, made on first use."""
    if not (known := workspace.read(IDENTITY)):
        import uuid

        workspace.append(IDENTITY, {"id": uuid.uuid4().hex})
        known = workspace.read(IDENTITY)
    return str(known[0]["id"])


def owed(workspace: Workspace, position: Position) -> int:
    """Lines beyond a position. Quick: reads no artifact."""
    here = (RUNS, JOURNAL, "champions.jsonl")
    told = (position.runs, position.journal, position.champions)
    return sum(max(0, len(workspace.read(name)) - count) for name, count in zip(here, told, strict=True))


def events(workspace: Workspace, position: Position) -> Iterator[Told]:
    """Every line after `position`: run after run, each file in its own order."""
    runs = workspace.read(RUNS)
    journal = workspace.read(JOURNAL)
    champions = registry(workspace)
    if position.runs > len(runs) or position.journal > len(journal) or position.champions > len(champions):
        position = Position()  # the files are not those that grew: whatever they say is new
    teller = _Teller(workspace, [line for line in runs if line["event"] == "start"])
    at = Position()
    starts = [(line["time"], line["run"]) for line in runs if line["event"] == "start"]
    for line in heapq.merge(
        (_Line(line["run"], 0 if line["event"] == "start" else 3, "runs", line) for line in runs),
        (_Line(line.get("run", 0), 1, "journal", line) for line in journal),
        (_Line(_run_at(starts, line.time), 2, "champions", line) for line in champions),
        key=lambda line: line[:2],
    ):
        at = at.past(line.source)
        new = getattr(at, line.source) > getattr(position, line.source)
        told = teller.tell(line, new)
        if new:
            yield Told(_furthest(position, at), told)


def _run_at(starts: list[tuple[str, int]], time: str) -> int:
    """The last run that had begun; 0 before the first."""
    return next((run for began, run in reversed(starts) if began <= time), 0)


def _furthest(a: Position, b: Position) -> Position:
    return Position(
        runs=max(a.runs, b.runs), journal=max(a.journal, b.journal), champions=max(a.champions, b.champions)
    )


class _Teller:
    """Makes events of lines in order; remembers what was said and who made what."""

    def __init__(self, workspace: Workspace, starts: list[dict[str, Any]]) -> None:
        self.workspace, self.store = workspace, workspace.store
        self.id = identity(workspace)
        self.runs = {line["run"]: self._run(line["recipe"], line["command"]) for line in starts}
        self.by_recipe = {run.name: run for run in self.runs.values() if not run.policies}
        self.stages: dict[str, str] = {}  # short reference → stage that made it
        self.promoters: dict[ArtifactRef, str] = {}  # decision → the recipe whose promotion it was
        self.said: set[str] = set()
        self._refs: dict[str, ArtifactRef] = {}

    def _run(self, recipe: dict[str, Any], command: list[str]) -> RunOf:
        said: dict[str, Any] = {name: value for name, value in recipe.items() if name != "sinks"}
        whole = {"workspace": self.id, "recipe": said}
        policies = tuple(command[1:]) if command[0] == EVALUATE else ()
        if policies:
            whole["policies"] = list(policies)
        return RunOf(name=recipe["name"], key=digest(whole), policies=policies)

    def _unknown(self, name: str = "workspace") -> RunOf:
        """The run of lines that say none: those of earlier versions."""
        return self.by_recipe.get(name) or RunOf(name=name, key=digest({"workspace": self.id, "name": name}))

    def tell(self, line: _Line, new: bool) -> Event | None:
        """The event of a line; None if it was said before, or (`new` false) is only to be remembered."""
        value = line.value
        if line.source == "runs":
            return self._started_or_ended(value) if new else None
        if isinstance(value, Champion):
            self.promoters[value.decision] = value.recipe
            run = self._unknown(value.recipe)
            return Promoted(id=self._id(run, value), time=value.time, run=run, champion=value) if new else None
        if isinstance(value, Rollback):
            run = self._unknown(self.promoters.get(value.rolled_back, "workspace"))
            return RolledBack(id=self._id(run, value), time=value.time, run=run, rollback=value) if new else None
        if "stage" not in value:
            return None
        made = Production.model_validate(value)
        run = self.runs.get(made.run) or self._unknown()
        self.stages.setdefault(made.result, made.stage)
        said = digest({"run": run.key, "turn": made.turn, "stage": made.stage, "result": made.result})
        if said in self.said:
            return None
        self.said.add(said)
        try:
            return self._produced(run, made, said) if new else None
        except ArtifactMissing:
            return None  # deleted since, by hand or by gc: nobody can be told of it any more

    def _started_or_ended(self, line: dict[str, Any]) -> Event:
        run = self.runs.get(line["run"]) or self._unknown()
        said = digest({"run": run.key, "number": line["run"], "event": line["event"]})
        if line["event"] == "start":
            recipe = {name: value for name, value in line["recipe"].items() if name != "sinks"}
            return RunStarted(
                id=said, time=line["time"], run=run, number=line["run"], recipe=recipe, gristmill=line["gristmill"]
            )
        return RunEnded(
            id=said, time=line["time"], run=run, number=line["run"], outcome=line["outcome"], error=line["error"]
        )

    def _produced(self, run: RunOf, made: Production, said: str) -> Produced:
        store, ref = self.store, self._ref(made.result)
        manifest = store.manifest(ref)
        inputs = tuple(
            Input(ref=parent, stage=self.stages.get(str(parent), of.stage), manifest=of)
            for parent in manifest.parents
            if (of := self._manifest(parent)) is not None
        )
        common: dict[str, Any] = {
            "id": said,
            "time": made.time,
            "run": run,
            "number": made.run,
            "turn": made.turn,
            "stage": made.stage,
            "cached": made.cached,
            "manifest": manifest,
            "inputs": inputs,
        }
        if ref.kind == "checkpoint" and "losses" in manifest.counts:
            return Trained(**common, losses=tuple(manifest.counts["losses"]))
        if ref.kind == "evaluation":
            return Evaluated(**common, evaluation=read_evaluation(store, ref))
        if ref.kind == "decision":
            whole = store.read_json(ref, "decision.json")
            return Decided(
                **common,
                decision=read_decision(store, ref),
                challenger=whole["challenger"],
                champion=whole["champion"],
            )
        return Produced(**common)

    def _manifest(self, ref: ArtifactRef) -> Manifest | None:
        try:
            return self.store.manifest(ref)
        except ArtifactMissing:
            return None

    def _ref(self, short: str) -> ArtifactRef:
        if short not in self._refs:
            self._refs = {str(ref): ref for ref in self.store.refs()}
        if short not in self._refs:
            raise ArtifactMissing(f"{short} is not in the workspace any more")
        return self._refs[short]

    def _id(self, run: RunOf, value: BaseModel) -> str:
        return digest({"run": run.key, **value.model_dump(mode="json")})
