"""Datasets: chosen rollouts written in a framework's format, and the way back from each row to its rollouts.

Writing is loaded when it is first used: whoever only asks where a row comes from is quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gristmill.dataset.provenance import PROVENANCE, Source, provenance, rows_of

if TYPE_CHECKING:
    from gristmill.dataset.writing import check, write_dataset

__all__ = ["PROVENANCE", "Source", "check", "provenance", "rows_of", "write_dataset"]


def __getattr__(name: str) -> Any:
    if name not in ("check", "write_dataset"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gristmill.dataset import writing

    return getattr(writing, name)
