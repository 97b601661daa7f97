"""`gristmill train`: rows that `prepare` wrote, or any folder of TRL's rows, become a model; no workspace, no loop.

The finished Hugging Face folder is OUT itself, with `training.json` in it: what was trained on what, and how it went.
Checkpoints and the log are in OUT.training beside it while the training goes on; run again, it resumes.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, get_args

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from gristmill import model, progress, trainer
from gristmill.errors import UsageError
from gristmill.example import Method
from gristmill.identity import file_digest
from gristmill.prepare import MANIFEST
from gristmill.progress import Update
from gristmill.recipe import Recipe, TrainRecipe, build, load
from gristmill.train import RECORD, Finished, train
from gristmill.trainer import OnStep, TrainJob


def run(
    data: Path,
    overrides: Sequence[str],
    *,
    base: str,
    out: Path,
    method: str | None = None,
    recipe: Path | None = None,
    seed: int = 0,
    json: bool = False,
    console: Console | None = None,
) -> None:
    """Train, try the model, say what came of it.

    Args:
        overrides: fields of the recipe's section `train`, with or without that word: `epochs=3`.
        base: an embedded model's name, or a Hugging Face folder.
        method: needed where the folder's manifest does not say.
        recipe: a YAML recipe whose section `train` is taken.

    Raises:
        UsageError: the arguments do not fit together.
        TrainingError: no model came out, or none that passed the smoke test.
    """
    if not data.is_dir():
        raise UsageError(f"no such folder: {data}; `gristmill prepare FILES... --out {data}` writes one from rollouts")
    settings = _settings(overrides, recipe)
    chosen = _method(data, method, trainer.get(settings.trainer).targets, settings.trainer)
    identity = model.identity(base)
    job = TrainJob(
        method=chosen,
        base=model.locate(base),
        data=data.resolve(),
        output=out.resolve(),
        work=out.resolve().with_name(f"{out.name}.training"),
        settings=settings,
        seed=seed,
    )
    began, stepped = time.monotonic(), False
    try:
        with _shown() as on_step:

            def counted(step: int, of: int, loss: float) -> None:
                nonlocal stepped
                stepped = True
                on_step(step, of, loss)

            done = train(job, counted)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    for folder in (*job.work.glob("checkpoint-*"), job.work / "cache"):
        shutil.rmtree(folder, ignore_errors=True)  # a finished training resumes from nothing
    record = {
        "method": chosen,
        "model": {"name": Path(base).name, "identity": identity},
        "data": {path.name: file_digest(path) for path in sorted(data.iterdir()) if path.is_file()},
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        **done.trained.model_dump(mode="json"),
        "smoke": done.smoke.model_dump(mode="json"),
    }
    (job.output / RECORD).write_bytes(orjson.dumps(record, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))
    seconds = time.monotonic() - began
    if json:
        print(orjson.dumps({**record, "output": str(out), "seconds": round(seconds, 1)}).decode())
    else:
        tell(done, chosen, out, seconds if stepped else None, console or Console())


def _settings(overrides: Sequence[str], recipe: Path | None) -> TrainRecipe:
    named = [one if one.startswith("train.") else f"train.{one}" for one in overrides]
    read: Recipe = load(recipe, named) if recipe else build({}, named, source="options")
    return read.train


def _method(data: Path, method: str | None, targets: frozenset[str], name: str) -> Method:
    """What to train by, and whether the trainer reads the rows."""
    known = get_args(Method)
    if method is not None and method not in known:
        raise UsageError(f"--method {method} is none of {', '.join(known)}")
    manifest = data / MANIFEST
    said = orjson.loads(manifest.read_bytes()) if manifest.is_file() else {}
    form = said.get("settings", {})
    form = form.get("format", form)  # an export's manifest has all sections, a dataset's in a store this one
    target, prepared = form.get("target"), form.get("method")
    if target is not None and target not in targets:
        raise UsageError(
            f"{data} holds rows for {target}, and {name} reads those of {', '.join(sorted(targets))}; "
            f"prepare them again with --target {min(targets)}, or set trainer="
        )
    if method is None and prepared is None:
        raise UsageError(f"{data} has no {MANIFEST} that says what its rows are for: name it with --method")
    if method is not None and prepared is not None and prepared != method and {prepared, method} != {"dpo", "reward"}:
        raise UsageError(f"{data} holds rows for {prepared}, and --method says {method}; prepare them for that")
    return cast(Method, method or prepared)


@contextmanager
def _shown() -> Iterator[OnStep]:
    """A bar on standard error in a terminal, else a line for every tenth of the steps."""
    console = Console(stderr=True)
    columns = (
        *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        *(TextColumn("{task.fields[loss]}"), TimeRemainingColumn()),
    )
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = shown.add_task("starting", total=None, loss="")
    last = 0

    def on_step(step: int, of: int, loss: float) -> None:
        nonlocal last
        shown.update(task, description="training", completed=step, total=of, loss=f"loss {loss:.3f}")
        if step >= of:
            shown.update(task, description="trying the model")
        if not console.is_terminal and (step == of or step * 10 // of > last * 10 // of or step < last):
            console.print(f"step {step} of {of}, loss {loss:.3f}", highlight=False, soft_wrap=True)
        last = step

    def listen(update: Update) -> None:
        if update.note:
            console.print(update.note, highlight=False, soft_wrap=True)

    with progress.listening(listen), shown:
        yield on_step


def tell(done: Finished, method: Method, out: Path, seconds: float | None, console: Console) -> None:
    """The result in a few lines; without seconds it was there already."""
    trained, smoke = done
    details: Mapping[str, Any] = trained.details
    losses = f", loss {trained.losses[0]:.3f} → {trained.losses[-1]:.3f}" if trained.losses else ""
    tokens = f", {trained.tokens:,} tokens" if trained.tokens is not None else ""
    rows = f" on {details['rows']:,} rows" if "rows" in details else ""
    took = "trained before" if seconds is None else f"{seconds:.0f} s"
    say = [f"{method}{rows}: {trained.steps} steps{tokens}{losses}, {took}"]
    if evaluations := details.get("validation"):
        best = details["best_step"]
        loss = next(loss for step, loss in evaluations if step == best)
        why = ", and nothing better came after it" if details["stopped_early"] else ""
        first = f"{evaluations[0][1]:.3f} → " if len(evaluations) > 1 else ""
        say.append(f"validation loss {first}{loss:.3f} at step {best}, which is kept{why}")
    if halved := details.get("halved"):
        say.append(f"memory was short: {halved[-1]} rows on a device at once, the same rows a step")
    if details.get("dropped"):
        say.append(f"{details['dropped']:,} rows were left out: too long, or nothing in them carries loss")
    if details.get("at_max_length"):
        say.append(f"{details['at_max_length']:,} rows reach max_length and lose what is beyond it")
    changed = f", {smoke.changed:.0%} of the weights changed" if smoke.changed is not None else ""
    asked = f"{smoke.tried} {'answers scored' if method == 'reward' else 'prompts answered'}"
    say.append(f"smoke test passed: {asked}{changed}")
    say += [f"warning: {finding.says}" for finding in smoke.warnings]
    for line in say:
        console.print(Text(line), soft_wrap=True)
    console.print(Text(f"model: {out}"), soft_wrap=True)
