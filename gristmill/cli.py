"""The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate said no.

The outermost layer: it alone may import flows, and does so late, so that `gristmill --help` is quick. Results go to
standard output (with `--json` as one object, on the last line), everything else to standard error.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from gristmill.errors import GristmillError, UsageError, full_disk

if TYPE_CHECKING:
    from rich.console import Console

    from flows.improve import Outcome
    from flows.prepare import PreparedRun
    from gristmill.artifact import ArtifactRef
    from gristmill.prepare_command import Request
    from gristmill.recipe import Recipe
    from gristmill.refresh import Refresh
    from gristmill.terminal import StageTable
    from gristmill.workspace import Workspace

T = TypeVar("T")

app = typer.Typer(
    name="gristmill",
    help="Turn agent rollouts into better models, and prove that they are better.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What `gristmill --help` puts together.
LOOP = "The loop"
DATA = "Rollouts and training data"
EVIDENCE = "Models and evidence"
LINEAGE = "Lineage"
CARE = "Workspaces and servers"

WorkspaceOption = Annotated[
    Path,
    typer.Option(
        "--workspace",
        "-w",
        envvar="GRISTMILL_WORKSPACE",
        help="Folder or URL (s3://…) for everything a run makes.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Recipe fields, such as train.epochs=1.")
]

RedoFrom = Annotated[
    str | None,
    typer.Option("--from", metavar="STAGE[:TURN]", help="Do this stage again, and all after it in its turn."),
]
Force = Annotated[
    list[str] | None, typer.Option("--force", metavar="STAGE[:TURN]", help="Do this stage again, alone; repeatable.")
]

DEFAULT_WORKSPACE = Path("workspace")
_ANY_WIDTH = 100_000  # columns of what is no terminal


@app.command(rich_help_panel=LOOP)
def demo(
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Run the loop on the embedded environment and model: no GPU, key or network."""
    from gristmill.recipe import load
    from gristmill.refresh import Refresh

    again = Refresh(redo_from=redo_from, force=tuple(force or ()))
    _improve(load(demo_recipe(), overrides or ()), workspace, json, again)


@app.command(rich_help_panel=LOOP)
def improve(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Run the loop that a recipe describes; what is done already is not done again."""
    from gristmill.recipe import load
    from gristmill.refresh import Refresh

    again = Refresh(redo_from=redo_from, force=tuple(force or ()))
    _improve(load(recipe, overrides or ()), workspace, json, again)


@app.command(rich_help_panel=LOOP)
def resume(
    overrides: Overrides = None,
    redo_from: RedoFrom = None,
    force: Force = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Go on with the last unfinished run of the loop, by the recipe that it recorded."""
    from gristmill.refresh import Refresh
    from gristmill.resume_command import resumed
    from gristmill.workspace import Workspace

    asked = Refresh(redo_from=redo_from, force=tuple(force or ()))
    run, recipe, again = resumed(Workspace(workspace), overrides or (), asked)
    print(f"going on with run {run.number} ({run.outcome or 'unfinished'}, begun {run.started})", file=sys.stderr)
    _improve(recipe, workspace, json, again)


@app.command(rich_help_panel=LOOP)
def status(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE]...", help="What one would run; the last run's recipe if not."),
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what is done, what is stale and why, what runs now, and what to do next."""
    from rich.console import Console

    from gristmill.status_command import run

    run(arguments or (), workspace=workspace, json=json, console=Console())


@app.command(rich_help_panel=DATA)
def inspect(
    files: Annotated[list[str], typer.Argument(help="Rollout files (.jsonl, .gz, .zst), folders or globs.")],
    json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
    quarantine: Annotated[
        Path | None, typer.Option(help="Write dropped lines, byte for byte, and their reasons to this folder.")
    ] = None,
) -> None:
    """Profile and diagnose rollouts, from the files alone."""
    from gristmill.inspect_command import inspect as run

    run(files, json=json, html=html, quarantine=quarantine)


@app.command(rich_help_panel=DATA)
def review(
    what: Annotated[list[str], typer.Argument(metavar="FILES...|NAME", help="Rollout files, or a recipe's name.")],
    everything: Annotated[bool, typer.Option("--all", help="All rollouts instead of a sample.")] = False,
    where: Annotated[
        list[str] | None, typer.Option(help="All rollouts of which this is true, as in a recipe's curate.where.")
    ] = None,
    low: Annotated[int, typer.Option(min=0, help="Rollouts of low reward in the sample.")] = 10,
    middle: Annotated[int, typer.Option(min=0, help="Rollouts of middle reward in it.")] = 10,
    high: Annotated[int, typer.Option(min=0, help="Rollouts of high reward in it.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="Draws the sample and its order.")] = 0,
    reviewer: Annotated[str | None, typer.Option(help="Who decides; the login name if not given.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Loopback port; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Say how the review stands, and where people disagree.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Write the rollouts as JSONL, to decide on elsewhere.")] = None,
    take: Annotated[
        Path | None, typer.Option("--import", help="Add the decisions of such a file, or of a log.")
    ] = None,
    log: Annotated[
        Path | None, typer.Option(help="The decision log, if not the workspace's.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Look at rollouts in the browser and say which are fit to train on."""
    from gristmill.review_command import Sizes
    from gristmill.review_command import review as run

    run(
        what,
        workspace=workspace,
        sizes=Sizes(low, middle, high, seed, everything, tuple(where or ())),
        reviewer=reviewer,
        port=port,
        log=log,
        browser=browser,
        status=status,
        export=export,
        take=take,
        json=json,
    )


@app.command(rich_help_panel=DATA)
def validate(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE|KEY=VALUE", help="Rollout files, and recipe fields to change.")
    ],
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe that says what is chosen and checked.")] = None,
    against: Annotated[
        list[Path] | None, typer.Option(help="Evaluation tasks (.jsonl) that training must not show; repeatable.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    json: JsonOption = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots to this file.")] = None,
) -> None:
    """Check rollouts before training is paid for: what is wrong, how one knows, what would mend it."""
    from gristmill.validate_command import run

    run(arguments, recipe=recipe, against=against or (), strict=strict, json=json, html=html)


