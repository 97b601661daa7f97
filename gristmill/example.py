"""Examples: what a training row is, in no framework's format.

Conversion makes them (gristmill/format.py), a target (gristmill/targets/) turns each into a row of its framework.
Messages are chat dicts as `chat.convert` makes them: roles system, user, assistant, tool (developer, if kept); content
is text (or parts, where there are images) and never null; a call's arguments are an object; no key is null. Tools are
nested: `{"type": "function", "function": {name, description?, parameters?}}`. Nothing here may be changed in place:
examples of one rollout share messages.

`meta` is small and JSON: for one rollout `rollout_id`, `task_key` (absent if ungroupable), `reward`, `quality` (the
reward's place in its environment's range, 0 to 1), `task_type` (the environment); for pairs, `chosen` and `rejected`
with `rollout_id`, `reward` and `quality` each, and `task_key`, `task_type`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Method = Literal["sft", "dpo", "kto", "reward", "rl"]
Message = dict[str, Any]
Meta = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sft:
    """A conversation to imitate: the assistant's turns of the completion are learned, those of the prompt are not."""

    prompt: list[Message]
    completion: list[Message]
    """Begins with an assistant message and ends with one; tool results and environment turns may stand between."""
    tools: list[dict[str, Any]]
    meta: Meta


@dataclass(frozen=True, slots=True)
class Tokens:
    """For `sft`, a stretch of a rollout as the policy saw and said it: exact token ids, never tokenised again."""

    input_ids: list[int]
    labels: list[int]
    """As long as `input_ids`: the id where the policy generated it, else -100."""
    meta: Meta


@dataclass(frozen=True, slots=True)
class Preference:
    """For `dpo` and `reward`: after one prompt, an answer that is better than another."""

    prompt: list[Message]
    chosen: list[Message]
    """Like `rejected`, one assistant message where the target is `single_message`, else all that followed."""
    rejected: list[Message]
    tools: list[dict[str, Any]]
    margin: float
    """Reward of chosen minus reward of rejected, above 0, in the environment's own unit."""
    meta: Meta


@dataclass(frozen=True, slots=True)
class Labelled:
    """For `kto`: an answer that is desirable or not."""

    prompt: list[Message]
    completion: list[Message]
    tools: list[dict[str, Any]]
    label: bool
    meta: Meta


@dataclass(frozen=True, slots=True)
class RlTask:
    """For `rl`: a task to attempt again, as NeMo Gym's datasets have it."""

    row: dict[str, Any]
    """`responses_create_params`, `agent_ref`, and what the verifier needs."""
    meta: Meta


Example = Sft | Tokens | Preference | Labelled | RlTask
