"""`gristmill prepare`: what its arguments mean, and what it says afterwards.

The options are short names of recipe fields; with them, rollout files alone are enough. Results go to standard
output (with `--json` one object), progress to standard error.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from gristmill import progress
from gristmill.errors import InputError, UsageError
from gristmill.recipe import Recipe, build, load
from gristmill.remote.bucket import remote_url

if TYPE_CHECKING:
    from gristmill.checks.catalogue import Report

_SHOWN_LINES = 40  # of the rendered sample in the terminal

# Without a recipe: there is no loop that evaluates, so a trainer wants a validation loss; and few rows are few rows.
_WITHOUT_RECIPE = {"format": {"validation": 0.05}, "checks": {"min_examples": 1}}


@dataclass(frozen=True)
class Options:
    """What stands on the command line; None where an option is not given."""

    method: str | None = None
    target: str | None = None
    where: Sequence[str] = ()
    preset: Sequence[str] = ()
    min_reward: str | None = None
    per_task: int | None = None
    min_gap: float | None = None
    strategy: str | None = None
    validation: float | None = None
    tokenizer: str | None = None
    max_tokens: int | None = None
    over_length: str | None = None
    model: str | None = None
    seed: int | None = None
    strict: bool = False

    def overrides(self, method: str) -> dict[str, Any]:
        """The recipe fields that these name.

        Args:
            method: the training method that applies, from here or the recipe; it decides what `min_reward` is about.

        Raises:
            UsageError: the options do not fit the method.
        """
        named = {
            "format.method": self.method,
            "format.target": self.target,
            "format.pairs.min_gap": self.min_gap,
            "format.pairs.strategy": self.strategy,
            "format.validation": self.validation,
            "format.tokenizer": self.tokenizer,
            "format.max_tokens": self.max_tokens,
            "format.over_length": self.over_length,
            "curate.where": list(self.where) or None,
            "curate.preset": list(self.preset) or None,
            "format.pairs.per_task" if method in ("dpo", "reward") else "curate.per_task": self.per_task,
            "policy.model": self.model,
            "seed": self.seed,
            "checks.strict": self.strict or None,
        }
        if self.min_reward is not None:
            fields = {
                "sft": "curate.min_reward",
                "dpo": "format.pairs.min_chosen",
                "reward": "format.pairs.min_chosen",
                "kto": "format.label_threshold",
            }
            if method not in fields:
                raise UsageError(f"--min-reward says nothing about method {method}, which takes every task with signal")
            given = {key: value for key, value in named.items() if value is not None}
            return {**given, fields[method]: _number(self.min_reward)}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """Arguments, sorted out."""

    recipe: Recipe
    path: Path | None
    """The recipe's file, if one was named."""
    files: tuple[str, ...]


def read_arguments(arguments: Sequence[str], options: Options) -> Request:
    """Tell rollout files, a recipe and `key=value` apart.

    Raises:
        UsageError: two recipes, no files, or options that do not validate.
    """
    recipes = [one for one in arguments if Path(one).suffix in (".yaml", ".yml")]
    pairs = [
        one
        for one in arguments
        if "=" in one and one not in recipes and not Path(one).exists() and remote_url(one) is None
    ]
    files = tuple(one for one in arguments if one not in recipes and one not in pairs)
    if len(recipes) > 1:
        raise UsageError(f"one recipe at a time, found {', '.join(recipes)}")
    if not recipes and not files:
        raise UsageError("no rollout files and no recipe were given; name files, folders or globs, or a .yaml recipe")
    path = Path(recipes[0]) if recipes else None

    def read(overrides: Sequence[str]) -> Recipe:
        return load(path, overrides) if path else build(_WITHOUT_RECIPE, overrides, source="options")

    named = [one.partition("=")[2] for one in pairs if one.startswith("format.method=")]
    method = named[-1] if named else options.method or read(pairs).format.method
    given = [f"{key}={orjson.dumps(value).decode()}" for key, value in options.overrides(method).items()]
    recipe = read([*given, *pairs])  # what stands as key=value comes last
    return Request(recipe, path, files or recipe.rollouts)


