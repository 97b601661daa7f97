"""Commands from rollouts to training data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.app import DATA, DEFAULT_WORKSPACE, JsonOption, Overrides, WorkspaceOption, app
from gristmill.cli.running import prepare_recipe


@app.command(rich_help_panel=DATA)
def inspect(
    files: Annotated[list[str], typer.Argument(help="Rollout files (.jsonl, .gz, .zst), folders, globs, or URLs.")],
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
        prepare_recipe(request, place, workspace, force, json)


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
