"""Datasets: chosen rollouts written in a framework's format, and the way back from each row to its rollouts."""

from gristmill.dataset.provenance import PROVENANCE, Source, provenance, rows_of
from gristmill.dataset.writing import check, write_dataset

__all__ = ["PROVENANCE", "Source", "check", "provenance", "rows_of", "write_dataset"]