def _number(text: str) -> float | None:
    if text.lower() in ("none", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--min-reward is a number or none, found {text!r}") from None


def require_out(out: Path | None, force: bool) -> Path:
    """Where the export goes.

    Raises:
        UsageError: nowhere, or something is there.
    """
    from gristmill.prepare import require_place

    if out is None:
        raise UsageError("name a folder for the export with --out")
    require_place(out, force)
    return out


def refuse_with_recipe(**given: object) -> None:
    """Options that hold for files only.

    Raises:
        UsageError: one of them was given with a recipe.
    """
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} is for rollout files alone; with a recipe it is not used")


# ---- from files


def prepare_files(
    request: Request,
    out: Path,
    *,
    decisions: Path | None = None,
    against: Path | None = None,
    force: bool = False,
    workers: int | None = None,
    json: bool = False,
    console: Console | None = None,
) -> None:
    """Prepare from rollout files, and say what came of it.

    Args:
        decisions: log of a review, whose rejections are left out.
        against: JSONL file of evaluation tasks, which training must not show.

    Raises:
        GristmillError: as `gristmill.prepare.prepare`.
    """
    from gristmill.decisions import DecisionLog, effective
    from gristmill.prepare import launch_values, prepare
    from gristmill.targets import Launch

    if decisions is not None and not decisions.is_file():
        raise InputError(f"no such decision log: {decisions}")
    judged: Mapping[str, str] = effective(DecisionLog(decisions).entries()) if decisions else {}
    with _progress() as tell:
        done = prepare(
            request.files,
            request.recipe,
            out,
            launch=Launch(**launch_values(request.recipe)),
            decisions=judged,
            evaluation=read_tasks(against) if against else None,
            force=force,
            workers=workers,
            progress=tell,
        )
    tell_result(done.folder, request.recipe, done.counts, done.report, json=json, console=console)


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The task rows of a JSONL file.

    Raises:
        InputError: there is no such file, or a line is no task.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = orjson.loads(line) if line.strip() else None
        except orjson.JSONDecodeError as error:
            raise InputError(f"{path}:{number} is not JSON ({error}); expected a task row") from None
        if isinstance(row, dict):
            rows.append(row)
        elif row is not None:
            raise InputError(f"{path}:{number} is no task row: expected an object with `responses_create_params`")
    return rows


