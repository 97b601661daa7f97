"""A checkpoint that is wrong is seen to be wrong; one that is right passes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gristmill import smollm
from gristmill.smoke import smoke
from tests import training

GOOD = [3.0, 2.9, 2.8, 2.5, 2.4, 2.3, 2.0, 1.9, 1.8]
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries, about one another


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("tiny") / "base")


def altered(base: Path, folder: Path, change: Callable[[str, object], object] | None = None) -> Path:
    """A copy of the model with every tensor as `change` makes it."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    if change:
        tensors = load_file(folder / "model.safetensors")
        save_file({name: change(name, value) for name, value in tensors.items()}, folder / "model.safetensors")
    return folder


def nudged(name, value):
    return value * 1.02


def wild(name, value):
    import torch

    return value + 0.5 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))).to(value.dtype)


def says(result) -> list[tuple[str, str]]:
    return [(finding.check, finding.severity) for finding in result.findings]


def test_a_sound_checkpoint_passes_and_says_how_much_has_changed(base, tmp_path):
    start = altered(base, tmp_path / "start", wild)  # the tiny model itself says one token for ever
    data = training.write(tmp_path / "data", "sft")
    result = smoke(altered(start, tmp_path / "new", nudged), start, "sft", GOOD, data)
    assert result.findings == () and result.tried == 4
    assert result.changed is not None and 0.5 < result.changed <= 1


@pytest.mark.parametrize(
    ("losses", "found"),
    [
        (GOOD, []),
        (GOOD[::-1][:8], []),  # too few steps to say
        ([2.0] * 9, [("loss", "warning")]),
        ([1.0] * 3 + [2.0] * 3 + [2.1] * 3, [("loss", "error")]),
        ([1.0, float("nan")], [("loss", "error")]),
        ([], []),
    ],
)
def test_the_loss_curve(base, tmp_path, losses, found):
    result = smoke(altered(base, tmp_path / "new", nudged), base, "sft", losses)
    assert [one for one in says(result) if one[0] == "loss"] == found


def test_weights_that_did_not_move_or_are_no_numbers_are_errors(base, tmp_path):
    same = smoke(altered(base, tmp_path / "same"), base, "sft", GOOD)
    assert (
        says(same) == [("weights", "error")]
        and same.changed == 0
        and "raise train.learning_rate" in same.errors[0].says
    )
    broken = smoke(altered(base, tmp_path / "broken", lambda name, value: value / 0), base, "sft", GOOD)
    assert says(broken) == [("weights", "error")] and "no numbers" in broken.errors[0].says
    (tmp_path / "same" / "model.safetensors").write_bytes(b"torn")
    torn = smoke(tmp_path / "same", base, "sft", GOOD)
    assert says(torn) == [("weights", "error")] and "cannot be read" in torn.errors[0].says
    (tmp_path / "same" / "model.safetensors").unlink()
    assert says(smoke(tmp_path / "same", base, "sft", GOOD)) == [("weights", "error")]


def test_another_template_or_vocabulary_is_an_error_and_other_bytes_are_not(base, tmp_path):
    new = altered(base, tmp_path / "new", nudged)
    told = json.loads((new / "tokenizer.json").read_text())
    (new / "tokenizer.json").write_text(json.dumps(told, indent=8))
    assert not smoke(new, base, "sft", GOOD).errors
    (new / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert "chat template" in smoke(new, base, "sft", GOOD).errors[0].says
    shutil.copy(base / "chat_template.jinja", new)
    told["added_tokens"].append(told["added_tokens"][-1] | {"id": 9999, "content": "<|odd|>"})
    (new / "tokenizer.json").write_text(json.dumps(told))
    assert "vocabulary" in smoke(new, base, "sft", GOOD).errors[0].says


def test_one_token_for_ever_is_an_error_unless_the_start_did_so_too(base, tmp_path):
    new, start = altered(base, tmp_path / "new", nudged), altered(base, tmp_path / "start", wild)
    worse = smoke(new, start, "sft", GOOD)
    assert says(worse) == [("answers", "error")] and "one token over and over" in worse.errors[0].says
    alike = smoke(new, base, "sft", GOOD)
    assert says(alike) == [("answers", "warning")] and not alike.errors


def test_a_model_that_cannot_be_loaded_is_an_error(base, tmp_path):
    new = altered(base, tmp_path / "new", nudged)
    (new / "config.json").write_text(json.dumps(json.loads((new / "config.json").read_text()) | {"model_type": "odd"}))
    result = smoke(new, base, "sft", GOOD)
    assert says(result) == [("answers", "error")] and "does not answer" in result.errors[0].says


def test_a_reward_models_scores_must_differ(base, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification

    data = training.write(tmp_path / "data", "reward")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    for value in model.parameters():
        value.data *= 1.02
    model.config.pad_token_id = 0
    shutil.copytree(base, tmp_path / "new")
    model.save_pretrained(tmp_path / "new")
    assert not smoke(tmp_path / "new", base, "reward", GOOD, data).errors
    model.score.weight.data.zero_()
    model.save_pretrained(tmp_path / "new")
    result = smoke(tmp_path / "new", base, "reward", GOOD, data)
    assert says(result) == [("scores", "error")] and "have the score 0" in result.errors[0].says
