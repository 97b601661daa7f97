"""Artifacts: immutable, content-addressed folders, and the references that stages pass to one another.

An artifact's digest is the sha256 of its kind and of its payload files (relative name, sha256), so equal content
has one digest however and wherever it was made. Its manifest stands beside the payload, is not part of the
digest, and says where the content came from. No manifest holds an absolute path or a secret.

Manifests carry a schema version. Older ones are read for ever: `MIGRATIONS` brings them forward, one version at a time,
as they are read. Newer ones are refused, never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from gristmill.errors import NewerSchema
from gristmill.identity import digest

Kind = Literal[
    "tasks",
    "rollouts",
    "table",
    "sample",
    "decisions",
    "selection",
    "dataset",
    "export",
    "checkpoint",
    "evaluation",
    "decision",
    "report",
]

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
"""Raise it with any change to what a manifest holds, and add the way from the version before to `MIGRATIONS`."""
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Schema version → a pure function that gives the same manifest in the next one."""


class ArtifactRef(BaseModel):
    """A pointer to an artifact: what Prefect tasks take and return instead of data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def location(self) -> str:
        """Folder relative to the workspace."""
        return f"artifacts/{self.kind}/{self.digest}"

    @property
    def short(self) -> str:
        """For people: kind and the first twelve characters."""
        return f"{self.kind}:{self.digest[:12]}"

    def __str__(self) -> str:
        return self.short


class FileEntry(BaseModel):
    """One payload file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds. Written last: an artifact exists exactly if its manifest does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    digest: str
    stage: str = Field(description="The step that made it.")
    step_version: str = Field(description="Version of that step's logic; a new one misses the cache.")
    parents: tuple[ArtifactRef, ...] = ()
    settings: dict[str, Any] = Field(default_factory=dict, description="The resolved recipe section.")
    counts: dict[str, Any] = Field(default_factory=dict, description="Rows in, kept and dropped by reason, and so on.")
    files: tuple[FileEntry, ...] = ()
    created: str = Field(description="UTC, ISO 8601.")
    seconds: float = Field(description="Wall-clock seconds it took to make.")
    gristmill: str
    environment: dict[str, str] = Field(default_factory=dict, description="Python, platform and library versions.")

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(kind=self.kind, digest=self.digest)


def read_manifest(data: bytes) -> Manifest:
    """The manifest in a file's bytes, of this schema version or any before.

    Raises:
        ValueError: they are no manifest.
        NewerSchema: a newer Gristmill wrote them.
    """
    raw = orjson.loads(data)
    if not isinstance(raw, dict) or not isinstance(version := raw.get("schema_version", 1), int):
        raise ValueError("a manifest is an object with a schema version")
    refuse_newer(version, SCHEMA_VERSION, f"the manifest of {raw.get('kind')}:{str(raw.get('digest'))[:12]}")
    for older in range(version, SCHEMA_VERSION):
        raw = MIGRATIONS[older](raw)
    return Manifest.model_validate(raw)


def refuse_newer(version: int, known: int, what: str) -> None:
    """Raise where a file says that it needs a newer Gristmill.

    Raises:
        NewerSchema: `version` is above `known`.
    """
    if version > known:
        raise NewerSchema(
            f"{what} has schema version {version}, and this Gristmill reads up to {known}: a newer one made it; "
            "upgrade gristmill to use this workspace"
        )


def now() -> str:
    """The time as everything on disk has it: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def content_digest(kind: Kind, files: tuple[FileEntry, ...]) -> str:
    """The artifact digest of a payload: order of files does not matter."""
    return digest({"kind": kind, "files": sorted([f.name, f.sha256] for f in files)})


def summary(manifest: Manifest) -> str:
    """One artifact in a few words, for a line of the terminal."""
    counts = manifest.counts
    match manifest.kind:
        case "tasks":
            resting = sum(counts.get("resting", {}).values())
            return f"{counts['tasks']} tasks" + (f", {resting} rest" if resting else "")
        case "rollouts":
            return f"{counts['rollouts']} rollouts, {counts['tokens']} tokens"
        case "table":
            return f"{counts['rows_kept']} of {counts['rows_read']} rows usable"
        case "sample":
            return f"{counts['sampled']} of {counts['rollouts']} to review"
        case "decisions":
            marked = f", {counts['tainted']} tainted" if "tainted" in counts else ""
            return f"{counts['accepted']} accepted, {counts['rejected']} rejected{marked}"
        case "selection":
            return f"{counts['rows_kept']} of {counts['rows_read']} chosen"
        case "dataset":
            return f"{counts['examples']} examples"
        case "checkpoint" if "steps" in counts:
            return f"{counts['steps']} steps, mean loss {sum(counts['losses']) / counts['steps']:.3f}"
        case "evaluation":
            return f"mean reward {counts['mean_reward']:.3f}"
        case "report" if "findings" in counts:
            return f"{counts['findings']} findings" if counts["findings"] else "nothing to object to"
        case "decision":
            return f"{counts['verdict']}, lift {counts['lift']:+.3f}"
    return ""
