"""Commands that follow rollouts to models and back, and give things names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gristmill.cli.app import DEFAULT_WORKSPACE, LINEAGE, JsonOption, WorkspaceOption, app
from gristmill.cli.output import console


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
        console=console(),
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

    screen = console()
    if taint or untaint:
        mark(
            what,
            undo=untaint,
            reason=reason,
            from_turn=from_turn,
            workspace=workspace,
            json=json,
            console=screen,
        )
    else:
        run(what, down=True, workspace=workspace, json=json, mermaid=mermaid, html=html, console=screen)


@app.command(rich_help_panel=LINEAGE)
def tag(
    words: Annotated[list[str], typer.Argument(metavar="ID NAME", help="What, and its tag.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the tag away.")] = False,
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Give anything a name; a tag that stands elsewhere moves, and its history stays."""
    from gristmill.trace_command import name

    name(words, remove=remove, note=False, workspace=workspace, json=json, console=console())


@app.command(rich_help_panel=LINEAGE)
def note(
    words: Annotated[list[str], typer.Argument(metavar='ID "TEXT"', help="What, and the note.")],
    workspace: WorkspaceOption = DEFAULT_WORKSPACE,
    json: JsonOption = False,
) -> None:
    """Write a note on anything."""
    from gristmill.trace_command import name

    name(words, remove=False, note=True, workspace=workspace, json=json, console=console())
