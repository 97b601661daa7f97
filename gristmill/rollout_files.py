"""Which files hold rollouts: what a user names, resolved; sidecars that lie beside them left out.

What is in a bucket is copied to this disk first (gristmill/remote/rollouts.py).
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TypeVar

from gristmill.errors import InputError
from gristmill.remote.bucket import remote_url

P = TypeVar("P", bound=PurePath)

# How a sidecar is called: as the rollout file up to `.jsonl`, and this.
MATERIALIZED = "_materialized_inputs.jsonl"
FAILURES = "_failures.jsonl"
SIDECARS_READ = (MATERIALIZED, FAILURES)
"""Those that something reads."""
_SIDECARS = (
    *SIDECARS_READ,
    "_reward_profiling.jsonl",
    "_aggregate_metrics.json",
    "_agent_metrics.json",
)


def find_rollout_files(paths: Sequence[Path | str]) -> list[Path]:
    """Resolve files, directories (searched through) and globs to rollout files, sidecars left out.

    A file that is named is taken whatever its name. Each file comes once, in the order given, and within a
    directory or a glob sorted. Each may be a URL of the kind `s3://bucket/prefix`; its files are copies on this disk.

    Raises:
        InputError: something named is not there, or holds no rollouts.
        StoreError: a bucket that does not answer, or does not let us.
        UsageError: a URL that means nothing, or needs an extra that is not installed.
    """
    found: dict[Path, Path] = {}
    for given in paths:
        path = Path(given)
        if url := remote_url(given):
            from gristmill.remote.rollouts import fetch

            inside = fetch(url)
        elif path.is_dir():
            inside = [file for file in files_below(path) if is_rollout_name(file.name)]
            if not inside:
                raise InputError(f"{path} holds no rollout files (*.jsonl, *.jsonl.gz, *.jsonl.zst)")
        elif path.is_file():
            inside = [path]
        elif path.exists():
            raise InputError(f"{path} is not a regular file; write it to a file first")
        elif glob.has_magic(str(given)):
            inside = sorted(Path(p) for p in glob.glob(str(given), recursive=True))
            inside = [p for p in inside if p.is_file() and is_rollout_name(p.name)]
            if not inside:
                raise InputError(f"no rollout file matches {given}")
        else:
            raise InputError(f"no such file: {path}")
        for file in inside:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError("no rollout files were given")
    return list(found.values())


def is_rollout_name(name: str) -> bool:
    """Whether a file of this name in a directory holds rollouts (and is not a sidecar of some that do)."""
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix) if name.endswith(f".jsonl{suffix}") else name
    return name.endswith(".jsonl") and not name.endswith(_SIDECARS)


def sidecar(rollouts: P, suffix: str) -> P:
    """Where a sidecar of a rollout file is, if there is one."""
    return rollouts.with_name(rollouts.name.split(".jsonl")[0] + suffix)


def files_below(folder: Path) -> list[Path]:
    """Every file in a folder and in those below it, sorted; links to folders are not followed.

    Raises:
        InputError: part of it cannot be looked into, so that files may be missing.
    """

    def refuse(error: OSError) -> None:
        raise InputError(
            f"{error.filename} cannot be read: {error.strerror}; make it readable, or name the files themselves"
        ) from None

    found = []
    for place, _, names in os.walk(folder, onerror=refuse):
        for path in (Path(place, name) for name in names):
            try:
                if path.is_file():
                    found.append(path)
            except OSError as error:
                refuse(error)
    return sorted(found)
