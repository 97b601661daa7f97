"""Ray: the shards of a stage as Prefect tasks on a cluster, by Prefect's own Ray task runner (extra `ray`).

Every node has the same Gristmill and sees the workspace at the same path; both are looked at before anything is sent.
A shard whose process or node dies is run again elsewhere by Ray, up to three times: shards are short, and write their
files whole or not at all (gristmill/fleet.py), so nothing else needs to know. What a stage computes does not depend on
where it ran.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from prefect import task
from prefect.cache_policies import NO_CACHE

from gristmill.errors import EngineError, GristmillError, RecipeError
from gristmill.fleet import Running, resolve, sent_to
from gristmill.recipe import ExecutionRecipe
from gristmill.workspace import Workspace

if TYPE_CHECKING:
    from prefect_ray import RayTaskRunner
    from prefect_ray.task_runners import PrefectRayFuture

_ANSWER = 10.0  # seconds
_LOOK = 5.0  # seconds between looks at the cluster's size
# Of the processes that run shards: as the command line sets them for its own.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "PYTHONWARNINGS": "ignore",
}


@contextlib.contextmanager
def executing(recipe: ExecutionRecipe, workspace: Workspace) -> Iterator[None]:
    """In this block, shards run where the recipe says.

    Raises:
        RecipeError: Ray is not installed, or no cluster is at the address.
        EngineError: a node has another Gristmill, or does not see the workspace.
    """
    if recipe.kind == "local":
        yield
        return
    # Ray's usage reports, and its wish to install this project on every node by `uv run`.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        from prefect_ray import RayTaskRunner
    except ImportError as error:
        raise RecipeError(
            f"execution: ray needs Ray ({error}); install it with `pip install 'gristmill[ray]'`, or set it to local"
        ) from None
    _require_answer(recipe.address or os.environ.get("RAY_ADDRESS"))
    settings = {"log_to_driver": False, "logging_level": "ERROR", "runtime_env": {"env_vars": _QUIET}}
    with contextlib.ExitStack() as stack:
        try:
            runner = stack.enter_context(RayTaskRunner(address=recipe.address, init_kwargs=settings))
        except (OSError, RuntimeError, ValueError) as error:
            said = str(error).strip().splitlines()[-1]
            where = recipe.address or "its default address"
            raise RecipeError(f"execution: Ray cannot be used at {where}: {said} (docs/deploy-ray.md)") from error
        _require_same(workspace)
        stack.enter_context(sent_to(_Ray(runner, recipe)))
        yield


def _require_answer(address: str | None) -> None:
    """Look whether anybody listens: Ray itself would try for minutes.

    Raises:
        RecipeError: nobody does, or it is no address.
    """
    if address in (None, "", "auto", "local"):
        return
    where = urlsplit(address if "://" in address else f"ray://{address}")
    try:
        if not where.hostname or not where.port:
            raise OSError("it is not of the form host:port")
        socket.create_connection((where.hostname, where.port), timeout=_ANSWER).close()
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"execution.address: no Ray cluster answers at {address} ({error}); `ray start --head` starts one "
            "here, and `ray status` says where one is"
        ) from error


class _Parcel:
    """Something that Prefect must not look into, as it does into whatever is a collection."""

    def __init__(self, content: Any) -> None:
        self.content = content


@task(name="shard", cache_policy=NO_CACHE, persist_result=False)
def shard(work: _Parcel) -> _Parcel:
    """A function's name and a job in, the result out."""
    function, job = work.content
    return _Parcel(resolve(function)(job))


class _Ray:
    """A cluster as `gristmill.fleet.Fleet`."""

    def __init__(self, runner: RayTaskRunner[Any], recipe: ExecutionRecipe) -> None:
        self.runner = runner
        self.recipe = recipe
        self._looked = float("-inf")
        self._sizes = [1]

    @property
    def width(self) -> int:
        return sum(self._processors())

    def _processors(self) -> list[int]:
        """Of each node; clusters grow and shrink, and asking takes a moment."""
        if time.monotonic() - self._looked > _LOOK:
            self._sizes = [_processors(node) for node in _nodes()] or [1]
            self._looked = time.monotonic()
        return self._sizes

    def submit(self, function: str, job: Any, *, threads: int = 1, generates: bool = False) -> Running:
        from prefect_ray.context import remote_options

        # a shard that asked for more than the largest node has would wait for ever
        asked: dict[str, Any] = {"num_cpus": min(threads, max(self._processors()))}
        if generates and self.recipe.gpus:
            asked["num_gpus"] = self.recipe.gpus
        with remote_options(**asked):
            future = self.runner.submit(shard, {"work": _Parcel((function, job))})
        return _Shard(future, function)


class _Shard(NamedTuple):
    """A shard that was submitted."""

    future: PrefectRayFuture[_Parcel]
    function: str

    def result(self) -> Any:
        import ray

        try:
            return self.future.result().content
        except ray.exceptions.RayTaskError as error:
            raise EngineError(
                f"a node of the Ray cluster cannot run a shard ({_said(error)}); install the same Gristmill "
                f"({version('gristmill')}), with its extras, on all nodes"
            ) from error
        except ray.exceptions.RayError as error:
            raise GristmillError(
                f"the Ray cluster lost a shard ({self.function}) each time that it was tried: {type(error).__name__}, "
                "most likely for want of memory; give its nodes more memory, or fewer processors, and run again"
            ) from error

    def cancel(self) -> None:
        import ray

        ray.cancel(self.future.wrapped_future, force=True)


def _said(error: Exception) -> str:
    """The first line of what went wrong there."""
    cause = getattr(error, "cause", None) or error
    return (str(cause).strip() or type(cause).__name__).splitlines()[0]


def _nodes() -> list[dict[str, Any]]:
    """The living nodes that run shards: a head is often told to run none."""
    import ray

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in found if node["Alive"] and _processors(node)]


def _processors(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("CPU", 0))


def _require_same(workspace: Workspace) -> None:
    """Look at every node that could run a shard.

    Raises:
        EngineError: it has another Gristmill, or does not see the workspace's files.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ours = version("gristmill")
    mark = workspace.root / f".seen-by-{os.getpid()}"
    mark.touch()
    try:
        found = [
            (
                node["NodeManagerAddress"],
                ray.remote(_look)
                .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
                .remote(str(mark)),
            )
            for node in _nodes()
        ]
        if not found:
            raise EngineError("the Ray cluster has no node with a processor for shards; add one, and run again")
        for address, reference in found:
            try:
                theirs, sees = ray.get(reference)
            except ray.exceptions.RayError as error:
                raise EngineError(f"node {address} of the Ray cluster cannot run Gristmill: {_said(error)}") from error
            if theirs != ours:
                raise EngineError(
                    f"node {address} of the Ray cluster has Gristmill {theirs}, and this is {ours}; install the same "
                    "version on all nodes"
                )
            if not sees:
                raise EngineError(
                    f"node {address} of the Ray cluster does not see the workspace at {workspace.root}; put it on a "
                    "volume that all nodes mount at the same path (docs/deploy-ray.md)"
                )
    finally:
        mark.unlink()


def _look(mark: str) -> tuple[str, bool]:
    return version("gristmill"), Path(mark).exists()
