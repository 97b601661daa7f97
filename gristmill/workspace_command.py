"""`gristmill workspace copy` and `verify`: backup, restore, moving between disk and bucket, and whether all is well."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import orjson
from rich.console import Console
from rich.progress import Progress

from gristmill.copying import copy, verify
from gristmill.errors import UsageError
from gristmill.workspace import Workspace


def check(where: Path, *, json: bool) -> None:
    """Hash every artifact again, in the bucket if it is one; end with 1 if any is damaged.

    Raises:
        UsageError: there is no workspace.
    """
    place = Workspace.found(where)
    if place is None:
        raise UsageError(f"there is no workspace at {where}")
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        damaged = verify(place, lambda count, total: bar.update(task, completed=count, total=total))
    count = len(list(place.store.refs()))
    if json:
        print(orjson.dumps({"artifacts": count, "damaged": damaged}).decode())
    elif not damaged:
        print(f"{count} artifacts, each hashed again, are what their manifests say")
    _tell(damaged)


def run(source: Path, target: Path, *, check: bool, json: bool) -> None:
    """Copy, say what was copied, and end with 1 if anything is damaged.

    Raises:
        UsageError: there is no workspace to copy.
        StoreError: the target cannot take it.
    """
    origin = Workspace.found(source)
    if origin is None or not origin.file_names(""):
        raise UsageError(f"there is no workspace at {origin or source} to copy")
    place = Workspace(target)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copying", total=None)
        done = copy(origin, place, lambda count, total: bar.update(task, completed=count, total=total))
        if check:
            again = bar.add_task("verifying", total=None)
            done.damaged += verify(place, lambda count, total: bar.update(again, completed=count, total=total))
    if json:
        print(orjson.dumps({**dataclasses.asdict(done), "target": place.location, "verified": check}).decode())
    else:
        print(
            f"{done.artifacts} artifacts copied ({done.bytes / 1e6:,.1f} MB), {done.there} were there; "
            f"{done.files} other files written to {place}"
        )
        if check and not done.damaged:
            print("every artifact there was hashed again, and is what its manifest says")
    _tell(done.damaged)


def _tell(damaged: list[str]) -> None:
    for words in damaged:
        print(f"damaged: {words}", file=sys.stderr)
    if damaged:
        sys.exit(1)
