"""Hugging Face Hub: each promoted model, and the data that it was trained on, as a commit of their repositories.

A promotion commits the champion, with its model card, recipe and lineage (as `gristmill champion export` writes it), to
`model_repo`, and its dataset, with card and provenance, to `dataset_repo`; a rollback commits the
champion before again. The commit message names the artifact; equal content makes no commit. A base policy that points
to weights elsewhere is not uploaded. Repositories are made private unless the recipe says otherwise; the token is the
value of the environment variable `token_env`. With `folder` the same files go there instead, a folder a repository.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from gristmill.artifact import MANIFEST, ArtifactRef
from gristmill.model_export import export
from gristmill.recipe import HubSinkRecipe
from gristmill.sinks.events import Event, Promoted, RolledBack
from gristmill.versions import is_base
from gristmill.workspace import Workspace


class HubSink:
    """Uploads to the hub, or copies to a folder."""

    def __init__(self, settings: HubSinkRecipe, workspace: Workspace) -> None:
        self.settings, self.workspace = settings, workspace
        self.folder = Path(settings.folder) if settings.folder else None
        self.api: HfApi | None = None
        if self.folder is None:
            token = os.environ.get(settings.token_env)
            if not token:
                raise LookupError(f"the environment variable {settings.token_env}, for the hub's token, is not set")
            self.api = HfApi(token=token, library_name="gristmill")

    def send(self, event: Event) -> None:
        match event:
            case Promoted():
                self._model(event.champion.checkpoint, f"{event.run.name}, turn {event.champion.turn}: promoted")
            case RolledBack():
                self._model(event.rollback.back_to, f"{event.run.name}: rolled back to")

    def close(self) -> None:
        """Nothing is held open."""

    def _model(self, checkpoint: ArtifactRef, what: str) -> None:
        manifest = self.workspace.store.manifest(checkpoint)
        if is_base(manifest):
            return
        words = f"{what} ({checkpoint})"
        with tempfile.TemporaryDirectory(prefix="hub-", dir=self.workspace.root / "sinks") as place:
            if self.settings.model_repo:
                export(self.workspace, checkpoint, Path(place) / "model")
                self._send(self.settings.model_repo, "model", Path(place) / "model", words)
        if self.settings.dataset_repo:
            for parent in manifest.parents:
                if parent.kind == "dataset":
                    folder = self.workspace.store.path(parent)
                    self._send(self.settings.dataset_repo, "dataset", folder, f"{words}: its data")

    def _send(self, repo: str, kind: str, source: Path, words: str) -> None:
        names = sorted(
            p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file() and p.name != MANIFEST
        )
        if self.api is None:
            self._copy(repo, kind, source)
            return
        self.api.create_repo(repo, repo_type=kind, private=self.settings.private, exist_ok=True)
        # One commit that leaves exactly these files: parts of an earlier dataset would be trained on, too.
        gone = {*self.api.list_repo_files(repo, repo_type=kind)} - {*names, ".gitattributes"}
        self.api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, source / name) for name in names),
                *(CommitOperationDelete(name) for name in sorted(gone)),
            ],
            repo_type=kind,
            commit_message=words,
        )

    def _copy(self, repo: str, kind: str, source: Path) -> None:
        assert self.folder is not None
        final = self.folder / f"{kind}s" / repo
        temporary = final.with_name(final.name + ".tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(MANIFEST))
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
