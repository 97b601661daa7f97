"""What was made of what: the graph of a workspace's artifacts, from their manifests and the journal.

A manifest names the parents of an artifact when it was first made; where equal content was made again of something
else, the journal knows the other inputs, and both count. Manifests are small and read once; no payload is opened
here (rows and rollouts: gristmill/origins.py). What was deleted stays in the graph as long as something names it.

`Lineage.walk` gives a `Walk`: plain frozen data, which `gristmill trace` and `impact`, the Prefect artifact, the model
card and the page all show. Its edges leave out those that a longer path implies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef, Manifest, summary
from gristmill.champions import Champion, Rollback, registry
from gristmill.errors import StoreError
from gristmill.names import labels, notes
from gristmill.versions import is_base
from gristmill.workspace import Workspace

Direction = Literal["up", "down"]

How = Literal["asked", "made of", "holds it", "learned from it", "measured with it", "after it"]
"""Why an artifact is in a walk. Up: `made of`. Down: a table or dataset *holds* the rollouts; a model *learned* from
them if it was trained on such a dataset or goes on from such a model; an evaluation or a decision is *measured* with
such a model, or over the rollouts; all else came *after*: a policy that learned from them acted."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Node(_Frozen):
    """An artifact, as people are shown it."""

    id: str
    """Kind and twelve characters of the digest."""
    kind: str
    digest: str
    label: str
    """What to call it: `model v2`, `base (smollm2-135m)`, or its kind."""
    names: tuple[str, ...] = ()
    """`champion`, aliases and tags."""
    how: How
    stage: str | None = None
    turn: int | None = None
    created: str | None = None
    """Null: it is not in the store any more."""
    summary: str = ""
    marks: tuple[str, ...] = ()
    """Of a model, what the gate and the registry say; `tainted`; `gone`."""
    notes: tuple[str, ...] = ()


class Fate(_Frozen):
    """What became of a rollout when a selection was made."""

    selection: str
    chosen: bool
    reason: str | None = None
    rule: str | None = None


class Origin(_Frozen):
    """A rollout, and where it comes from."""

    rollout_id: str
    role: str | None = None
    """In a dataset's row: only, chosen, rejected or attempt."""
    task_key: str | None = None
    task: int | None = None
    """Index of the task in its run."""
    attempt: int | None = None
    """Rollout index."""
    agent: str | None = None
    reward: float | None = None
    model: str | None = None
    """The policy, as the rollout names it."""
    policy: str | None = None
    """The policy's label and id, where it acted in this workspace."""
    run: str | None = None
    source: str | None = None
    line: int | None = None
    table: str | None = None
    """Null: no table that holds it is in the store any more."""
    drop_reason: str | None = None
    """Why reading dropped it."""
    review: str | None = None
    """`accept` or `reject`, as reviewers decided when the dataset was made."""
    tainted: str | None = None
    """Why it is marked as bad."""
    fates: tuple[Fate, ...] = ()


class Touched(_Frozen):
    """A dataset that holds rows made of the rollouts in question."""

    id: str
    label: str
    rows: int
    of: int
    """Rows of the dataset."""
    rollouts: int
    first: tuple[str, ...]
    """The first rows, as `train#17`."""

    @property
    def share(self) -> float:
        return self.rows / self.of if self.of else 0.0


class Promotion(_Frozen):
    """A promotion of one of the models in a walk."""

    model: str
    decision: str
    recipe: str
    turn: int
    time: str
    holds: bool
    """False: it was rolled back."""
    champion: bool
    """It is champion now."""


class RecipeNote(_Frozen):
    """The recipe that made something, as its run resolved it."""

    name: str
    settings: dict[str, Any]
    """All of it."""


class Walk(_Frozen):
    """The answer to `trace` (up) or `impact` (down)."""

    asked: str
    direction: Direction
    roots: tuple[str, ...]
    """Ids of the nodes that the walk begins at."""
    nodes: tuple[Node, ...]
    edges: tuple[tuple[str, str], ...]
    """(parent, child) ids."""
    rollouts: tuple[Origin, ...] = ()
    """Those in question; the first ones, where there are many."""
    rollouts_found: int = 0
    touched: tuple[Touched, ...] = ()
    promotions: tuple[Promotion, ...] = ()
    recipe: RecipeNote | None = None
    content: Any = None
    """Of a row, if it was asked for: the row."""


class Standing(NamedTuple):
    """What the gate and the registry say of a model."""

    marks: tuple[str, ...]
    promotions: tuple[Promotion, ...]


