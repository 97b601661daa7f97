"""The finished folder: plain weights in bf16, with the start's own tokenizer and chat template.

Adapters are merged; `train.adapter: keep` puts the adapter beside the merged weights too, in the folder `adapter`, so
that the whole can be served and trained on by anything, and the adapter alone be served with others of its base.
Written under a temporary name and renamed as the last act: if the folder exists, it is finished.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from gristmill.artifact import MANIFEST
from gristmill.errors import UsageError
from gristmill.train import RECORD
from gristmill.trainer import TrainJob
from gristmill.trl import checkpoints

ADAPTER = "adapter"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


def load(job: TrainJob, folder: Path, dtype: Any) -> Any:
    """The model in `folder`: causal, or with one score if the job is a reward model.

    Raises:
        UsageError: it holds none.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder} holds no Hugging Face model to start from: expected config.json and weights in it")
    if job.method == "reward":
        return AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, num_labels=1, local_files_only=True
        )
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)


def at(job: TrainJob, checkpoint: Path) -> Any:
    """The model as a checkpoint of the training holds it; adapters on."""
    import torch

    if not job.settings.lora_rank:
        return load(job, checkpoint, torch.float32)
    from peft import PeftModel

    torch.manual_seed(job.seed)  # a reward model's head, before the adapter brings the trained one
    return PeftModel.from_pretrained(load(job, job.base, torch.float32), checkpoint)


def finish(job: TrainJob, model: Any, identity: str, stats: dict[str, Any]) -> None:
    """Merge, save, record, rename: in this order, so that `output` is never there without its record."""
    import torch

    job.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{job.output.name}-", dir=job.output.parent))
    try:
        if job.settings.lora_rank:
            if job.settings.adapter == "keep":
                _save_adapter(model, temporary / ADAPTER)
            # The sum in fp32, rounded once: a merge in bf16 would round the product as well.
            model = model.to(torch.float32).merge_and_unload()
        model.to(torch.bfloat16).save_pretrained(temporary)
        # The start's own tokenizer files: the trainer's copy carries the training template.
        for path in beside_weights(job.base):
            if not (temporary / path.name).exists():
                shutil.copyfile(path, temporary / path.name)
        for path in temporary.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.chmod(0o755)
        checkpoints.record(job.work, identity, stats)
        temporary.rename(job.output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def beside_weights(folder: Path) -> list[Path]:
    """A model folder's own files that are not weights: tokenizer, chat template, configuration, code, licence."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.endswith(_WEIGHTS) and path.name not in (MANIFEST, RECORD, "README.md")
    ]


def _save_adapter(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    # peft names the folder that the weights came from, a path of this machine; the manifest has their digest.
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "base_model_name_or_path": None}, indent=2, sort_keys=True))
