"""`gristmill evaluate`: a policy on a recipe's held-out tasks, or a rollouts file alone.

A policy is `base` (the recipe's `policy.model`), `champion`, anything that the workspace has a name for, a Hugging Face
folder, or an embedded model. Rollouts are collected and scored by the steps that the loop takes, so what it evaluated
is found; a file of rollouts needs neither recipe nor workspace.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.errors import UsageError
from gristmill.evaluation import Evaluation
from gristmill.recipe import Recipe, load
from gristmill.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Console

    from gristmill.workspace import Workspace


class Figures(BaseModel):
    """What an evaluation says, without its single rewards; what `--json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    policy: ArtifactRef | None
    evaluation: ArtifactRef | None
    """Null for files."""
    tasks: int
    """Tasks with a usable rollout."""
    rollouts: int
    """Usable ones."""
    missing: int
    """Rollouts that were asked for and are not usable."""
    solved_at: float
    mean_reward: Estimate
    success_rate: Estimate
    pass_at: dict[int, Estimate]
    categories: dict[str, Estimate]
    chars: Estimate
    tokens: Estimate | None
    failures: Estimate
    """Share of samples that are missing or cut."""
    diversity: Estimate | None
    """Chance that two unsolved answers to a task differ."""


def figures(
    name: str,
    found: Evaluation,
    *,
    policy: ArtifactRef | None = None,
    evaluation: ArtifactRef | None = None,
    tasks: int | None = None,
) -> Figures:
    """The figures of an evaluation; `tasks` if it had more than were evaluated."""
    return Figures(
        name=name,
        policy=policy,
        evaluation=evaluation,
        tasks=len(found.rewards) if tasks is None else tasks,
        rollouts=found.estimate.samples,
        missing=found.missing,
        solved_at=found.solved_at,
        mean_reward=found.estimate,
        success_rate=found.success_rate,
        pass_at=found.pass_at,
        categories={category.name: category.estimate for category in found.categories},
        chars=found.chars.estimate,
        tokens=found.tokens.estimate if found.tokens else None,
        failures=found.failures.estimate,
        diversity=found.diversity.estimate if found.diversity else None,
    )


class Request(NamedTuple):
    """What the flow is asked for."""

    recipe: Recipe
    policies: tuple[ArtifactRef | str, ...]


def request(recipe: Path, policies: Sequence[str], overrides: Sequence[str], workspace: Path) -> Request:
    """Read the recipe and find the policies, before anything is started.

    Raises:
        RecipeError, UsageError: the recipe is wrong, or a name means no model; says what would do.
    """
    settings = load(recipe, overrides)
    return Request(settings, tuple(_policy(name, settings, workspace) for name in policies))


def arguments(given: Sequence[str]) -> tuple[str, list[str]]:
    """The policy and the overrides out of a command's arguments; `base` where none is named.

    Raises:
        UsageError: two policies.
    """
    overrides = [word for word in given if "=" in word and not Path(word).is_dir()]
    named = [word for word in given if word not in overrides]
    if len(named) > 1:
        raise UsageError(
            f"one policy at a time, found {', '.join(named)}; "
            f"`gristmill compare {named[0]} {named[1]} --recipe RECIPE` evaluates two"
        )
    return (named or ["base"])[0], overrides


def _policy(name: str, recipe: Recipe, workspace: Path) -> ArtifactRef | str:
    from gristmill import model, smollm
    from gristmill.names import resolve
    from gristmill.workspace import Workspace

    if name == "base":
        name = recipe.policy.model
    if name in (smollm.NAME, smollm.NAME_TINY) or (Path(name).expanduser() / "config.json").is_file():
        model.identity(name)  # refuses one that is not there before anything is started
        return name
    found = resolve(Workspace(workspace), name)
    if found.kind != "checkpoint":
        raise UsageError(f"{name} is a {found.kind}; only a model can be evaluated: a checkpoint, or a model's name")
    return found


def run_files(
    files: Sequence[str], *, confidence: float, solved_at: float | None, json: bool, console: Console
) -> None:
    """Evaluate rollout files, each on its own."""
    from gristmill.file_evaluation import of_files

    for name in files:
        ((found, _),) = of_files([name], confidence=confidence, solved_at=solved_at)
        tell(figures(name, found), confidence, json=json, console=console)


def stored(workspace: Workspace, name: str, ref: ArtifactRef) -> Figures:
    """The figures of an evaluation in the store."""
    from gristmill.evaluation import read_evaluation

    found = read_evaluation(workspace.store, ref)
    return figures(name, found, policy=found.policy, evaluation=ref)


def tell(found: Figures, confidence: float, *, json: bool, console: Console) -> None:
    """Print figures, for people or for programs."""
    if json:
        console.file.write(found.model_dump_json() + "\n")
        return
    from rich import box
    from rich.markup import escape
    from rich.table import Table
    from rich.text import Text

    console.print(
        f"[bold]{escape(found.name)}[/]: {found.rollouts:,} rollouts of {found.tasks:,} tasks, "
        f"{found.missing:,} missing; solved from a reward of {found.solved_at:g}\n"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("mean", justify="right")
    table.add_column(f"{confidence * 100:.4g}% interval", justify="right")

    def add(what: str, estimate: Estimate | None, form: str = ".3f") -> None:
        if estimate is None:
            return
        ends = "" if estimate.low is None else f"[{estimate.low:{form}}, {estimate.high:{form}}]"
        table.add_row(*(Text(cell) for cell in (what, f"{estimate.mean:{form}}", ends)))

    add("mean reward", found.mean_reward)
    for k, estimate in found.pass_at.items():
        add(f"pass@{k}", estimate)
    if len(found.categories) > 1:
        for name, estimate in found.categories.items():
            add(f"  {name}", estimate)
    add("characters", found.chars, ".1f")
    add("tokens", found.tokens, ".1f")
    add("missing or cut", found.failures, ".1%")
    add("unsolved answers differ", found.diversity, ".1%")
    console.print(table)
    if found.evaluation is not None:
        console.print(f"{found.evaluation}")