class Lineage:
    """The graph. Reading it opens every manifest of the workspace once."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.manifests: dict[ArtifactRef, Manifest] = {}
        for ref in workspace.store.refs():
            try:
                self.manifests[ref] = workspace.store.manifest(ref)
            except StoreError:  # damaged: in the graph as long as something names it
                continue
        self._short = {str(ref): ref for ref in self.manifests}
        self._journal = [line for line in workspace.read("journal.jsonl") if line.get("result") in self._short]
        self.parents = self._parents()
        self.children: dict[ArtifactRef, list[ArtifactRef]] = {}
        for child, parents in self.parents.items():
            for parent in parents:
                self.children.setdefault(parent, []).append(child)

    def _parents(self) -> dict[ArtifactRef, tuple[ArtifactRef, ...]]:
        found = {ref: dict.fromkeys(manifest.parents) for ref, manifest in self.manifests.items()}
        for line in self._journal:
            result = self._short[line["result"]]
            if result.kind != "report":  # a page reads everything; its manifest names what it rests on
                known = (self._short[one] for one in line.get("inputs", ()) if one in self._short)
                found[result].update(dict.fromkeys(one for one in known if one != result))
        return {ref: tuple(parents) for ref, parents in found.items()}

    def by_id(self, short: str) -> ArtifactRef:
        """The artifact that a node's id stands for."""
        return self._short[short]

    # ---- walking

    def ancestors(self, *refs: ArtifactRef) -> set[ArtifactRef]:
        """Everything that these were made of, without themselves."""
        return _reach(refs, self.parents)

    def descendants(self, *refs: ArtifactRef, through_models: bool = True) -> set[ArtifactRef]:
        """Everything that these went into, without themselves; with `through_models=False` not what followed from
        models that were trained on them."""
        if through_models:
            return _reach(refs, self.children)
        return _reach(refs, {one: made for one, made in self.children.items() if one.kind != "checkpoint"})

    def learned(self, datasets: Iterable[ArtifactRef], models: Iterable[ArtifactRef] = ()) -> set[ArtifactRef]:
        """Models that were trained on one of the datasets, or go on from a model that was; the given ones included."""
        found = set(models)
        waiting = [*datasets, *found]
        while waiting:
            for child in self.children.get(waiting.pop(), ()):
                if child.kind == "checkpoint" and child not in found:
                    found.add(child)
                    waiting.append(child)
        return found

    def edges(self, refs: Iterable[ArtifactRef]) -> list[tuple[ArtifactRef, ArtifactRef]]:
        """(parent, child) among these, without those that a longer path implies; in the order of `ordered`."""
        among = set(refs)
        inner = {ref: [p for p in self.parents.get(ref, ()) if p in among] for ref in among}
        above: dict[ArtifactRef, set[ArtifactRef]] = {}
        try:
            for ref in TopologicalSorter(inner).static_order():
                above[ref] = set().union(*({p} | above[p] for p in inner[ref]))
        except CycleError:  # equal content at two places of a loop: nothing is implied then
            above = {ref: set() for ref in among}
        return [
            (parent, ref)
            for ref in self.ordered(among)
            for parent in self.ordered(inner[ref])
            if not any(parent in above[other] for other in inner[ref] if other != parent)
        ]

    def ordered(self, refs: Iterable[ArtifactRef]) -> list[ArtifactRef]:
        """By turn, then in the order of the stages, then by creation: a total order."""
        return sorted(refs, key=self._place)

    def _place(self, ref: ArtifactRef) -> tuple[Any, ...]:
        manifest = self.manifests.get(ref)
        stage = STAGES.index(ref.kind) if ref.kind in STAGES else len(STAGES)
        return (self.turns.get(ref, 0), stage, manifest.created if manifest else "", ref.digest)

    # ---- what people are told

    @cached_property
    def turns(self) -> dict[ArtifactRef, int]:
        """The turn in which each artifact was first produced, where the journal knows."""
        found: dict[ArtifactRef, int] = {}
        for line in self._journal:
            found.setdefault(self._short[line["result"]], int(line["turn"]))
        return found

    @cached_property
    def labels(self) -> dict[ArtifactRef, tuple[str, ...]]:
        return labels(self.workspace)

    @cached_property
    def registry(self) -> list[Champion | Rollback]:
        return registry(self.workspace)

    @cached_property
    def _notes(self) -> Mapping[ArtifactRef, list[Any]]:
        return notes(self.workspace)

    def label(self, ref: ArtifactRef) -> str:
        """`model v2`, `base (smollm2-135m)`, or the kind."""
        said = self.labels.get(ref, ())
        if said and " v" in said[0]:
            return said[0]
        manifest = self.manifests.get(ref)
        if manifest is not None and is_base(manifest):
            return f"base ({manifest.settings.get('model', 'unknown')})"
        return ref.kind

    def named(self, ref: ArtifactRef) -> str:
        """Label and id, for a sentence."""
        label = self.label(ref)
        return str(ref) if label == ref.kind else f"{label} ({ref})"

    def standing(self, model: ArtifactRef) -> Standing:
        """Marks of a model: verdicts of its decisions, champion, rolled back."""
        undone = {line.rolled_back for line in self.registry if isinstance(line, Rollback)}
        entries = [line for line in self.registry if isinstance(line, Champion)]
        holding = [line for line in entries if line.decision not in undone]
        marks: dict[str, None] = {}
        for decision, manifest in self.manifests.items():
            if decision.kind == "decision" and self.challenger(decision) == model:
                turn = self.turns.get(decision)
                when = f" in turn {turn}" if turn else ""
                marks["rolled back" if decision in undone else f"{manifest.counts.get('verdict')}{when}"] = None
        promotions = tuple(
            Promotion(
                model=str(model),
                decision=str(line.decision),
                recipe=line.recipe,
                turn=line.turn,
                time=line.time,
                holds=line in holding,
                champion=bool(holding) and line == holding[-1],
            )
            for line in entries
            if line.checkpoint == model
        )
        return Standing(tuple(marks), promotions)

    def challenger(self, decision: ArtifactRef) -> ArtifactRef | None:
        """The model that a decision is on: the policy of its first parent."""
        manifest = self.manifests.get(decision)
        return self.policy(manifest.parents[0]) if manifest is not None and manifest.parents else None

    def policy(self, ref: ArtifactRef) -> ArtifactRef | None:
        """The model that made rollouts, or that an evaluation is of; of a table, that of its rollouts."""
        manifest = self.manifests.get(ref)
        parents = manifest.parents if manifest is not None else ()
        if ref.kind == "table":
            return next((self.policy(one) for one in parents if one.kind == "rollouts"), None)
        return next((one for one in parents if one.kind == "checkpoint"), None)

    def recipe(self, *refs: ArtifactRef) -> RecipeNote | None:
        """The recipe of the run that made these first; of an earlier version's, that of the first report on them."""
        for line in self._journal:
            if line["result"] in map(str, refs) and (run := self._runs.get(line.get("run", 0))):
                return RecipeNote(name=str(run.get("name", "")), settings=run)
        below = self.descendants(*refs)
        reports = [one for ref, one in self.manifests.items() if ref in below and one.stage == "report"]
        if not reports:
            return None
        settings = min(reports, key=lambda one: one.created).settings
        return RecipeNote(name=str(settings.get("name", "")), settings=settings)

    @cached_property
    def _runs(self) -> dict[int, dict[str, Any]]:
        """Run number → the recipe that it started with."""
        lines = self.workspace.read("runs.jsonl")
        return {line["run"]: line["recipe"] for line in lines if line.get("event") == "start" and line.get("recipe")}

    def node(self, ref: ArtifactRef, how: How, tainted: Iterable[ArtifactRef] = ()) -> Node:
        """An artifact as people are shown it."""
        manifest = self.manifests.get(ref)
        marks = self.standing(ref).marks if ref.kind == "checkpoint" else ()
        if ref in tainted:
            marks = (*marks, "tainted")
        said = tuple(name for name in self.labels.get(ref, ()) if name != self.label(ref))
        common = {
            "id": str(ref),
            "kind": ref.kind,
            "digest": ref.digest,
            "label": self.label(ref),
            "names": said,
            "how": how,
            "turn": self.turns.get(ref),
            "notes": tuple(entry.text for entry in self._notes.get(ref, ())),
        }
        if manifest is None:
            return Node(**common, marks=(*marks, "gone"))
        return Node(**common, marks=marks, stage=manifest.stage, created=manifest.created, summary=summary(manifest))

    def walk(
        self,
        asked: str,
        direction: Direction,
        roots: Mapping[ArtifactRef, How],
        others: Mapping[ArtifactRef, How],
        tainted: Iterable[ArtifactRef] = (),
        **more: Any,
    ) -> Walk:
        """A walk's nodes and edges, put in order; `more` are other fields of it."""
        every = {**others, **roots}
        promotions = [
            one for ref in self.ordered(every) if ref.kind == "checkpoint" for one in self.standing(ref).promotions
        ]
        return Walk(
            asked=asked,
            direction=direction,
            roots=tuple(map(str, self.ordered(roots))),
            nodes=tuple(self.node(ref, every[ref], tainted) for ref in self.ordered(every)),
            edges=tuple((str(parent), str(child)) for parent, child in self.edges(every)),
            promotions=tuple(promotions),
            **more,
        )


STAGES = (
    *("tasks", "rollouts", "table", "sample", "decisions", "selection", "dataset", "export"),
    *("checkpoint", "evaluation", "decision", "report"),
)
"""Kinds in the order in which a turn makes them."""


def _reach(refs: Iterable[ArtifactRef], to: Mapping[ArtifactRef, Iterable[ArtifactRef]]) -> set[ArtifactRef]:
    start = set(refs)
    found: set[ArtifactRef] = set()
    waiting = list(start)
    while waiting:
        for ref in to.get(waiting.pop(), ()):
            if ref not in found:
                found.add(ref)
                waiting.append(ref)
    return found - start
