"""Supervised fine-tuning with TRL, as a process of its own: `python -m gristmill.train_trl CONFIG.json`.

Reads a `TrlJob`; writes a plain Hugging Face folder to its `output` (LoRA merged, bf16, the base's own tokenizer and
chat template), under a temporary name first, renamed as the last act: if `output` exists, it is finished.

Guarantees:
- Standard output carries the protocol alone, one JSON object a line: `start`, `step`, `done`. The rest goes to stderr.
- A killed run resumes from its last complete checkpoint in `work`, and on a CPU ends with the same bytes as an
  undisturbed one. Checkpoints of another job (other data, base or settings) are removed, never continued.
- The process ends when its parent does, and holds a lock on `work`, so a stale twin cannot interleave.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gristmill.errors import GristmillError, TrainingError, UsageError
from gristmill.identity import digest, file_digest
from gristmill.policy import threads, yield_cores

if TYPE_CHECKING:
    from gristmill.example import Method
    from gristmill.recipe import TrainRecipe
    from gristmill.trainer import OnStep, Trained, TrainJob

VERSION = 1
"""Part of the job's digest: raise it when the same job would train otherwise; no old checkpoint is then continued."""


class TrlJob(BaseModel):
    """What one training run does. Paths are not part of its identity; the content behind `base` and `data` is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["sft"] = Field("sft", description="Supervised fine-tuning.")
    base: Path = Field(description="Hugging Face folder of the model to start from.")
    data: Path = Field(
        description="Folder with train*.parquet or train.jsonl; rows have `messages`, or `prompt` and `completion`."
    )
    output: Path = Field(description="Folder for the finished model; must not exist.")
    work: Path = Field(description="Folder for checkpoints, kept for resuming.")
    epochs: float = Field(3.0, gt=0, description="Passes over the data.")
    learning_rate: float = Field(5e-4, gt=0, description="Peak learning rate; it falls linearly to zero.")
    batch_size: int = Field(16, ge=1, description="Examples a step.")
    max_length: int = Field(1024, ge=8, description="Tokens of an example; the rest is cut off.")
    lora_rank: int = Field(16, ge=0, description="Rank of the adapter; 0 trains all weights.")
    lora_alpha: int = Field(32, ge=1, description="The adapter's scale is alpha / rank.")
    lora_targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"),
        min_length=1,
        description="Linear layers that get an adapter, by the end of their name.",
    )
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of the steps in which the learning rate rises.")
    seed: int = Field(0, ge=0, description="Order of the data and start of the adapter.")
    save_steps: int = Field(20, ge=1, description="Steps between checkpoints.")
    assistant_only_loss: bool = Field(
        True, description="Train on assistant turns only, not on prompts and tool output."
    )

    def identity(self) -> str:
        """Hex sha256 over settings and contents; two jobs with one identity end with the same weights."""
        settings = self.model_dump(mode="json", exclude={"base", "data", "output", "work", "save_steps"})
        contents = {
            kind: {path.name: file_digest(path) for path in paths}
            for kind, paths in {"data": data_files(self.data), "base": _files(self.base)}.items()
        }
        return digest({"version": VERSION, "settings": settings, **contents})


def data_files(folder: Path) -> list[Path]:
    """The training files in `folder`, by name: train*.parquet, or else train.jsonl.

    Raises:
        UsageError: there are none.
    """
    if found := sorted(folder.glob("train*.parquet")) or sorted(folder.glob("train.jsonl")):
        return found
    raise UsageError(f"{folder} holds no training data: expected train*.parquet or train.jsonl in it.")


def main(arguments: list[str]) -> int:
    """Runs the job in the file that `arguments` names; returns the exit status (design §6)."""
    protocol = _claim_stdout()
    _end_with_parent()
    yield_cores()
    # Before the imports that read them: no hub, no usage ping, no forked tokenizer threads.
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_DATASETS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )
    try:
        if len(arguments) != 1:
            raise UsageError("Usage: python -m gristmill.train_trl CONFIG.json")
        run(_read(Path(arguments[0])), protocol)
    except GristmillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run(job: TrlJob, protocol: IO[str]) -> None:
    """Trains, or finds that it is done already, and writes events to `protocol`.

    Raises:
        UsageError: base or data are unusable, or `output` exists without being this job's.
        TrainingError: another process trains in `work`, or nothing is left to train on.
    """
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "lock").open("w") as lock:
        _acquire(lock, job.work)
        identity = job.identity()
        record = job.work / "done.json"
        stats = _recorded(record, identity)
        if not (job.output.is_dir() and stats is not None):
            if job.output.exists():
                raise UsageError(
                    f"{job.output} exists already and is not this job's: remove it, or name another output."
                )
            _keep_only(job.work, identity)
            stats = _train(job, identity, protocol)
        _emit(protocol, {"event": "done", **stats})


def _train(job: TrlJob, identity: str, protocol: IO[str]) -> dict[str, Any]:
    began = time.monotonic()
    import datasets
    import torch
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # partly typed
    torch.set_num_threads(threads())
    trainer = _trainer(job, torch)
    rows = len(trainer.train_dataset)
    if rows == 0:
        raise TrainingError(f"No example in {job.data} has an assistant token within {job.max_length} tokens.")
    tokens = round(sum(len(ids) for ids in trainer.train_dataset["input_ids"]) * job.epochs)
    checkpoint = _last_checkpoint(job.work)
    resumed = int(checkpoint.name.partition("-")[2]) if checkpoint else 0
    trainer.add_callback(_callback(protocol, rows, resumed))
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    stats = {
        "steps": result.global_step,
        "train_loss": sum(losses) / len(losses),
        "tokens": tokens,
        "rows": rows,
        "seconds": round(time.monotonic() - began, 2),
        "losses": losses,
    }
    _finish(job, trainer.model, identity, stats)
    return stats


def _trainer(job: TrlJob, torch: Any) -> Any:
    """TRL's SFTTrainer, set up so that a CPU does no needless work."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    if not (job.base / "config.json").is_file():
        raise UsageError(f"{job.base} holds no Hugging Face model to start from.")
    # All-weight training needs fp32 masters: a bf16 weight swallows updates under 0.4 % of its size. Adapters start
    # at zero and are large enough in bf16, which makes a step on a CPU about three times faster.
    dtype = torch.bfloat16 if job.lora_rank else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=dtype, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    tokenizer.chat_template = training_template(tokenizer.chat_template)
    if job.lora_rank:
        model = _with_adapter(job, model, torch)
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    config = SFTConfig(
        output_dir=str(job.work),
        num_train_epochs=job.epochs,
        learning_rate=job.learning_rate,
        per_device_train_batch_size=job.batch_size,
        max_length=job.max_length,
        warmup_steps=job.warmup,
        seed=job.seed,
        assistant_only_loss=job.assistant_only_loss,
        save_steps=job.save_steps,
        save_total_limit=2,  # while one is being written, the one before is still whole
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=not gpu,
        bf16=False,  # this means autocast; the weights have their dtype
        activation_checkpointing=False,  # trades time for memory that short rows do not need
    )
    dataset = _dataset(job)
    return _refined(SFTTrainer, triton=torch.cuda.is_available())(
        model=model, args=config, train_dataset=dataset, processing_class=tokenizer
    )


