"""The unit of an environment's rewards, so that gaps and qualities mean the same for 0..1 and for -100..19.

An environment is an agent, or a file where no agent is named; rewards of two environments have nothing in common.
Rewards that lie within 0 to 1 keep that as their range, whatever part of it occurs; others have the range observed
over all usable rollouts.
"""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    """The range of an environment's rewards, or of one of its metrics."""

    low: float
    high: float
    binary: bool = False
    """Only 0 and 1 occur."""

    @property
    def unit(self) -> float:
        """What a difference of 1 in quality is worth; 0 if there is but one value outside 0..1."""
        return self.high - self.low

    @property
    def solved_at(self) -> float:
        """From which value on a rollout counts as good: 1 if only 0 and 1 occur, else the middle of the range."""
        return 1.0 if self.binary else (self.low + self.high) / 2

    def quality(self, value: float) -> float | None:
        """The value's place in the range, 0 to 1; None where all values are one and outside 0..1."""
        return (value - self.low) / self.unit if self.unit else None


UNSCALED = Scale(0.0, 1.0)
"""Of what has no usable rollout."""


def scale(low: float, high: float, binary: bool = False) -> Scale:
    """The scale of values by the least, the greatest, and whether only 0 and 1 occur."""
    return Scale(0.0, 1.0, binary) if low >= 0 and high <= 1 else Scale(low, high)
