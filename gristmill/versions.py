"""Versions that people can say: `data v3` and `model v3`, in the order in which a workspace made them.

    versions.jsonl    {"kind", "number", "digest", "time"}, one line a version; it only grows

A dataset and a trained checkpoint get their number under the workspace's lock when a run first produces them, and keep
it for ever: one that is made again has the same content, so the same digest, so the same number; the number of a
deleted one is not given again. Base models have none: they were not made here. Reading writes nothing: what has no
line yet (an older workspace, artifacts made by hand) is shown with the number that it is going to get.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import ArtifactRef, Manifest
from gristmill.errors import StoreError
from gristmill.workspace import Workspace

FILE = "versions.jsonl"

Versioned = Literal["dataset", "checkpoint"]
WORDS: dict[Versioned, str] = {"dataset": "data", "checkpoint": "model"}
_SAID = re.compile(r"(data|dataset|model|checkpoint)[ :_-]?v(\d+)", re.IGNORECASE)
_KINDS: dict[str, Versioned] = {"data": "dataset", "model": "checkpoint", **{kind: kind for kind in WORDS}}


class Version(BaseModel):
    """One line of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Versioned
    number: int = Field(ge=1)
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    time: str = Field(description="When the artifact was made: UTC, ISO 8601.")

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(kind=self.kind, digest=self.digest)

    def __str__(self) -> str:
        return f"{WORDS[self.kind]} v{self.number}"


def versions(workspace: Workspace) -> dict[ArtifactRef, Version]:
    """Every version by its artifact, oldest first; those of deleted artifacts, too."""
    written = _written(workspace)
    return {one.ref: one for one in [*written, *_missing(workspace, written)]}


def assign(workspace: Workspace, produced: ArtifactRef) -> None:
    """Number what was just produced, and before it whatever has no number yet. Call it under the workspace's lock."""
    written = _written(workspace)
    if produced.kind in WORDS and produced not in {one.ref for one in written}:
        workspace.append(FILE, *(one.model_dump(mode="json") for one in _missing(workspace, written)))


def parse(text: str) -> tuple[Versioned, int] | None:
    """Kind and number of `data v3`, `model-v3`, `checkpoint:v3`, …; None if it is no version's name."""
    said = _SAID.fullmatch(text.strip())
    return (_KINDS[said[1].lower()], int(said[2])) if said else None


def is_base(manifest: Manifest) -> bool:
    """Whether this checkpoint only points to a model that was made elsewhere."""
    return manifest.kind == "checkpoint" and manifest.stage == "base"


def _written(workspace: Workspace) -> list[Version]:
    return [Version.model_validate(line) for line in workspace.read(FILE)]


def _missing(workspace: Workspace, written: Iterable[Version]) -> list[Version]:
    """By time of creation; within one second by the journal, then by digest."""
    next_number: dict[str, int] = dict.fromkeys(WORDS, 1)
    known = set()
    for version in written:
        next_number[version.kind] = version.number + 1
        known.add(version.ref)
    found: list[Manifest] = []
    for ref in workspace.store.refs():
        if ref.kind in WORDS and ref not in known:
            try:
                manifest = workspace.store.manifest(ref)
            except StoreError:  # damaged: it cannot be read as anything, and `doctor` says so
                continue
            if not is_base(manifest):
                found.append(manifest)
    if not found:
        return []
    journal = {line.get("result"): at for at, line in reversed(list(enumerate(workspace.read("journal.jsonl"))))}
    found.sort(key=lambda one: (one.created, journal.get(str(one.ref), len(journal)), one.digest))
    made = []
    for manifest in found:
        kind = _KINDS[manifest.kind]
        made.append(Version(kind=kind, number=next_number[kind], digest=manifest.digest, time=manifest.created))
        next_number[kind] += 1
    return made
