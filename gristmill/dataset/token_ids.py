"""The policy's own token ids as training rows: exact, never tokenised again."""

from __future__ import annotations

from collections.abc import Iterator

from gristmill.chat import Conversation
from gristmill.example import Meta, Tokens
from gristmill.items import Unrepresentable
from gristmill.reasons import DropReason


def stretches(conversation: Conversation, meta: Meta) -> Iterator[Tokens]:
    """The policy's token ids, as few rows as they allow.

    A model call whose prompt begins with all that was seen and said before goes on from there; one whose prompt
    does not (the template dropped earlier reasoning, say) begins a row of its own.

    Raises:
        Unrepresentable: NO_TOKEN_IDS if a turn of the policy has none, since it would stand in later prompts unlearned.
    """
    turns = {
        at
        for at, message in enumerate(conversation.messages)
        if at >= conversation.prompt_length and message["role"] == "assistant"
    }
    if {call.message for call in conversation.model_calls} != turns:
        raise Unrepresentable(DropReason.NO_TOKEN_IDS, "not every turn of the policy has token ids")
    made: list[Tokens] = []
    ids: list[int] = []
    labels: list[int] = []
    for call in conversation.model_calls:
        prompt, said = call.prompt_token_ids, call.generation_token_ids
        if not said or any(type(one) is not int or one < 0 for part in (prompt, said) for one in part):
            raise Unrepresentable(DropReason.NO_TOKEN_IDS, "a model call's token ids are empty or no ids")
        if ids and prompt[: len(ids)] != ids:
            made.append(Tokens(ids, labels, meta))
            ids, labels = [], []
        fresh = prompt[len(ids) :]
        ids = [*ids, *fresh, *said]
        labels = [*labels, *[-100] * len(fresh), *said]
    yield from [*made, Tokens(ids, labels, meta)]
