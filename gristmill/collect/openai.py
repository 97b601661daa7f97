"""Rollouts from any OpenAI-compatible endpoint, scored by our own verifier.

One request a rollout, over chat completions or the responses API. Tool calls are the answer, not executed: a task with
several turns needs an environment that runs the tools (NeMo Gym).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import orjson

from gristmill.chat import Unrepresentable, convert
from gristmill.collect import responses
from gristmill.collect.engine import Job, Reply, post
from gristmill.collect.failure import Failed, FailureClass
from gristmill.collect.gym import output_tokens, seed_of
from gristmill.errors import UsageError
from gristmill.recipe import SamplingRecipe

Api = Literal["chat", "responses"]
Verifier = Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]
"""(task row, Responses object) → at least `reward`."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers: a base URL up to `/v1`, the model's name there, and the key's environment variable."""

    base_url: str
    model: str
    api: Api = "chat"
    api_key_env: str | None = None

    def headers(self) -> dict[str, str]:
        """The authorisation, from the environment.

        Raises:
            UsageError: the variable is not set.
        """
        if self.api_key_env is None:
            return {}
        key = os.environ.get(self.api_key_env)
        if not key:
            raise UsageError(f"policy.api_key_env: the environment variable {self.api_key_env} is not set")
        return {"authorization": f"Bearer {key}"}


class OpenAICollector:
    """Collector over an endpoint.

    Args:
        task: gives the task row at a position.
        policy: what identifies the model (its content, where that is known).
        environment: the verifier's name, a part of the collection's identity.
    """

    def __init__(
        self,
        task: Callable[[int], dict[str, Any]],
        endpoint: Endpoint,
        verify: Verifier,
        *,
        policy: dict[str, Any],
        environment: str,
        sampling: SamplingRecipe,
        seed: int,
    ) -> None:
        self._task, self._endpoint, self._verify = task, endpoint, verify
        self._policy, self._environment = policy, environment
        self._sampling, self._seed = sampling, seed
        self._headers = endpoint.headers()

    def identity(self) -> dict[str, Any]:
        return {
            "collector": "openai",
            "policy": self._policy,
            "environment": self._environment,
            "api": self._endpoint.api,
            "sampling": self._sampling.content(),
            "seed": self._seed,
        }

    def stamps(self, job: Job) -> dict[str, Any]:
        ref = self._task(job.task).get("agent_ref") or {"type": "responses_api_agents", "name": self._environment}
        return {"_ng_task_index": job.task, "_ng_rollout_index": job.repeat, "agent_ref": ref}

    def materialized(self, job: Job) -> dict[str, Any]:
        """The task row with sampling and indices."""
        row = self._task(job.task)
        return {**row, "responses_create_params": self._params(row), **self.stamps(job)}

    async def attempt(self, http: httpx.AsyncClient, job: Job) -> Reply:
        task = self._task(job.task)
        params = self._params(task)
        base, model = self._endpoint.base_url.rstrip("/"), self._endpoint.model
        seed = {"seed": seed_of(self._seed, job)} if self._sampling.seeds else {}
        if self._endpoint.api == "chat":
            sent = {**chat_request(params, model), **seed}
            response = responses.from_chat(
                _object(await post(http, f"{base}/chat/completions", orjson.dumps(sent), self._headers)), model
            )
        else:
            # The responses API has no seed; some servers stream unless told not to.
            sent = {**params, "model": model, "stream": False}
            response = _object(await post(http, f"{base}/responses", orjson.dumps(sent), self._headers))
            if not isinstance(response.get("output"), list):
                raise Failed(FailureClass.INVALID_REPLY, f"expected `output`, found {orjson.dumps(response)[:200]!r}")
        # In a thread: a slow verifier must not hold up the other rollouts.
        scored = await asyncio.to_thread(score, self._verify, task, response)
        row = {"responses_create_params": params, "response": response, **scored, **self.stamps(job)}
        return Reply(row, output_tokens(response))

    def _params(self, task: dict[str, Any]) -> dict[str, Any]:
        return {
            **task["responses_create_params"],
            "temperature": self._sampling.temperature,
            "top_p": self._sampling.top_p,
            "max_output_tokens": self._sampling.max_new_tokens,
        }


_STAND_IN = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "."}]}


def chat_request(params: dict[str, Any], model: str) -> dict[str, Any]:
    """A chat completions request for a responses request.

    Raises:
        Failed: the prompt has items that chat cannot carry.
    """
    try:
        # A conversation ends with an answer, so a stand-in is put behind the prompt.
        prompt = convert({"responses_create_params": params, "response": {"output": [_STAND_IN]}}, developer="keep")
    except Unrepresentable as error:
        raise Failed(FailureClass.REJECTED, f"the prompt cannot be sent as chat messages: {error}") from None
    messages = []
    for message in prompt.messages[:-1]:
        if calls := message.get("tool_calls"):
            # The wire has arguments as text, training rows as objects.
            wired = [
                {**c, "function": {**c["function"], "arguments": orjson.dumps(c["function"]["arguments"]).decode()}}
                for c in calls
            ]
            message = {**message, "tool_calls": wired}
        messages.append(message)
    request = {
        "model": model,
        "messages": messages,
        "temperature": params["temperature"],
        "top_p": params["top_p"],
        "max_tokens": params["max_output_tokens"],
    }
    return {**request, "tools": prompt.tools} if prompt.tools else request


def score(verify: Verifier, task: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """What the verifier says.

    Raises:
        Failed: it raised, or gave no finite reward.
    """
    try:
        scored = verify(task, response)
    except Exception as error:  # it is somebody else's code; what it says is in the sidecar
        raise Failed(FailureClass.VERIFIER, f"{type(error).__name__}: {error}") from error
    reward = scored.get("reward") if isinstance(scored, dict) else None
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise Failed(FailureClass.NO_REWARD, f"the verifier gave {reward!r}, expected a finite reward")
    return scored


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Failed(FailureClass.INVALID_REPLY, f"not JSON ({error}): {body[:200]!r}") from None
    if not isinstance(value, dict):
        raise Failed(FailureClass.INVALID_REPLY, f"expected an object, found {body[:200]!r}")
    return value
