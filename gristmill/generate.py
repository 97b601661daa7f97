"""Sampling answers from a policy, one padded batch at a time.

A batch's completions depend on the policy, the batch and the seed alone, not on what ran before: each batch seeds its
own generator. They do depend on how tasks are cut into batches and on the kind of processor, because
floating-point sums do. `batches` cuts by prompt length, so that little padding is computed.

The prompt is read once a conversation and its key-value cache repeated for the samples: on a CPU reading prompts costs
more than writing short answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gristmill.policy import Policy


class Completion(NamedTuple):
    """One answer. `completion_tokens` counts the end-of-turn token; `truncated` means that none was reached."""

    text: str
    prompt_tokens: int
    completion_tokens: int
    truncated: bool


def batches(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices sorted by length (ties by index), cut into batches of at most `size`."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    return [order[start : start + size] for start in range(0, len(order), size)]


def generate(
    policy: Policy,
    conversations: Sequence[Sequence[dict[str, Any]]],
    *,
    samples: int,
    temperature: float,
    top_p: float,
    max_new_tokens: int,
    seed: int,
) -> list[list[Completion]]:
    """Samples answers to one batch of chat conversations (role and content each).

    Temperature 0 is greedy: all `samples` are then the same answer, computed once.

    Returns:
        `samples` completions for each conversation, in the order given.
    """
    if not conversations:
        return []
    import torch
    from transformers import GenerationConfig

    greedy = temperature == 0
    width = 1 if greedy else samples
    tokenizer, model = policy.tokenizer, policy.model
    prompts = [
        tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        for messages in conversations
    ]
    encoded = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
    ids, mask = encoded["input_ids"].to(policy.device), encoded["attention_mask"].to(policy.device)
    ends = _end_tokens(policy)
    config = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is partly typed
        # The sampler below leaves one token to choose; see there.
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.inference_mode():
        # All but the last prompt token: generate() needs one to start from. The bare decoder, because the head's
        # logits are not wanted here.
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = model.base_model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=positions[:, :-1],
            use_cache=True,
        ).past_key_values
        cache.batch_repeat_interleave(width)
        output = model.generate(
            ids.repeat_interleave(width, 0),
            attention_mask=mask.repeat_interleave(width, 0),
            past_key_values=cache,
            generation_config=config,
            logits_processor=None if greedy else [_sampler(temperature, top_p, seed)],
        )
    answers = output[:, ids.shape[1] :].tolist()
    lengths = mask.sum(-1).tolist()
    groups = []
    for row, length in enumerate(lengths):
        group = [_completion(tokenizer, tokens, ends, length) for tokens in answers[row * width : (row + 1) * width]]
        groups.append(group * samples if greedy else group)
    return groups


def _sampler(temperature: float, top_p: float, seed: int) -> Callable[[Any, Any], Any]:
    """A logits processor that draws each row's next token, by one uniform number and the cumulative distribution.

    transformers samples with torch.multinomial, which draws one exponential number for each token of the vocabulary:
    a quarter of all time with 49,152 tokens on a CPU. The generator is our own, so that nothing else moves it, and
    on the CPU, so that all devices draw the same numbers.
    """
    import torch
    from transformers import TopPLogitsWarper

    generator = torch.Generator().manual_seed(seed)
    narrow = TopPLogitsWarper(top_p) if top_p < 1 else None

    def sample(ids: Any, scores: Any) -> Any:
        scores = scores / temperature
        if narrow is not None:
            scores = narrow(ids, scores)
        cumulative = torch.softmax(scores, -1).cumsum(-1)
        # Strictly inside (0, total): a token without probability is never drawn, whatever the rounding.
        uniform = torch.rand(len(scores), 1, generator=generator).clamp(1e-7, 1 - 1e-7).to(scores.device)
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn, 0.0)

    return sample


def _completion(tokenizer: Any, tokens: list[int], ends: list[int], prompt_tokens: int) -> Completion:
    stop = next((i for i, token in enumerate(tokens) if token in ends), None)
    text = tokenizer.decode(tokens[:stop], skip_special_tokens=True)
    return Completion(text, prompt_tokens, len(tokens) if stop is None else stop + 1, stop is None)


def _end_tokens(policy: Policy) -> list[int]:
    """Token ids that end an answer: the model's generation config may name several."""
    named = policy.model.generation_config.eos_token_id
    found = named if isinstance(named, list) else [named]
    return sorted({token for token in [*found, policy.tokenizer.eos_token_id] if token is not None})
