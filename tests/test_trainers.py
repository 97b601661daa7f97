"""Trainers other than TRL: what they write for a framework, word by word, and the way from its output to our folder.

Golden files are under tests/golden/trainers; with GRISTMILL_GOLDEN=write this test writes them anew: read the diff.
A stand-in takes the framework's place where its output matters: a shell script that leaves what the framework leaves.
The frameworks themselves train in tests/live/test_trainers.py.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from gristmill import smollm, targets, trainer
from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.example import Method
from gristmill.launch import LOG
from gristmill.recipe import TrainRecipe, build
from gristmill.trainer import TrainJob
from gristmill.trainers.framework import WHOLE_CHECKPOINTS, Framework, dotted
from gristmill.trainers.progress import EpochLines, JsonLines, LogLines, Step, Tail
from tests import conversations as talk

GOLDEN = Path(__file__).parent / "golden" / "trainers"
WRITE = os.environ.get("GRISTMILL_GOLDEN") == "write"
NAMES = ("axolotl", "llamafactory", "nemo-rl", "openrlhf", "verl")
COMBINATIONS = [(name, method) for name in NAMES for method in sorted(trainer.get(name).methods)]


def settings(name: str, *overrides: str) -> TrainRecipe:
    """Settings that pass `check` where there is no framework."""
    train: dict[str, Any] = {"trainer": name, "launch": {"launcher": "slurm", "gpus": 1}}
    if name == "nemo-rl":
        train |= {"lora_rank": 0, "launch": {**train["launch"], "env": {"NEMO_RL": "/opt/nemo-rl"}}}
    return build({"train": train}, overrides).train


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("base") / "base")


def made(name: str, method: Method, folder: Path, base: Path, settings: TrainRecipe, **more: Any) -> TrainJob:
    talk.export(targets.get(name), method, folder / "data")
    work = folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    return TrainJob(
        method=method, base=base, data=folder / "data", output=folder / "model", work=work, settings=settings, **more
    )


def framework(name: str) -> Framework:
    found = trainer.get(name)
    assert isinstance(found, Framework)
    return found


def readable(folder: Path, job: TrainJob) -> dict[str, str]:
    """What was written, with the folders of this run by name."""
    found = {}
    for path in sorted([*(folder / "launch").iterdir(), folder / "train.sh", folder / "finish.sh"]):
        if path.is_symlink() or path.name in ("gristmill_dataset.py", "dataset_info.json"):
            continue  # the data, and what the target's own golden files hold
        text = path.read_text()
        for place, word in ((job.work, "WORK"), (job.base, "BASE")):
            text = text.replace(str(place.resolve()), f"/{word}")
        found[path.relative_to(folder).as_posix().replace("/", "-")] = text
    return found


@pytest.mark.parametrize(("name", "method"), COMBINATIONS)
@pytest.mark.parametrize("how", ["one", "many"])
def test_launch_files_are_as_they_were_agreed(name: str, method: Method, how: str, tmp_path: Path, base: Path) -> None:
    overrides = ["train.save_steps=50", "train.batch_size=32"]
    if how == "many":
        overrides += ["train.launch.gpus=4", 'train.launch.prefix=["uv", "run", "--project", "/opt/its own"]']
        overrides += ['train.launch.setup=["module load cuda"]', "train.eval_steps=20", "train.lora_rank=0"]
        if framework(name).several_nodes:
            overrides += ["train.launch.nodes=2"]
    job = made(name, method, tmp_path, base, settings(name, *overrides))
    framework(name).check(method, job.settings) if how == "one" and has_slurm() else None
    framework(name).prepare(job)
    found = readable(job.work, job)
    golden = GOLDEN / f"{name}-{method}-{how}"
    if WRITE:
        golden.mkdir(parents=True, exist_ok=True)
        for path in golden.iterdir():
            path.unlink()
        for file, text in found.items():
            (golden / f"{file}.golden").write_text(text)
    assert found == {path.name.removesuffix(".golden"): path.read_text() for path in golden.iterdir()}
    for script in ("train.sh", "finish.sh"):
        subprocess.run(["bash", "-n", str(job.work / script)], check=True)


def has_slurm() -> bool:
    return any((Path(folder) / "sbatch").exists() for folder in os.environ["PATH"].split(":"))


@pytest.mark.parametrize("name", ["llamafactory", "axolotl"])
def test_options_win_over_the_recipe(name: str, tmp_path: Path, base: Path) -> None:
    job = made(name, "sft", tmp_path, base, settings(name, "train.options={learning_rate: 0.5, flash_attn: fa2}"))
    framework(name).prepare(job)
    config = yaml.safe_load((job.work / "launch" / "sft.yaml").read_text())
    assert config["learning_rate"] == 0.5 and config["flash_attn"] == "fa2"


def test_nested_options_are_dotted_names() -> None:
    assert dotted({"a": {"b": 1, "c": {"d": [2]}}, "e.f": 3}) == {"a.b": 1, "a.c.d": [2], "e.f": 3}


@pytest.mark.parametrize(
    ("name", "method", "override", "words"),
    [
        ("verl", "dpo", "", "verl trains by sft, not by dpo"),
        ("axolotl", "reward", "", "axolotl trains by dpo, sft, not by reward"),
        ("verl", "sft", "train.epochs=1.5", "verl trains whole epochs; train.epochs is 1.5"),
        ("openrlhf", "sft", "train.early_stop=2", "openrlhf has nothing for train.early_stop"),
        ("nemo-rl", "sft", "train.lora_rank=8", r"nemo-rl's converter takes whole models; set train.lora_rank=0"),
        ("nemo-rl", "sft", "train.launch.env={}", "nemo-rl needs its checkout"),
        ("nemo-rl", "sft", "train.launch.nodes=2", "nemo-rl runs on several machines by its own scripts"),
        ("openrlhf", "sft", "train.options={ds: {packing_samples: false}}", "ds.packing_samples: OpenRLHF's flags"),
        ("llamafactory", "sft", "train.batch_size=15", "train.batch_size 15 cannot be shared evenly by 2"),
        ("llamafactory", "sft", "train.launch.launcher=ray", "no Ray dashboard answers at http://127.0.0.1:9"),
        (
            "llamafactory",
            "sft",
            "train.launch.launcher=local",
            "needs the command llamafactory-cli, which is not there",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_spent(
    name: str, method: Method, override: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests import slurm_standin

    slurm_standin.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    more = ["train.launch.gpus=2"] if "15" in override else []
    chosen = settings(name, "train.launch.address=http://127.0.0.1:9", *more, *([override] if override else []))
    with pytest.raises(RecipeError, match=words):
        framework(name).check(method, chosen)
    if override:
        framework(name).check(method, settings(name))


STANDIN = """#!/usr/bin/env python3
# Takes the place of llamafactory-cli: writes what it writes, told how by files in its folder.
import json, os, shutil, sys
from pathlib import Path
import yaml

