"""Take over what NeMo Gym's own CLI collected: its rollouts are kept, and what it still owed is asked for as it would.

Gym writes every row that it means to ask for into `NAME_materialized_inputs.jsonl` first, sampling and seeds included,
and loses a whole run to one bad row or a dead model. Here the run is finished: the rows of that file are the requests.
Nothing is asked where nothing is missing, and then no server is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import httpx
import orjson

from gristmill.collect.engine import Job, Reply, post
from gristmill.collect.gym import Server, agent_of, output_tokens, rollout
from gristmill.collect.stored import Stored
from gristmill.errors import UsageError


class Continuation:
    """A collector of the rollouts that a stored collection lacks.

    Args:
        stored: what there is.
        find: gives the running servers; called when the first rollout is asked for.
    """

    def __init__(self, stored: Stored, find: Callable[[], Mapping[str, Server]]) -> None:
        self._stored, self._find = stored, find
        self._known: Mapping[str, Server] | None = None

    def connect(self) -> None:
        """Find the servers, and see that every missing rollout's agent runs.

        Raises:
            CollectionError: no servers.
            UsageError: an agent is not running.
        """
        known = self._known = self._find()
        for key in sorted(self._stored.inputs.keys() - self._stored.rollouts.keys()):
            name = agent_of(self._stored.task(key), None)["name"]
            if name not in known:
                raise UsageError(f"task {key[0]} is for the agent {name!r}, which is not running")

    def identity(self) -> dict[str, Any]:
        return {"collector": "gym", "continues": self._stored.inputs_identity}

    def stamps(self, job: Job) -> dict[str, Any]:
        row = self._stored.task((job.task, job.repeat))
        return {name: row[name] for name in ("_ng_task_index", "_ng_rollout_index", "agent_ref") if name in row}

    def materialized(self, job: Job) -> dict[str, Any]:
        return self._stored.task((job.task, job.repeat))

    async def attempt(self, http: httpx.AsyncClient, job: Job) -> Reply:
        assert self._known is not None
        sent = self.materialized(job)
        url = self._known[agent_of(sent, None)["name"]].url
        row = rollout(await post(http, f"{url}/run", orjson.dumps(sent)))
        return Reply({**row, **self.stamps(job)}, output_tokens(row["response"]))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rollouts that there are; what Gym marked as a failure is owed."""
        for key in self._stored.known:
            row = self._stored.row(key)
            if not row.get("_ng_failure_class") and isinstance(row.get("response"), dict):
                yield row
