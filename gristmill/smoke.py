"""A checkpoint is tried before it counts, whichever trainer made it.

    weights     all finite, and not those that training started from
    tokenizer   and chat template are the start's
    loss        finite, did not blow up; falling, if there are steps enough to say so
    answers     a few of the dataset's prompts, greedily: finite logits, something said, not one token for ever
    scores      (reward models) of a few of the dataset's answers: finite, and not all the same

What is wrong beyond doubt is an error; what may be meant is a warning. Costs seconds: a few prompts, few tokens; the
start's model is only loaded when the checkpoint's answers look bad, to see whether they did before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.errors import GristmillError
from gristmill.example import Method

if TYPE_CHECKING:
    import torch

_PROMPTS = 4
_LOOKED = 64  # rows to take them from
_PROMPT_TOKENS = 2048
_NEW_TOKENS = 8
_STEPS = 9  # with fewer, thirds of the loss curve are noise
_BLOWN_UP = 2.0  # times as large as in the first third


class Finding(BaseModel):
    """Something that a check found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check: Literal["weights", "tokenizer", "loss", "answers", "scores"]
    severity: Literal["error", "warning"]
    says: str


class Smoke(BaseModel):
    """What trying a checkpoint brought; it enters its manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    findings: tuple[Finding, ...] = ()
    changed: float | None = Field(None, description="Share of the weights that differ from the start's; null: unknown.")
    tried: int = Field(0, description="Prompts answered, or answers scored.")
    seconds: float = 0.0

    @property
    def errors(self) -> list[Finding]:
        """Why the checkpoint must not count."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def warnings(self) -> list[Finding]:
        """What to look at."""
        return [finding for finding in self.findings if finding.severity == "warning"]


def smoke(
    folder: Path, start: Path, method: Method, losses: Sequence[float], data: Path | None = None, device: str = "auto"
) -> Smoke:
    """Try the checkpoint in `folder`.

    Args:
        start: folder of the model that training started from.
        losses: of the training steps, in order; may be empty where the framework did not tell.
        data: the dataset's folder, in any format of TRL's, for prompts; without one, or in another format, a greeting.
    """
    began = time.monotonic()
    findings = list(_loss(losses))
    changed, found = _weights(folder, start)
    findings += found
    findings += _tokenizer(folder, start)
    tried = 0
    if not any(finding.severity == "error" for finding in findings):
        tried, found = (_scores if method == "reward" else _answers)(folder, start, data, device)
        findings += found
    return Smoke(findings=tuple(findings), changed=changed, tried=tried, seconds=round(time.monotonic() - began, 2))


def _loss(losses: Sequence[float]) -> Iterator[Finding]:
    if bad := [step for step, loss in enumerate(losses, start=1) if not math.isfinite(loss)]:
        yield _error("loss", f"the training loss is {losses[bad[0] - 1]} at step {bad[0]}; lower train.learning_rate")
        return
    if len(losses) < _STEPS:
        return
    third = len(losses) // 3
    first, last = (sum(part) / third for part in (losses[:third], losses[-third:]))
    if last > _BLOWN_UP * first and first > 0:
        yield _error("loss", f"the training loss rose from {first:.3f} to {last:.3f}; lower train.learning_rate")
    elif last >= first:
        yield _warning(
            "loss", f"the training loss did not fall: {first:.3f} in the first third, {last:.3f} in the last"
        )


