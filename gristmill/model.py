"""Models in the store: trained checkpoints are folders there; base models are pointers to weights elsewhere.

A base model enters a run as a small checkpoint artifact that holds `pointer.json` (which model, and the identity
of its weights), so that a large model is never copied. `folder` follows the pointer to a Hugging Face folder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gristmill.artifact import ArtifactRef
from gristmill.cache import default_cache
from gristmill.errors import RecipeError, StoreError
from gristmill.identity import digest, file_digest
from gristmill.store import Store

POINTER = "pointer.json"
Progress = Callable[[int, int], None]


def identity(model: str) -> str:
    """What the model is, by content: 64 hex characters that change when the weights or the tokenizer do.

    Raises:
        RecipeError: neither an embedded model's name nor a Hugging Face model folder.
    """
    from gristmill import smollm

    if model == smollm.NAME:
        return smollm.identity()
    if model == smollm.NAME_TINY:
        return digest({"model": smollm.NAME_TINY, "seed": 0, "version": smollm.CONVERTER})
    path = Path(model).expanduser()
    if not (path / "config.json").is_file():
        raise RecipeError(
            f"policy.model: {model!r} is neither {smollm.NAME} nor {smollm.NAME_TINY} nor a folder with a config.json"
        )
    files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    return digest({p.relative_to(path).as_posix(): file_digest(p) for p in files})


def register(store: Store, model: str, identity: str) -> ArtifactRef:
    """The checkpoint artifact that points to a base model."""
    with store.draft("checkpoint") as draft:
        draft.write_json(POINTER, {"model": model, "identity": identity})
        return draft.commit(stage="base", settings={"model": model})


def folder(store: Store, ref: ArtifactRef, progress: Progress | None = None) -> Path:
    """A Hugging Face folder with the checkpoint's weights and tokenizer.

    Raises:
        ArtifactMissing: the checkpoint is not in the store.
        StoreError: it points to weights that changed or are gone.
    """
    path = store.path(ref)
    if not (path / POINTER).is_file():
        return path
    pointer = store.read_json(ref, POINTER)
    model, expected = pointer["model"], pointer["identity"]
    try:
        found = identity(model)
    except RecipeError as error:
        raise StoreError(f"{ref} points to the model {model}, which is gone: {error}") from error
    if found != expected:
        raise StoreError(f"{ref} points to {model}, whose files have changed since; start a new run to use them")
    return locate(model, progress)


def locate(model: str, progress: Progress | None = None) -> Path:
    """A Hugging Face folder of the model that a recipe names; embedded ones are written to the cache first."""
    from gristmill import smollm

    if model == smollm.NAME:
        return smollm.materialise(default_cache(), progress)
    if model == smollm.NAME_TINY:
        return smollm.tiny(default_cache() / f"{smollm.NAME_TINY}-{smollm.CONVERTER}")
    return Path(model).expanduser()


def name(store: Store, ref: ArtifactRef) -> str:
    """What to call the model in rollout rows: the base model's name, or the checkpoint's short digest."""
    path = store.path(ref)
    if (path / POINTER).is_file():
        return str(store.read_json(ref, POINTER)["model"])
    return f"gristmill-{ref.digest[:12]}"
