"""References: which artifacts a file of the workspace names, whatever it is about; which result records name nothing.

Artifacts are named as objects with `kind` and `digest`, or as `kind:digest` with the whole digest, anywhere in JSON or
in JSON lines. Short forms (twelve characters) are for people and do not count.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.workspace import Workspace


def dangling(workspace: Workspace) -> list[Path]:
    """Result records that name an artifact that is gone or damaged, or that cannot be read."""
    found = []
    for path in sorted(workspace.results.glob("*")) if workspace.results.is_dir() else ():
        if path.is_file() and not all(workspace.store.exists(ref) for ref in refs_in(path)):
            found.append(path)
    return found


def refs_in(path: Path) -> set[ArtifactRef]:
    """Every artifact that a JSON or JSON-lines file names, as an object or as `kind:digest`; whatever it is about."""
    found: set[ArtifactRef] = set()

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if {"kind", "digest"} <= value.keys():
                _add(found, value["kind"], value["digest"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        elif isinstance(value, str):
            if value[:1] in "{[":  # Prefect keeps the result as JSON inside its record's JSON
                try:
                    walk(orjson.loads(value))
                except orjson.JSONDecodeError:
                    return
            kind, colon, digest = value.partition(":")
            if colon:
                _add(found, kind, digest)

    for line in path.read_bytes().splitlines():
        try:
            walk(orjson.loads(line))
        except orjson.JSONDecodeError:
            continue
    return found


def _add(found: set[ArtifactRef], kind: Any, digest: Any) -> None:
    try:
        found.add(ArtifactRef(kind=kind, digest=digest))
    except ValueError:
        return
