"""Rollouts from running NeMo Gym servers: `POST /run` of each row's agent, found through the head server.

Gym's own client would wait for ever on a dead model and lose the run to one bad row (its 0.4.0 and 0.5.1); `/run` is
the same work, one rollout at a time. Rows come out as Gym's collector stamps them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import httpx
import orjson

from gristmill.collect.engine import Job, Reply, once, post
from gristmill.collect.failure import Failed, FailureClass
from gristmill.errors import CollectionError, UsageError
from gristmill.identity import digest
from gristmill.recipe import SamplingRecipe

_AGENTS = "responses_api_agents"
_RESOURCES = "resources_servers"


class Server(NamedTuple):
    """One of Gym's servers: the name in its configuration, what it is, and where."""

    name: str
    kind: str
    url: str
    config: dict[str, Any]
    """Its part of the global configuration."""


def servers(head: str, seconds: float = 10) -> dict[str, Server]:
    """The servers that a head server knows, by name.

    Raises:
        CollectionError: no head server answers there.
    """
    config = global_config(head, seconds)
    return {
        i["process_name"]: Server(i["process_name"], i["server_type"], i["url"], _inner(config.get(i["process_name"])))
        for i in _ask_head(head, "server_instances", seconds)
    }


def global_config(head: str, seconds: float = 10) -> dict[str, Any]:
    """The whole configuration that the servers were started with.

    Raises:
        CollectionError: no head server answers there.
    """
    import yaml

    found = yaml.safe_load(_ask_head(head, "global_config_dict_yaml", seconds))
    return found if isinstance(found, dict) else {}


def _ask_head(head: str, path: str, seconds: float) -> Any:
    async def ask(http: httpx.AsyncClient) -> Any:
        return (await http.get(f"{head.rstrip('/')}/{path}")).json()

    try:
        return once(ask, seconds)
    except (Failed, ValueError) as error:
        raise CollectionError(
            f"no NeMo Gym head server answers at {head} ({error}); start the servers with `gym env start`, "
            "or name another with environment.head"
        ) from error


def agents(known: Mapping[str, Server]) -> list[str]:
    """Names of the servers that can run rollouts."""
    return sorted(name for name, server in known.items() if server.kind == _AGENTS)


class GymCollector:
    """Collector of NeMo Gym rollouts.

    Args:
        task: gives the dataset row at a position.
        known: the running servers.
        agent: for rows that name none; a row's own `agent_ref` wins, as in Gym.
        policy: what identifies the model behind the servers.
    """

    def __init__(
        self,
        task: Callable[[int], dict[str, Any]],
        known: Mapping[str, Server],
        *,
        agent: str | None,
        policy: dict[str, Any],
        sampling: SamplingRecipe,
        seed: int,
    ) -> None:
        self._task, self._known, self._agent = task, known, agent
        self._policy, self._sampling, self._seed = policy, sampling, seed

    def identity(self) -> dict[str, Any]:
        return {
            "collector": "gym",
            "policy": self._policy,
            "agent": self._agent,
            "sampling": self._sampling.content(),
            "seed": self._seed,
        }

    def stamps(self, job: Job) -> dict[str, Any]:
        return {
            "_ng_task_index": job.task,
            "_ng_rollout_index": job.repeat,
            "agent_ref": agent_of(self._task(job.task), self._agent),
        }

    def materialized(self, job: Job) -> dict[str, Any]:
        """The row as it is sent: the dataset row, sampling, agent and indices."""
        row = self._task(job.task)
        return {
            **row,
            "responses_create_params": requested(row, self._sampling, self._seed, job),
            "_ng_task_index": job.task,
            "_ng_rollout_index": job.repeat,
            "agent_ref": agent_of(row, self._agent),
        }

    async def attempt(self, http: httpx.AsyncClient, job: Job) -> Reply:
        sent = self.materialized(job)
        server = self._known[sent["agent_ref"]["name"]]
        body = await post(http, f"{server.url}/run", orjson.dumps(sent))
        row = rollout(body)
        row |= {name: sent[name] for name in ("_ng_task_index", "_ng_rollout_index", "agent_ref")}
        return Reply(row, output_tokens(row["response"]))

    def check(self, positions: Sequence[int]) -> None:
        """Before anything runs: every row's agent is known and running.

        Raises:
            UsageError: a row names no agent, or one that is not running; says which are.
        """
        running = agents(self._known)
        for position in positions:
            name = agent_of(self._task(position), self._agent)["name"]
            if name not in running:
                raise UsageError(
                    f"task {position} is for the agent {name!r}, which is not running; running: "
                    f"{', '.join(running) or 'none'}"
                )


def agent_of(row: Mapping[str, Any], default: str | None) -> dict[str, Any]:
    """The `agent_ref` of a dataset row.

    Raises:
        UsageError: it has none, and there is no default.
    """
    ref = row.get("agent_ref")
    if isinstance(ref, dict) and isinstance(ref.get("name"), str):
        return ref
    if default is None:
        raise UsageError("a task row has no agent_ref; name the agent with environment.agent")
    return {"type": _AGENTS, "name": default}


def requested(row: Mapping[str, Any], sampling: SamplingRecipe, seed: int, job: Job) -> dict[str, Any]:
    """`responses_create_params` with the sampling, which overrides the row's own.

    The seed goes into `metadata.extra_body`, as Gym's `num_repeats_add_seed` does: its vllm_model passes it on, others
    ignore it (a field `seed` would be refused).
    """
    params = {
        **row["responses_create_params"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
    }
    if sampling.seeds:
        metadata = dict(params.get("metadata") or {})
        extra = {**orjson.loads(metadata.get("extra_body") or "{}"), "seed": seed_of(seed, job)}
        params["metadata"] = {**metadata, "extra_body": orjson.dumps(extra).decode()}
    return params


def seed_of(seed: int, job: Job) -> int:
    """A seed of 31 bits for one rollout, the same wherever and whenever it is asked for."""
    return int(digest({"seed": seed, "task": job.task, "repeat": job.repeat})[:8], 16) & 0x7FFFFFFF


def rollout(body: bytes) -> dict[str, Any]:
    """A reply of `/run` as a row.

    Raises:
        Failed: it is no JSON object, has no response, no finite reward, or reports a failed run.
    """
    try:
        row = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Failed(FailureClass.INVALID_REPLY, f"not JSON ({error}): {body[:200]!r}") from None
    if not isinstance(row, dict):
        raise Failed(FailureClass.INVALID_REPLY, f"expected an object, found {body[:200]!r}")
    if row.get("_ng_failure_class"):
        raise Failed(FailureClass.AGENT_FAILED, f"{row['_ng_failure_class']}: {body[:200]!r}")
    response = row.get("response")
    if not isinstance(response, dict) or not isinstance(response.get("output"), list):
        raise Failed(FailureClass.INVALID_REPLY, f"expected response.output, found {body[:200]!r}")
    reward = row.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise Failed(FailureClass.NO_REWARD, f"expected a finite reward, found {reward!r}")
    return row


def output_tokens(response: Mapping[str, Any]) -> int:
    """Generated tokens, where the server counted them."""
    usage = response.get("usage")
    counted = usage.get("output_tokens") if isinstance(usage, dict) else None
    return counted if isinstance(counted, int) else 0


def _inner(config: Any) -> dict[str, Any]:
    """`{server_type: {implementation: settings}}` → settings."""
    for _ in range(2):
        config = next(iter(config.values()), {}) if isinstance(config, dict) else {}
    return config if isinstance(config, dict) else {}
