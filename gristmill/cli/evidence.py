"""Commands about models: train, evaluate, compare, and the registry of champions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.app import DEFAULT_WORKSPACE, EVIDENCE, JsonOption, Overrides, WorkspaceOption, app
from gristmill.cli.output import console
from gristmill.cli.running import evaluated
from gristmill.errors import UsageError


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

    run(data, overrides or (), base=model, out=out, method=method, recipe=recipe, seed=seed, json=json)


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
    place, (found,), settings = evaluated(recipe, [name], overrides, workspace, json)
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
    place, (one, other), _ = evaluated(recipe, [a, b], overrides or [], workspace, json)
    found = compare_command.compare_evaluations(place, one, other, names=(a, b), confidence=confidence)
    compare_command.tell(found, json=json, console=Console())


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
        show(workspace, json=json, console=console())
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

    step_back(workspace, reason, json=json, console=console())


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

    run(workspace, name, what, remove=remove, json=json, console=console())


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

    export(workspace, what, out, force=force, json=json, console=console())
