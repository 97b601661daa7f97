"""`gristmill compare A B`: two policies, paired on the tasks that both attempted.

A side is rollout files (a file, folder or glob), a policy of a workspace by any of its names (gristmill/names.py), or
an evaluation. Policies are compared on evaluations that were made under equal conditions; with a recipe, what was not
evaluated yet is. What differs in tasks is refused, in seeds or samples said.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.comparison import Comparison, Guard, compare, guards
from gristmill.errors import UsageError
from gristmill.evaluate_command import Figures, figures
from gristmill.evaluation import Evaluation, read_evaluation
from gristmill.file_evaluation import is_files, of_files
from gristmill.power import needed
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate, Ratio, bootstrap_difference
from gristmill.words import interval, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gristmill.workspace import Workspace


class Compared(BaseModel):
    """What `--json` prints. Differences are B − A."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Figures
    b: Figures
    tasks: int
    """Tasks that both attempted; all figures are over these."""
    confidence: float
    solved_at: float
    difference: Comparison
    bootstrap: tuple[float, float] | None
    """The interval of the difference in mean reward, by resampling tasks; the analytic one is `difference.lift`."""
    better: bool
    """The analytic interval lies above zero."""
    guards: tuple[Guard, ...]
    needed_tasks: int | None
    """Where no difference is shown: tasks in all that would show this one, if it is what it seems."""
    needed_samples: int | None
    """The same in samples of each side a task, on these tasks; null if no number of them would."""


def compare_sides(
    a: str, b: str, *, workspace: Workspace | None, confidence: float, solved_at: float | None
) -> Compared:
    """Compare two sides.

    Args:
        workspace: where policies are looked for; a side that is a file or a glob is read.
        solved_at: the reward from which on a rollout counts as solved; for files by default the scale's own, 1 if
            rewards are 0 and 1, else the middle of their range.

    Raises:
        UsageError: a side is neither, a policy was never evaluated, or the two have no task in common.
        InputError: as ingest.
    """
    paths = [is_files(side) or (Path(side).is_dir() and not _is_model(side)) for side in (a, b)]
    if all(paths):
        (one, of_a), (other, of_b) = of_files([a, b], confidence=confidence, solved_at=solved_at)
        return _compared(figures(a, one, tasks=of_a), figures(b, other, tasks=of_b), one, other, confidence)
    if any(paths):
        raise UsageError(f"{a} and {b} are not of one kind; compare two policies of a workspace, or two rollout files")
    if workspace is None:
        raise UsageError(f"no such file: {a}; for policies name their workspace with -w")
    return compare_evaluations(workspace, *_like(workspace, a, b), names=(a, b), confidence=confidence)


def compare_evaluations(
    workspace: Workspace, a: ArtifactRef, b: ArtifactRef, *, names: tuple[str, str], confidence: float
) -> Compared:
    """Compare two evaluations of a store."""
    one, other = (read_evaluation(workspace.store, ref) for ref in (a, b))
    ours, theirs = (
        figures(name, found, policy=found.policy, evaluation=ref)
        for name, found, ref in zip(names, (one, other), (a, b), strict=True)
    )
    return _compared(ours, theirs, one, other, confidence)


def _compared(a: Figures, b: Figures, one: Evaluation, other: Evaluation, confidence: float) -> Compared:
    found = compare(other, one, confidence)
    better = found.lift.low is not None and found.lift.low > 0
    worse = found.lift.high is not None and found.lift.high < 0
    first, second = (one, other) if found.lift.mean < 0 else (other, one)
    more = needed(first.rewards, second.rewards, min_effect=0, confidence=confidence)
    return Compared(
        a=a,
        b=b,
        tasks=found.lift.tasks,
        confidence=confidence,
        solved_at=one.solved_at,
        difference=found,
        bootstrap=bootstrap_difference(other.rewards, one.rewards, confidence),
        better=better,
        guards=guards(found, PromoteRecipe()),
        needed_tasks=None if better or worse else more.tasks,
        needed_samples=None if better or worse else more.samples,
    )


# ---- policies of a workspace


def _is_model(name: str) -> bool:
    return (Path(name) / "config.json").is_file()


def _like(workspace: Workspace, a: str, b: str) -> tuple[ArtifactRef, ArtifactRef]:
    """An evaluation of each, as like in conditions as there are: the same tasks, then seeds and samples, then the most
    rollouts."""
    of_a, of_b = (_evaluations(workspace, name) for name in (a, b))
    pairs = [(x, y) for x in of_a for y in of_b if x[1].tasks == y[1].tasks]
    if not pairs:
        raise UsageError(
            f"{a} was evaluated on {_tasks(of_a)} and {b} on {_tasks(of_b)}, which are other tasks; "
            f"`gristmill compare {a} {b} --recipe RECIPE` evaluates both on the same"
        )

    def rank(pair: tuple[tuple[ArtifactRef, Evaluation], tuple[ArtifactRef, Evaluation]]) -> tuple[bool, int, str]:
        (x, one), (y, other) = pair
        return one.collected == other.collected, one.expected + other.expected, f"{x} {y}"

    (first, _), (second, _) = max(pairs, key=rank)
    return first, second


