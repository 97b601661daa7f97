"""Prepare: rollout files become an export folder that a trainer reads, checked, with a manifest; trains nothing.

An export folder holds the dataset (gristmill/dataset/), the target's launch config, the card and

    manifest.json     inputs and files with their sha256, the settings, the counts, what the checks found

It is written under a temporary name beside its place and renamed as the last act. Equal input and settings give an
equal folder, byte for byte, with any number of workers.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gristmill.artifact import ArtifactRef
from gristmill.checks import require_no_errors
from gristmill.checks.catalogue import Report
from gristmill.checks.content import template_of
from gristmill.checks.validate import validate
from gristmill.curate import SELECTION, curate
from gristmill.dataset import check, write_dataset
from gristmill.errors import UsageError
from gristmill.identity import file_digest
from gristmill.ingest import IngestResult, ingest
from gristmill.recipe import Recipe
from gristmill.rollout_files import find_rollout_files
from gristmill.store import Store
from gristmill.targets import Launch
from gristmill.workers import crew

MANIFEST = "manifest.json"
FINDINGS = "findings.json"
SCHEMA_VERSION = 1
_NO_DECISIONS: Mapping[str, str] = {}

Progress = Callable[[str, int, int], None]
"""Told (stage, done, total) while it works."""


class Prepared(NamedTuple):
    """An export that stands in its place."""

    folder: Path
    counts: dict[str, Any]
    """rows_read = rows_kept + Σ dropped; `examples` rows were written."""
    report: Report
    """What the checks found; nothing of it is an error."""


def prepare(
    files: Sequence[Path | str],
    recipe: Recipe,
    out: Path,
    *,
    launch: Launch | None = None,
    decisions: Mapping[str, str] = _NO_DECISIONS,
    evaluation: Sequence[Mapping[str, Any]] | None = None,
    force: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Prepare training data from rollout files.

    Args:
        files: files, directories and globs.
        recipe: `curate`, `format`, `checks` and `seed` are used.
        out: folder that must not exist, or be empty, or, with `force`, be an earlier export.
        launch: what the target's launch config takes; its own defaults if not given.
        decisions: a review's, rollout_id → `accept` | `reject`.
        evaluation: task rows of an evaluation, which training must not show.
        workers: processes, this one counted; as many as there are cores if not given.

    Raises:
        UsageError: files, settings or `out` cannot be used.
        GateError: a check says that the data is not worth training on; nothing is left in `out`.
    """
    check(recipe.format)
    require_place(out, force)
    tell = progress or (lambda stage, done, total: None)
    with (
        tempfile.TemporaryDirectory(prefix="gristmill-prepare-") as work,
        published(out, force) as folder,
        crew(workers),
        ThreadPoolExecutor(1) as beside,
    ):
        table = Path(work) / "table"
        table.mkdir()
        found = find_rollout_files(files)
        digests = beside.submit(lambda: [file_digest(path) for path in found])
        read = ingest(found, table, copy=False, progress=lambda done, total: tell("read", done, total))
        counts = _counted(read)

        def choose(changed: Any, place: Path) -> dict[str, Any]:
            return curate([read.tables], [counts], changed, place, decisions=decisions, seed=recipe.seed)

        def choosing(changed: Any) -> int:
            with tempfile.TemporaryDirectory(dir=work) as place:
                return int(choose(changed, Path(place))["rows_kept"])

        selected = choose(recipe.curate, Path(work))
        told = write_dataset(
            Path(work) / SELECTION,
            [read.tables],
            selected,
            recipe.format,
            folder,
            seed=recipe.seed,
            launch=launch or Launch(),
            progress=lambda done, total: tell("write", done, total),
        )
        tell("check", 0, 0)
        report = validate(
            [read.tables],
            Path(work) / SELECTION,
            told,
            curate=recipe.curate,
            format=recipe.format,
            checks=recipe.checks,
            choose=choosing,
            evaluation=evaluation,
            seed=recipe.seed,
            max_length=launch.max_length if launch else None,
            render=template_of(recipe.format.tokenizer) if recipe.format.tokenizer else None,
        )
        inputs = [
            {"name": source["name"], "bytes": path.stat().st_size, "rows": source["rows"], "sha256": digest}
            for source, path, digest in zip(read.sources, found, digests.result(), strict=True)
        ]
        require_no_errors(report.findings)
        write_manifest(folder, recipe, inputs, told, findings(report))
    return Prepared(out, told, report)