@app.command(rich_help_panel=LOOP)
def plan(
    arguments: Annotated[
        list[str], typer.Argument(metavar="RECIPE|FILE|KEY=VALUE", help="A recipe, or rollout files.")
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what a recipe would do and what its evaluation could detect; spends nothing."""
    from gristmill.plan_command import run

    run(arguments, workspace=workspace, json=json)


@app.command(rich_help_panel=DATA)
def prepare(
    what: Annotated[
        list[str],
        typer.Argument(metavar="FILES...|RECIPE [KEY=VALUE]...", help="Rollout files, or a .yaml recipe; fields."),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the export; new or empty.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="sft (default), dpo, kto, reward or rl.")] = None,
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="Framework: trl (default), nemo-rl, verl …; docs/targets.md.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="SQL condition on rollouts; several must all hold (docs/curate.md).")
    ] = None,
    preset: Annotated[list[str] | None, typer.Option(help="Conditions by name.")] = None,
    min_reward: Annotated[
        str | None,
        typer.Option(help="sft: least reward (default 1; none keeps all). Pairs: of the chosen side. kto: desirable."),
    ] = None,
    per_task: Annotated[int | None, typer.Option(min=1, help="Rollouts, or pairs, a task at most.")] = None,
    min_gap: Annotated[float | None, typer.Option(min=0, help="Least gap of a pair (default 0.2).")] = None,
    strategy: Annotated[str | None, typer.Option(help="Pairs: best_worst (default), folded, all or random.")] = None,
    validation: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Share of tasks set apart (files: 0.05).")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or smollm2-135m: exact token counts, and a rendered sample.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=8, help="Tokens of a row at most.")] = None,
    over_length: Annotated[str | None, typer.Option(help="Longer rows: drop (default) or cut.")] = None,
    model: Annotated[str | None, typer.Option(help="Base model that the launch config names.")] = None,
    decisions: Annotated[
        Path | None, typer.Option(help="Decision log of a review; what it rejects is left out.")
    ] = None,
    against: Annotated[Path | None, typer.Option(help="Evaluation tasks (JSONL), to look for leaks.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the split and of random choices.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each condition costs.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings of the checks stop, too.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; all cores if not given.")] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Turn rollouts into checked training data for a framework; trains nothing."""
    from gristmill.prepare_command import (
        Options,
        explain_files,
        prepare_files,
        read_arguments,
        refuse_with_recipe,
        require_out,
    )

    options = Options(
        method=method,
        target=target,
        where=where or (),
        preset=preset or (),
        min_reward=min_reward,
        per_task=per_task,
        min_gap=min_gap,
        strategy=strategy,
        validation=validation,
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        over_length=over_length,
        model=model,
        seed=seed,
        strict=strict,
    )
    request = read_arguments(what, options)
    if explain:
        explain_files(request, json=json and out is None)
        if out is None:
            return
    place = require_out(out, force)
    if request.path is None:
        prepare_files(request, place, decisions=decisions, against=against, force=force, workers=workers, json=json)
    else:
        refuse_with_recipe(decisions=decisions, against=against, workers=workers)
        _prepare_recipe(request, place, workspace, force, json)


@app.command(rich_help_panel=EVIDENCE)
def train(
    data: Annotated[Path, typer.Argument(help="Folder that `gristmill prepare` wrote, or any of TRL's rows.")],
    overrides: Overrides = None,
    model: Annotated[str, typer.Option("--model", help="smollm2-135m, or a Hugging Face folder.")] = "smollm2-135m",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model.")] = Path("model"),
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="sft, dpo, kto or reward; the folder's manifest says it.")
    ] = None,
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe whose section `train` is taken.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Order of the rows, and start of adapters.")] = 0,
    json: JsonOption = False,
) -> None:
    """Train a model on prepared rows and try it; run again, it goes on where it was killed."""
    from gristmill.train_command import run

    _quiet_libraries()
    run(data, overrides or (), base=model, out=out, method=method, recipe=recipe, seed=seed, json=json)