def _evaluations(workspace: Workspace, name: str) -> list[tuple[ArtifactRef, Evaluation]]:
    """Those of a policy, or the one that is named.

    Raises:
        UsageError: the name means nothing, or a policy that was never evaluated.
    """
    from gristmill.names import resolve

    found = resolve(workspace, name)
    store = workspace.store
    if found.kind == "evaluation":
        return [(found, read_evaluation(store, found))]
    refs = sorted(
        (ref for ref in store.refs() if ref.kind == "evaluation" and found in store.manifest(ref).parents), key=str
    )
    if not refs:
        what = "was not evaluated yet" if found.kind == "checkpoint" else f"is {found}, and no policy"
        raise UsageError(f"{name} {what}; `gristmill evaluate RECIPE {name}` evaluates a policy")
    return [(ref, read_evaluation(store, ref)) for ref in refs]


def _tasks(found: list[tuple[ArtifactRef, Evaluation]]) -> str:
    sets = {one.tasks.digest[:8]: len(one.failures.by_task) for _, one in found}
    return " and ".join(f"{count} tasks ({digest})" for digest, count in sorted(sets.items()))


# ---- for people


def show(found: Compared, console: Console) -> None:
    """Print the comparison."""
    from rich.markup import escape

    lift = found.difference.lift
    console.print(
        f"[bold]{found.tasks}[/] tasks attempted by both "
        f"(of {found.a.tasks} and {found.b.tasks}); solved from a reward of {found.solved_at:g}\n"
    )
    console.print(_table(found))
    if lift.low is None or lift.high is None:
        console.print("\none task allows no interval: compare on more tasks")
        return
    for remark in found.difference.remarks:
        console.print(f"[yellow]note[/]: {escape(remark)}")
    verdict = "B is better" if found.better else "A is better" if lift.high < 0 else "no difference is shown"
    console.print(
        f"\n[bold]{verdict}[/]: {lift.mean:+.3f}, {percent(found.confidence)} interval "
        f"{escape(_ends(lift))} over {lift.tasks} tasks"
        + (f"; by bootstrap {escape(interval(*found.bootstrap, '+').strip())}" if found.bootstrap else "")
    )
    if found.needed_tasks is not None:
        by_samples = (
            f"or {found.needed_samples:,} samples a task" if found.needed_samples else "more samples of these would not"
        )
        console.print(f"if it is what it seems, {found.needed_tasks:,} tasks would show it, {by_samples}")
    for guard in found.guards:
        if not guard.passed:
            console.print(f"[yellow]guard {escape(guard.name)}[/]: {escape(guard.evidence)}")


def _table(found: Compared) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name, title in (("A", found.a.name), ("B", found.b.name)):
        table.add_column(Text(f"{name}: {Path(title).name}"), justify="right", overflow="fold")
    table.add_column("B − A", justify="right")
    table.add_column(f"{percent(found.confidence)} interval", justify="right")

    def add(what: str, a: str, b: str, difference: str, ends: str = "") -> None:
        table.add_row(*(Text(cell) for cell in (what, a, b, difference, ends)))

    one, other, both = found.a, found.b, found.difference
    add(
        "mean reward",
        f"{one.mean_reward.mean:.3f}",
        f"{other.mean_reward.mean:.3f}",
        f"{both.lift.mean:+.3f}",
        _ends(both.lift),
    )
    for k, difference in both.pass_at.items():
        add(
            f"pass@{k}",
            f"{one.pass_at[k].mean:.3f}",
            f"{other.pass_at[k].mean:.3f}",
            f"{difference.mean:+.3f}",
            _ends(difference),
        )
    if len(both.categories) > 1:
        for category in both.categories:
            before, after = (side.categories[category.name].mean for side in (one, other))
            add(
                f"  {category.name}",
                f"{before:.3f}",
                f"{after:.3f}",
                f"{category.estimate.mean:+.3f}",
                _ends(category.estimate),
            )
    for what, a, b, ratio in (
        ("characters", one.chars, other.chars, both.chars),
        ("tokens", one.tokens, other.tokens, both.tokens),
    ):
        if a is not None and b is not None:
            add(what, f"{a.mean:.0f}", f"{b.mean:.0f}", _ratio(ratio), _ratio_ends(ratio))
    rise = both.failure_rise
    ends = "" if rise.low is None else f"[{rise.low:+.1%}, {rise.high:+.1%}]"
    add("missing or cut", f"{one.failures.mean:.1%}", f"{other.failures.mean:.1%}", f"{rise.mean:+.1%}", ends)
    if one.diversity is not None and other.diversity is not None:
        add(
            "unsolved answers differ",
            f"{one.diversity.mean:.0%}",
            f"{other.diversity.mean:.0%}",
            _ratio(both.diversity),
            _ratio_ends(both.diversity),
        )
    return table


def _ratio(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"× {ratio.value:.2f}"


def _ratio_ends(ratio: Ratio | None) -> str:
    return "" if ratio is None or ratio.low is None else f"[{ratio.low:.2f}, {ratio.high:.2f}]"


def _ends(estimate: Estimate) -> str:
    return interval(estimate.low, estimate.high, "+").strip()


def run(
    a: str, b: str, *, workspace: Path, confidence: float, solved_at: float | None, json: bool, console: Console
) -> None:
    """The command without a recipe: compare and print."""
    from gristmill.workspace import Workspace

    place = Workspace.found(workspace)
    tell(compare_sides(a, b, workspace=place, confidence=confidence, solved_at=solved_at), json=json, console=console)


def tell(found: Compared, *, json: bool, console: Console) -> None:
    """Print the comparison, for people or for programs."""
    if json:
        console.file.write(found.model_dump_json() + "\n")
    else:
        show(found, console)
