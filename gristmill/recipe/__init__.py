"""The recipe: the whole configuration of a run, as one YAML file and one Pydantic model.

Every field is documented once, in its section; the text serves the command line, the JSON schema and Prefect's form. A
key that is not here is an error. Overrides are dotted: `train.epochs=1`. Secrets never stand in a recipe.
"""

from __future__ import annotations

from gristmill.recipe.collecting import CollectRecipe, EnvironmentRecipe, PolicyRecipe, RequestsRecipe, SamplingRecipe
from gristmill.recipe.data import BalanceRecipe, ChecksRecipe, CurateRecipe, FormatRecipe, PairsRecipe, ReviewRecipe
from gristmill.recipe.evidence import EvaluateRecipe, PromoteRecipe, StopRecipe
from gristmill.recipe.reading import build, documented, load, with_overrides
from gristmill.recipe.running import (
    ExecutionRecipe,
    HubSinkRecipe,
    MlflowSinkRecipe,
    OpenLineageSinkRecipe,
    SinksRecipe,
    TrackioSinkRecipe,
    WebhookSinkRecipe,
)
from gristmill.recipe.section import Section
from gristmill.recipe.training import LaunchRecipe, TrainRecipe
from gristmill.recipe.whole import COMPARING, Recipe

__all__ = [
    "COMPARING",
    "BalanceRecipe",
    "ChecksRecipe",
    "CollectRecipe",
    "CurateRecipe",
    "EnvironmentRecipe",
    "EvaluateRecipe",
    "ExecutionRecipe",
    "FormatRecipe",
    "HubSinkRecipe",
    "LaunchRecipe",
    "MlflowSinkRecipe",
    "OpenLineageSinkRecipe",
    "PairsRecipe",
    "PolicyRecipe",
    "PromoteRecipe",
    "Recipe",
    "RequestsRecipe",
    "ReviewRecipe",
    "SamplingRecipe",
    "Section",
    "SinksRecipe",
    "StopRecipe",
    "TrackioSinkRecipe",
    "TrainRecipe",
    "WebhookSinkRecipe",
    "build",
    "documented",
    "load",
    "with_overrides",
]