def explain_files(request: Request, *, json: bool = False, console: Console | None = None) -> None:
    """What each condition of the recipe costs on rollout files; writes nothing."""
    from gristmill.explain import explain
    from gristmill.ingest import ingest

    console = console or Console()
    with tempfile.TemporaryDirectory(prefix="gristmill-explain-") as folder:
        read = ingest(request.files, Path(folder), copy=False)
        told = explain([read.tables], request.recipe.curate, seed=request.recipe.seed)
    if json:
        console.file.write(told.model_dump_json() + "\n")
    else:
        console.print(told.table())


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A line on standard error for each stage, in a terminal."""
    words = {"fetch": "fetching", "read": "reading rollouts", "write": "writing rows", "check": "checking"}
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    stages: dict[str, Any] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = shown.add_task(words[stage], total=total or None)
        shown.update(stages[stage], completed=done, total=total or None)

    def heard(update: progress.Update) -> None:
        if update.stage in words and update.total:
            tell(update.stage, update.done, update.total)

    with shown, progress.listening(heard):
        yield tell


# ---- the result


def tell_result(
    folder: Path,
    recipe: Recipe,
    counts: Mapping[str, Any],
    report: Report,
    *,
    json: bool,
    console: Console | None = None,
) -> None:
    """Print what was prepared: for people the funnel and what the checks say, for programs one object."""
    console = console or Console()
    if json:
        told = {
            "rows_read": counts["rows_read"],
            "rows_kept": counts["rows_kept"],
            "dropped": counts["dropped"],
            "examples": counts["examples"],
            "train": counts["train"],
            "validation": counts["validation"],
            "method": recipe.format.method,
            "target": recipe.format.target,
            **{name: counts[name] for name in ("pairs", "labels", "rl", "tokens", "notes") if counts.get(name)},
            "findings": [one.model_dump(mode="json") for one in report.findings],
            "export": str(folder),
        }
        console.file.write(orjson.dumps(told).decode() + "\n")
        return
    for part in _parts(folder, recipe, counts, report):
        console.print(part)


def _parts(folder: Path, recipe: Recipe, counts: Mapping[str, Any], report: Report) -> Iterator[RenderableType]:
    from gristmill.checks.page import lines

    what = {"dpo": "pairs", "reward": "pairs", "rl": "tasks"}.get(recipe.format.method, "rows")
    head = Text(f"{counts['examples']:,} {what}", style="bold")
    head.append(f" for {recipe.format.target}, {recipe.format.method}: {counts['train']:,} to train on", "not bold")
    head.append(f", {counts['validation']:,} for validation" if counts["validation"] else "", "not bold")
    yield head
    funnel = Table.grid(padding=(0, 2))
    funnel.add_column()
    funnel.add_column(justify="right")
    funnel.add_row("rollouts read", f"{counts['rows_read']:,}")
    for reason, count in sorted(counts["dropped"].items(), key=lambda one: (-one[1], one[0])):
        funnel.add_row(Text(f"− {reason.replace('_', ' ')}", style="dim"), Text(f"{count:,}", style="dim"))
    funnel.add_row("used", f"{counts['rows_kept']:,}")
    yield Padding(funnel, (1, 0, 1, 0))
    for sentence in _facts(counts):
        yield Text(sentence)
    for message in counts.get("tokens", {}).get("traps", {}).values():
        yield Text(f"template: {message}", style="yellow")
    sample = folder / "sample.txt"
    if sample.is_file():
        yield Padding(_marked(sample.read_text(encoding="utf-8")), (1, 0))
    for warning in counts.get("warnings", ()):
        yield Text(f"warning: {warning}", style="yellow")
    yield Padding(lines(report), (1, 0))
    names = sorted(path.name for path in folder.iterdir())
    data = [name for name in names if name.startswith(("train-", "validation-"))]
    if len(data) > 4:
        names = [f"{len(data)} data files", *(name for name in names if name not in data)]
    yield Text(f"{folder}: {', '.join(names)}")


def _facts(counts: Mapping[str, Any]) -> Iterator[str]:
    if counts.get("pairs") and counts["examples"]:
        pairs = counts["pairs"]
        yield (
            f"gap {pairs['gap']['min']:.3g} to {pairs['gap']['max']:.3g}, mean {pairs['gap']['mean']:.3g}; chosen "
            f"{pairs['chosen_chars']['mean']:.0f} characters, rejected {pairs['rejected_chars']['mean']:.0f}; chosen "
            f"is longer in {pairs['chosen_longer']:.0%}"
        )
    if labels := counts.get("labels"):
        yield (
            f"{labels['desirable']:,} desirable, {labels['undesirable']:,} undesirable; of the tasks "
            f"{labels['tasks_with_both']:,} have both, {labels['tasks_only_desirable']:,} only desirable, "
            f"{labels['tasks_only_undesirable']:,} only undesirable answers"
        )
    if signal := counts.get("rl"):
        yield (
            f"{signal['tasks_with_signal']:,} of {signal['tasks']:,} tasks have signal; never solved "
            f"{signal['never_solved']:,}, sometimes {signal['sometimes_solved']:,}, always {signal['always_solved']:,}"
        )
    if counts.get("tokens", {}).get("count"):
        tokens = counts["tokens"]
        yield (
            f"tokens a row: {tokens['min']:,} to {tokens['max']:,}, median {tokens['median']:,}; "
            f"{tokens['total']:,.0f} in all"
        )
    for name, count in counts.get("notes", {}).items():
        yield f"{name.replace('_', ' ')}: {count:,}"


def _marked(text: str) -> Text:
    """The sample's first row, what carries loss in colour."""
    first = text.split("\n──── row 1")[0].splitlines()
    shown = "\n".join(first[:_SHOWN_LINES]) + ("\n…" if len(first) > _SHOWN_LINES else "")
    styled = Text(style="dim")
    for number, piece in enumerate(shown.split("⟦")):
        if number == 0:
            styled.append(piece)
            continue
        trained, _, rest = piece.partition("⟧")
        styled.append("⟦" + trained + "⟧", style="green not dim")
        styled.append(rest)
    return styled
