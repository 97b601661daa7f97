"""Frameworks train for real, on a CPU, as far as they can; their own parsers read the launch files of the others.

LLaMA-Factory and Axolotl train from start to end. verl needs NCCL and OpenRLHF flash-attn, so that of them what reads
the configuration runs: hydra with its classes, argparse. NeMo RL cannot be installed from packages. Each has an
environment of its own (tests/live/test_frameworks.py), to which this adds what training needs beyond reading data.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gristmill import smollm, targets, trainer
from gristmill.example import Example, Method, Preference, Sft
from gristmill.recipe import TrainRecipe, build
from gristmill.smoke import smoke
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import Framework
from tests import conversations as talk
from tests.live.test_frameworks import python_of

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
# What reading data does not need, and training imports.
ALSO = {
    "llamafactory": ["torchaudio==2.11.0"],
    "axolotl": ["python-dotenv", "fire", "posthog", "pillow", "numba", "zstandard"],
    "verl": [],
    "openrlhf": [],
}
PROBES = {"llamafactory": "import torchaudio", "axolotl": "import dotenv, fire, posthog, PIL, numba, zstandard"}


def environment(name: str) -> Path:
    """The folder of the framework's environment, able to train."""
    python = python_of(name)
    probe = subprocess.run([python, "-c", PROBES.get(name, "")], capture_output=True)
    if probe.returncode != 0:
        install = ["uv", "pip", "install", "--quiet", "--no-config", "--python", str(python)]
        without = ["--no-deps"] if name == "llamafactory" else []
        made = subprocess.run([*install, *without, *ALSO[name]], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"{name} cannot be made to train: {made.stderr.strip()[-300:]}")
    return python.parent.parent


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("base") / "base")


