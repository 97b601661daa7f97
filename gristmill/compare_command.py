"""`gristmill compare A B`: two policies, paired on the tasks that both attempted.

A side is rollout files (a file, folder or glob), or a policy of a workspace: `base`, `champion`, a checkpoint or an
evaluation by the first characters of its digest. Tasks of files are the same if agent and prompt are equal, and also
task index where the prompts alone do not tell tasks apart; those of one side only are left out and counted.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef
from gristmill.comparison import Comparison, Guard, compare, guards
from gristmill.errors import InputError, UsageError
from gristmill.evaluation import Evaluation, Scored, evaluate, read_evaluation
from gristmill.identity import digest
from gristmill.recipe import PromoteRecipe
from gristmill.statistics import Estimate, bootstrap_difference

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from gristmill.store import Store
    from gristmill.workspace import Workspace

_Task = tuple[str | None, int | None, str | None]
"""Agent, task index, prompt."""


class Side(BaseModel):
    """One of the two."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tasks: int
    """Tasks with a usable rollout, shared or not."""
    mean_reward: Estimate
    pass_at: dict[int, Estimate]
    truncated_share: float
    mean_answer_chars: float
    distinct_answers: float
    """Distinct answers of a task over its samples."""


class Compared(BaseModel):
    """What `--json` prints. Differences are B − A."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    a: Side
    b: Side
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
    paths = [_is_files(side) for side in (a, b)]
    if all(paths):
        with tempfile.TemporaryDirectory(prefix="gristmill-compare-") as folder:
            one, other, tasks = _of_files(a, b, Path(folder), confidence, solved_at)
    elif any(paths):
        raise UsageError(f"{a} and {b} are not of one kind; compare two policies of a workspace, or two rollout files")
    else:
        if workspace is None:
            raise UsageError(f"no such file: {a}; for policies name their workspace with -w")
        one, other = (_of_policy(workspace, name) for name in (a, b))
        tasks = (len(one.rewards), len(other.rewards))
    found = compare(other, one, confidence)
    return Compared(
        a=_side(a, one, tasks[0]),
        b=_side(b, other, tasks[1]),
        tasks=found.lift.tasks,
        confidence=confidence,
        solved_at=one.solved_at,
        difference=found,
        bootstrap=bootstrap_difference(other.rewards, one.rewards, confidence),
        better=found.lift.low is not None and found.lift.low > 0,
        guards=guards(found, PromoteRecipe()),
    )


def _side(name: str, found: Evaluation, tasks: int) -> Side:
    return Side(
        name=name,
        tasks=tasks,
        mean_reward=found.estimate,
        pass_at=found.pass_at,
        truncated_share=found.truncated_share,
        mean_answer_chars=found.mean_answer_chars,
        distinct_answers=found.distinct_answers,
    )


# ---- rollout files


def _is_files(name: str) -> bool:
    return Path(name).exists() or any(mark in name for mark in "*?[") or name.endswith((".jsonl", ".gz", ".zst"))


class _Read(NamedTuple):
    rollouts: dict[_Task, list[Scored]]
    rows: dict[_Task, int]
    """Rows a task has, failed ones too."""


def _of_files(
    a: str, b: str, folder: Path, confidence: float, solved_at: float | None
) -> tuple[Evaluation, Evaluation, tuple[int, int]]:
    from gristmill.scale import scale

    one, other = (_read(name, folder / str(number)) for number, name in enumerate((a, b)))
    if not _needs_index(one) and not _needs_index(other):
        one, other = _without_index(one), _without_index(other)
    shared = sorted(one.rollouts.keys() & other.rollouts.keys(), key=repr)
    if not shared:
        raise UsageError(
            f"{a} ({len(one.rollouts)} tasks) and {b} ({len(other.rollouts)} tasks) have no task in common: no agent, "
            "task index and prompt are the same in both; compare rollouts of the same tasks"
        )
    if solved_at is None:
        rewards = {r.reward for side in (one, other) for task in shared for r in side.rollouts[task]}
        solved_at = scale(min(rewards), max(rewards), rewards <= {0.0, 1.0}).solved_at
    tasks = ArtifactRef(kind="tasks", digest=digest([list(task) for task in shared]))
    found = [
        evaluate(
            ArtifactRef(kind="rollouts", digest=digest([name, number])),
            tasks,
            [{"task_type": agent} for agent, _, _ in shared],
            [r._replace(task_index=at) for at, task in enumerate(shared) for r in side.rollouts[task]],
            samples=max(side.rows[task] for task in shared),
            confidence=confidence,
            solved_at=solved_at,
        )
        for number, (name, side) in enumerate(((a, one), (b, other)))
    ]
    return found[0], found[1], (len(one.rollouts), len(other.rollouts))


def _read(name: str, folder: Path) -> _Read:
    import pyarrow.parquet as pq

    from gristmill.ingest import ingest

    result = ingest([name], folder, copy=False)
    rollouts: dict[_Task, list[Scored]] = defaultdict(list)
    rows: dict[_Task, int] = defaultdict(int)
    wanted = [*Scored._fields, "agent", "prompt_key", "task_key", "drop_reason"]
    for part in result.tables:
        for row in pq.ParquetFile(part).read(columns=wanted).to_pylist():
            if row["task_key"] is None:
                continue
            task = row["agent"], row["task_index"], row["prompt_key"]
            rows[task] += 1
            if row["drop_reason"] is None:
                rollouts[task].append(Scored(**{field: row[field] for field in Scored._fields}))
    if not rollouts:
        raise InputError(f"{name} has no usable rollout of a known task; `gristmill inspect {name}` says why")
    return _Read(rollouts, rows)


def _needs_index(read: _Read) -> bool:
    """Whether prompts alone cannot tell tasks apart: two indices share one, as where the task is in the environment."""
    prompts = {(agent, prompt) for agent, _, prompt in read.rollouts}
    return len(prompts) < len(read.rollouts) or any(prompt is None for _, prompt in prompts)


def _without_index(read: _Read) -> _Read:
    """Tasks by agent and prompt: their indices depend on what else the file had."""
    return _Read(
        {(agent, None, prompt): values for (agent, _, prompt), values in read.rollouts.items()},
        {(agent, None, prompt): count for (agent, _, prompt), count in read.rows.items()},
    )


# ---- policies of a workspace


def _of_policy(workspace: Workspace, name: str) -> Evaluation:
    store = workspace.store
    if name == "champion":
        from gristmill.champions import champions

        line = champions(workspace)
        if not line:
            raise UsageError(f"there is no champion in {workspace.root}: nothing has been promoted yet")
        return _evaluation_of(store, line[-1].checkpoint.digest, name)
    if name == "base":
        bases = {ref.digest for ref in store.refs() if ref.kind == "checkpoint" and not store.manifest(ref).parents}
        if len(bases) != 1:
            raise UsageError(f"{workspace.root} has {len(bases)} base models; name one by its digest")
        return _evaluation_of(store, bases.pop(), name)
    return _evaluation_of(store, name.rpartition(":")[2], name)


def _evaluation_of(store: Store, prefix: str, name: str) -> Evaluation:
    refs = [ref for ref in store.refs() if ref.kind == "evaluation"]
    exact = [ref for ref in refs if len(prefix) >= 6 and ref.digest.startswith(prefix)]
    found = [read_evaluation(store, ref) for ref in exact or refs]
    if not exact:
        found = [one for one in found if len(prefix) >= 6 and one.policy.digest.startswith(prefix)]
    if not found:
        raise UsageError(
            f"{name} is no evaluated policy of this workspace; give base, champion, or at least six characters of the "
            "digest of a checkpoint or an evaluation"
        )
    policies = {one.policy.digest for one in found}
    if len(policies) > 1:
        raise UsageError(f"{name} is ambiguous: {', '.join(sorted(p[:12] for p in policies))}; give more characters")
    if len({one.tasks for one in found}) > 1:
        raise UsageError(f"{name} was evaluated on several task sets; name one of its evaluations instead")
    return found[-1]


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
    verdict = "B is better" if found.better else "A is better" if lift.high < 0 else "no difference is shown"
    console.print(
        f"\n[bold]{verdict}[/]: {lift.mean:+.3f}, {found.confidence:.0%} interval "
        f"{escape(_interval(lift))} over {lift.tasks} tasks"
        + (f"; by bootstrap {escape(_ends(*found.bootstrap))}" if found.bootstrap else "")
    )
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
    table.add_column(f"{found.confidence:.0%} interval", justify="right")

    def add(what: str, a: str, b: str, difference: str, interval: str = "") -> None:
        table.add_row(*(Text(cell) for cell in (what, a, b, difference, interval)))

    one, other, both = found.a, found.b, found.difference
    add(
        "mean reward",
        f"{one.mean_reward.mean:.3f}",
        f"{other.mean_reward.mean:.3f}",
        f"{both.lift.mean:+.3f}",
        _interval(both.lift),
    )
    for k, difference in both.pass_at.items():
        add(
            f"pass@{k}",
            f"{one.pass_at[k].mean:.3f}",
            f"{other.pass_at[k].mean:.3f}",
            f"{difference.mean:+.3f}",
            _interval(difference),
        )
    if len(both.categories) > 1:
        for category in both.categories:
            add(f"  {category.name}", "", "", f"{category.estimate.mean:+.3f}", _interval(category.estimate))
    add("characters", f"{one.mean_answer_chars:.0f}", f"{other.mean_answer_chars:.0f}", _ratio(both.length_ratio))
    add("cut", f"{one.truncated_share:.1%}", f"{other.truncated_share:.1%}", "")
    add(
        "distinct answers",
        f"{one.distinct_answers:.0%}",
        f"{other.distinct_answers:.0%}",
        _ratio(both.diversity_ratio),
    )
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"× {value:.2f}"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else _ends(estimate.low, estimate.high)


def _ends(low: float, high: float) -> str:
    return f"[{low:+.3f}, {high:+.3f}]"


def run(
    a: str, b: str, *, workspace: Path, confidence: float, solved_at: float | None, json: bool, console: Console
) -> None:
    """The command: compare and print."""
    from gristmill.workspace import Workspace

    place = Workspace(workspace) if workspace.is_dir() else None
    found = compare_sides(a, b, workspace=place, confidence=confidence, solved_at=solved_at)
    if json:
        console.file.write(found.model_dump_json() + "\n")
    else:
        show(found, console)