def _refined(kind: Any, triton: bool) -> Any:
    """SFTTrainer with two corrections.

    - Without Triton (on a CPU), the loss is computed on labelled positions alone. TRL 1.16 there projects every
      position onto the vocabulary and masks afterwards (`add_fused_lm_head`, `compact`): with short answers to longer
      prompts that is half of a step's time and most of its memory. The loss is the same mean over labelled tokens;
      TRL's entropy and accuracy are not computed.
    - A resumed adapter keeps its dtype. peft 0.21 loads it as fp32 (`load_adapter`, `autocast_adapter_dtype`), so that
      a resumed run would go on in another precision than the one that was killed.
    """
    from torch.nn.functional import cross_entropy

    class Refined(kind):  # type: ignore[misc]  # TRL has no types
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            if triton:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # The adapter's layers sit inside the base model, so its decoder runs with them.
            whole = model.get_base_model() if hasattr(model, "get_base_model") else model
            labels = inputs["labels"][:, 1:]
            scored = labels != -100
            states = whole.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state[:, :-1]
            logits = whole.get_output_embeddings()(states[scored]).float()
            count = scored.sum() if num_items_in_batch is None else num_items_in_batch
            return cross_entropy(logits, labels[scored], reduction="sum") / count

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            dtypes = {name: value.dtype for name, value in self.model.named_parameters()}
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            # Exact, since the file holds the narrower dtype; and before the optimizer's state, which follows it.
            for name, value in self.model.named_parameters():
                value.data = value.data.to(dtypes[name])

    return Refined


