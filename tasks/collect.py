"""Steps: the base policy, task sets, and rollouts of a policy on a task set."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from typing import Any

import orjson

from gristmill import model, progress
from gristmill.artifact import ArtifactRef
from gristmill.collect import run as collecting
from gristmill.curriculum import Rest, identity, read_round, resting
from gristmill.environment import TASKS, Split
from gristmill.environment import make_tasks as tasks_of
from gristmill.recipe import EnvironmentRecipe, PolicyRecipe, RequestsRecipe, SamplingRecipe
from gristmill.workspace import Workspace
from tasks.caching import ContentKey, key_of, step


@dataclass
class _WhatIsCollected(ContentKey):
    """Keyed by what rollouts depend on, and not by how they are asked for."""

    def key(self, name: str, inputs: dict[str, Any]) -> str:
        return super().key(name, content(**inputs))


@step("base-policy")
def base_policy(model_name: str, identity: str) -> ArtifactRef:
    """The base model as a checkpoint that points to its weights; an embedded one is unpacked on first use."""
    store = Workspace.current().store
    ref = model.register(store, model_name, identity)
    model.folder(store, ref, lambda done, total: progress.advance(done, total, "unpacking weights"))
    return ref


@step("make-tasks")
def make_tasks(
    environment: EnvironmentRecipe,
    source: str | None,
    seed: int,
    split: Split,
    turn: int,
    earlier: list[ArtifactRef],
    champion: ArtifactRef | None,
) -> ArtifactRef:
    """Task rows in Gym's format, disjoint between splits and turns; `source` is the content of its task files.

    With a champion, tasks rest that the rollouts in `earlier` tables show to have nothing to teach it.
    """
    store = Workspace.current().store
    rows = tasks_of(environment, split, seed, turn)
    rest: Counter[Rest] = Counter()
    if champion is not None:
        found = resting([read_round(store, table) for table in earlier], champion, environment.solved_at)
        rest.update(found[name] for row in rows if (name := identity(row)) in found)
        rows = [row for row in rows if identity(row) not in found]
    with store.draft("tasks") as draft:
        (draft.path / TASKS).write_bytes(
            b"".join(orjson.dumps(r, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE) for r in rows)
        )
        settings = {"environment": environment.name, "source": source, "seed": seed, "split": split, "turn": turn}
        parents = [*earlier, champion] if champion else []
        counts = {"tasks": len(rows), "resting": rest}
        return draft.commit(stage="make-tasks", parents=parents, settings=settings, counts=counts)


@step("collect")
def _collect_rollouts(
    policy: ArtifactRef,
    tasks: ArtifactRef,
    acting: PolicyRecipe,
    environment: EnvironmentRecipe,
    sampling: SamplingRecipe,
    requests: RequestsRecipe,
    seed: int,
) -> ArtifactRef:
    """Sample the policy on every task and verify; resumes from its journal after a kill or a dead endpoint."""
    workspace = Workspace.current()
    store = workspace.store
    settings = content(policy, tasks, acting, environment, sampling, requests, seed)
    work = workspace.work(key_of("collect", "", settings)[:40])
    counts = collecting.run(
        environment,
        acting,
        collecting.Actor(model.folder(store, policy), model.name(store, policy), policy.digest),
        sampling,
        requests,
        tasks=store.path(tasks) / TASKS,
        seed=seed,
        out=work / "rollouts",
        work=work,
        progress=progress.advance,
    )
    with store.draft("rollouts") as draft:
        draft.adopt(work / "rollouts")
        recorded = {name: value for name, value in settings.items() if name not in ("policy", "tasks")}
        ref = draft.commit(stage="collect", parents=[policy, tasks], settings=recorded, counts=counts.asdict())
    shutil.rmtree(work)
    return ref


def content(
    policy: ArtifactRef,
    tasks: ArtifactRef,
    acting: PolicyRecipe,
    environment: EnvironmentRecipe,
    sampling: SamplingRecipe,
    requests: RequestsRecipe,
    seed: int,
) -> dict[str, Any]:
    """What a collection's rollouts depend on, out of `collect_rollouts`'s inputs. Ports, bounds and time limits: no."""
    return {
        "policy": policy,
        "tasks": tasks,
        "acting": {"kind": acting.kind, "device": acting.device, "server": acting.server, "args": acting.server_args},
        "environment": {"name": environment.name, "agent": environment.agent, "start": environment.start},
        "sampling": sampling.content(),
        "seed": seed,
    }


collect_rollouts = _collect_rollouts.with_options(cache_policy=_WhatIsCollected())
