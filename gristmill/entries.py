"""What a line of each of the workspace's growing files must be.

Whoever reads such a file is told, with file and number, of a line that damage made into something else, before
anything is done with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

# By name, and imported late, because all of these read by way of the workspace.
_MODELS = {
    "arrivals.jsonl": "gristmill.arrivals:Arrival",
    "champions.jsonl": "gristmill.champions:Champion",
    "journal.jsonl": "gristmill.runs:Production",
    "names.jsonl": "gristmill.names:Named",
    "runs.jsonl": "gristmill.runs:Ended",
    "sinks/workspace.jsonl": "gristmill.entries:Identity",
    "taints.jsonl": "gristmill.taints:Taint",
    "versions.jsonl": "gristmill.versions:Version",
}


class Identity(BaseModel):
    """Of the workspace, as its sinks know it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str


def problem(name: str, value: Any) -> str | None:
    """What is wrong with a line of the file `name` (relative to the workspace); None if nothing is, or no file is
    called so."""
    if not isinstance(value, dict):
        return "no JSON object"
    model = _model(name, value)
    if model is None:
        return None
    try:
        model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc'])) or 'the line'}: {first['msg'].lower()}"
    return None


def _model(name: str, value: dict[str, Any]) -> type[BaseModel] | None:
    place = _MODELS.get(name)
    if name == "champions.jsonl" and "rolled_back" in value:
        place = "gristmill.champions:Rollback"
    elif name == "runs.jsonl" and value.get("event") == "start":
        place = "gristmill.runs:Started"
    elif name == "journal.jsonl" and "stage" not in value:
        place = None  # a note that no stage made
    elif name.startswith("reviews/"):
        place = "gristmill.decisions:ReviewDecision"
    elif place is None and name.startswith("sinks/"):
        place = "gristmill.sinks.delivery:Standing"
    if place is None:
        return None
    module, _, attribute = place.partition(":")
    model: type[BaseModel] = getattr(import_module(module), attribute)
    return model