@app.command(rich_help_panel=DATA)
def collect(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the rollouts.")] = Path("rollouts"),
    heldout: Annotated[bool, typer.Option("--heldout", help="The held-out tasks, sampled as for evaluation.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many tasks.")] = None,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Only every N-th task, from the I-th.")] = None,
    reverify: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask for nothing; score these rollouts again.")
    ] = None,
    finish: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what `gym eval run` collected; ask for what it owed.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Collect rollouts only; go on where it was interrupted, ask again for what failed."""
    from gristmill import collect_command
    from gristmill.recipe import load

    _quiet_libraries()
    loaded = load(recipe, overrides or ())
    try:
        if reverify is not None:
            collect_command.reverify(loaded, reverify, out, json=json)
        elif finish is not None:
            collect_command.take_over(loaded, finish, out, json=json)
        else:
            collect_command.collect_recipe(loaded, out, heldout=heldout, limit=limit, shard=shard, json=json)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


@app.command("recipe", rich_help_panel=LOOP)
def show_recipe() -> None:
    """Print a recipe with every field, its default and what it means, to start from."""
    from gristmill.recipe import documented

    print(documented(), end="")


@app.command(rich_help_panel=EVIDENCE)
def evaluate(
    recipe: Annotated[Path | None, typer.Argument(help="A YAML recipe.", show_default=False)] = None,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[POLICY] [KEY=VALUE]...",
            help="base (the default), champion, a checkpoint by any name, or a model folder; then recipe overrides.",
            show_default=False,
        ),
    ] = None,
    rollouts: Annotated[
        list[str] | None, typer.Option(help="Score these rollout files instead.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="For --rollouts.")] = 0.95,
    solved_at: Annotated[
        float | None, typer.Option(help="For --rollouts: reward that counts as solved.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """A policy on a recipe's held-out tasks, with intervals; what was evaluated already is found."""
    from rich.console import Console

    from gristmill import evaluate_command

    if (recipe is None) == (rollouts is None):
        raise UsageError("give a recipe, or rollout files with --rollouts; `gristmill evaluate --help` says how")
    if rollouts is not None:
        evaluate_command.run_files(rollouts, confidence=confidence, solved_at=solved_at, json=json, console=Console())
        return
    assert recipe is not None
    name, overrides = evaluate_command.arguments(arguments or ())
    place, (found,), settings = _evaluated(recipe, [name], overrides, workspace, json)
    told = evaluate_command.stored(place, name, found)
    evaluate_command.tell(told, settings.promote.confidence, json=json, console=Console())


