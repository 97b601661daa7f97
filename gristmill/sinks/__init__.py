"""Sinks: where a run is told of besides its workspace, such as MLflow. All optional; none can fail or change a run.

Built-in sinks are one module each. A package of yours adds one with an entry point, which a recipe then turns on by
`sinks.other.mine: {…}`:

    [project.entry-points."gristmill.sinks"]
    mine = "my_package.sink:MySink"          # called with (settings, workspace), gives a `Sink`

docs/sinks.md says what each is told, and how delivery works.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from gristmill.errors import RecipeError
from gristmill.recipe import SinksRecipe

if TYPE_CHECKING:
    from gristmill.sinks.events import Event
    from gristmill.workspace import Workspace

GROUP = "gristmill.sinks"


class Sink(Protocol):
    """Receives events, in order, in one thread."""

    def send(self, event: Event) -> None:
        """Tell of an event. Whatever is raised means: not told, ask again later. The same event may come twice."""

    def close(self) -> None:
        """Nothing more comes for now."""


class _BuiltIn(NamedTuple):
    target: str
    needs: str  # the module of its extra
    extra: str


_BUILT_IN = {
    "mlflow": _BuiltIn("gristmill.sinks.mlflow:MlflowSink", "mlflow", "mlflow"),
    "trackio": _BuiltIn("gristmill.sinks.trackio:TrackioSink", "trackio", "trackio"),
    "openlineage": _BuiltIn("gristmill.sinks.openlineage:OpenLineageSink", "openlineage.client", "openlineage"),
    "hub": _BuiltIn("gristmill.sinks.hub:HubSink", "huggingface_hub", "hub"),
    "webhook": _BuiltIn("gristmill.sinks.webhook:WebhookSink", "httpx", ""),  # httpx is always there
}


def configured(recipe: SinksRecipe) -> tuple[str, ...]:
    """Names of the sinks that are on."""
    return (*(name for name in _BUILT_IN if getattr(recipe, name) is not None), *sorted(recipe.other))


def check(recipe: SinksRecipe) -> None:
    """Refuse, before anything is spent, a sink that could not be opened here.

    Raises:
        RecipeError: no such sink, or its package is not installed.
    """
    for name in configured(recipe):
        if name in _BUILT_IN and name not in recipe.other:
            built_in = _BUILT_IN[name]
            if not _installed(built_in.needs):
                raise RecipeError(
                    f"sinks.{name} needs the package {built_in.needs.partition('.')[0]}, which is not installed; "
                    f"install gristmill[{built_in.extra}], or set sinks.{name}=null"
                )
        else:
            _foreign(name)


def open_sink(name: str, recipe: SinksRecipe, workspace: Workspace) -> Sink:
    """A sink that is on.

    Raises:
        RecipeError: as `check`; and whatever its library raises.
    """
    if name in recipe.other:
        return _foreign(name)(recipe.other[name], workspace)
    module, _, attribute = _BUILT_IN[name].target.partition(":")
    sink: Sink = getattr(import_module(module), attribute)(getattr(recipe, name), workspace)
    return sink


def _foreign(name: str) -> Callable[[dict[str, Any], Workspace], Sink]:
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        known = [*_BUILT_IN, *sorted(points)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise RecipeError(f"sinks.other: no installed package offers a sink {name}; {hint}there are {', '.join(known)}")
    found: Callable[[dict[str, Any], Workspace], Sink] = points[name].load()
    return found


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
