"""Every error that Gristmill raises on purpose.

    GristmillError
    ├── UsageError(ValueError)            wrong use; exit 2
    │   ├── RecipeError                   a key, type or path in a recipe or an override
    │   └── InputError                    rollout files that cannot be read as such
    ├── GateError(RuntimeError)           a check or the promotion gate said no; exit 3
    ├── StoreError(RuntimeError)          the workspace; exit 1
    │   ├── ArtifactMissing(LookupError)
    │   ├── ArtifactDamaged
    │   ├── WorkspaceBusy
    │   ├── WorkspaceLost                 another run took the workspace over
    │   ├── StoreUnreachable              the bucket does not answer
    │   ├── NewerSchema                   written by a newer Gristmill
    │   └── DiskFull
    ├── EngineError(RuntimeError)         the Prefect API does not answer; exit 1
    ├── CollectionError(RuntimeError)     rollouts could not be collected; exit 1
    └── TrainingError(RuntimeError)       a trainer failed; exit 1

Each message is one or two sentences: where (file and row, or field), what was expected, what was found, what
to do next. All are picklable, because workers raise them in other processes.
"""

from __future__ import annotations

import errno


class GristmillError(Exception):
    """Base of all deliberate errors. `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(GristmillError, ValueError):
    """The command or its input was wrong; nothing was started."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe or an override does not validate."""


class InputError(UsageError):
    """An input file is absent, empty, binary or holds no rollouts."""


class GateError(GristmillError, RuntimeError):
    """A gate stopped the run on evidence: change the recipe or the data and run again."""

    exit_code = 3


class StoreError(GristmillError, RuntimeError):
    """The workspace cannot be used as it is."""


class ArtifactMissing(StoreError, LookupError):
    """A reference points to an artifact that is not in the store."""


class ArtifactDamaged(StoreError):
    """An artifact's files do not match its manifest."""


class WorkspaceBusy(StoreError):
    """Another live process holds the workspace lock."""


class WorkspaceLost(StoreError):
    """The lease on a workspace in a bucket ran out while this process could not renew it."""


class StoreUnreachable(StoreError):
    """A bucket did not answer, for longer than it was waited for."""


class NewerSchema(StoreError):
    """A file of the workspace was written by a newer version; nothing is guessed about it."""


class DiskFull(StoreError):
    """The disk holds no more; what was being written is gone, what was finished is there."""


def full_disk(error: BaseException) -> DiskFull | None:
    """The sentence for an error whose cause is that the disk is full, whichever library said so; None for others."""
    at: BaseException | None = error
    while at is not None:
        number = at.errno if isinstance(at, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(at):
            return DiskFull(
                "the disk is full; nothing half-written was kept. Free some space (`gristmill gc` says what the "
                "workspace can spare), then run the same command again: it goes on"
            )
        at = at.__cause__ or at.__context__
    return None


_UNREADABLE = {"ArrowInvalid", "InvalidInputException", "IOException", "SerializationException"}


def unreadable(error: BaseException) -> ArtifactDamaged | None:
    """The sentence for the errors of Arrow and DuckDB that mean that a file is not the Parquet that was written; None
    for others, such as a want of memory, or a query of ours that is wrong."""
    kind = type(error)
    if kind.__name__ not in _UNREADABLE or kind.__module__.partition(".")[0] not in ("pyarrow", "duckdb", "_duckdb"):
        return None
    said = str(error).partition("\n")[0] or kind.__name__
    return ArtifactDamaged(
        f"a Parquet file cannot be read: {said}; `gristmill doctor --deep` finds what is damaged in a workspace, and "
        "--mend sets it aside, so that the next run makes it again"
    )


class EngineError(GristmillError, RuntimeError):
    """The Prefect API cannot be reached or started."""


class CollectionError(GristmillError, RuntimeError):
    """Too few rollouts could be collected to go on."""


class TrainingError(GristmillError, RuntimeError):
    """A trainer ended without a checkpoint."""
