"""Which TRL trainer does a method, and how it is set up.

Numbers are TRL's own unless the recipe has them. Where ours differ, it says why:

- DPO's loss has a likelihood term on the chosen answer, weight 0.2 (Llama 3 report, Dubey et al. 2024, section 4.1.4;
  after Pang et al. 2024, "Iterative Reasoning Preference Optimization", who take 1): without it the likelihood of
  both answers tends to fall, only that of the rejected one faster. TRL calls it loss type `sft`.
- KTO's rarer label weighs more (Ethayarajh et al. 2024, section 4.2), and rows are shuffled once: TRL reads them in
  order, because it takes the KL estimate from a row's neighbours.
- The reference of an adapter is the same weights with the adapter off, at no cost of memory. Any other reference is
  asked once, before training, and then let go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

from gristmill.errors import UsageError
from gristmill.example import Method
from gristmill.recipe import TrainRecipe
from gristmill.targets.protocol import LEARNING_RATES
from gristmill.trainer import TrainJob
from gristmill.trl import output, rows
from gristmill.trl.template import assistant_only, training_template

_NAMES: dict[Method, str] = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward"}

# Fields of TRL's configuration that say where things go and when; with others, a killed training could not resume.
OWN = {
    "output_dir": "the folder is Gristmill's",
    "gradient_accumulation_steps": "it follows from train.batch_size and per_device_train_batch_size",
    "save_strategy": "set train.save_steps",
    "save_steps": "set train.save_steps",
    "save_total_limit": "resuming needs the last two",
    "save_only_model": "resuming needs the optimizer's state",
    "eval_strategy": "set train.eval_steps",
    "eval_steps": "set train.eval_steps",
    "load_best_model_at_end": "the best checkpoint comes out wherever there are validation rows",
    "metric_for_best_model": "it is the validation loss",
    "greater_is_better": "it is the validation loss",
    "seed": "set seed in the recipe",
    "push_to_hub": "nothing leaves this machine",
    "logging_steps": "every step's loss is kept",
}


class Built(NamedTuple):
    """A TRL trainer that is ready to train."""

    trainer: Any
    read: int
    """Training rows in the files; TRL may have dropped some of them for their length."""


def config_class(method: Method) -> Any:
    """TRL's configuration of a method."""
    name = _NAMES[method]
    return getattr(import_module(f"trl.trainer.{name.lower()}_config"), f"{name}Config")


def option_names(method: Method) -> list[str]:
    """What `train.options` may name."""
    return sorted(field.name for field in dataclasses.fields(config_class(method)) if field.init)


