"""Gristmill: agent rollouts become better models, with proof. The library; it knows nothing of Prefect.

What stands here is the public surface. A name is loaded when it is first used, so `import gristmill` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gristmill.artifact import ArtifactRef as ArtifactRef
    from gristmill.artifact import Manifest as Manifest
    from gristmill.chat import Conversation as Conversation
    from gristmill.chat import Unrepresentable as Unrepresentable
    from gristmill.chat import convert as convert
    from gristmill.errors import GristmillError as GristmillError
    from gristmill.evaluation import Evaluation as Evaluation
    from gristmill.evaluation import lift as lift
    from gristmill.ingest import IngestResult as IngestResult
    from gristmill.promotion import Decision as Decision
    from gristmill.promotion import Verdict as Verdict
    from gristmill.promotion import decide as decide
    from gristmill.reasons import DropReason as DropReason
    from gristmill.recipe import Recipe as Recipe
    from gristmill.statistics import Estimate as Estimate
    from gristmill.statistics import mean_reward as mean_reward
    from gristmill.statistics import paired_difference as paired_difference
    from gristmill.store import Store as Store
    from gristmill.workspace import Workspace as Workspace

_MODULE_OF = {
    "ArtifactRef": "artifact",
    "Conversation": "chat",
    "Decision": "promotion",
    "DropReason": "reasons",
    "Estimate": "statistics",
    "Evaluation": "evaluation",
    "GristmillError": "errors",
    "IngestResult": "ingest",
    "Manifest": "artifact",
    "Recipe": "recipe",
    "Store": "store",
    "Unrepresentable": "chat",
    "Verdict": "promotion",
    "Workspace": "workspace",
    "convert": "chat",
    "decide": "promotion",
    "lift": "evaluation",
    "mean_reward": "statistics",
    "paired_difference": "statistics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'gristmill' has no attribute {name!r}")
    return getattr(import_module(f"gristmill.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_MODULE_OF)