here = Path(__file__).parent
config = yaml.safe_load(Path(sys.argv[2]).read_text())
calls = here / "calls"
calls.write_text((calls.read_text() if calls.exists() else "") + sys.argv[1] + "\\n")
if sys.argv[1] == "train":
    made = Path(config["output_dir"])
    done = len(list(made.glob("checkpoint-*")))
    (made / f"checkpoint-{done + 1}").mkdir(parents=True)
    (made / f"checkpoint-{done + 1}" / "trainer_state.json").write_text(json.dumps({"step": done}, indent=2) + "\\n")
    if (here / "fail").exists():
        print((here / "fail").read_text(), file=sys.stderr)
        sys.exit(1)
    with (made / "trainer_log.jsonl").open("a") as log:
        for step in range(done * 2 + 1, done * 2 + 4):
            log.write(json.dumps({"current_steps": step, "total_steps": 9, "loss": 3.0 / step}) + "\\n")
    (made / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(here)}))
    (made / "adapter_model.safetensors").write_bytes(b"adapter")
else:
    made = Path(config["export_dir"])
    made.mkdir(parents=True)
    source = Path(config["model_name_or_path"])
    shutil.copy(source / "model.safetensors", made / "model.safetensors")
    (made / "config.json").write_text((source / "config.json").read_text())
    (made / "chat_template.jinja").write_text("the framework's own")
    (made / "README.md").write_text(str(here))