def _with_adapter(job: TrlJob, model: Any, torch: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=job.lora_rank,
        lora_alpha=job.lora_alpha,
        target_modules=list(job.lora_targets),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(job.seed)
    try:
        # Without autocast the adapter has the base's bf16; in fp32 a step takes about twice as long.
        return get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        targets = ", ".join(job.lora_targets)
        raise UsageError(f"The model has no layers for lora_targets ({targets}): {error}") from error


def training_template(template: str) -> str:
    """The chat template to train with: of SmolLM2's, the one that also marks what the assistant says.

    TRL needs `{% generation %}` around assistant turns to mask the rest, and ships such templates for the models that
    it knows; SmolLM2 is not among them. Both templates render the same text (a test compares them).
    """
    from gristmill.smollm import TEMPLATE

    return _SMOLLM_TRAINING if template == TEMPLATE else template


_SMOLLM_TRAINING = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def _dataset(job: TrlJob) -> Any:
    """The rows, with TRL's columns alone: other columns may hold mixed types, and TRL ignores them anyway."""
    from datasets import Dataset, Features, Json, List

    files = data_files(job.data)
    cache = str(job.work / "cache")
    if files[0].suffix == ".parquet":
        dataset = Dataset.from_parquet([str(file) for file in files], cache_dir=cache)
        return dataset.select_columns([name for name in dataset.column_names if name in _COLUMNS])
    first = next(_rows(files), None)
    if first is None:
        raise TrainingError(f"{files[0]} is empty: there is nothing to train on.")
    columns = [name for name in _COLUMNS if name in first]
    # Json keeps each row's own keys; Arrow structs would fill the keys of other rows with nulls.
    features = Features({name: List(Json()) for name in columns})

    def rows() -> Iterator[dict[str, Any]]:
        for row in _rows(files):
            yield {name: row.get(name) or [] for name in columns}

    return Dataset.from_list(list(rows()), features=features)


_COLUMNS = ("messages", "prompt", "completion", "tools")


def _rows(files: list[Path]) -> Iterator[dict[str, Any]]:
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UsageError(f"{file}, row {number} is not JSON ({error}): write the export again.") from error
                yield row


def _callback(protocol: IO[str], rows: int, resumed: int) -> Any:
    from transformers import TrainerCallback

    class Protocol(TrainerCallback):
        """Tells the parent about each step, and marks checkpoints that are whole."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            start = {"event": "start", "of": state.max_steps, "rows": rows, "resumed": resumed}
            _emit(protocol, start)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                step = {
                    "event": "step",
                    "step": state.global_step,
                    "of": state.max_steps,
                    "loss": logs["loss"],
                }
                _emit(protocol, step)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Trainer writes a checkpoint file by file; only one with this mark may be resumed from.
            (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _WHOLE).touch()

    return Protocol()


_WHOLE = "whole"


def _finish(job: TrlJob, model: Any, identity: str, stats: dict[str, Any]) -> None:
    """Merges, saves, records, renames: in this order, so that `output` is never there without its record."""
    import torch

    if job.lora_rank:
        # The sum in fp32, rounded once: a merge in bf16 would round the product as well.
        model = model.to(torch.float32).merge_and_unload()
    model = model.to(torch.bfloat16)
    job.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{job.output.name}-", dir=job.output.parent))
    try:
        model.save_pretrained(temporary)
        # The base's own tokenizer files: the trainer's copy carries the training template.
        for path in _files(job.base):
            if path.suffix != ".safetensors" and not (temporary / path.name).exists():
                shutil.copyfile(path, temporary / path.name)
        for path in temporary.iterdir():
            path.chmod(0o644)
        temporary.chmod(0o755)
        record = job.work / "done.json"
        _write(record, {"identity": identity, "stats": stats})
        temporary.rename(job.output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _last_checkpoint(work: Path) -> Path | None:
    """The latest complete checkpoint; torn ones are removed, so that the trainer can write them again."""
    whole = []
    for folder in work.glob("checkpoint-*"):
        if (folder / _WHOLE).is_file():
            whole.append(folder)
        else:
            shutil.rmtree(folder)
    return max(whole, key=lambda folder: int(folder.name.partition("-")[2]), default=None)


def _keep_only(work: Path, identity: str) -> None:
    """Removes checkpoints from `work` unless they are of the job `identity`."""
    owner = work / "identity.json"
    if owner.is_file() and json.loads(owner.read_text()) == {"identity": identity}:
        return
    # By name: `work` may be a folder that holds other things as well.
    for folder in [*work.glob("checkpoint-*"), work / "cache"]:
        shutil.rmtree(folder, ignore_errors=True)
    (work / "done.json").unlink(missing_ok=True)
    _write(owner, {"identity": identity})


def _recorded(record: Path, identity: str) -> dict[str, Any] | None:
    if not record.is_file():
        return None
    found = json.loads(record.read_text())
    stats: dict[str, Any] = found["stats"]
    return stats if found["identity"] == identity else None


def _write(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _acquire(lock: IO[str], work: Path, patience: float = 10.0) -> None:
    """Waits up to `patience` seconds: the twin of a killed parent needs a moment to notice."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until:
                break
            time.sleep(0.2)
    raise TrainingError(f"Another process trains in {work}: wait for it to end, or end it, then run again.")


def _claim_stdout() -> IO[str]:
    """Keeps standard output for the protocol and sends what libraries print there to stderr."""
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return protocol


def _emit(protocol: IO[str], event: dict[str, Any]) -> None:
    protocol.write(json.dumps(event) + "\n")
    protocol.flush()


def _end_with_parent() -> None:
    """Ends this process at once when its parent dies.

    By polling: Linux's PR_SET_PDEATHSIG fires when the parent *thread* ends, and parents start us from worker threads.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _read(path: Path) -> TrlJob:
    try:
        return TrlJob.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"Cannot read the training job {path}: {error.strerror}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {field}: {first['msg']}.") from error


class _Trl:
    """TRL behind the trainer protocol."""

    name = "trl"
    methods: frozenset[Method] = frozenset(("sft",))
    targets = frozenset(("trl", "trl-jsonl"))

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """Nothing yet."""

    def train(self, job: TrainJob, on_step: OnStep | None = None) -> Trained:
        """Run the job in a process of its own."""
        from gristmill.train import train
        from gristmill.trainer import Trained

        settings = job.settings
        final = train(
            TrlJob(
                base=job.base,
                data=job.data,
                output=job.output,
                work=job.work,
                seed=job.seed,
                learning_rate=settings.learning_rate or 2e-4,
                lora_targets=settings.lora_targets or ("q_proj", "v_proj"),
                **settings.model_dump(
                    include={"epochs", "batch_size", "max_length", "lora_rank", "warmup", "save_steps"}
                ),
            ),
            on_step=on_step,
        )
        return Trained(steps=final["steps"], losses=tuple(final["losses"]), tokens=final["tokens"])


TRL = _Trl()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
