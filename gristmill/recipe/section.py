"""The base of all sections."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """Base of all recipe sections: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shorthand: ClassVar[str | None] = None
    """The field that text in the section's place stands for, as in `execution: ray`."""

    @model_validator(mode="before")
    @classmethod
    def _longhand(cls, value: Any) -> Any:
        return {cls.shorthand: value} if cls.shorthand and isinstance(value, str) else value