@app.command(rich_help_panel=EVIDENCE)
def compare(
    a: Annotated[str, typer.Argument(help="Rollout files; or base, champion, or a policy by any of its names.")],
    b: Annotated[str, typer.Argument(help="The other side; differences are B − A.")],
    overrides: Overrides = None,
    recipe: Annotated[
        Path | None, typer.Option(help="Evaluate what was not yet, by this recipe.", show_default=False)
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Two-sided, of every interval.")] = 0.95,
    solved_at: Annotated[
        float | None, typer.Option(help="Reward from which on a rollout counts as solved.", show_default=False)
    ] = None,
    json: JsonOption = False,
) -> None:
    """Two policies or two rollout files, paired on the tasks that both attempted."""
    from rich.console import Console

    from gristmill import compare_command

    if recipe is None:
        if overrides:
            raise UsageError(f"{overrides[0]} overrides a recipe, and there is none; name it with --recipe")
        compare_command.run(
            a, b, workspace=workspace, confidence=confidence, solved_at=solved_at, json=json, console=Console()
        )
        return
    place, (one, other), _ = _evaluated(recipe, [a, b], overrides or [], workspace, json)
    found = compare_command.compare_evaluations(place, one, other, names=(a, b), confidence=confidence)
    compare_command.tell(found, json=json, console=Console())


@app.command(rich_help_panel=LINEAGE)
def diff(
    a: Annotated[
        str, typer.Argument(help="A run, by number or `last`; or a selection: the start of its digest, folder, file.")
    ],
    b: Annotated[str, typer.Argument(help="The other one.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Two runs: recipes, counts, scores. Two selections: which rollouts came and went, and by which rule."""
    from rich.console import Console

    from gristmill.diff_command import run

    run(a, b, workspace=workspace, json=json, console=Console())


Asked = Annotated[
    list[str],
    typer.Argument(
        metavar="ID",
        help="A digest's start, `model v3`, champion, a tag, `data-v3#17`, a rollout, a task, a file or folder.",
    ),
]
MermaidOption = Annotated[bool, typer.Option("--mermaid", help="Print the graph as mermaid.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write a page with the graph to this file.")]


@app.command(rich_help_panel=LINEAGE)
def trace(
    what: Asked,
    show: Annotated[bool, typer.Option("--show", help="Of a dataset's row: print it.")] = False,
    mermaid: MermaidOption = False,
    html: HtmlOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """What made this: up to the rollouts, tasks, policies and recipe, by whatever name it has."""
    from gristmill.trace_command import run

    run(
        what,
        down=False,
        workspace=workspace,
        show=show,
        json=json,
        mermaid=mermaid,
        html=html,
        console=_console(),
    )


@app.command(rich_help_panel=LINEAGE)
def impact(
    what: Asked,
    taint: Annotated[bool, typer.Option("--taint", help="Mark it as bad: the next turns leave it out.")] = False,
    untaint: Annotated[bool, typer.Option("--untaint", help="Take such a mark back.")] = False,
    reason: Annotated[str, typer.Option(help="For a mark: why.")] = "",
    from_turn: Annotated[
        int, typer.Option(min=0, help="For a mark: turns before this one keep what they were trained on.")
    ] = 0,
    mermaid: MermaidOption = False,
    html: HtmlOption = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """What this went into: down to dataset rows, datasets, models, evaluations and promotions."""
    from gristmill.trace_command import mark, run

    console = _console()
    if taint or untaint:
        mark(
            what,
            undo=untaint,
            reason=reason,
            from_turn=from_turn,
            workspace=workspace,
            json=json,
            console=console,
        )
    else:
        run(what, down=True, workspace=workspace, json=json, mermaid=mermaid, html=html, console=console)


@app.command(rich_help_panel=LINEAGE)
def tag(
    words: Annotated[list[str], typer.Argument(metavar="ID NAME", help="What, and its tag.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Give anything a name; a tag that stands elsewhere moves, and its history stays."""
    from gristmill.trace_command import name

    name(words, remove=remove, note=False, workspace=workspace, json=json, console=_console())


@app.command(rich_help_panel=LINEAGE)
def note(
    words: Annotated[list[str], typer.Argument(metavar='ID "TEXT"', help="What, and the note.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Write a note on anything."""
    from gristmill.trace_command import name

    name(words, remove=False, note=True, workspace=workspace, json=json, console=_console())


champion_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)
app.add_typer(champion_app, name="champion", rich_help_panel=EVIDENCE)


@champion_app.callback()
def champion(
    context: typer.Context,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Who is champion, since when, and on what evidence; rollback, aliases, export."""
    from gristmill.champion_command import show
    from gristmill.errors import UsageError

    if context.invoked_subcommand is None:
        show(workspace, json=json, console=_console())
    elif context.get_parameter_source("workspace").name == "COMMANDLINE" or json:  # type: ignore[union-attr]
        raise UsageError(f"options stand after the action: gristmill champion {context.invoked_subcommand} -w …")


@champion_app.command()
def rollback(
    reason: Annotated[str, typer.Option(help="Why, for the registry.")] = "",
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Take the last promotion back; the next run goes on from the champion before."""
    from gristmill.champion_command import step_back

    step_back(workspace, reason, json=json, console=_console())


@champion_app.command()
def alias(
    name: Annotated[str, typer.Argument(help="Such as production.")],
    what: Annotated[str | None, typer.Argument(metavar="[ID]", help="A model; the champion if not given.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the alias away.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Give a model a name that can move; where it was stays in names.jsonl."""
    from gristmill.champion_command import alias as run

    run(workspace, name, what, remove=remove, json=json, console=_console())


@champion_app.command("export")
def export_champion(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the model; new or empty.")],
    what: Annotated[str | None, typer.Argument(metavar="[ID]", help="A model; the champion if not given.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Write a model as a Hugging Face folder with a model card that says how it came to be."""
    from gristmill.champion_command import export

    _quiet_libraries()
    export(workspace, what, out, force=force, json=json, console=_console())


@app.command(rich_help_panel=CARE)
def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Hash every byte of every artifact again.")] = False,
    mend: Annotated[bool, typer.Option("--mend", help="Do the safe mends; damage is set aside, not deleted.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what is wrong with a workspace, and mend it; exit 1 if something is."""
    from rich.console import Console

    from flows.engine import engine
    from gristmill.doctor_command import run, still_wrong

    _quiet_libraries()
    found = run(workspace=workspace, deep=deep, mend=mend, json=json, engine=engine(), console=Console())
    if still_wrong(found):
        sys.exit(1)


@app.command("gc", rich_help_panel=CARE)
def collect_garbage(
    keep_runs: Annotated[int, typer.Option(min=0, help="Keep what so many of the last runs used.")] = 5,
    days: Annotated[float | None, typer.Option(min=0, help="Keep what runs of the last days used, too.")] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; without this, only say what could go.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Say what a workspace can spare: never what a champion, a tag or a recent run needs."""
    from rich.console import Console

    from gristmill.gc_command import run

    run(workspace=workspace, keep_runs=keep_runs, days=days, delete=delete, json=json, console=Console())


@app.command(rich_help_panel=CARE)
def deploy(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe.", show_default=False)],
    overrides: Overrides = None,
    on: Annotated[Literal["process", "docker", "kubernetes"], typer.Option(help="Kind of the work pools.")] = "process",
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", envvar="GRISTMILL_WORKSPACE", help="Folder or URL, as the runs see it."),
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image (docker, kubernetes).")] = None,
    pool: Annotated[str | None, typer.Option(help="Work pool; the one with GPUs is called the same with -gpu.")] = None,
    name: Annotated[str | None, typer.Option(help="Of this recipe's deployments, where a server has several.")] = None,
    cron: Annotated[str | None, typer.Option(help="When `improve` runs; none pauses it.  [0 2 * * *]")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of that, such as Europe/Berlin.  [UTC]")] = None,
    dead_after: Annotated[
        float, typer.Option(min=60, help="Seconds without a heartbeat after which a run counts as crashed.")
    ] = 540,
    file: Annotated[Path | None, typer.Option(help="A deployment file of yours.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the deployment file; change nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Put a recipe on a Prefect server: work pools, deployments, and what finds dead runs."""
    from gristmill.deployment import prepare as prepared
    from gristmill.deployment import tell

    plan = prepared(
        recipe,
        overrides or (),
        kind=on,
        file=file,
        workspace=workspace,
        image=image,
        pool=pool,
        name=name,
        cron=cron,
        timezone=timezone,
    )
    if dry_run:
        print(plan.yaml(), end="")
        return
    from flows.deploy import apply

    applied = apply(plan, dead_after=dead_after)
    if json:
        _print_json(applied.model_dump(mode="json"))
    else:
        tell(plan, applied.pools, applied.workers)


@app.command(rich_help_panel=CARE)
def sinks(
    action: Annotated[
        Literal["status", "replay", "again", "skip"],
        typer.Argument(help="replay: send what is owed. again: everything. skip: give up the event that is refused."),
    ] = "status",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|KEY=VALUE]...", help="Sinks, and fields of `sinks`.")
    ] = None,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """What MLflow and other sinks were told of the runs, and what they are owed."""
    from gristmill.sinks_command import run

    _quiet_libraries()
    run(action, arguments or (), workspace=workspace, json=json)


places = typer.Typer(no_args_is_help=True)
app.add_typer(places, name="workspace", help="Copies of workspaces.", rich_help_panel=CARE)


@places.command("copy")
def copy_workspace(
    source: Annotated[Path, typer.Argument(help="Folder or URL of a workspace.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="Where to; new, or an earlier copy.", show_default=False)],
    verify: Annotated[bool, typer.Option("--verify", help="Hash everything there again.")] = False,
    json: JsonOption = False,
) -> None:
    """Copy a workspace to a folder or bucket, verified; repeated, only what is missing."""
    from gristmill.workspace_command import run

    run(source, target, check=verify, json=json)


@app.command(rich_help_panel=CARE)
def watch(
    folder: Annotated[Path, typer.Argument(help="Folder that rollouts are written to.", show_default=False)],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    settle: Annotated[float, typer.Option(min=0, help="Seconds for which a file must not have changed.")] = 30,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Look at what is there, and end.")] = False,
) -> None:
    """Tell Prefect of new, complete rollout files, so that deployments start on them."""
    from flows.events import watch as run
    from gristmill.workspace import Workspace

    try:
        run(folder, Workspace(workspace), settle=settle, poll=poll, once=once, tell=print)
    except KeyboardInterrupt:
        sys.exit(130)


@places.command("verify")
def verify_workspace(workspace: WorkspaceOption = DEFAULT_WORKSPACE, json: JsonOption = False) -> None:
    """Hash every artifact again, where the workspace is."""
    from gristmill.workspace_command import check

    check(workspace, json=json)


def demo_recipe() -> Path:
    """The recipe of the demo: in the wheel beside this module, in a clone under `recipes/`."""
    here = Path(__file__).resolve().parent
    packaged = here / "recipes" / "arithmetic.yaml"
    return packaged if packaged.exists() else here.parent / "recipes" / "arithmetic.yaml"


def _improve(recipe: Recipe, workspace: Path, as_json: bool, again: Refresh) -> None:
    started = time.monotonic()
    # Before the seconds that Prefect takes: a model or a stage that is not there is wrong use.
    from gristmill import model
    from gristmill.collect.run import check
    from gristmill.resume_command import refresh_of
    from gristmill.sinks import check as check_sinks
    from gristmill.workspace import Workspace, called

    if again:
        again = refresh_of(Workspace(workspace), recipe, again)

    model.identity(recipe.policy.model)
    check(recipe.policy, recipe.environment, trains=True)
    check_sinks(recipe.sinks)

    def load() -> Callable[[Workspace], Outcome]:
        from flows.improve import improve as flow

        return lambda place: flow(recipe, place.location, refresh=again)

    place, table, outcome = _flow(
        load, f"{recipe.name}: {recipe.turns} turns in {called(workspace)}", workspace, as_json
    )
    _tell(outcome, place, table, time.monotonic() - started, as_json)


def _flow(
    load: Callable[[], Callable[[Workspace], T]], title: str, workspace: Path, as_json: bool
) -> tuple[Workspace, StageTable, T]:
    """Run a flow under a Prefect API, shown as a table of its stages; `load` imports it while the server starts."""
    from rich.console import Console

    from flows.server import prefect_api
    from gristmill import progress
    from gristmill.resume_command import go_on
    from gristmill.terminal import StageTable
    from gristmill.workspace import Workspace, called

    place = Workspace(workspace)
    _quiet_libraries()
    if as_json or not sys.stderr.isatty():
        # Nobody is there to be asked: a required review ends the run with 3, and the same command goes on later.
        os.environ.setdefault("GRISTMILL_REVIEW_WAIT", "0")
    table = StageTable(Console(stderr=True), title)
    with prefect_api(place.root / "prefect") as embedded, progress.listening(table), table.shown():
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        start = load()
        if embedded:
            embedded.wait()
        # The heartbeat thread makes every flow last a second longer, and nobody watches an embedded server's flows.
        with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None} if embedded else {}):
            try:
                return place, table, start(place)
            except KeyboardInterrupt:
                print(f"interrupted; to go on: {go_on(sys.argv[1:], called(workspace))}", file=sys.stderr)
                sys.exit(130)
            except Exception as error:
                # A gate or wrong use says itself what to change; the rest goes on where it was.
                if getattr(error, "exit_code", 1) == 1:
                    error.add_note(f"to go on: {go_on(sys.argv[1:], called(workspace))}")
                raise


def _evaluated(
    path: Path, names: Sequence[str], overrides: Sequence[str], workspace: Path, as_json: bool
) -> tuple[Workspace, tuple[ArtifactRef, ...], Recipe]:
    """Evaluations of policies by a recipe, as a Prefect flow over the loop's own steps."""
    from gristmill.evaluate_command import request
    from gristmill.workspace import called

    recipe, policies = request(path, names, overrides, workspace)

    def load() -> Callable[[Workspace], tuple[ArtifactRef, ...]]:
        from flows.evaluate import evaluate_policies as flow

        return lambda place: flow(recipe, place.location, list(policies))

    title = f"{recipe.name}: evaluate {' and '.join(names)} in {called(workspace)}"
    place, _, found = _flow(load, title, workspace, as_json)
    return place, found, recipe


def _prepare_recipe(request: Request, out: Path, workspace: Path, force: bool, as_json: bool) -> None:
    """The same as a Prefect flow, every stage cached in the workspace; then a copy at its place."""
    from gristmill.prepare import publish_run
    from gristmill.prepare_command import tell_result
    from gristmill.workspace import called

    def load() -> Callable[[Workspace], PreparedRun]:
        from flows.prepare import prepare as flow

        return lambda place: flow(request.recipe, place.location, files=list(request.files))

    place, _, made = _flow(load, f"{request.recipe.name}: prepare in {called(workspace)}", workspace, as_json)
    done = publish_run(place.store, made.table, made.dataset, made.report, out, request.recipe, force=force)
    tell_result(done.folder, request.recipe, done.counts, done.report, json=as_json)


def _tell(outcome: Outcome, workspace: Workspace, table: StageTable, seconds: float, as_json: bool) -> None:
    """The result: for people the curve and where the report lies, for programs one object."""
    result: dict[str, Any] = workspace.store.read_json(outcome.report, "summary.json")
    report = workspace.page(result["recipe"])
    if as_json:
        result |= {"cached": table.cached, "seconds": round(seconds, 1), "report": str(report)}
        _print_json(result)
        return
    from gristmill.words import percent

    lift = result["lift"]
    width = 40
    print()
    for name, mean, mark in [
        ("base", result["base"]["mean"], ""),
        *((f"turn {t['turn']}", t["mean_reward"], t["verdict"]) for t in result["turns"]),
    ]:
        bar = "█" * round(width * max(0.0, min(1.0, mean)))
        print(f"{name:>8}  {mean:6.3f}  {bar:<{width}}  {mark}")
    print()
    interval = ""
    if lift["low"] is not None:
        interval = f", {percent(lift['confidence'])} interval {lift['low']:+.3f} to {lift['high']:+.3f}"
    print(f"champion − base on {lift['tasks']} held-out tasks: {lift['mean']:+.3f}{interval}")
    if result["stopped"]:
        print(f"stopped after turn {len(result['turns'])}: {result['stopped']}")
    done = len(table.rows) - table.cached
    again = (
        "nothing had changed, nothing was done again" if done == 0 else f"{done} stages ran, {table.cached} were cached"
    )
    print(f"{again}; {seconds:.0f} s")
    print(f"report: {_shown(report)}")


def _shown(path: Path) -> str:
    """Relative to here where that is shorter."""
    relative = os.path.relpath(path)
    return relative if len(relative) < len(str(path)) else str(path)


def _console() -> Console:
    """Standard output; lines are broken, and what has columns is cut to fit, for people only."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=_ANY_WIDTH if piped else None)


def _print_json(value: Any) -> None:
    import orjson

    print(orjson.dumps(value).decode())


def _quiet_libraries() -> None:
    """No telemetry, no hub, no wall of warnings; whoever sets these variables keeps what they set."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its terminal log; what goes to the API stays
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def main() -> None:
    """Entry point: deliberate errors become one sentence and an exit code."""
    try:
        app()
    except Exception as error:
        told = error if isinstance(error, GristmillError) else full_disk(error)
        if told is None:
            raise
        for line in (f"error: {told}", *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        sys.exit(told.exit_code)
