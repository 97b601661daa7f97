"""NeMo RL: `uv run examples/run_sft.py` and its like in a checkout, then its converter from DCP to Hugging Face.

Resumes by itself from the latest `step_N`. `train.launch.env: {NEMO_RL: CHECKOUT}` names the checkout. Adapters are
refused: its converter for DTensor checkpoints is for whole models. From the sources of main (7ea279ab); it needs a GPU
and Python 3.13, so that it was not run here.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from gristmill.errors import RecipeError
from gristmill.example import Method
from gristmill.recipe import TrainRecipe
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import Framework, Plan, dotted
from gristmill.trainers.progress import EpochLines
from gristmill.trl.rows import Share


class NemoRl(Framework):
    """SFT, DPO and GRPO by NeMo RL."""

    name = "nemo-rl"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "rl"))
    targets = frozenset(("nemo-rl",))
    command = "uv"
    install = "install uv and clone NeMo RL with its submodules"
    package = "nemo_rl"
    whole_epochs = True
    several_nodes = False
    lacks = frozenset(("early_stop",))

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """As `Framework.check`; the checkout must be named and, on this machine, be there."""
        super().check(method, settings)
        if settings.lora_rank:
            raise RecipeError("train.trainer: nemo-rl's converter takes whole models; set train.lora_rank=0")
        checkout = settings.launch.env.get("NEMO_RL")
        if checkout is None:
            raise RecipeError("train.trainer: nemo-rl needs its checkout; set train.launch.env={NEMO_RL: /its/folder}")
        if settings.launch.launcher == "local" and not (Path(checkout) / "examples" / "run_sft.py").is_file():
            raise RecipeError(
                f"train.launch.env.NEMO_RL: {checkout} holds no checkout of NeMo RL (examples/run_sft.py)"
            )

    def plan(self, job: TrainJob, share: Share, options: dict[str, Any]) -> Plan:
        settings = job.settings
        options = {key: value for key, value in options.items() if key != "micro_batch_size"}
        run = (job.work / "run").resolve()
        values: dict[str, Any] = {
            "checkpointing.checkpoint_dir": str(run / "checkpoints"),
            "checkpointing.save_period": settings.save_steps,
            "checkpointing.metric_name": "null",  # the latest is taken, so the latest are kept
            "policy.train_micro_batch_size": share.device,
            "logger.log_dir": str(run / "logs"),
            "logger.tensorboard_enabled": "false",
            "cluster.gpus_per_node": share.processes,
        }
        section = {"sft": "sft", "dpo": "dpo", "rl": "grpo"}[job.method]
        if settings.eval_steps is not None:
            values[f"{section}.val_period"] = settings.eval_steps
        if job.method == "dpo":
            values["dpo.sft_loss_weight"] = settings.nll_weight
        overrides = [f"{name}={value}" for name, value in (values | dotted(options)).items()]
        convert = ["uv", "run", "examples/converters/convert_dcp_to_hf.py"]
        finish = (
            f"latest=$(ls -d {shlex.quote(str(run))}/checkpoints/step_* | sort -V | tail -n 1)",
            'cd "$NEMO_RL"',
            f'{self._prefixed(settings, convert)} --config "$latest/config.yaml" --dcp-ckpt-path '
            f'"$latest/policy/weights" --hf-ckpt-path {shlex.quote(str(run / "model"))}',
        )
        reader = EpochLines(
            r"=+ Epoch (?P<epoch>\d+)/\d+ =+",
            r"=+ Step (?P<step>\d+)/(?P<of>\d+) =+",
            r"• Loss: (?P<loss>-?[\d.]+(e[-+]?\d+)?)",
            epochs=int(settings.epochs),
        )
        return Plan((self._prefixed(settings, ["bash", "train.sh", *overrides]),), reader, finish)


NEMO_RL = NemoRl()