def _weights(folder: Path, start: Path) -> tuple[float | None, list[Finding]]:
    """Compares tensor by tensor, so that a large model never stands in memory twice."""
    import torch
    from safetensors import SafetensorError

    differing, compared = 0, 0
    try:
        ours, theirs = _tensors(folder), _tensors(start)
        if not ours:
            return None, [_error("weights", f"there are no safetensors weights in {folder.name}")]
        for name, file in ours.items():
            tensor = _read(file, name)
            before = _read(theirs[name], name) if name in theirs else None
            if before is not None and before.shape == tensor.shape:
                # The start may be stored wider than it is trained on: what counts is what is served.
                before = before.to(tensor.dtype)
                compared += tensor.numel()
                if torch.equal(before, tensor):  # by far the quickest; frozen tensors end here
                    continue
                differing += int((before != tensor).sum())
            if not torch.isfinite(tensor).all():
                return None, [_error("weights", f"{name} holds values that are no numbers; lower train.learning_rate")]
    except (SafetensorError, OSError) as error:
        return None, [_error("weights", f"the weights cannot be read ({error})")]
    if not compared:
        return None, [_warning("weights", "no weight has the name and shape that it has in the model trained from")]
    if not differing:
        said = "all weights are those that training started from; raise train.learning_rate or train.epochs"
        return 0.0, [_error("weights", said)]
    return round(differing / compared, 4), []


