"""Tasks to attempt again, out of rollouts: a row of a NeMo Gym dataset, with what its verifier needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from gristmill.dataset.shards import Chosen
from gristmill.example import RlTask
from gristmill.items import Unrepresentable
from gristmill.reasons import DropReason
from gristmill.rollout import FAILURE_FIELDS

# What the collector and the policy add to a task's own fields.
_NOT_OF_THE_TASK = frozenset({"response", "reward", "reward_components", "mask_sample", *FAILURE_FIELDS})


def rl_task(unit: Sequence[Chosen], row: dict[str, Any]) -> RlTask:
    """The task of some rollouts, as NeMo Gym's datasets have it.

    Args:
        unit: the task's rollouts; the first one's materialized inputs say what the verifier needs.
        row: the first one's row, parsed. Where there are no materialized inputs, what it echoes of the task is used:
            all but the response, the scores and the collector's stamps.

    Raises:
        Unrepresentable: NO_PROMPT.
    """
    one = unit[0]
    params = row.get("responses_create_params")
    if not isinstance(params, dict) or not isinstance(params.get("input"), str | list):
        raise Unrepresentable(DropReason.NO_PROMPT, "`responses_create_params.input` is absent")
    made: dict[str, Any] = {"responses_create_params": _request(params)}
    if one.fields is not None:
        made |= orjson.loads(one.fields)
    else:
        made |= {
            name: value
            for name, value in row.items()
            if name not in _NOT_OF_THE_TASK and name not in made and not name.startswith(("_ng_", "ng_"))
        }
    if isinstance(row.get("agent_ref"), dict):
        made["agent_ref"] = row["agent_ref"]
    rewards = [rollout.reward for rollout in unit]
    meta = {
        "task_key": one.task_key,
        "task_type": one.environment,
        "rollouts": len(rewards),
        "mean_reward": sum(sorted(rewards)) / len(rewards),
        "solve_rate": sum(rollout.label for rollout in unit) / len(unit),
    }
    return RlTask(made, meta)


def _request(params: dict[str, Any]) -> dict[str, Any]:
    """The request as a dataset has it: without null fields, and without the seed that each repeat got."""
    request = {name: value for name, value in params.items() if value is not None}
    metadata = request.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("extra_body"), str):
        try:
            extra = orjson.loads(metadata["extra_body"])
        except orjson.JSONDecodeError:
            return request
        if isinstance(extra, dict) and "seed" in extra:
            del extra["seed"]
            rest = {name: value for name, value in metadata.items() if name != "extra_body"}
            if extra:
                rest["extra_body"] = orjson.dumps(extra).decode()
            request.pop("metadata")
            if rest:
                request["metadata"] = rest
    return request
