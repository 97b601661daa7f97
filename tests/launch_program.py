"""A caller of `launch.run` to kill: python -m tests.launch_program LAUNCHER FOLDER [ADDRESS].

Prints `started` when it looks.
"""

from __future__ import annotations

import sys
from pathlib import Path

from gristmill import launch
from gristmill.launch.local import Local
from gristmill.launch.ray import Ray
from gristmill.launch.slurm import Slurm
from gristmill.recipe import LaunchRecipe


class Quick(Slurm):
    """Slurm's launcher, in a hurry."""

    poll = 0.05
    settle = 0.3
    forgotten = 1.0


def job(folder: Path) -> launch.LaunchJob:
    """A job of the scripts in `folder`."""
    finish = folder / "finish.sh"
    return launch.LaunchJob(
        name="gristmill-test", work=folder, train=folder / "train.sh", finish=finish if finish.exists() else None
    )


def launcher(name: str, recipe: LaunchRecipe) -> launch.Launcher:
    kinds = {"slurm": Quick, "ray": Ray, "local": Local}
    return kinds[name](recipe)


if __name__ == "__main__":
    recipe = LaunchRecipe(poll_seconds=0.05, **({"address": sys.argv[3]} if sys.argv[3:] else {}))
    launch.run(
        launcher(sys.argv[1], recipe), job(Path(sys.argv[2])), recipe, lambda status: print("started", flush=True)
    )
    print("done", flush=True)
