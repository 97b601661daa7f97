"""Commands that look after workspaces and servers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from gristmill.cli.app import CARE, DEFAULT_WORKSPACE, JsonOption, Overrides, WorkspaceOption, app
from gristmill.cli.output import print_json


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
        print_json(applied.model_dump(mode="json"))
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

    run(action, arguments or (), workspace=workspace, json=json)


@app.command(rich_help_panel=CARE)
def watch(
    place: Annotated[
        Path, typer.Argument(help="Folder or URL (s3://…) that rollouts are written to.", show_default=False)
    ],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    settle: Annotated[float, typer.Option(min=0, help="Seconds for which a file must not have changed.")] = 30,
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 10,
    once: Annotated[bool, typer.Option("--once", help="Look at what is there, and end.")] = False,
) -> None:
    """Tell Prefect of new, complete rollout files, so that deployments start on them."""
    from flows.events import watch as run
    from gristmill.workspace import Workspace

    try:
        run(place, Workspace(workspace), settle=settle, poll=poll, once=once, tell=print)
    except KeyboardInterrupt:
        sys.exit(130)


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


@places.command("verify")
def verify_workspace(workspace: WorkspaceOption = DEFAULT_WORKSPACE, json: JsonOption = False) -> None:
    """Hash every artifact again, where the workspace is."""
    from gristmill.workspace_command import check

    check(workspace, json=json)
