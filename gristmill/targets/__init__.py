"""Targets: the training frameworks that an export can be for, by name.

Built-in targets are one module each. A package of yours adds one with an entry point:

    [project.entry-points."gristmill.targets"]
    mine = "my_package.target:TARGET"        # an object with the attributes of `Target`

docs/targets.md says what each format holds, what it cannot hold, and with which version that was verified.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from gristmill.errors import UsageError
from gristmill.targets.protocol import Export, Launch, Row, Target

__all__ = ["BUILT_IN", "GROUP", "Export", "Launch", "Row", "Target", "get", "names"]

GROUP = "gristmill.targets"

# Also declared in pyproject.toml, like anybody's; here so that a source tree works without being installed.
BUILT_IN = {
    "axolotl": "gristmill.targets.axolotl:AXOLOTL",
    "gym": "gristmill.targets.gym:GYM",
    "llamafactory": "gristmill.targets.llamafactory:LLAMAFACTORY",
    "nemo-rl": "gristmill.targets.nemo_rl:NEMO_RL",
    "openrlhf": "gristmill.targets.openrlhf:OPENRLHF",
    "trl": "gristmill.targets.trl:PARQUET",
    "trl-jsonl": "gristmill.targets.trl:JSONL",
    "unsloth": "gristmill.targets.unsloth:UNSLOTH",
    "verl": "gristmill.targets.verl:VERL",
}


def names() -> list[str]:
    """Every target's name, sorted."""
    return sorted({*BUILT_IN, *(point.name for point in _foreign())})


def get(name: str) -> Target:
    """The target of that name.

    Raises:
        UsageError: no target has it, two packages offer it, or what a package offers is no target.
    """
    foreign = [point for point in _foreign() if point.name == name]
    if len(foreign) + (name in BUILT_IN) > 1:
        offers = ", ".join(sorted(point.value for point in foreign))
        raise UsageError(f"target {name!r} is offered more than once ({offers}); uninstall all but one")
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        found = getattr(import_module(module), attribute)
    elif foreign:
        found = foreign[0].load()
    else:
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"no target is called {name!r}; {hint}there are: {', '.join(names())}")
    if not isinstance(found, Target):
        wanted = "name, methods, suffix, single_message, row, write, finish"
        raise UsageError(f"target {name!r} ({foreign[0].value}) is a {type(found).__name__} without all of: {wanted}")
    return found


def _foreign() -> list[EntryPoint]:
    return [point for point in entry_points(group=GROUP) if BUILT_IN.get(point.name) != point.value]
