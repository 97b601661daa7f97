"""The application that commands register with, and the arguments that several of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
