"""A model as a Hugging Face folder that says what it is: `gristmill champion export`.

    weights, tokenizer, chat template    the checkpoint's files; of a base model, a copy of what it points to
    README.md, curve.svg                 the model card (gristmill/model_card.py)
    recipe.yaml                          the recipe of the run that made it
    lineage.json                         everything that it was made of (`gristmill trace --json`)

Nothing in it names a path of this machine, nor a password in a URL. The folder appears whole or not at all.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from gristmill import model
from gristmill.artifact import MANIFEST, ArtifactRef
from gristmill.errors import StoreError, UsageError
from gristmill.lineage import Lineage
from gristmill.model_card import LINEAGE, RECIPE, Card
from gristmill.redaction import public, public_text
from gristmill.tracing import trace
from gristmill.workspace import Workspace


class Exported(BaseModel):
    """What `--json` prints."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    digest: str
    folder: str
    files: tuple[str, ...]
    promoted: bool


def export(workspace: Workspace, ref: ArtifactRef, out: Path, *, force: bool = False) -> Exported:
    """Write the folder.

    Args:
        force: replace an earlier export in this folder.

    Raises:
        UsageError: it is no model, or the folder holds something.
        StoreError: its weights are gone, or the disk refused.
    """
    if ref.kind != "checkpoint":
        raise UsageError(f"{ref} is no model; `gristmill champion export` takes a checkpoint, an alias or a version")
    _require_free(out, force)
    lineage = Lineage(workspace)
    source = model.folder(workspace.store, ref)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}-{uuid.uuid4().hex[:8]}"
    try:
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(MANIFEST, model.POINTER, ".*"))
        walk = trace(workspace, str(ref)).model_copy(update={"asked": lineage.label(ref)})
        (temporary / LINEAGE).write_bytes(public_text(walk.model_dump_json(indent=2)).encode())
        if walk.recipe is not None:
            settings = public(walk.recipe.settings)
            (temporary / RECIPE).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        written = Card(lineage, ref).write(temporary)
        if out.exists():
            shutil.rmtree(out)
        os.rename(temporary, out)
    except OSError as error:
        raise StoreError(f"{out} cannot be written ({error.strerror}); nothing of it was left") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    files = tuple(sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()))
    return Exported(model=lineage.label(ref), digest=ref.digest, folder=str(out), files=files, promoted=written)


def _require_free(out: Path, force: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise UsageError(f"{out} is not empty; choose another folder, or replace an earlier export with --force")
    if not (out / LINEAGE).is_file():
        raise UsageError(f"{out} is no export of ours (no {LINEAGE}), so --force does not replace it; choose another")
