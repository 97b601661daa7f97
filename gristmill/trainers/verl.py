"""verl: `torchrun -m verl.trainer.sft_trainer`, then `verl.model_merger`, and peft for adapters.

Resumes by itself (`trainer.resume_mode=auto`). The merger leaves an adapter beside the weights it is for, so that
`merge.py`, written beside the launch files, adds the two. From the sources of 0.9.1: its process group needs NCCL, so
that it was not run here; its configuration is composed by hydra in tests/live/test_trainers.py.
"""

from __future__ import annotations

import json
from typing import Any

from gristmill.example import Method
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import Framework, Plan, dotted, rendezvous
from gristmill.trainers.progress import LogLines
from gristmill.trl.rows import Share

_MERGE = '''"""Adds an adapter to its base: python merge.py BASE ADAPTER OUT. The sum in fp32, rounded once."""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
model.to(torch.bfloat16).save_pretrained(out)
'''


class Verl(Framework):
    """SFT by verl."""

    name = "verl"
    methods: frozenset[Method] = frozenset(("sft",))
    targets = frozenset(("verl",))
    command = "torchrun"
    install = "install verl (0.9.1) into an environment of its own"
    package = "verl"
    whole_epochs = True
    lacks = frozenset(("early_stop",))

    def plan(self, job: TrainJob, share: Share, options: dict[str, Any]) -> Plan:
        settings = job.settings
        nodes = settings.launch.nodes
        options = {key: value for key, value in options.items() if key != "micro_batch_size"}
        values: dict[str, Any] = {
            "trainer.default_local_dir": str((job.work / "run" / "checkpoints").resolve()),
            "trainer.save_freq": settings.save_steps,
            "trainer.max_ckpt_to_keep": 2,
            "trainer.nnodes": nodes,
            "trainer.n_gpus_per_node": share.processes // nodes,
            "checkpoint.save_contents": ["model", "optimizer", "extra"],  # the merger makes the Hugging Face folder
            "data.micro_batch_size_per_gpu": share.device,
            "data.max_token_len_per_gpu": max(8192, settings.max_length),
            "optim.lr_warmup_steps_ratio": settings.warmup,
        }
        if settings.eval_steps is not None:
            values["trainer.test_freq"] = settings.eval_steps
        overrides = [f"{name}={_hydra(value)}" for name, value in (values | dotted(options)).items()]
        train = [
            f"export GPUS={share.processes // nodes}",
            self._prefixed(settings, ["bash", "train.sh", *overrides]),
        ]
        if nodes > 1:
            train.insert(0, f'export RENDEZVOUS="{rendezvous(settings, share)}"')
        merge = self._prefixed(settings, ["python", "-m", "verl.model_merger", "merge", "--backend", "fsdp"])
        finish = [
            "latest=../run/checkpoints/global_step_$(cat ../run/checkpoints/latest_checkpointed_iteration.txt)",
            f'{merge} --local_dir "$latest" --target_dir ../run/{"merged" if settings.lora_rank else "model"}',
        ]
        if settings.lora_rank:
            (job.work / "launch" / "merge.py").write_text(_MERGE, encoding="utf-8")
            base = str(job.base.resolve())
            words = ["python", "merge.py", base, "../run/merged/lora_adapter", "../run/model"]
            finish.append(self._prefixed(settings, words))
        reader = LogLines(
            r"Total training steps: (?P<of>\d+)",
            r"step:(?P<step>\d+) - .*?train/loss:(?P<loss>-?[\d.]+(e[-+]?\d+)?)",
        )
        adapter = "run/merged/lora_adapter" if settings.lora_rank else None
        return Plan(tuple(train), reader, tuple(finish), adapter=adapter, env={"VERL_SFT_LOGGING_LEVEL": "INFO"})


def _hydra(value: Any) -> str:
    """A value in hydra's override grammar, which is close to JSON's."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    return value if isinstance(value, str) and value.replace("/", "").replace("_", "").isalnum() else json.dumps(value)


VERL = Verl()
