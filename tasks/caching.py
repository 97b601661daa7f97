"""Prefect caching for Gristmill's stages: keyed by content, and never a ghost.

A key is the sha256 of task name, step version and canonical inputs. Inputs are artifact references (which name
content) and recipe sections, so the same work is found again from any process, folder or run. A cached record
counts only while the artifacts that it names are in the workspace: `RefSerializer` refuses others on reading,
which Prefect takes for a miss (facts: `ResultStore._exists` swallows the error and reports no record).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec

from prefect import State, Task, task
from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.serializers import JSONSerializer
from prefect.utilities.callables import get_call_parameters
from pydantic import BaseModel

from gristmill import progress, runs, versions
from gristmill.artifact import ArtifactRef, summary
from gristmill.identity import digest
from gristmill.stages import VERSIONS
from gristmill.store import step_version
from gristmill.workspace import Workspace

P = ParamSpec("P")


@dataclass
class ContentKey(CachePolicy):
    """Task name + explicit step version + canonical inputs. The version is raised when a step's logic changes."""

    version: str = "1"

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        return self.key(task_ctx.task.name, inputs)

    def key(self, name: str, inputs: dict[str, Any]) -> str:
        """The key of a task of that name on all its inputs."""
        return key_of(name, self.version, inputs)


def key_of(name: str, version: str, inputs: dict[str, Any]) -> str:
    """`<task>-<digest>`: a readable file name in the results folder.

    Raises:
        TypeError: an input that has no canonical JSON; without this the task would silently run uncached.
    """
    return f"{name}-{digest({'task': name, 'version': version, 'inputs': _plain(inputs)})}"


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"a {type(value).__name__} cannot be a cached task's input; pass an ArtifactRef or a recipe section"
    )


class RefSerializer(JSONSerializer):
    """JSON results whose artifact references must be intact when they are read back."""

    type: str = "gristmill-refs"

    def loads(self, blob: bytes) -> Any:
        value = super().loads(blob)
        store = Workspace.current().store
        for ref in refs_in(value):
            if not store.exists(ref):
                raise LookupError(f"{ref} is gone or damaged")
        return value


def refs_in(value: Any) -> Iterator[ArtifactRef]:
    """Every reference inside a result."""
    if isinstance(value, ArtifactRef):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from refs_in(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs_in(item)


def step(name: str) -> Callable[[Callable[P, ArtifactRef]], Task[P, ArtifactRef]]:
    """Decorator: a cached Prefect task that takes references and settings and returns a reference.

    The version of its logic, which is part of the key and stands in the manifests, is that of gristmill/stages.py.
    """
    version = VERSIONS.get(name, "1")

    def decorate(function: Callable[P, ArtifactRef]) -> Task[P, ArtifactRef]:
        @functools.wraps(function)
        def versioned(*args: P.args, **kwargs: P.kwargs) -> ArtifactRef:
            with step_version(version):
                return function(*args, **kwargs)

        return task(
            name=name,
            cache_policy=ContentKey(version=version),
            persist_result=True,
            result_serializer=RefSerializer(),
            cache_result_in_memory=False,
        )(versioned)

    return decorate


def run(step: Task[..., ArtifactRef], turn: int, label: str, /, **inputs: Any) -> ArtifactRef:
    """Call a step from a flow: results go to the current workspace, and whoever watches is told.

    Raises:
        Whatever the step raised; a step never returns a failed state.
    """
    workspace = Workspace.current()
    recording = runs.current()
    # Prefect only logs a key that cannot be computed, and runs uncached; here it is an error.
    key = _key(step, inputs)
    workspace.require_lock()
    with progress.stage(turn, label):
        progress.emit("running")
        began = time.monotonic()
        bound = step.with_options(result_storage=workspace.results, task_run_name=f"{label}-{turn}")
        if recording is not None and recording.refreshes(turn, label):
            bound = bound.with_options(refresh_cache=True)
        state: State[ArtifactRef] = bound(**inputs, return_state=True)
        if not state.is_completed():
            progress.emit("failed")
        result = state.result()  # raises what the step raised
        cached = state.name == "Cached"
        progress.emit("cached" if cached else "done", note=summary(workspace.store.manifest(result)))
        workspace.require_lock()
        workspace.record(
            {
                **({"run": recording.number} if recording else {}),
                "turn": turn,
                "stage": label,
                "task": step.name,
                "version": getattr(step.cache_policy, "version", None),
                "key": key,
                "inputs": sorted({str(ref) for value in inputs.values() for ref in refs_in(value)}),
                "cached": cached,
                "result": str(result),
                "seconds": round(time.monotonic() - began, 3),
            }
        )
        versions.assign(workspace, result)
        return result


def _key(step: Task[..., ArtifactRef], inputs: dict[str, Any]) -> str:
    """The name of the step's result record, as Prefect will compute it: with the defaults of what is not given."""
    every = get_call_parameters(step.fn, (), inputs)
    policy = step.cache_policy
    if not isinstance(policy, ContentKey):
        return key_of(step.name, "", every)
    return policy.key(step.name, every)
