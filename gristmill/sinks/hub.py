"""Hugging Face Hub: each promoted model, and the data that it was trained on, as a commit of their repositories.

A promotion commits the champion's folder to `model_repo` and its dataset's to `dataset_repo`; a rollback commits the
champion before again. The commit message names the artifact; equal content makes no commit. A base policy that points
to weights elsewhere is not uploaded. Repositories are made private unless the recipe says otherwise; the token is the
value of the environment variable `token_env`. With `folder` the same files go there instead, a folder a repository.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import orjson
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from gristmill import model
from gristmill.artifact import MANIFEST, ArtifactRef
from gristmill.recipe import HubSinkRecipe
from gristmill.sinks.events import Event, Promoted, RolledBack
from gristmill.workspace import Workspace

LINEAGE = "gristmill.json"
"""Beside the uploaded files: digest, parents, settings and counts of the artifact."""


class HubSink:
    """Uploads to the hub, or copies to a folder."""

    def __init__(self, settings: HubSinkRecipe, workspace: Workspace) -> None:
        self.settings, self.store = settings, workspace.store
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
        manifest = self.store.manifest(checkpoint)
        if any(file.name == model.POINTER for file in manifest.files):
            return
        if self.settings.model_repo:
            self._send(self.settings.model_repo, "model", checkpoint, what)
        if self.settings.dataset_repo:
            for parent in manifest.parents:
                if parent.kind == "dataset":
                    self._send(self.settings.dataset_repo, "dataset", parent, f"{what}: its data")

    def _send(self, repo: str, kind: str, ref: ArtifactRef, what: str) -> None:
        source = self.store.path(ref)
        told = self.store.manifest(ref).model_dump(
            mode="json", include={"kind", "digest", "parents", "settings", "counts"}
        )
        lineage = orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
        if self.folder is not None:
            final = self.folder / f"{kind}s" / repo
            temporary = final.with_name(final.name + ".tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(MANIFEST))
            (temporary / LINEAGE).write_bytes(lineage)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            return
        assert self.api is not None
        self.api.create_repo(repo, repo_type=kind, private=self.settings.private, exist_ok=True)
        added = {file.name: str(source / file.name) for file in self.store.manifest(ref).files}
        # One commit that leaves exactly these files: parts of an earlier dataset would be trained on, too.
        gone = {*self.api.list_repo_files(repo, repo_type=kind)} - {*added, LINEAGE, ".gitattributes"}
        self.api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, path) for name, path in added.items()),
                CommitOperationAdd(LINEAGE, lineage),
                *(CommitOperationDelete(name) for name in sorted(gone)),
            ],
            repo_type=kind,
            commit_message=f"{what} ({ref})",
        )
