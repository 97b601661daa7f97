"""Steps: the base policy, task sets, and rollouts of a policy on a task set."""

from __future__ import annotations

import shutil
from typing import Literal

import orjson

from gristmill import model, progress
from gristmill.artifact import ArtifactRef
from gristmill.collect import local
from gristmill.environment import TASKS, environment, read_tasks
from gristmill.identity import digest
from gristmill.recipe import SamplingRecipe
from gristmill.workspace import Workspace
from tasks.caching import step


@step("base-policy")
def base_policy(model_name: str, identity: str) -> ArtifactRef:
    """The base model as a checkpoint that points to its weights; an embedded one is unpacked on first use."""
    store = Workspace.current().store
    ref = model.register(store, model_name, identity)
    model.folder(store, ref, lambda done, total: progress.advance(done, total, "unpacking weights"))
    return ref


@step("make-tasks")
def make_tasks(
    environment_name: str, count: int, seed: int, split: Literal["train", "heldout"], turn: int
) -> ArtifactRef:
    """Task rows in Gym's format, disjoint between splits and turns."""
    rows = environment(environment_name).make_tasks(count, seed, split, turn)
    with Workspace.current().store.draft("tasks") as draft:
        (draft.path / TASKS).write_bytes(
            b"".join(orjson.dumps(r, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE) for r in rows)
        )
        settings = {"environment": environment_name, "seed": seed, "split": split, "turn": turn}
        return draft.commit(stage="make-tasks", settings=settings, counts={"tasks": len(rows)})


@step("collect")
def collect_rollouts(
    policy: ArtifactRef,
    tasks: ArtifactRef,
    environment_name: str,
    sampling: SamplingRecipe,
    seed: int,
    device: str,
) -> ArtifactRef:
    """Sample the policy on every task and verify; resumes from its journal after a kill."""
    workspace = Workspace.current()
    store = workspace.store
    rows = read_tasks(store, tasks)
    settings = {"environment": environment_name, "seed": seed, **sampling.model_dump(mode="json")}
    work = workspace.work(
        f"collect-{digest({'policy': policy.digest, 'tasks': tasks.digest, 'settings': settings})[:32]}"
    )
    with store.draft("rollouts") as draft:
        counts = local.collect(
            rows,
            environment(environment_name).verify,
            model.folder(store, policy),
            policy_name=model.name(store, policy),
            device=device,
            sampling=sampling,
            seed=seed,
            journal=work,
            out=draft.path,
            progress=lambda done, total: progress.advance(done, total, "rollouts"),
        )
        ref = draft.commit(stage="collect", parents=[policy, tasks], settings=settings, counts=counts.asdict())
    shutil.rmtree(work)
    return ref
