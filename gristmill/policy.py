"""A policy that acts: a Hugging Face folder, loaded for generation on the best device there is.

Weights are bf16 everywhere, on a CPU too: half the memory, and about twice the speed where the CPU knows bf16.
Prompts are padded on the left, so that every row of a batch ends where its answer begins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.errors import UsageError


@dataclass(frozen=True)
class Policy:
    """A loaded model with its tokenizer. `name` is the folder's name; `device` is cpu, cuda or mps."""

    model: Any
    tokenizer: Any
    device: str
    name: str


_held: dict[tuple[str, str], Policy] = {}


def held(folder: Path, device: str, threads: int) -> Policy:
    """The policy, loaded once for many batches; a process holds one, until it wants another or says `release`.

    Args:
        threads: of torch.

    Raises:
        UsageError: as `load`.
    """
    key = (str(folder), device)
    if key not in _held:
        _held.clear()  # first: two models may not fit
        _held[key] = load(folder, device)
    import torch

    torch.set_num_threads(threads)
    return _held[key]


def release() -> None:
    """Hold no policy."""
    _held.clear()


def prompt_lengths(folder: Path, conversations: Sequence[Sequence[dict[str, Any]]]) -> list[int]:
    """Tokens of each conversation in the chat template of the model in `folder`, which is not loaded itself."""
    _quiet()
    yield_cores()
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [len(ids) for ids in tokenizer.apply_chat_template(conversations, add_generation_prompt=True)["input_ids"]]


def load(folder: Path, device: str = "auto") -> Policy:
    """Loads the model in `folder` in bf16, for inference only.

    Sets torch's thread count to the cores that this process may use.

    Raises:
        UsageError: the folder holds no model, or the device is unknown or absent.
    """
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no Hugging Face model: expected config.json, weights and a tokenizer in it.")
    _quiet()
    yield_cores()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(threads())
    chosen = _device(device)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", local_files_only=True)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True)
    model.requires_grad_(False)
    return Policy(model.to(chosen).eval(), tokenizer, chosen, folder.name)


def threads() -> int:
    """Cores that this process may use: containers and `taskset` often give fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def yield_cores() -> None:
    """Makes torch's idle threads sleep instead of spin; works before torch is first imported in a process.

    OpenMP threads spin at each barrier. As soon as anything else wants the cores (the embedded server, a browser),
    the spinners hold up the one thread that they wait for: on two cores with one busy neighbour a batch took 33 s
    instead of 3.5 s. Alone on the machine, sleeping costs a few percent.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _device(wanted: str) -> str:
    import torch

    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(name for name, there in present.items() if there)
    if not present.get(wanted.partition(":")[0], False):
        there = ", ".join(name for name, is_there in present.items() if is_there)
        raise UsageError(f"Device {wanted!r} is not available here: use auto or one of {there}.")
    return wanted


def _quiet() -> None:
    """Silences progress bars of model loading: the caller shows its own progress."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is partly typed
