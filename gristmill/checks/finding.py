"""What a check says: severity, message, the numbers it rests on, and the settings that would mend it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Severity = Literal["error", "warning", "note"]


class Remedy(BaseModel):
    """One setting to change, and what the change would do, computed beforehand."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    setting: str = Field(description="Dotted recipe field, such as curate.min_reward.")
    old: float | int | bool | str | None
    new: float | int | bool | str | None
    effect: str = Field(description="What it would do, such as `would choose 118`.")
    rows: float | None = Field(None, description="The number in the effect, for programs.")

    def __str__(self) -> str:
        return f"{self.setting}: {_shown(self.old)} → {_shown(self.new)} {self.effect}"


class Finding(BaseModel):
    """One result of one check that has something to say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    title: str
    severity: Severity
    message: str
    evidence: dict[str, float | int | str] = {}
    remedies: tuple[Remedy, ...] = ()
    where: tuple[str, ...] = Field((), description="Some of the rows, as `file:line` or with what they say.")

    @property
    def anchor(self) -> str:
        """Where the documentation explains the check."""
        return f"docs/checks.md#{self.id.lower()}"

    @property
    def sentence(self) -> str:
        """Message and remedies on one line."""
        return ". ".join([f"{self.id} {self.message}", *(f"{remedy}" for remedy in self.remedies)])


def _shown(value: float | int | bool | str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
