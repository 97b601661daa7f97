"""A collection as a recipe describes it: which policy acts where, and so by which collector.

    environment        policy local       policy serve                  policy endpoint
    arithmetic, m:f    in this process    a server, OpenAI collector    OpenAI collector
    nemo-gym           refused            a server, and Gym on it       Gym as it runs

Servers are started for the collection and stopped after it. Unfinished work stays in the folder that the caller keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.collect import Counts, Progress, collect, each
from gristmill.collect.engine import Collector
from gristmill.collect.tasks import TaskFile
from gristmill.environment import GYM, verifier
from gristmill.errors import RecipeError
from gristmill.identity import digest
from gristmill.recipe import EnvironmentRecipe, PolicyRecipe, RequestsRecipe, SamplingRecipe


class Actor(NamedTuple):
    """The policy of one collection: its folder, what to call it in rows, and what it is by content."""

    folder: Path
    name: str
    identity: str


def check(policy: PolicyRecipe, environment: EnvironmentRecipe, *, trains: bool) -> None:
    """Whether policy and environment go together; before anything is started.

    Args:
        trains: whether trained policies will have to act too.

    Raises:
        RecipeError: they do not, or the environment is not known; says what would do.
    """
    if environment.name != GYM:
        verifier(environment.name)
    if policy.kind == "endpoint":
        if trains:
            raise RecipeError(
                "policy.kind: an endpoint cannot serve what is trained; use `serve` (or `local`) for the loop, or "
                "`gristmill collect` to collect only"
            )
        if policy.base_url is None and environment.name != GYM:
            raise RecipeError("policy.base_url: an endpoint needs one, such as http://127.0.0.1:8000/v1")
    if environment.name == GYM:
        if policy.kind == "local":
            raise RecipeError("policy.kind: NeMo Gym asks the policy over HTTP; use `serve`")
        if policy.kind == "serve" and not environment.start and policy.port == 0:
            raise RecipeError(
                "policy.port: running Gym servers need a policy at a fixed port; set it to theirs, or let them be "
                "started with environment.start"
            )


def run(
    environment: EnvironmentRecipe,
    policy: PolicyRecipe,
    actor: Actor,
    sampling: SamplingRecipe,
    requests: RequestsRecipe,
    *,
    tasks: Path,
    seed: int,
    out: Path,
    work: Path,
    positions: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Counts:
    """Collect into `out`.

    Args:
        work: folder for the servers' logs, and what local collection has finished.
        tasks: the task rows, JSONL.
        positions: those that are wanted; all of them by default.

    Raises:
        CollectionError, GateError: as `gristmill.collect.collect`.
        UsageError: the recipe asks for what is not there.
    """
    check(policy, environment, trains=False)
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    with TaskFile(tasks) as file:
        if policy.kind == "local":
            from gristmill.collect import local
            from gristmill.collect.journal import claim

            claim(
                out,
                {
                    "collector": "local",
                    "policy": {"model": actor.name, "identity": actor.identity},
                    "environment": environment.name,
                    "tasks": file.identity if positions is None else digest([file[i] for i in positions]),
                    "sampling": sampling.content(),
                    "seed": seed,
                },
            )
            return local.collect(
                [file[i] for i in (range(len(file)) if positions is None else positions)],
                verifier(environment.name),
                actor.folder,
                policy_name=actor.name,
                device=policy.device,
                sampling=sampling,
                seed=seed,
                journal=work,
                out=out,
                progress=progress and (lambda done, total: progress(done, total, "rollouts")),
            )
        wanted = range(len(file)) if positions is None else positions
        with _asking(environment, policy, actor, sampling, requests, file, wanted, seed, work, progress) as collector:
            return collect(
                collector,
                out,
                tasks=file.identity,
                count=len(file),
                wanted=each(wanted, sampling.samples),
                samples=sampling.samples,
                requests=requests,
                seed=seed,
                min_completion=sampling.min_completion,
                progress=progress,
            )


@contextmanager
def _asking(
    environment: EnvironmentRecipe,
    policy: PolicyRecipe,
    actor: Actor,
    sampling: SamplingRecipe,
    requests: RequestsRecipe,
    file: TaskFile,
    wanted: Sequence[int],
    seed: int,
    work: Path,
    progress: Progress | None,
) -> Iterator[Collector]:
    """The remote collector, with whatever servers it needs."""
    from gristmill.collect.gym import GymCollector, servers
    from gristmill.collect.openai import Endpoint, OpenAICollector
    from gristmill.collect.stack import attached, policy_behind, started
    from gristmill.serve import served

    say = progress or (lambda done, total, note: None)
    with ExitStack() as stack:
        who: dict[str, Any] = {"model": actor.name, "identity": actor.identity}
        endpoint: Endpoint | None = None
        starts_gym = bool(environment.start) and policy.kind == "serve"
        if environment.name == GYM and not starts_gym:
            servers(environment.head)  # before a policy is served for nothing
        if policy.kind == "serve":
            say(0, 0, "starting the policy's server")
            endpoint = stack.enter_context(
                served(actor.folder, policy, log=work / "serve.log", start_timeout=requests.start_timeout)
            )
        elif policy.base_url is not None:
            endpoint = Endpoint(policy.base_url, policy.served_name, policy.api, policy.api_key_env)
            who = {"model": policy.served_name, "base_url": policy.base_url}
        if environment.name != GYM:
            assert endpoint is not None  # `check`
            yield OpenAICollector(
                file.__getitem__,
                endpoint,
                verifier(environment.name),
                policy=who,
                environment=environment.name,
                sampling=sampling,
                seed=seed,
            )
            return
        if starts_gym:
            assert endpoint is not None
            say(0, 0, "starting Gym's servers")
            known = stack.enter_context(
                started(environment, endpoint, log=work / "gym.log", start_timeout=requests.start_timeout)
            )
        else:
            known = attached(environment, endpoint)
            if endpoint is None:
                who = policy_behind(environment)
        collector = GymCollector(
            file.__getitem__, known, agent=environment.agent, policy=who, sampling=sampling, seed=seed
        )
        collector.check(wanted)
        yield collector