def _tensors(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _read(file: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensor: torch.Tensor = opened.get_tensor(name)
        return tensor


def _tokenizer(folder: Path, start: Path) -> Iterator[Finding]:
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    contents = [[(at / name).read_bytes() for name in names if (at / name).is_file()] for at in (folder, start)]
    if contents[0] and contents[0] == contents[1]:
        return
    # Other bytes need not be another tokenizer: frameworks write the files anew.
    from transformers import AutoTokenizer

    try:
        ours, theirs = (AutoTokenizer.from_pretrained(at, local_files_only=True) for at in (folder, start))
    except (OSError, ValueError) as error:
        yield _error("tokenizer", f"the tokenizer cannot be loaded ({str(error).splitlines()[0]})")
        return
    if ours.get_vocab() != theirs.get_vocab():
        yield _error("tokenizer", "the vocabulary is not that of the model trained from")
    if ours.eos_token_id != theirs.eos_token_id:
        yield _error(
            "tokenizer", f"answers end with token {ours.eos_token_id}, in the model trained from {theirs.eos_token_id}"
        )
    if ours.chat_template != theirs.chat_template:
        yield _error("tokenizer", "the chat template is not that of the model trained from")


def _answers(folder: Path, start: Path, data: Path | None, device: str) -> tuple[int, list[Finding]]:
    import torch

    from gristmill import policy as policies
    from gristmill.generate import generate

    def ask(at: Path) -> list[list[int]]:
        """Tokens of the answers; raises ValueError on logits that are no numbers."""
        policy = policies.load(at, device)
        prompts = _prompts(policy.tokenizer, data)
        greedy = {"samples": 1, "temperature": 0.0, "top_p": 1.0, "max_new_tokens": _NEW_TOKENS, "seed": 0}
        texts = [policy.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True) for p in prompts]
        encoded = policy.tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            inputs = {name: encoded[name].to(policy.device) for name in ("input_ids", "attention_mask")}
            last = policy.model.base_model(**inputs, use_cache=False).last_hidden_state[:, -1]
            logits = policy.model.get_output_embeddings()(last)
        if not torch.isfinite(logits).all():
            raise ValueError("logits are no numbers")
        answers = generate(policy, prompts, **greedy)  # type: ignore[arg-type]
        return [policy.tokenizer(group[0].text, add_special_tokens=False)["input_ids"] for group in answers]

    try:
        said = ask(folder)
    except torch.OutOfMemoryError:
        return 0, [_warning("answers", "the model does not fit on this machine's device, so nothing was asked")]
    except (ValueError, OSError, RuntimeError, KeyError, GristmillError) as error:
        return 0, [_error("answers", f"the model does not answer ({_line(error)})")]
    bad = [tokens for tokens in said if _empty(tokens) or _stuck(tokens)]
    if not bad:
        return len(said), []
    what = "nothing" if all(map(_empty, bad)) else "one token over and over"
    says = f"{len(bad)} of {len(said)} prompts are answered with {what}"
    if len(bad) < len(said):
        return len(said), [_warning("answers", says)]
    before = ask(start)
    if worn := sum(_empty(tokens) or _stuck(tokens) for tokens in before):
        as_before = "as by the model trained from" if worn == len(before) else f"{worn} by the model trained from"
        return len(said), [_warning("answers", f"{says}, {as_before}")]
    return len(said), [_error("answers", f"{says}, none by the model trained from; lower train.learning_rate")]


def _empty(tokens: list[int]) -> bool:
    return not tokens


def _stuck(tokens: list[int]) -> bool:
    return len(tokens) >= _NEW_TOKENS and len(set(tokens)) == 1


def _scores(folder: Path, start: Path, data: Path | None, device: str) -> tuple[int, list[Finding]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.bfloat16, local_files_only=True
        )
        at = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        model = model.to(at).eval()
        if model.config.num_labels != 1:
            return 0, [_error("scores", f"the model has {model.config.num_labels} outputs, a reward model has one")]
        scores = []
        with torch.inference_mode():
            for conversation in _conversations(data):
                rendered: Any = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
                ids = rendered["input_ids"].to(at)
                if ids.shape[1] <= _PROMPT_TOKENS:
                    scores.append(float(model(input_ids=ids).logits[0, 0]))
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        return 0, [_error("scores", f"the model does not score ({_line(error)})")]
    if any(not math.isfinite(score) for score in scores):
        return len(scores), [_error("scores", "there are scores that are no numbers; lower train.learning_rate")]
    if len(scores) > 1 and max(scores) == min(scores):
        return len(scores), [_error("scores", f"all {len(scores)} answers have the score {scores[0]:.4g}")]
    pairs = list(zip(scores[::2], scores[1::2], strict=False))
    if data is not None and pairs and all(chosen <= rejected for chosen, rejected in pairs):
        return len(scores), [_warning("scores", f"none of {len(pairs)} chosen answers scores above the rejected one")]
    return len(scores), []


def _prompts(tokenizer: Any, data: Path | None) -> list[list[dict[str, Any]]]:
    """The shortest prompts among the first rows: what they say matters little, and long ones cost time."""
    found: list[tuple[int, list[dict[str, Any]]]] = []
    for row in _rows(data):
        messages = row.get("prompt") or row.get("messages")
        if not isinstance(messages, list) or not messages or not isinstance(messages[0], dict):
            continue
        answer = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), len(messages))
        asked = messages[: answer or 1]
        length = len(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"])
        if length <= _PROMPT_TOKENS and asked not in [prompt for _, prompt in found]:
            found.append((length, asked))
    found.sort(key=lambda pair: pair[0])
    return [prompt for _, prompt in found[:_PROMPTS]] or [[{"role": "user", "content": "Hello. Who are you?"}]]


def _conversations(data: Path | None) -> Iterator[list[dict[str, Any]]]:
    """Chosen and rejected answers in turn."""
    count = 0
    for row in _rows(data):
        sides = [row.get("chosen"), row.get("rejected")]
        if count < _PROMPTS and all(isinstance(side, list) and side for side in sides):
            count += 1
            for side in sides:
                yield [*(row.get("prompt") or []), *(side or [])]
    if not count:
        for answer in ("Yes.", "No, and again no."):
            yield [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": answer}]


def _rows(data: Path | None) -> list[dict[str, Any]]:
    """The first rows of the first training file; messages in Parquet are JSON texts."""
    import orjson

    files = [] if data is None else sorted(data.glob("train*.parquet")) or sorted(data.glob("train.jsonl"))
    if not files:
        return []
    if files[0].suffix == ".jsonl":
        with files[0].open("rb") as lines:
            return [orjson.loads(line) for line, _ in zip(lines, range(_LOOKED), strict=False)]
    import pyarrow.parquet as pq

    with pq.ParquetFile(files[0]) as file:
        batch = next(file.iter_batches(batch_size=_LOOKED), None)
    rows = [] if batch is None else batch.to_pylist()

    def plain(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], str | bytes):
            return [orjson.loads(item) for item in value]
        return value

    sides = ("prompt", "chosen", "rejected", "messages")
    return [{name: plain(value) for name, value in row.items() if name in sides} for row in rows]


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def _error(check: Any, says: str) -> Finding:
    return Finding(check=check, severity="error", says=says)


def _warning(check: Any, says: str) -> Finding:
    return Finding(check=check, severity="warning", says=says)
