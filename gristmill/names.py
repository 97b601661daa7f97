"""What artifacts are called: tags, aliases and notes that people give, and `resolve`, which understands every name.

    names.jsonl    {"what", "name", "ref", "text", "by", "time"}, one line an entry; it only grows

A *tag* is on any artifact, an *alias* (`production`) on a model; both move by a new entry, and their history stays. A
*note* is a text on an artifact. `champion` and `base` are no entries: they follow from the registry and the store.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from gristmill.artifact import ArtifactRef, Manifest, now
from gristmill.champions import champions
from gristmill.decisions import login_name
from gristmill.errors import StoreError, UsageError
from gristmill.identity import file_digest
from gristmill.rollout_files import files_below
from gristmill.versions import is_base, parse, versions
from gristmill.workspace import Workspace

FILE = "names.jsonl"
RESERVED = ("champion", "base")
SHORTEST = 6
"""Characters of a digest that suffice."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_HEX = re.compile(r"[0-9a-f]+")
_SHOWN = 8


class Named(BaseModel):
    """One entry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: Literal["tag", "alias", "note"]
    name: str | None = None
    """Of a tag or an alias."""
    ref: ArtifactRef | None
    """None takes the name away."""
    text: str = ""
    """Of a note."""
    by: str
    time: str


def history(workspace: Workspace) -> list[Named]:
    """Every entry, oldest first."""
    return [Named.model_validate(line) for line in workspace.read(FILE)]


def names(workspace: Workspace) -> dict[str, Named]:
    """Tags and aliases that stand now, in the order in which they were first given."""
    last = {entry.name: entry for entry in history(workspace) if entry.name is not None}
    return {name: entry for name, entry in last.items() if entry.ref is not None}


def notes(workspace: Workspace) -> dict[ArtifactRef, list[Named]]:
    """Notes by artifact, oldest first."""
    found: dict[ArtifactRef, list[Named]] = {}
    for entry in history(workspace):
        if entry.what == "note" and entry.ref is not None:
            found.setdefault(entry.ref, []).append(entry)
    return found


def give(workspace: Workspace, name: str, ref: ArtifactRef | None, what: Literal["tag", "alias"] = "tag") -> Named:
    """Put a tag or an alias on an artifact; it leaves where it was. `ref=None` takes it away.

    Raises:
        UsageError: such a name would be taken for something else, the alias is for no model, or there is none to take.
    """
    standing = names(workspace).get(name)
    if ref is None and standing is None:
        raise UsageError(f"there is no {what} {name!r} to take away{_near(name, names(workspace))}")
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a {what}: expected a letter, then letters, digits, '.', '_' or '-', 64 at most"
        )
    if name in RESERVED or parse(name) or (_HEX.fullmatch(name) and len(name) >= SHORTEST):
        raise UsageError(f"{name!r} already means something (a version, a digest, champion or base); choose another")
    if standing is not None and standing.what != what:
        raise UsageError(f"{name!r} is a{'n' * (standing.what == 'alias')} {standing.what}; choose another name")
    if what == "alias" and ref is not None and ref.kind != "checkpoint":
        raise UsageError(f"{ref} is no model; an alias names one (`gristmill tag` names anything)")
    return _append(workspace, Named(what=what, name=name, ref=ref, by=login_name(), time=now()))


def note(workspace: Workspace, ref: ArtifactRef, text: str) -> Named:
    """Write a note on an artifact.

    Raises:
        UsageError: there is no text.
    """
    if not text.strip():
        raise UsageError("the note is empty; give its text in quotes")
    return _append(workspace, Named(what="note", ref=ref, text=text.strip(), by=login_name(), time=now()))


def labels(workspace: Workspace) -> dict[ArtifactRef, tuple[str, ...]]:
    """What to call each artifact that has a name: its version first, then champion, aliases and tags."""
    found: dict[ArtifactRef, list[str]] = {ref: [str(version)] for ref, version in versions(workspace).items()}
    line = champions(workspace)
    if line:
        found.setdefault(line[-1].checkpoint, []).append("champion")
    for name, entry in names(workspace).items():
        assert entry.ref is not None
        found.setdefault(entry.ref, []).append(name)
    return {ref: tuple(said) for ref, said in found.items()}


def resolve(workspace: Workspace, text: str) -> ArtifactRef:
    """The artifact that a text means, whatever it is called by.

    Args:
        text: a digest or its first six characters or more, with or without its kind (`dataset:1f2e3d…`); a version
            (`model v3`, `data-v3`); `champion`, `base`, an alias, a tag; a base model's name; or a file or folder with
            the content of an artifact, such as an export.

    Raises:
        UsageError: it means nothing here, or several things.
    """
    said = text.strip().rstrip("…")
    if not workspace.is_remote and not workspace.root.is_dir():
        raise UsageError(f"there is no workspace {workspace}; name one with --workspace")
    if said == "champion":
        line = champions(workspace)
        if not line:
            raise UsageError(f"there is no champion in {workspace}: nothing has been promoted yet")
        return line[-1].checkpoint
    if version := parse(said):
        for one in versions(workspace).values():
            if (one.kind, one.number) == version:
                return one.ref
        raise UsageError(f"there is no {text} in {workspace}{_known(workspace, said)}")
    standing = names(workspace)
    if said in standing:
        ref = standing[said].ref
        assert ref is not None
        return ref
    kind, _, digest = said.rpartition(":")
    if _HEX.fullmatch(digest) and len(digest) >= SHORTEST:
        found = [ref for ref in workspace.store.refs() if ref.digest.startswith(digest) and kind in ("", ref.kind)]
        if found:
            return _only(text, found, "give more characters, or the kind")
    bases = [one for one in _manifests(workspace) if is_base(one)]
    if said == "base":
        if not bases:
            raise UsageError(f"there is no base model in {workspace} yet")
        return _only(text, [one.ref for one in bases], "name one by its digest or its model's name")
    called = [one.ref for one in bases if one.settings.get("model") == said]
    if called:
        return _only(text, called, "name one by its digest")
    path = Path(said).expanduser()
    if said and path.exists():
        same = holding(_manifests(workspace), path)
        if same:
            return _only(text, same, "name one by its digest")
        raise UsageError(f"{text} is there, but no artifact of {workspace} has that content")
    raise UsageError(f"{text!r} means nothing in {workspace}{_known(workspace, said)}")


def holding(manifests: list[Manifest], path: Path) -> list[ArtifactRef]:
    """Artifacts that hold this very file; of a folder, those that hold most of its files (bytes and sha256 equal).

    Raises:
        InputError: part of the folder cannot be looked into.
    """
    files = files_below(path) if path.is_dir() else [path]
    sizes = {entry.bytes for manifest in manifests for entry in manifest.files}
    hashes = {file_digest(one) for one in files if one.stat().st_size in sizes}
    shared = {one.ref: sum(entry.sha256 in hashes for entry in one.files) for one in manifests}
    most = max(shared.values(), default=0)
    return [ref for ref, count in shared.items() if count == most > 0]


def _manifests(workspace: Workspace) -> list[Manifest]:
    found = []
    for ref in workspace.store.refs():
        try:
            found.append(workspace.store.manifest(ref))
        except StoreError:  # damaged: what cannot be read is not found by its content
            continue
    return found


def _only(text: str, found: list[ArtifactRef], how: str) -> ArtifactRef:
    if len(found) > 1:
        raise UsageError(f"{text} is ambiguous: {', '.join(map(str, found[:_SHOWN]))}; {how}")
    return found[0]


def _known(workspace: Workspace, text: str) -> str:
    """The names that are most like a text, or else the latest ones."""
    every = [*names(workspace), *(str(one).replace(" ", "-") for one in versions(workspace).values())]
    return _near(text, every) or (f"; it knows {', '.join(every[-_SHOWN:])}" if every else "")


def _near(text: str, every: Iterable[str]) -> str:
    near = difflib.get_close_matches(text, list(every), n=3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _append(workspace: Workspace, entry: Named) -> Named:
    workspace.append(FILE, entry.model_dump(mode="json"))
    return entry
