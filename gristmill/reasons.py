"""Why a row was dropped: one enum for every stage, so that rows in = rows kept + Σ rows dropped by reason.

A row has at most one reason: the first that applies, in the order of this file. The value is what stands in
tables, manifests, reports and `--json`; never rename one without a schema version.
"""

from __future__ import annotations

from enum import StrEnum


class DropReason(StrEnum):
    """Members in the order in which a row is examined."""

    # Reading the line.
    NOT_JSON = "not_json"
    """The line is not JSON."""
    TORN_LINE = "torn_line"
    """The last line of the file is cut off in the middle: its writer was killed."""
    NOT_AN_OBJECT = "not_an_object"
    """The line is JSON but not an object."""
    FAILURE = "failure"
    """An infrastructure failure (failure class, agent or environment exception), whatever reward was stamped on it."""
    NO_RESPONSE = "no_response"
    """There is no `response` object: an input row, or a row of judge fields only."""
    NO_REWARD = "no_reward"
    """There is no `reward`."""
    REWARD_NULL = "reward_null"
    """`reward` is null."""
    REWARD_NOT_FINITE = "reward_not_finite"
    """`reward` is NaN or infinite."""
    REWARD_NOT_A_NUMBER = "reward_not_a_number"
    """`reward` is a string, a boolean or a container."""
    MASKED = "masked"
    """`mask_sample` is true, here or in `instance_config`: the collector excluded it from the loss."""
    RESPONSE_ERROR = "response_error"
    """`response.error` is set."""
    EMPTY_OUTPUT = "empty_output"
    """`response.output` is absent or empty: there is nothing to train on, whatever the reward."""
    MALFORMED_OUTPUT = "malformed_output"
    """`response.output` is not a list of items (nor of transitions)."""
    DUPLICATE_ROLLOUT = "duplicate_rollout"
    """Another row of the same run, agent and task has the same rollout index; the first one counts."""

    # Converting to chat messages.
    NO_PROMPT = "no_prompt"
    """No user or system message precedes the first answer, so there is no task to learn from."""
    MALFORMED_ITEM = "malformed_item"
    """An item lacks a field that its type must have, or a field has the wrong type."""
    UNSUPPORTED_ITEM = "unsupported_item"
    """A hosted tool's item (web search, code interpreter, …) has no chat form."""
    UNSUPPORTED_CONTENT = "unsupported_content"
    """A content part (audio, file, …) has no chat form in the target."""
    MALFORMED_ARGUMENTS = "malformed_arguments"
    """A tool call's arguments are not a JSON object."""
    ORPHAN_TOOL_OUTPUT = "orphan_tool_output"
    """A tool result answers no call before it."""
    MISSING_TOOL_OUTPUT = "missing_tool_output"
    """A tool call has no result before the conversation goes on."""
    DUPLICATE_TOOL_OUTPUT = "duplicate_tool_output"
    """One call has two results, or two calls have one id."""
    AMBIGUOUS_TURN = "ambiguous_turn"
    """Answers stand side by side and the row does not say to which turn each belongs: several answers after several
    user messages in a row, or an answer that goes on from an assistant turn at the end of the input."""
    REFUSED = "refused"
    """The answer is a refusal part and the recipe drops refusals."""
    NO_ASSISTANT_MESSAGE = "no_assistant_message"
    """Nothing in the conversation was said by the policy."""
    NOT_ENDING_WITH_ASSISTANT = "not_ending_with_assistant"
    """The last message is not the policy's."""
    EMPTY_ANSWER = "empty_answer"
    """The last answer has neither text nor a tool call: reasoning only, or white space."""

    # Choosing.
    TAINTED = "tainted"
    """It, its task or its file is marked as bad (`gristmill impact … --taint`)."""
    TRUNCATED = "truncated"
    """The answer hit the length limit (`incomplete_details`)."""
    REVIEW_REJECTED = "review_rejected"
    """A reviewer rejected it."""
    UNGROUPABLE = "ungroupable"
    """No safe task identity, and the method needs groups."""
    BELOW_REWARD = "below_reward"
    """Reward under the recipe's threshold."""
    FILTERED = "filtered"
    """The recipe's `where` condition is not true."""
    DUPLICATE_ANSWER = "duplicate_answer"
    """An equal answer to the same task was chosen before."""
    NEAR_DUPLICATE = "near_duplicate"
    """Nearly the same text as a rollout of another task that was chosen before."""
    OVER_TASK_CAP = "over_task_cap"
    """The task already has as many answers as the recipe allows."""
    BALANCED_OUT = "balanced_out"
    """Its category already has as many rollouts as the recipe's balance allows."""
    OVER_LENGTH = "over_length"
    """Longer than the recipe's limit."""

    # Comparing the rollouts of a task.
    CONTRADICTORY_REWARD = "contradictory_reward"
    """An equal answer to the same task got another reward, so that the answer cannot be what made the difference."""
    NO_PARTNER = "no_partner"
    """The task has no other distinct answer to be compared with."""
    NO_GAP = "no_gap"
    """No other answer of the task differs enough in reward (and in the metrics that the recipe names)."""
    NO_DIVERGENCE = "no_divergence"
    """No answer of the task parts from it after one shared history: prompts or the environment's replies differ
    before the policy's words do, or nothing but reasoning differs."""
    NOT_PAIRED = "not_paired"
    """It could be paired, but the strategy or the cap took other pairs of the task."""
    NO_SIGNAL = "no_signal"
    """All rollouts of the task got one reward: there is nothing to learn from attempting it again."""
    NO_TOKEN_IDS = "no_token_ids"
    """The recipe wants the policy's own token ids, and the rollout carries none that can be used."""

    # Writing in a framework's format.
    TEMPLATE_REFUSED = "template_refused"
    """The chat template of the recipe's tokenizer cannot render it."""
    TARGET_FORMAT = "target_format"
    """The target framework's format cannot hold the conversation whole; docs/targets.md says what it cannot hold."""
