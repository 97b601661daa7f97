"""Histograms: what a page draws, the terminal prints and `--json` says of how numbers are distributed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import numpy as np


class Histogram(BaseModel):
    """Counts between edges: bin i holds edges[i] ≤ x < edges[i + 1]; the last holds its upper edge too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    edges: tuple[float, ...] = Field(min_length=2)
    counts: tuple[Annotated[int, Field(ge=0)], ...]

    @model_validator(mode="after")
    def _fits(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"expected one edge more than counts, found {len(self.edges)}, {len(self.counts)}")
        if any(a >= b for a, b in pairwise(self.edges)):
            raise ValueError("expected rising edges")
        return self


def histogram(
    values: Sequence[float] | np.ndarray, bins: int = 10, *, low: float | None = None, high: float | None = None
) -> Histogram:
    """Equal bins with round edges that enclose all `values` (and `low`, `high` where given); of none, 0 to 1.

    `bins` is about how many. No value is left out: the counts sum to the number of values.

    Raises:
        ValueError: a value is not finite.
    """
    import numpy as np

    from gristmill.charts import nice_ticks

    data = np.asarray(values, float)
    ends = [float(end) for end in (*((data.min(), data.max()) if len(data) else ()), low, high) if end is not None]
    edges = nice_ticks(min(ends, default=0.0), max(ends, default=1.0), bins + 1)
    # a round edge may lie within a rounding error inside of the outermost value, which belongs to the outermost bin
    at = np.clip(np.searchsorted(edges, data, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(at, minlength=len(edges) - 1)
    return Histogram(edges=edges, counts=tuple(counts.tolist()))