def learning_rate(method: Method, settings: TrainRecipe) -> float:
    """The peak: the recipe's, or the method's usual one."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    return LEARNING_RATES[method]["lora" if settings.lora_rank else "full"]


def build(job: TrainJob, share: rows.Share) -> Built:
    """The trainer of a job; with several processes, all of them must come here.

    Raises:
        UsageError: the model or the rows cannot be used.
        TrainingError: nothing is left to train on.
    """
    import torch
    from transformers import AutoTokenizer

    settings, method = job.settings, job.method
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    splits: tuple[rows.Split, ...] = ("train", "validation")
    data = {split: rows.read(job.data, split, method, job.work / "cache") for split in splits}
    values: dict[str, Any] = {
        "output_dir": str(job.work),
        "num_train_epochs": settings.epochs,
        "learning_rate": learning_rate(method, settings),
        "per_device_train_batch_size": share.device,
        "per_device_eval_batch_size": share.device,
        "gradient_accumulation_steps": share.accumulation,
        "max_length": settings.max_length,
        "warmup_steps": settings.warmup,
        "seed": job.seed,
        "save_steps": settings.save_steps,
        "save_total_limit": 2,  # while one is being written, the one before is still whole
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not gpu,
        "bf16": half,  # autocast; elsewhere the weights' own dtype
        "ddp_find_unused_parameters": False,
    }
    if not {"gradient_checkpointing", "activation_checkpointing"} & settings.options.keys():
        values["activation_checkpointing"] = torch.cuda.is_available()  # time for memory, which short rows do not need
    if data["validation"] is not None:
        # `eval_steps` is set once it is known how many rows are left.
        values |= {"eval_strategy": "steps", "metric_for_best_model": "eval_loss", "greater_is_better": False}
        values["save_total_limit"] = 3  # the best one as well
    tokenizer = AutoTokenizer.from_pretrained(job.base, local_files_only=True)
    if method == "sft":
        values["assistant_only_loss"] = _masks(job, tokenizer, data["train"])
    elif method == "dpo":
        values["beta"] = settings.beta
        if settings.nll_weight:
            values |= {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.nll_weight]}
    elif method == "kto":
        values["beta"] = settings.beta
        values["desirable_weight"], values["undesirable_weight"] = _kto_weights(data["train"]["label"])
        data = {split: found and found.shuffle(seed=job.seed) for split, found in data.items()}
    own_weights = job.reference is None and bool(settings.lora_rank)
    if method in ("dpo", "kto"):
        # In bf16 two passes over differently padded batches differ by more than the first steps change: the adapter's
        # own weights are asked along with it.
        values["precompute_ref_log_probs"] = not own_weights
    config = config_class(method)(**(values | {k: v for k, v in settings.options.items() if k not in OWN}))

    # All-weight training needs fp32 masters: a bf16 weight swallows updates under 0.4 % of its size. Under adapters the
    # weights are frozen, and bf16 halves them; on a CPU it makes a step about three times faster. A reward model's head
    # is trained as a whole, so that without autocast all of it is fp32.
    narrow = settings.lora_rank and (half or (not torch.cuda.is_available() and method != "reward"))
    dtype = torch.bfloat16 if narrow else torch.float32
    torch.manual_seed(job.seed)  # a reward model's head
    model = output.load(job, job.base, dtype)
    extra: dict[str, Any] = {}
    if settings.lora_rank:
        if method == "sft" and not torch.cuda.is_available():
            model = _with_narrow_adapter(job, model, torch)
        else:
            extra["peft_config"] = _lora(job)
    if job.reference is not None:
        extra["ref_model"] = output.load(job, job.reference, dtype)
    name = _NAMES[method]
    kind = getattr(import_module(f"trl.trainer.{name.lower()}_trainer"), f"{name}Trainer")
    plain_sft = method == "sft" and not torch.cuda.is_available() and share.processes == 1
    try:
        trainer = _refined(kind, plain_sft)(
            model=model,
            args=config,
            train_dataset=data["train"],
            eval_dataset=data["validation"],
            processing_class=tokenizer,
            **extra,
        )
    except ValueError as error:
        if "target modules" in str(error).lower().replace("_", " "):
            raise _no_layers(job, error) from error
        raise
    if half:
        for value in trainer.model.parameters():
            if value.requires_grad:  # peft does so for its adapters, not for a reward model's head
                value.data = value.data.float()
    if job.reference is not None and config.precompute_ref_log_probs:
        trainer.ref_model = None  # it has said all that it is asked
    return Built(trainer, len(data["train"]))


class Lengths(NamedTuple):
    """Of the rows that are left."""

    tokens: int
    """In one pass; both answers of a pair."""
    at_limit: int
    """Rows that reach `max_length`, and lose what is beyond it."""


def lengths(trainer: Any, method: Method) -> Lengths:
    """What one pass over the training rows reads."""
    columns: Mapping[Method, tuple[tuple[str, ...], ...]] = {
        "sft": (("input_ids",),),
        "dpo": (("prompt_ids", "chosen_ids"), ("prompt_ids", "rejected_ids")),
        "kto": (("prompt_ids", "completion_ids"),),
        "reward": (("chosen_ids",), ("rejected_ids",)),
    }
    limit = trainer.args.max_length or math.inf
    tokens, full = 0, 0
    names = [name for side in columns[method] for name in side]
    for row in zip(*(map(len, trainer.train_dataset[name]) for name in names), strict=True):
        of = dict(zip(names, row, strict=True))
        sides = [min(sum(of[name] for name in side), limit) for side in columns[method]]
        tokens += int(sum(sides))
        full += limit in sides
    return Lengths(tokens, full)


def _masks(job: TrainJob, tokenizer: Any, data: Any) -> bool:
    """SFT: whether the template marks what carries loss; sets the template to train with."""
    options = job.settings.options
    if path := options.get("chat_template_path"):
        with open(path, encoding="utf-8") as file:
            tokenizer.chat_template = file.read()
    else:
        tokenizer.chat_template = training_template(tokenizer.chat_template)
    if "assistant_only_loss" in options:
        return bool(options["assistant_only_loss"])
    first = data[0]
    if "input_ids" in first or isinstance(first.get("completion"), str):
        return False  # labels, or a completion of plain text, say where the loss is
    names = [name for name in ("messages", "completion") if name in first]
    return assistant_only(tokenizer, data.select_columns(names), job.base.name)


def _kto_weights(labels: list[bool]) -> tuple[float, float]:
    from gristmill.targets.trl import Looked

    desirable = sum(labels)
    return Looked(False, False, desirable, len(labels) - desirable).weights


def _lora(job: TrainJob) -> Any:
    from peft import LoraConfig

    settings = job.settings
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,  # the adapter's scale stays the same whatever its rank
        target_modules=list(settings.lora_targets) or "all-linear",
        lora_dropout=0.0,
        task_type="SEQ_CLS" if job.method == "reward" else "CAUSAL_LM",
    )


def _with_narrow_adapter(job: TrainJob, model: Any, torch: Any) -> Any:
    """An adapter in the weights' own bf16: in fp32 a step on a CPU takes about twice as long.

    For SFT only: its rates are large enough. At those of DPO and KTO bf16 would swallow updates.
    """
    from peft import get_peft_model

    torch.manual_seed(job.seed)
    try:
        return get_peft_model(model, _lora(job), autocast_adapter_dtype=False)
    except ValueError as error:
        raise _no_layers(job, error) from error


def _no_layers(job: TrainJob, error: Exception) -> UsageError:
    targets = ", ".join(job.settings.lora_targets)
    return UsageError(f"the model has no layers for train.lora_targets ({targets}): {error}")


def _refined(kind: Any, plain_sft: bool) -> Any:
    """TRL's trainer with two corrections.

    - SFT without Triton (on a CPU) computes the loss on labelled positions alone. TRL 1.16 there projects every
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
            special = not plain_sft or self.args.loss_type != "nll" or self.label_smoother or self.aux_loss_enabled
            if special or "attention_mask" not in inputs:
                return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            # The adapter's layers sit inside the base model, so its decoder runs with them.
            whole = model.get_base_model() if hasattr(model, "get_base_model") else model
            labels = inputs["labels"][:, 1:]
            scored = labels != -100
            states = whole.base_model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).last_hidden_state[:, :-1]
            logits = whole.get_output_embeddings()(states[scored]).float()
            count = scored.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            return cross_entropy(logits, labels[scored], reduction="sum") / count

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            dtypes = {name: value.dtype for name, value in self.model.named_parameters()}
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            # Exact, since the file holds the narrower dtype; and before the optimizer's state, which follows it.
            for name, value in self.model.named_parameters():
                value.data = value.data.to(dtypes[name])

    return Refined
