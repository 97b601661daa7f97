"""Plan: what a recipe would do, how many rows and tokens that takes, and what its evaluation could detect.

Reads a recipe and, if there is one, the workspace's earlier evaluations and collections, whose measured variance,
solve rates and lengths replace assumptions. Or reads rollout files alone. Spends nothing: no model is loaded, nothing
is written.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import Manifest
from gristmill.checks.remedies import TaskCounts, more_rows
from gristmill.evaluation import Evaluation, read_evaluation
from gristmill.loop import starts_from, window
from gristmill.power import Variance, assumed, detectable, of_one, of_two, standard_error, tasks_needed
from gristmill.recipe import Recipe
from gristmill.redo import redo
from gristmill.scale import scale
from gristmill.store import Store
from gristmill.words import many, percent

POWER = 0.8
POINTS = 0.05  # what the planner asks to see: 5 points, of rewards within 0 to 1; else of their range
SAMPLES = (1, 2, 4, 8, 16, 32)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Stage(_Model):
    """One stage, as often as the recipe repeats it."""

    stage: str
    what: str
    times: int
    rows: int | None = Field(None, description="Rollouts, rows or tasks each time, at most.")
    tokens: int | None = Field(None, description="Generated or trained each time.")
    bound: bool = Field(True, description="Rows and tokens are upper bounds, not measured before.")
    state: str = Field("new", description="`new`, `cached`, or `again` and the change that makes it so.")


class Choice(_Model):
    """One way to see the wanted lift."""

    samples: int
    tasks: int | None
    rollouts: int | None = Field(description="Of one policy.")


class Power(_Model):
    """What an evaluation can detect."""

    name: str = Field("", description="The environment, where rollout files hold several; or which look at it.")
    tasks: int
    samples: int
    confidence: float
    power: float
    unit: float = Field(description="Range of the rewards; a point is a hundredth of it.")
    variance: Variance
    standard_error: float
    detectable: float | None = Field(description="Least true lift that is promoted with that power; null: no interval.")
    wanted: float = Field(description="The lift asked for: 5 points.")
    tasks_wanted: int | None = Field(description="Tasks to see it with as many samples as now.")
    choices: tuple[Choice, ...]


class Plan(_Model):
    """What would happen."""

    recipe: dict[str, Any] | None
    stages: tuple[Stage, ...]
    rollouts: int = Field(description="In all, if nothing is cached.")
    tokens: int = Field(description="Generated in all, if nothing is cached.")
    looks: int = Field(1, description="Of the gate at a challenger, at most; with 2, rollouts and tokens are at most.")
    changed: tuple[str, ...] = Field((), description="Fields that differ from the nearest run that ended here.")
    power: tuple[Power, ...]
    notes: tuple[str, ...] = ()


def plan_recipe(recipe: Recipe, store: Store | None = None) -> Plan:
    """What a recipe would do.

    Args:
        store: of a workspace with earlier work, whose measurements count; None if there is none.
    """
    past = _Past(store, recipe)
    notes: list[str] = []
    tasks, heldout = recipe.environment.tasks, recipe.environment.heldout
    if tasks is None or heldout is None:
        notes.append(
            "environment.tasks or environment.heldout is null: the task files decide how many, so rows are open"
        )
    stages: list[Stage] = []
    turns = recipe.turns
    evaluated = None if heldout is None else heldout * recipe.evaluate.samples
    collected = None if tasks is None else tasks * recipe.collect.samples
    per_heldout, heldout_seen = past.tokens_each("held-out", recipe.evaluate.max_new_tokens)
    per_train, train_seen = past.tokens_each("train", recipe.collect.max_new_tokens)

    def add(
        stage: str,
        what: str,
        times: int,
        rows: int | None = None,
        each: float | None = None,
        *,
        bound: bool = True,
        part: str | None = None,
    ) -> None:
        tokens = None if rows is None or each is None else math.ceil(rows * each)
        state = past.redo.state(part or stage, turns)
        stages.append(Stage(stage=stage, what=what, times=times, rows=rows, tokens=tokens, bound=bound, state=state))

    sampling, held = recipe.collect, recipe.evaluate
    add("held-out tasks", f"{recipe.environment.name}, the same for every policy", 1, heldout, bound=False)
    add(
        "evaluate",
        f"{held.samples} rollouts a task at temperature {held.temperature:g}, of the base and of every challenger",
        1 + turns,
        evaluated,
        per_heldout,
        bound=not heldout_seen,
    )
    add("tasks", _training_tasks(recipe), turns, tasks, bound=recipe.environment.curriculum)
    add(
        "collect",
        f"{sampling.samples} rollouts a task at temperature {_temperatures(recipe)}, by the champion",
        turns,
        collected,
        per_train,
        bound=not train_seen,
    )
    chosen, how = _expected_rows(recipe, past)
    notes.append(how)
    data = window(recipe)
    span = "" if data == 1 or turns == 1 else ", of all turns so far" if data is None else f", of the last {data} turns"
    guess = past.counts is None
    add("curate", f"{_curation(recipe)}{span}", turns, chosen, bound=guess)
    add("format", f"{recipe.format.method} for {recipe.format.target}", turns, chosen, bound=guess)
    add("validate", f"stops below {many(recipe.checks.min_examples, 'row')}, or on any other error", turns)
    add(
        "train",
        f"{recipe.train.epochs:g} epochs from the {starts_from(recipe)}, "
        + (f"LoRA of rank {recipe.train.lora_rank}" if recipe.train.lora_rank else "all weights"),
        turns,
        chosen,
        bound=guess,
    )
    add(
        "promote",
        f"if the {percent(recipe.promote.look_confidence)} interval of the lift lies above "
        f"{recipe.promote.min_effect:g}",
        turns,
    )
    twice = recipe.promote.on_inconclusive == "collect_more"
    in_all = recipe.promote.samples_in_all(held.samples) if twice else held.samples
    more = None if heldout is None else heldout * (in_all - held.samples)
    if twice:
        add(
            "look again",
            f"where the gate is inconclusive: up to {in_all} rollouts a task, of challenger and champion, once each",
            1 + turns,
            more,
            per_heldout,
            part="promote",
        )
    rollouts = ((evaluated or 0) + (more or 0)) * (1 + turns) + (collected or 0) * turns
    spending = ("evaluate", "collect", "look again")
    tokens = sum((stage.tokens or 0) * stage.times for stage in stages if stage.stage in spending)
    variance = past.variance()
    found: tuple[Power, ...] = ()
    if heldout is not None:
        looks = {"at its first look": held.samples, "at its second look": in_all} if twice else {"": held.samples}
        found = tuple(
            power_of(
                variance or assumed(),
                heldout,
                samples,
                confidence=recipe.promote.look_confidence,
                unit=past.unit(),
                name=name,
            )
            for name, samples in looks.items()
        )
    for name, value in recipe.stop.model_dump().items():
        if value is not None:
            notes.append(f"the loop may end before turn {turns}: stop.{name} is {value:,}")
    if recipe.curate.min_reward is not None and chosen is not None and chosen < recipe.checks.min_examples:
        notes.append(
            f"the first turn is expected to stop at the gate: about {chosen} rows < {recipe.checks.min_examples} "
            "(checks.min_examples)"
        )
    return Plan(
        recipe=recipe.resolved(),
        stages=tuple(stages),
        rollouts=rollouts,
        tokens=tokens,
        looks=2 if twice else 1,
        changed=past.redo.changed,
        power=found,
        notes=tuple(notes),
    )


def plan_files(files: Sequence[str], *, confidence: float = 0.95) -> Plan:
    """What an evaluation like these rollouts could detect, from the variance that they show.

    Raises:
        InputError: a file cannot be read as rollouts.
    """
    import tempfile

    from gristmill.ingest import ingest
    from gristmill.rollout_files import find_rollout_files

    notes = []
    found = []
    with tempfile.TemporaryDirectory(prefix="gristmill-plan-") as folder:
        result = ingest(find_rollout_files(files), Path(folder))
        for name, rewards in _rewards(result.tables).items():
            values = [value for row in rewards.values() for value in row]
            variance = of_one(rewards, f"{len(rewards)} tasks, {len(values)} rollouts")
            if variance is None:
                notes.append(f"{name}: needs two tasks, and one with two rollouts, to tell chance from difficulty")
                continue
            samples = round(len(values) / len(rewards))
            unit = scale(min(values), max(values)).unit or 1.0
            found.append(power_of(variance, len(rewards), samples, confidence=confidence, unit=unit, name=name))
    return Plan(recipe=None, stages=(), rollouts=0, tokens=0, power=tuple(found), notes=tuple(notes))


def power_of(
    variance: Variance,
    tasks: int,
    samples: int,
    *,
    confidence: float = 0.95,
    unit: float = 1.0,
    name: str = "",
) -> Power:
    """What so many tasks and samples detect, and what 5 points take."""
    wanted = POINTS * unit

    def needed(count: int) -> int | None:
        return tasks_needed(variance, wanted, count, confidence=confidence, power=POWER)

    choices = []
    for count in SAMPLES:
        many = needed(count)
        choices.append(Choice(samples=count, tasks=many, rollouts=None if many is None else many * count))
    return Power(
        name=name,
        tasks=tasks,
        samples=samples,
        confidence=confidence,
        power=POWER,
        unit=unit,
        variance=variance,
        standard_error=standard_error(variance, tasks, samples),
        detectable=detectable(variance, tasks, samples, confidence=confidence, power=POWER),
        wanted=wanted,
        tasks_wanted=needed(samples),
        choices=tuple(choices),
    )


def _rewards(tables: Sequence[Path]) -> dict[str, dict[str, list[float]]]:
    """Environment → task → rewards of usable, grouped rollouts."""
    import pyarrow.parquet as pq

    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in tables:
        with pq.ParquetFile(path) as file:
            rows = file.read(columns=["agent", "source", "task_key", "reward", "drop_reason"]).to_pylist()
        for row in rows:
            if row["drop_reason"] is None and row["task_key"] is not None:
                found[row["agent"] or row["source"]][row["task_key"]].append(row["reward"])
    return {name: dict(found[name]) for name in sorted(found)}


def _training_tasks(recipe: Recipe) -> str:
    if not recipe.environment.again:
        return "fresh training tasks"
    rest = ", without those that have nothing to teach" if recipe.environment.curriculum else ""
    return f"the same training tasks every turn{rest}"


def _temperatures(recipe: Recipe) -> str:
    every = [recipe.collect.at(turn + 1).temperature for turn in range(recipe.turns)]
    return " → ".join(f"{value:g}" for value in dict.fromkeys(every))


def _curation(recipe: Recipe) -> str:
    curate = recipe.curate
    parts = []
    if curate.min_reward is not None:
        parts.append(f"reward ≥ {curate.min_reward:g}")
    if curate.deduplicate:
        parts.append("distinct answers")
    if curate.per_task is not None:
        parts.append(f"at most {curate.per_task} a task")
    return ", ".join(parts) or "every usable rollout"


def _expected_rows(recipe: Recipe, past: _Past) -> tuple[int | None, str]:
    """Rows that a first turn would choose, and how one knows."""
    tasks, samples, cap = recipe.environment.tasks, recipe.collect.samples, recipe.curate.per_task
    most = None if tasks is None else tasks * (samples if cap is None else min(samples, cap))
    if recipe.curate.min_reward is None:
        return most, "rows are upper bounds: curation leaves out what repeats or cannot be used"
    if past.counts is None or tasks is None:
        return most, "rows are upper bounds: nothing has been measured in this workspace yet"
    # from nothing chosen yet, `samples` further rollouts of each evaluated task, at its own success rate
    fresh = [TaskCounts(n, good, 0, 0, 0) for n, good in past.counts]
    share = (more_rows(fresh, samples, cap, distinct=False)) / len(fresh)
    return round(share * tasks), (
        f"rows are expected from the solve rates of the base policy on {len(fresh)} held-out tasks; equal "
        "answers, which "
        "are chosen once, make them fewer"
    )


class _Past:
    """What a workspace has measured: its latest evaluations on one set of tasks, and the lengths of its rollouts."""

    def __init__(self, store: Store | None, recipe: Recipe) -> None:
        manifests = [] if store is None else [store.manifest(ref) for ref in store.refs()]
        manifests.sort(key=lambda one: (one.created, one.digest))
        self.evaluations: list[Evaluation] = []
        scored = [one for one in manifests if one.kind == "evaluation"]
        if store is not None and scored:
            every = [read_evaluation(store, one.ref) for one in scored]
            self.evaluations = [one for one in every if one.tasks == every[-1].tasks]
        self.rollouts = [one for one in manifests if one.kind == "rollouts"]
        ended = [one for one in manifests if one.kind == "report" and one.stage == "report"]
        self.redo = redo(recipe.resolved(), ended)
        self.splits = {one.ref: one.settings.get("split") for one in manifests if one.kind == "tasks"}

    @property
    def counts(self) -> list[tuple[int, int]] | None:
        """Rollouts and solved ones of each task, of the first policy that was evaluated."""
        if not self.evaluations:
            return None
        rewards = self.evaluations[0].rewards
        values = [value for row in rewards.values() for value in row]
        at = scale(min(values), max(values), set(values) <= {0.0, 1.0}).solved_at
        return [(len(row), sum(value >= at for value in row)) for _, row in sorted(rewards.items())]

    def unit(self) -> float:
        values = [value for one in self.evaluations for row in one.rewards.values() for value in row]
        return (scale(min(values), max(values)).unit or 1.0) if values else 1.0

    def variance(self) -> Variance | None:
        """Of the two latest policies on the same tasks; else of the only one; None if all rewards are one."""
        if not any(len(set(row)) > 1 for one in self.evaluations for row in one.rewards.values()):
            return None
        if len(self.evaluations) > 1:
            first, last = self.evaluations[-2:]
            return of_two(last.rewards, first.rewards, _two(last, first))
        if self.evaluations:
            (one,) = self.evaluations
            return of_one(one.rewards, f"the policy evaluated in this workspace, {len(one.rewards)} tasks")
        return None

    def tokens_each(self, split: str, most: int) -> tuple[float, bool]:
        """Generated tokens a rollout, and whether that was measured (on the latest collection of the split)."""
        wanted = "heldout" if split == "held-out" else "train"
        for one in reversed(self.rollouts):
            if self._split(one) == wanted and one.counts.get("rollouts") and one.counts.get("tokens"):
                return one.counts["tokens"] / one.counts["rollouts"], True
        return float(most), False

    def _split(self, rollouts: Manifest) -> str | None:
        return next((self.splits[parent] for parent in rollouts.parents if parent in self.splits), None)


def _two(first: Evaluation, second: Evaluation) -> str:
    shared: Mapping[str, object] = {key: None for key in first.rewards if key in second.rewards}
    return f"the two latest policies evaluated in this workspace, {len(shared)} tasks"
