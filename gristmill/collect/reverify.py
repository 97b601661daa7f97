"""Score stored rollouts again, without inference: `POST /verify`, or our own verifier. For a verifier that changed.

The request is the materialized row with the stored response, as `/run` would send it: a bare rollout row lacks the task
fields, and some verifiers would score it all the same, wrongly (facts: NeMo Gym 0.4.0, mcqa). The reply is the new row.
Gymnasium-style servers have no `/verify`: 404, and the rollout stays a failure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import orjson

from gristmill.collect.engine import Job, Reply, post
from gristmill.collect.gym import Server, agent_of, output_tokens, rollout
from gristmill.collect.openai import Verifier, score
from gristmill.collect.stored import Stored
from gristmill.errors import UsageError


class Reverifier:
    """A collector whose endpoint only scores.

    Args:
        stored: the rollouts.
        known: running Gym servers, or None to use `verify`.
    """

    def __init__(
        self, stored: Stored, known: Mapping[str, Server] | None, *, verify: Verifier | None = None, name: str
    ) -> None:
        self._stored, self._known, self._verify, self._name = stored, known, verify, name

    def identity(self) -> dict[str, Any]:
        return {"collector": "reverify", "verifier": self._name}

    def stamps(self, job: Job) -> dict[str, Any]:
        row = self._stored.task((job.task, job.repeat))
        return {
            "_ng_task_index": job.task,
            "_ng_rollout_index": job.repeat,
            "agent_ref": agent_of(row, "unknown"),
        }

    def materialized(self, job: Job) -> dict[str, Any]:
        return self._stored.task((job.task, job.repeat))

    async def attempt(self, http: httpx.AsyncClient, job: Job) -> Reply:
        key = (job.task, job.repeat)
        task, row = self._stored.task(key), self._stored.row(key)
        if self._known is None:
            assert self._verify is not None
            scored = await asyncio.to_thread(score, self._verify, task, row["response"])
            return Reply({**row, **scored, **self.stamps(job)}, output_tokens(row["response"]))
        url = resources_of(self._known, agent_of(task, None)["name"]).url
        body = await post(http, f"{url}/verify", orjson.dumps({**task, "response": row["response"]}))
        return Reply({**rollout(body), **self.stamps(job)}, 0)


def resources_of(known: Mapping[str, Server], agent: str) -> Server:
    """The resources server that verifies for an agent.

    Raises:
        UsageError: it is not running.
    """
    ref = known[agent].config.get("resources_server") if agent in known else None
    name = ref.get("name") if isinstance(ref, dict) else None
    if not isinstance(name, str) or name not in known:
        raise UsageError(f"no resources server of the agent {agent!r} is running; running: {', '.join(sorted(known))}")
    return known[name]