def settings(name: str, *overrides: str) -> TrainRecipe:
    train: dict[str, Any] = {
        "trainer": name,
        "epochs": 1,
        "batch_size": 4,
        "max_length": 256,
        "learning_rate": 0.01,
        "save_steps": 2,
        "lora_targets": ["q_proj", "v_proj"],
        "launch": {
            "setup": [f"source {environment(name)}/bin/activate"],
            "env": {"DISABLE_VERSION_CHECK": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        },
    }
    return build({"train": train}, overrides).train


def made(name: str, method: Method, folder: Path, base: Path, chosen: TrainRecipe) -> TrainJob:
    rows: list[Example] = []
    for number in range(24):
        asked, answer = [talk.user(f"What is {number} plus {number}?")], talk.said(f"It is {2 * number}.")
        if method == "sft":
            rows.append(Sft(asked, [answer], [], {}))
        else:
            rows.append(Preference(asked, [answer], [talk.said(f"It is {number}, I believe.")], [], 1.0, {}))
    talk.export(targets.get(name), method, folder / "data", rows)
    return TrainJob(
        method=method,
        base=base,
        data=folder / "data",
        output=folder / "model",
        work=folder / "work",
        settings=chosen,
    )


def framework(name: str) -> Framework:
    found = trainer.get(name)
    assert isinstance(found, Framework)
    return found


def changed(base: Path, output: Path) -> set[str]:
    """Names of the weights in which two model folders differ; both must load and answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (base, output))
    assert before.keys() == after.keys()
    tokenizer = AutoTokenizer.from_pretrained(output)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "2+2?"}], return_tensors="pt", return_dict=True)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("name", "method", "lora"),
    [
        ("llamafactory", "sft", True),
        ("llamafactory", "sft", False),
        ("llamafactory", "dpo", True),
        ("axolotl", "sft", True),
        ("axolotl", "sft", False),
        ("axolotl", "dpo", True),
    ],
)
def test_a_framework_trains_to_a_model_of_ours(
    name: str, method: Method, lora: bool, tmp_path: Path, base: Path
) -> None:
    chosen = settings(name, "train.adapter=keep") if lora else settings(name, "train.lora_rank=0")
    job = made(name, method, tmp_path, base, chosen)
    steps: list[tuple[int, int, float]] = []
    trained = framework(name).train(job, lambda *step: steps.append(step))
    assert [step[:2] for step in steps] == [(number, 6) for number in range(1, 7)]
    assert trained.steps == 6 and len(trained.losses) == 6 and trained.losses[-1] < trained.losses[0]
    assert trained.details["version"]
    assert not smoke(job.output, base, method, trained.losses, job.data).errors
    names = changed(base, job.output)
    assert names and (not lora or all("q_proj" in name or "v_proj" in name for name in names))
    assert (job.output / "adapter").is_dir() == lora
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (job.output / file).read_bytes() == (base / file).read_bytes()


PROGRAM = """
import sys
from pathlib import Path
from gristmill import trainer
from gristmill.trainer import TrainJob
job = TrainJob.model_validate_json(Path(sys.argv[1]).read_bytes())
trainer.get(job.settings.trainer).train(job, lambda *step: print(*step, flush=True))
"""


@pytest.mark.parametrize("name", ["llamafactory", "axolotl"])
def test_a_killed_training_leaves_nothing_running_and_resumes(name: str, tmp_path: Path, base: Path) -> None:
    job = made(name, "sft", tmp_path, base, settings(name, "train.epochs=20"))
    config = tmp_path / "job.json"
    config.write_text(job.model_dump_json())
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(config)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line.split()[0]) >= 5:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    until = time.monotonic() + 30
    while running := _mentioning(str(tmp_path)):
        assert time.monotonic() < until, running
        time.sleep(0.1)
    steps: list[int] = []
    trained = framework(name).train(job, lambda number, of, loss: steps.append(number))
    assert trained.steps == 120
    log = (job.work / "trainer.log").read_text().lower()
    assert "resum" in log


def _mentioning(text: str) -> list[str]:
    """Command lines of live processes with a text in them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and int(path.parent.name) != os.getpid():
            found.append(line)
    return found


COMPOSE = """
import sys
from hydra import compose, initialize_config_module
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("sft_trainer_engine", sys.argv[1:])
# Into its own classes, as its trainer does first: they check values, and read the model's configuration.
from verl.utils.config import omega_conf_to_dataclass
parts = ("model", "engine", "optim", "checkpoint", "profiler")
model, engine, optim, checkpoint, _ = (omega_conf_to_dataclass(config[part]) for part in parts)
print(config.trainer.save_freq, config.data.train_batch_size, checkpoint.save_contents, optim.lr, model.lora_rank)
print(model.hf_config.model_type, engine.strategy)
"""


def words_of(job: TrainJob, after: str) -> list[str]:
    """Arguments that the launch files give to the framework's program, as bash would."""
    shim = job.work / "shim"
    shim.mkdir()
    for command in ("torchrun", "deepspeed", "python"):
        (shim / command).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        (shim / command).chmod(0o755)
    ran = subprocess.run(
        ["bash", str(job.work / "train.sh")],
        env={**os.environ, "PATH": f"{shim}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = ran.stdout.splitlines()
    return lines[lines.index(after) + 1 :]


def test_verls_hydra_composes_the_launch_files(tmp_path: Path, base: Path) -> None:
    python = environment("verl") / "bin" / "python"
    job = made("verl", "sft", tmp_path, base, settings("verl", "train.launch.setup=[]"))
    job.work.mkdir()
    framework("verl").prepare(job)
    overrides = words_of(job, "verl.trainer.sft_trainer")
    ran = subprocess.run([python, "-c", COMPOSE, *overrides], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "2 4 ['model', 'optimizer', 'extra'] 0.01 16\nllama fsdp\n"


PARSE = """
import re, runpy, sys
from importlib.util import find_spec
from pathlib import Path
# Its programs import deepspeed before they read a flag: take the parser out of the source.
source = Path(find_spec("openrlhf").submodule_search_locations[0], "cli", sys.argv.pop(1) + ".py").read_text()
body = source.partition('if __name__ == "__main__":')[2].partition("args = parser.parse_args()")[0]
lines = [line.removeprefix("    ") for line in body.splitlines()]
space = {}
exec("import argparse, os\\nfrom datetime import datetime\\n" + "\\n".join(lines), space)
args = vars(space["parser"].parse_args(sys.argv[1:]))
print(args["ckpt.save_steps"], args["train.batch_size"], args["adam.lr"], args["ckpt.output_dir"])
"""


@pytest.mark.parametrize(("method", "program"), [("sft", "train_sft"), ("dpo", "train_dpo"), ("reward", "train_rm")])
def test_openrlhfs_parser_reads_the_launch_files(method: Method, program: str, tmp_path: Path, base: Path) -> None:
    python = environment("openrlhf") / "bin" / "python"
    job = made("openrlhf", method, tmp_path, base, settings("openrlhf", "train.launch.setup=[]"))
    job.work.mkdir()
    framework("openrlhf").prepare(job)
    flags = words_of(job, f"openrlhf.cli.{program}")
    ran = subprocess.run([python, "-c", PARSE, program, *flags], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "2 4 0.01 ../run/output\n"