def findings(report: Report) -> dict[str, Any]:
    """What the checks said, without the evidence."""
    return report.model_dump(mode="json", exclude={"evidence"})


def write_manifest(
    folder: Path, recipe: Recipe, inputs: Sequence[Mapping[str, Any]], counts: dict[str, Any], checks: dict[str, Any]
) -> None:
    """Write `manifest.json` over all files that are there; no time and no absolute path is in it.

    Args:
        inputs: one a rollout file: `name`, `sha256`, and so on.
    """
    files = [
        {"name": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    values = {
        "schema_version": SCHEMA_VERSION,
        "gristmill": metadata.version("gristmill"),
        "inputs": inputs,
        "settings": {
            "seed": recipe.seed,
            **{name: getattr(recipe, name).model_dump(mode="json") for name in ("curate", "format", "checks")},
        },
        "counts": counts,
        "checks": checks,
        "files": files,
    }
    (folder / MANIFEST).write_bytes(orjson.dumps(values, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def require_place(out: Path, force: bool) -> None:
    """Whether an export may be put there.

    Raises:
        UsageError: something else is there.
    """
    if out.is_dir():
        inside = any(out.iterdir())
        if inside and not (out / MANIFEST).is_file():
            raise UsageError(f"{out} holds other things than an export of ours; name an empty or a new folder")
        if inside and not force:
            raise UsageError(f"{out} holds an export already; name another folder, or replace it with --force")
    elif out.exists() or out.is_symlink():
        raise UsageError(f"{out} is not a folder; name an empty or a new one")


@contextmanager
def published(out: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
        UsageError: the place is taken, or cannot be written.
    """
    whole = Path(os.path.abspath(out))
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{whole.name}.", dir=whole.parent))
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None
    try:
        yield folder
        folder.chmod(0o755)
        require_place(out, force)
        if whole.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{whole.name}.old.", dir=whole.parent))
            whole.rename(old / whole.name)
            folder.rename(whole)
            shutil.rmtree(old)
        else:
            folder.rename(whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish_run(
    store: Store,
    table: ArtifactRef,
    dataset: ArtifactRef,
    report: ArtifactRef,
    out: Path,
    recipe: Recipe,
    *,
    force: bool = False,
) -> Prepared:
    """Copy a dataset of the store into an export folder, with the export's own manifest.

    Args:
        table: the rollout table that it was made from, which knows the input files.
        report: what the checks said of it.

    Raises:
        UsageError: `out` cannot be used.
    """
    made = store.manifest(dataset)
    told = {name: value for name, value in store.read_json(report, FINDINGS).items() if name != "dataset"}
    checked = Report.model_validate(told)
    with published(out, force) as folder:
        for entry in made.files:
            shutil.copyfile(store.path(dataset) / entry.name, folder / entry.name)
        write_manifest(folder, recipe, store.manifest(table).settings["inputs"], made.counts, findings(checked))
    return Prepared(out, made.counts, checked)


def launch_values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says on training, for the target's launch config: fields of `Launch`.

    The defaults of `train` are for the embedded model, so only what is set counts; the rest is the target's choice.
    """
    fields = set(Launch.__dataclass_fields__)
    values = recipe.train.model_dump(include=recipe.train.model_fields_set & fields)
    if "model" in recipe.policy.model_fields_set:
        values["model"] = recipe.policy.model
    if recipe.format.max_tokens:  # rows are no longer than that, and the trainer shall cut none of them
        values.setdefault("max_length", recipe.format.max_tokens)
    return {**values, "seed": recipe.seed}


def _counted(read: IngestResult) -> dict[str, Any]:
    return {
        "rows_read": read.rows_read,
        "rows_kept": read.rows_kept,
        "dropped": {str(reason): count for reason, count in sorted(read.dropped.items())},
    }