"""


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "its"
    folder.mkdir()
    program = folder / "llamafactory-cli"
    import sys

    program.write_text(STANDIN.replace("#!/usr/bin/env python3", f"#!{sys.executable}"))
    program.chmod(0o755)
    return folder


def local(standin: Path, *overrides: str) -> TrainRecipe:
    launch = {"setup": [f"export PATH={standin}:$PATH"], "poll_seconds": 0.05}
    return build({"train": {"trainer": "llamafactory", "launch": launch}}, overrides).train


def test_the_output_is_the_frameworks_weights_with_the_starts_tokenizer(
    tmp_path: Path, base: Path, standin: Path
) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin, "train.adapter=keep"))
    steps: list[tuple[int, int, float]] = []
    trained = framework("llamafactory").train(job, lambda *step: steps.append(step))
    assert steps == [(1, 9, 3.0), (2, 9, 1.5), (3, 9, 1.0)] and trained.losses == (3.0, 1.5, 1.0)
    assert trained.steps == 3 and trained.details["launcher"] == "local"
    names = {path.name for path in job.output.iterdir()}
    assert names == {path.name for path in base.iterdir()} | {"adapter"}
    assert (job.output / "chat_template.jinja").read_bytes() == (base / "chat_template.jinja").read_bytes()
    config = json.loads((job.output / "adapter" / "adapter_config.json").read_text())
    assert config == {"base_model_name_or_path": None}
    # The same job again finds that it is done; another one does not take its place.
    assert framework("llamafactory").train(job) == trained
    assert (standin / "calls").read_text().split() == ["train", "export"]
    with pytest.raises(UsageError, match="is there already and is not this job's"):
        framework("llamafactory").train(job.model_copy(update={"seed": 1}))


def test_a_failed_training_says_why_and_the_same_job_resumes(tmp_path: Path, base: Path, standin: Path) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin))
    (standin / "fail").write_text("ValueError: no such template")
    with pytest.raises(TrainingError, match="its last words: ValueError: no such template"):
        framework("llamafactory").train(job)
    (standin / "fail").unlink()
    framework("llamafactory").train(job)
    made_there = job.work / "run" / "output"
    assert len(list(made_there.glob("checkpoint-*"))) == 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"settings": {"learning_rate": 0.5}}], ids=["another seed", "another rate"]
)
def test_checkpoints_of_another_job_are_not_continued(
    tmp_path: Path, base: Path, standin: Path, change: dict[str, Any]
) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin))
    (standin / "fail").write_text("RuntimeError: stop")
    with pytest.raises(TrainingError):
        framework("llamafactory").train(job)
    (standin / "fail").unlink()
    if "settings" in change:
        change = {"settings": job.settings.model_copy(update=change["settings"])}
    framework("llamafactory").train(job.model_copy(update=change))
    assert len(list((job.work / "run" / "output").glob("checkpoint-*"))) == 1


def test_where_it_runs_is_no_part_of_the_job(tmp_path: Path, base: Path, standin: Path) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin))
    (standin / "fail").write_text("RuntimeError: time is up")
    with pytest.raises(TrainingError):
        framework("llamafactory").train(job)
    (standin / "fail").unlink()
    framework("llamafactory").train(job.model_copy(update={"settings": local(standin, "train.launch.time=0-12:00:00")}))
    assert len(list((job.work / "run" / "output").glob("checkpoint-*"))) == 2


def test_too_little_memory_is_one_sentence_with_what_to_change(tmp_path: Path, base: Path, standin: Path) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin))
    (standin / "fail").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(TrainingError, match=r"llamafactory ran out of memory .* lower train.max_length \(now 1024\)"):
        framework("llamafactory").train(job)


def test_a_time_that_yaml_turns_into_a_number_is_refused() -> None:
    with pytest.raises(RecipeError, match="put it in quotes, or write 0-12:00:00"):
        settings("verl", "train.launch.time=12:00:00")


def test_data_of_another_target_is_refused(tmp_path: Path, base: Path, standin: Path) -> None:
    job = made("llamafactory", "sft", tmp_path, base, local(standin))
    for path in job.data.glob("*.jsonl"):
        path.unlink()
    with pytest.raises(UsageError, match="has no train files for llamafactory; write the dataset with"):
        framework("llamafactory").train(job)
    assert not (job.work / LOG).exists()


# What the frameworks print. LLaMA-Factory's and Axolotl's lines are from their runs here, the others' from their
# sources: verl's concat_dict_to_str, OpenRLHF's tqdm, NeMo RL's sft.py.
PRINTED: list[tuple[Any, list[str], list[Step]]] = [
    (
        JsonLines("current_steps", "total_steps", "loss"),
        ['{"current_steps": 2, "total_steps": 6, "loss": 5.6, "lr": 0.0001}', '{"current_steps": 6}', "no json"],
        [Step(2, 6, 5.6)],
    ),
    (
        LogLines(r"^\s*\d+%\|.*?\| (?P<step>\d+)/(?P<of>\d+) \[", r"\{'loss': '?(?P<loss>-?[\d.]+(e[-+]?\d+)?)"),
        [
            "Loading weights: 100%|██████████| 20/20 [00:00<00:00, 18927.36it/s]",
            " 17%|█▋        | 1/6 [00:00<00:02,  1.80it/s]",
            "{'loss': '5.607', 'grad_norm': '2.263', 'learning_rate': '0.0002'}",
            " 17%|█▋        | 1/6 [00:00<00:02,  1.80it/s]",
            "{'loss': '5.5', 'grad_norm': '2.263', 'learning_rate': '0.0002'}",
            "{'loss': '5.4', 'grad_norm': '2.263', 'learning_rate': '0.0002'}",
            " 67%|██████▋   | 4/6 [00:00<00:02,  1.80it/s]",
            "{'loss': '5.3', 'grad_norm': '2.263', 'learning_rate': '0.0002'}",
            "  0%|          | 0/6 [00:00<?, ?it/s]",
            " 50%|█████     | 3/6 [00:00<00:02,  1.80it/s]",
            "{'loss': '5.35', 'grad_norm': '2.263', 'learning_rate': '0.0002'}",
            "{'train_runtime': '3.436', 'train_loss': '5.591'}",
        ],
        # drawn too seldom, then killed and resumed
        [Step(1, 6, 5.607), Step(2, 6, 5.5), Step(3, 6, 5.4), Step(4, 6, 5.3), Step(3, 6, 5.35)],
    ),
    (
        EpochLines(
            r"Train step of epoch (?P<epoch>\d+):.*?(?P<step>\d+)/(?P<of>\d+) \[.*?loss=(?P<loss>-?[\d.]+(e[-+]?\d+)?)",
            epochs=2,
            first=0,
            each=4,
        ),
        [
            "Train step of epoch 1:  38%|███▊      | 3/8 [00:01<00:02,  2.00it/s, gpt_loss=1.5, lr=1e-5]",
            "Train step of epoch 1:  50%|█████     | 4/8 [00:02<00:02,  2.00it/s, gpt_loss=1.25, lr=1e-5]",
        ],
        [Step(3, 4, 1.25)],
    ),
    (
        LogLines(r"Total training steps: (?P<of>\d+)", r"step:(?P<step>\d+) - .*?train/loss:(?P<loss>-?[\d.]+)"),
        ["INFO:2026: [Rank 0] Total training steps: 12,", "step:3 - train/lr:1e-05 - train/loss:0.5 - train/mfu:0.1"],
        [Step(3, 12, 0.5)],
    ),
    (
        EpochLines(
            r"=+ Epoch (?P<epoch>\d+)/\d+ =+",
            r"=+ Step (?P<step>\d+)/(?P<of>\d+) =+",
            r"• Loss: (?P<loss>-?[\d.]+(e[-+]?\d+)?)",
            epochs=2,
        ),
        ["===== Epoch 2/2 =====", "===== Step 1/10 =====", "📊 Training Results:", "  • Loss: 0.1250"],
        [Step(11, 20, 0.125)],
    ),
]


@pytest.mark.parametrize(
    ("reader", "lines", "steps"), PRINTED, ids=["llamafactory", "axolotl", "openrlhf", "verl", "nemo-rl"]
)
def test_steps_are_read_from_what_frameworks_print(reader: Any, lines: list[str], steps: list[Step]) -> None:
    assert [step for line in lines if (step := reader(line)) is not None] == steps


def test_a_growing_file_gives_each_whole_line_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert list(tail.lines()) == []
    path.write_bytes(b"one\rtwo\nthr")
    assert list(tail.lines()) == ["one", "two"]
    with path.open("ab") as file:
        file.write(b"ee\n\n")
    assert list(tail.lines()) == ["three"]
    path.write_bytes(b"anew\n")
    assert list(tail.lines()) == ["anew"]


def test_checkpoints_that_a_kill_cut_short_are_not_resumed_from(tmp_path: Path) -> None:
    (tmp_path / "launch").mkdir()
    made = tmp_path / "run" / "output"
    for name, state in (("2", '{\n  "epoch": 1\n}\n'), ("4", '{\n  "log": {\n  }\n'), ("6", ""), ("8", None)):
        (made / f"checkpoint-{name}").mkdir(parents=True)
        if state is not None:
            (made / f"checkpoint-{name}" / "trainer_state.json").write_text(state)
    script = f"set -eo pipefail\n{WHOLE_CHECKPOINTS}\n{WHOLE_CHECKPOINTS.replace('output', 'nothing')}\necho on"
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path / "launch", capture_output=True, text=True)
    assert (ran.stdout, ran.stderr) == ("on\n", "")
    assert [path.name for path in made.iterdir()] == ["checkpoint-2"]
