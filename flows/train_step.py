"""Flow: one training in another work pool, for instance one with GPUs; and the train stage that runs it there.

With `train.deployment: train-step/gpu` in the recipe, the loop's train stage starts that deployment and waits. Both
sides see the same workspace. What crosses between them is references: digests in the parameters, and the digest of the
checkpoint in the message of the run's final state.

The child's idempotency key comes from the stage's content key, so a loop that was killed and starts again finds the
training that is still running, instead of starting a second one. A training that failed is started anew, and goes on
from its last checkpoint. The parent holds the workspace's lock meanwhile; the child needs none, since it writes nothing
but its own work folder and one artifact.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import time
from typing import Any, cast
from uuid import UUID

import httpx
from prefect import State, flow, runtime
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelling, Completed
from prefect.utilities.callables import get_call_parameters
from pydantic_core import to_jsonable_python

from gristmill import progress
from gristmill.artifact import ArtifactRef
from gristmill.errors import EngineError, TrainingError
from gristmill.example import Method
from gristmill.identity import digest
from gristmill.recipe import Recipe, TrainRecipe
from gristmill.workspace import Workspace
from tasks.caching import ContentKey, run, step
from tasks.train import train_policy

_POLL = 5.0  # seconds between looks at the child
_PATIENCE = 1800.0  # seconds that the server may be away meanwhile: the training does not need it


@flow(name="train-step", flow_run_name="train-{settings.trainer}-{method}")
def train_step(
    dataset: ArtifactRef,
    base: ArtifactRef,
    settings: TrainRecipe,
    workspace: str,
    reference: ArtifactRef | None = None,
    method: Method = "sft",
    seed: int = 0,
) -> State[Any]:
    """Train `base` on `dataset`, both in the workspace; the checkpoint goes there too.

    Args:
        dataset: rows in the trainer's format.
        base: the model to start from.
        settings: the recipe's `train`.
        workspace: folder or URL, as this machine sees it.
        reference: dpo, kto: the frozen model that holds the policy; none takes `base`.
        method: what to train by.
        seed: of the training.
    """
    place = Workspace(workspace)
    with place.entered():
        here = train_policy.with_options(result_storage=place.results, task_run_name="train")
        made = here(dataset=dataset, base=base, reference=reference, settings=settings, method=method, seed=seed)
    return Completed(message=f"{made.kind}:{made.digest}")


def train(recipe: Recipe, turn: int, /, **inputs: Any) -> ArtifactRef:
    """The train stage of a turn: in this process, or by the recipe's deployment.

    Args:
        inputs: those of `train_policy`.

    Raises:
        TrainingError: the training failed, here or there.
        EngineError: the deployment is not there, or does not see the same workspace.
    """
    if recipe.train.deployment is None:
        return run(train_policy, turn, "train", **inputs)
    return run(_by(recipe.train.deployment), turn, "train", **inputs)


def _by(deployment: str) -> Any:
    """`train_policy` with another body and the same key: where a policy is trained changes nothing about it."""
    policy = train_policy.cache_policy
    assert isinstance(policy, ContentKey)

    @step("train")
    @functools.wraps(train_policy.fn)
    def elsewhere(*args: Any, **kwargs: Any) -> ArtifactRef:
        inputs = get_call_parameters(train_policy.fn, args, kwargs)
        return _run_there(deployment, policy.key(train_policy.name, inputs), inputs)

    return elsewhere.with_options(cache_policy=policy)


def _run_there(deployment: str, key: str, inputs: dict[str, Any]) -> ArtifactRef:
    workspace = Workspace.current()
    # Two workspaces on one server may ask for the same content.
    name = f"{key}:{digest(workspace.location)[:12]}"
    child = _wait(_latest(deployment, name, inputs, workspace), deployment)
    state = child.state
    if state is None or not state.is_completed():
        words = "" if state is None else f" as {state.name}: {state.message or 'no message'}"
        raise TrainingError(
            f"the training by {deployment}, flow run {child.name}, ended{words}. Run again: it goes on from its last "
            "checkpoint"
        )
    made = _made(child)
    if made is None or not workspace.store.exists(made):
        raise EngineError(
            f"{deployment} ended with {state.message!r}, which is not in {workspace.location}: its worker must see the "
            "same workspace under the same name"
        )
    return made


def _latest(deployment: str, name: str, inputs: dict[str, Any], workspace: Workspace) -> FlowRun:
    """The run of the latest attempt that is not over, or whose checkpoint is there; else of a new attempt."""
    for attempt in itertools.count(1):
        child = _find(f"{name}:{attempt}")
        if child is None:
            return _start(deployment, f"{name}:{attempt}", inputs, workspace)
        if not _final(child) or ((made := _made(child)) and workspace.store.exists(made)):
            return child
    raise AssertionError("unreachable")


def _find(key: str) -> FlowRun | None:
    with get_client(sync_client=True) as client:
        wanted = FlowRunFilter.model_validate({"idempotency_key": {"any_": [key]}})
        found = client.read_flow_runs(flow_run_filter=wanted, limit=1)
    return found[0] if found else None


def _start(deployment: str, key: str, inputs: dict[str, Any], workspace: Workspace) -> FlowRun:
    parameters = {**to_jsonable_python(inputs), "workspace": workspace.location}
    try:
        # Typed for callers with and without an event loop; here there is none.
        return cast(FlowRun, run_deployment(deployment, parameters=parameters, idempotency_key=key, timeout=0))
    except ObjectNotFound:
        raise EngineError(
            f"there is no deployment {deployment}, which the recipe's train.deployment names; `gristmill deploy` makes "
            "train-step/gpu, and `prefect deployment ls` lists what is there"
        ) from None


def _wait(child: FlowRun, deployment: str) -> FlowRun:
    """Until the child has ended; a server that is away for a while ends nothing."""
    answered = time.monotonic()
    try:
        while not _final(child):
            # The name of a state says why it waits: Scheduled or Late (no worker is free), Pending, Running.
            progress.advance(0, 0, f"{deployment}: {child.state.name if child.state else 'unknown'}")
            time.sleep(_POLL)
            try:
                with get_client(sync_client=True) as client:
                    child = client.read_flow_run(child.id)
                answered = time.monotonic()
            except (httpx.TransportError, PrefectHTTPStatusError) as error:
                if time.monotonic() - answered > _PATIENCE:
                    raise EngineError(
                        f"the Prefect server has not answered for {_PATIENCE / 60:.0f} minutes ({error}); the training "
                        "goes on, and the same command finds it again"
                    ) from error
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or _cancelled():
            _cancel(child)
        raise
    return child


def _final(child: FlowRun) -> bool:
    return child.state is not None and child.state.is_final()


def _made(child: FlowRun) -> ArtifactRef | None:
    """The checkpoint, from the final state's message."""
    found = re.fullmatch(r"checkpoint:([0-9a-f]{64})", (child.state.message if child.state else None) or "")
    return ArtifactRef(kind="checkpoint", digest=found[1]) if found else None


def _cancelled() -> bool:
    """Whether somebody cancelled the run that waits: then its training is not wanted any more.

    A process that is ended for another reason (a node is drained) leaves the training alone, and finds it again.
    """
    root = runtime.flow_run.root_flow_run_id
    if not root:
        return False
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(str(root))).state
    except (httpx.TransportError, PrefectHTTPStatusError):
        return False
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _cancel(child: FlowRun) -> None:
    # The server is away: what waits ends all the same, and the server's own clean-up ends the child later.
    with contextlib.suppress(httpx.TransportError, PrefectHTTPStatusError), get_client(sync_client=True) as client:
        client.set_flow_run_state(child.id, Cancelling(message="The loop that wanted it was ended."))
