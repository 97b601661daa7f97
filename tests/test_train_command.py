"""`gristmill train` as a user runs it, on the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.train import train
from gristmill.train_command import run
from tests import training
from tests.rows import rollout


def gristmill(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gristmill", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.live
def test_prepared_rollouts_become_a_model_and_again_is_not_again(tmp_path):
    rollouts = [rollout(f"It is {n}.", task=n) for n in range(12)]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rollouts))
    prepared = gristmill("prepare", "rollouts.jsonl", "-o", "data", "--validation", "0.2", cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    command = ["train", "data", "--model", "tiny-random", "-o", "model", "epochs=2", "train.batch_size=4"]
    done = gristmill(*command, "learning_rate=0.005", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 1 of" in done.stderr and "sft on " in done.stdout and "validation loss" in done.stdout
    assert done.stdout.splitlines()[-1] == "model: model"
    record = json.loads((tmp_path / "model" / "training.json").read_text())
    assert record["steps"] == len(record["losses"]) and record["method"] == "sft" and record["smoke"]["changed"] > 0
    assert str(tmp_path) not in json.dumps(record)
    assert not list((tmp_path / "model.training").glob("checkpoint-*"))

    again = gristmill(*command, "learning_rate=0.005", "--json", cwd=tmp_path)
    # It is found, tried again, and not trained again.
    assert again.returncode == 0 and "step" not in again.stderr
    assert json.loads(again.stdout)["losses"] == record["losses"]
    other = gristmill(*command, "learning_rate=0.004", cwd=tmp_path)
    assert other.returncode == 2 and "exists already and is not this job's" in other.stderr


def test_what_does_not_fit_is_told_before_anything_runs(tmp_path):
    data = training.write(tmp_path / "data", "dpo")

    def attempt(*overrides: str, method: str | None = None, where: Path = data) -> None:
        run(where, overrides, base="tiny-random", out=tmp_path / "model", method=method)

    with pytest.raises(UsageError, match="name it with --method"):
        attempt()
    with pytest.raises(UsageError, match="no such folder"):
        attempt(where=tmp_path / "none")
    with pytest.raises(UsageError, match="none of sft, dpo"):
        attempt(method="ppo")
    with pytest.raises(RecipeError, match="did you mean `epochs`"):
        attempt("epoch=1", method="dpo")
    with pytest.raises(RecipeError, match="near it are beta"):
        attempt("options.betta=1", method="dpo")
    manifest = {"settings": {"format": {"method": "dpo", "target": "nemo-rl"}}}
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="holds rows for nemo-rl, and trl reads"):
        attempt()
    manifest["settings"]["format"]["target"] = "trl"
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="holds rows for dpo, and --method says kto"):
        attempt(method="kto")
    assert not (tmp_path / "model.training").exists()


def test_a_model_that_fails_its_smoke_test_does_not_count_and_is_kept(tmp_path):
    from gristmill import smollm

    base = smollm.tiny(tmp_path / "base")
    job = training.job(base, training.write(tmp_path / "data", "sft", rows=4), tmp_path, epochs=1, learning_rate=1e-12)
    with pytest.raises(TrainingError, match=r"all weights are those that training started from.*kept in .*model"):
        train(job)
    assert (tmp_path / "model" / "config.json").is_file()
