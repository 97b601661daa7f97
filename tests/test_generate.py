"""Sampling: deterministic by seed alone, true to the distribution, and padded without effect."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill import smollm
from gristmill.errors import UsageError
from gristmill.generate import Completion, _sampler, batches, generate
from gristmill.policy import Policy, load


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Policy:
    return load(smollm.tiny(tmp_path_factory.mktemp("model") / "tiny"), device="cpu")


def _chats(*texts: str) -> list[list[dict]]:
    return [[{"role": "system", "content": "s"}, {"role": "user", "content": text}] for text in texts]


def _run(policy: Policy, texts: tuple[str, ...], seed: int = 0, **other) -> list[list[Completion]]:
    settings = {"samples": 3, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8} | other
    return generate(policy, _chats(*texts), seed=seed, **settings)


def test_seed_alone_decides_whatever_ran_before(policy):
    import torch

    first = _run(policy, ("one", "three"))
    torch.manual_seed(123)
    _run(policy, ("something else",), seed=5)
    assert _run(policy, ("one", "three")) == first
    assert _run(policy, ("one", "three"), seed=1) != first


def test_samples_of_a_task_differ(policy):
    (group,) = _run(policy, ("one",), samples=8)
    assert len({completion.text for completion in group}) > 4


def test_greedy_matches_plain_transformers_whatever_the_padding(policy):
    # Fails if positions ignore the left padding, or if the cache is repeated in another order than the rows.
    texts = ("a", "a much longer question than the other one", "mid length")
    batch = _run(policy, texts, temperature=0.0, samples=2)
    for text, group in zip(texts, batch, strict=True):
        encoded = policy.tokenizer.apply_chat_template(
            _chats(text)[0], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        length = encoded["input_ids"].shape[1]
        plain = policy.model.generate(**encoded, max_new_tokens=8, do_sample=False)[0, length:]
        assert group[0] == group[1]
        assert group[0].text == policy.tokenizer.decode(plain, skip_special_tokens=True)
        assert group[0].prompt_tokens == length


def test_the_sampler_draws_from_the_softmax():
    import torch

    scores = torch.tensor([[2.0, 1.0, 0.0, -torch.inf]]).repeat(20_000, 1)
    drawn = _sampler(temperature=0.5, top_p=1.0, seed=0)(None, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert torch.allclose(shares, torch.softmax(scores[0] / 0.5, -1), atol=0.01)
    assert shares[3] == 0
    narrowed = _sampler(temperature=0.5, top_p=0.5, seed=0)(None, scores).argmax(-1)
    assert set(narrowed.tolist()) == {0}


def test_the_end_token_ends_an_answer_and_is_counted(policy):
    # Token 2 made certain: the answer is empty, one token long and not truncated.
    import torch

    class Certain(torch.nn.Module):
        def forward(self, states):
            scores = torch.zeros(*states.shape[:-1], policy.model.config.vocab_size)
            scores[..., 2] = 100.0
            return scores

    head = policy.model.lm_head
    policy.model.lm_head = Certain()
    try:
        ((ended,),) = _run(policy, ("one",), samples=1)
    finally:
        policy.model.lm_head = head
    assert (ended.text, ended.completion_tokens, ended.truncated) == ("", 1, False)
    ((cut,),) = _run(policy, ("one",), samples=1, temperature=0.0, max_new_tokens=2)
    assert (cut.completion_tokens, cut.truncated) == (2, True)


def test_no_conversations_give_no_completions(policy):
    assert generate(policy, [], samples=2, temperature=1.0, top_p=1.0, max_new_tokens=4, seed=0) == []


def test_load_refuses_what_is_not_there(tmp_path, policy):
    with pytest.raises(UsageError, match="holds no Hugging Face model"):
        load(tmp_path)
    with pytest.raises(UsageError, match="not available"):
        load(smollm.tiny(Path(tmp_path) / "m"), device="tpu")


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9))
def test_batches_hold_each_index_once_by_length(lengths, size):
    cut = batches(lengths, size)
    flat = [index for batch in cut for index in batch]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths)
    assert all(1 <= len(batch) <= size for batch in cut)
