"""Every method with TRL itself on the tiny model: what it is told to learn it learns, and comes out as it should."""

import io
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from gristmill import smollm, trainer
from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.recipe import TrainRecipe
from gristmill.trl import launch, rows
from gristmill.trl.process import run, stopped
from tests import training

# The libraries deprecate one another's names; none of it is ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

METHODS = ("sft", "dpo", "kto", "reward")
FULL = {"lora_rank": 0, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return smollm.tiny(tmp_path_factory.mktemp("tiny") / "base")


def trained(job) -> list[dict]:
    """The events of a training in this process, which spares the imports of one of its own."""
    said = io.StringIO()
    run(job, said)
    return [json.loads(line) for line in said.getvalue().splitlines()]


def falls(losses) -> bool:
    third = len(losses) // 3
    return statistics.mean(losses[-third:]) < statistics.mean(losses[:third])


def scores(folder: Path, conversations) -> list[float]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        return [
            float(model(**tokenizer.apply_chat_template(one, return_tensors="pt", return_dict=True)).logits[0, 0])
            for one in conversations
        ]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", ["lora", pytest.param("full", marks=pytest.mark.live)])
def test_it_learns(base, tmp_path, method, weights):
    data = training.write(tmp_path / "data", method)
    done = trained(training.job(base, data, tmp_path, method, **(FULL if weights == "full" else {})))[-1]
    last = done["details"]["last"]
    assert done["event"] == "done" and done["steps"] == 18 and len(done["losses"]) == 18
    assert falls(done["losses"])
    assert (done["details"]["rows"], done["details"]["dropped"]) == (24, 0)
    if method == "dpo":
        # Apart, and the chosen one not less likely than it was: that is what the likelihood term is for.
        assert last["rewards/margins"] > 1 and last["rewards/accuracies"] == 1 and last["rewards/chosen"] > 0
    if method == "kto":
        assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
    if method == "reward":
        told = [training.row(method, i, task) for i, task in enumerate(_unseen())]
        chosen = scores(tmp_path / "model", [one["prompt"] + one["chosen"] for one in told])
        rejected = scores(tmp_path / "model", [one["prompt"] + one["rejected"] for one in told])
        assert all(a > b for a, b in zip(chosen, rejected, strict=True))


def _unseen():
    from gristmill import arithmetic

    return arithmetic.make_tasks(6, 0, "heldout")


def test_a_kept_adapter_lies_beside_merged_weights_and_is_the_difference(base, tmp_path):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    data = training.write(tmp_path / "data", "dpo")
    trained(training.job(base, data, tmp_path, "dpo", adapter="keep", epochs=1))
    model = tmp_path / "model"
    assert sorted(path.name for path in (model / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert str(base) not in (model / "adapter" / "adapter_config.json").read_text()
    start = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    applied = PeftModel.from_pretrained(start, model / "adapter").merge_and_unload().to(torch.bfloat16)
    merged = AutoModelForCausalLM.from_pretrained(model).state_dict()
    assert all(torch.equal(value, merged[name]) for name, value in applied.state_dict().items())
    # And it is a start for the next turn: its adapter and its record are not handed on.
    (model / "training.json").write_text("{}")
    trained(training.job(model, data, tmp_path / "next", "dpo", epochs=1))
    assert {path.name for path in (tmp_path / "next" / "model").iterdir()} == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("weights", [{}, FULL])
def test_dpo_can_be_held_to_another_model_than_the_start(base, tmp_path, weights):
    data = training.write(tmp_path / "data", "dpo")
    start = tmp_path / "sft" / "model"
    trained(training.job(base, training.write(tmp_path / "rows", "sft"), tmp_path / "sft"))
    same, other = (
        trained(training.job(start, data, tmp_path / name, "dpo", reference=held, nll_weight=0, epochs=1, **weights))
        for name, held in (("same", None), ("other", base))
    )
    # Held to itself the first loss is log 2; the start has moved away from the base, and likes its own answers better.
    assert same[1]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert other[1]["loss"] < math.log(2) - 0.05


def test_the_likelihood_term_can_be_left_out_and_options_win(base, tmp_path):
    data = training.write(tmp_path / "data", "dpo")
    plain = trained(training.job(base, data, tmp_path / "a", "dpo", epochs=1, nll_weight=0))
    ipo = trained(
        training.job(base, data, tmp_path / "b", "dpo", epochs=1, nll_weight=0, options={"loss_type": ["ipo"]})
    )
    assert plain[1]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert ipo[1]["loss"] == pytest.approx(1 / (2 * 0.1) ** 2, rel=0.01)  # (difference − 1/2β)² at the start


def test_the_best_validation_loss_comes_out_and_training_stops_when_nothing_gets_better(base, tmp_path):
    data = training.write(tmp_path / "data", "sft", validation=6)
    # What the validation rows say is not what the training rows say: it must get worse after a while.
    wrong = [training.row("sft", i, task) for i, task in enumerate(_unseen())]
    for one in wrong:
        one["completion"][0]["content"] = "zebra crossing " * 3
    training.lines(data / "validation.jsonl", wrong)
    job = training.job(base, data, tmp_path, epochs=20, eval_steps=2, early_stop=2, learning_rate=2e-2)
    done = trained(job)[-1]
    details = done["details"]
    losses = dict(details["validation"])
    assert details["stopped_early"] and done["steps"] < 120
    assert details["best_step"] == min(losses, key=losses.get) == done["steps"] - 4
    # The weights are the checkpoint's, not the last ones.
    again = trained(
        training.job(base, data, tmp_path / "no", epochs=20, eval_steps=2, learning_rate=2e-2, early_stop=1)
    )
    assert again[-1]["details"]["best_step"] == details["best_step"]
    same = [(folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path, tmp_path / "no")]
    assert same[0] == same[1] and again[-1]["steps"] == done["steps"] - 2


def test_when_to_stop():
    assert not stopped([], 1) and not stopped([(1, 2.0), (2, 3.0)], None)
    assert not stopped([(1, 2.0), (2, 1.0), (3, 1.5)], 2)
    assert stopped([(1, 2.0), (2, 1.0), (3, 1.5), (4, 1.2)], 2)
    assert stopped([(1, 2.0), (2, math.nan), (3, 2.0)], 2)


def test_rows_a_step_are_shared_evenly():
    assert rows.share(16, 1, "sft") == (16, 1, 1)
    assert rows.share(16, 2, "sft", 2) == (2, 4, 2)
    assert rows.share(16, 1, "sft").halved("sft") == (8, 2, 1)
    assert rows.share(6, 1, "sft").halved("sft") == (3, 2, 1)
    assert rows.share(7, 1, "sft").halved("sft") == (1, 7, 1)
    assert rows.share(1, 1, "sft").halved("sft") is None
    assert rows.share(2, 1, "kto").halved("kto") is None
    for arguments in ((16, 3, "sft"), (2, 2, "kto"), (16, 1, "sft", 3)):
        with pytest.raises(RecipeError):
            rows.share(*arguments)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("rl", {}, "not by rl"),
        ("sft", {"options": {"packin": True}}, "no field of TRL's SFTConfig; near it are packing"),
        ("sft", {"options": {"output_dir": "x"}}, "the folder is Gristmill's"),
        ("dpo", {"options": {"max_prompt_length": 8}}, "no field of TRL's DPOConfig"),
        ("sft", {"batch_size": 6, "processes": 4}, "shared evenly by 4 processes"),
        ("kto", {"batch_size": 1}, "at least 2 rows"),
        ("sft", {"launch": {"launcher": "slurm"}}, "not by slurm"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(method, settings, words):
    with pytest.raises(RecipeError, match=words):
        trainer.get("trl").check(method, TrainRecipe(**settings))


def test_rows_for_another_method_are_told_in_a_sentence(base, tmp_path):
    data = training.write(tmp_path / "data", "sft")
    with pytest.raises(
        UsageError, match="dpo needs rows with prompt, chosen, rejected or chosen, rejected; found prompt"
    ):
        trained(training.job(base, data, tmp_path, "dpo"))
    (data / "train.jsonl").write_text("")
    with pytest.raises(TrainingError, match="is empty"):
        trained(training.job(base, data, tmp_path, "sft"))
    (data / "train.jsonl").write_text('{"prompt": [], "completion": []}\n{"prompt":\n')
    with pytest.raises(UsageError, match="row 2 is not JSON"):
        trained(training.job(base, data, tmp_path, "sft"))


def test_a_template_without_marks_never_trains_on_prompts(base, tmp_path):
    import shutil

    other = tmp_path / "other"
    shutil.copytree(base, other)
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    plain += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    (other / "chat_template.jinja").write_text(plain)
    data = training.write(tmp_path / "data", "sft", rows=4)
    told = [json.loads(line) for line in (data / "train.jsonl").read_text().splitlines()]
    # One answer a row: it carries loss whole.
    assert trained(training.job(other, data, tmp_path / "a", epochs=1))[-1]["event"] == "done"
    # Whole conversations: refused, until a marked template is named.
    training.lines(data / "train.jsonl", [{"messages": one["prompt"] + one["completion"]} for one in told])
    with pytest.raises(UsageError, match=r"does not mark what the assistant says.*chat_template_path"):
        trained(training.job(other, data, tmp_path / "b", epochs=1))
    marked = tmp_path / "marked.jinja"
    from gristmill.smollm import TEMPLATE
    from gristmill.trl.template import training_template

    marked.write_text(training_template(TEMPLATE))
    options = {"chat_template_path": str(marked)}
    done = trained(training.job(other, data, tmp_path / "c", epochs=1, options=options))
    assert done[-1]["event"] == "done"
    assert (tmp_path / "c" / "model" / "chat_template.jinja").read_text() == plain  # served as before


def test_loss_is_on_the_answers_turns_alone_with_tools_and_several_turns(base, tmp_path):
    import shutil

    from transformers import AutoTokenizer

    from gristmill.trl.methods import build
    from tests.learned import template

    qwen = tmp_path / "qwen"
    shutil.copytree(base, qwen)
    shutil.copy(template("qwen2_5"), qwen / "chat_template.jinja")

    def call(city: str) -> dict:
        return {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}

    tool = {"type": "function", "function": {"name": "weather", "description": "SCHEMA", "parameters": {}}}
    row = {
        "prompt": [
            {"role": "system", "content": "SYSTEM"},
            {"role": "user", "content": "ASKED"},
            {"role": "assistant", "content": "EARLIER"},
            {"role": "user", "content": "ASKED AGAIN"},
        ],
        "completion": [
            {"role": "assistant", "content": "first", "tool_calls": [call("Paris")]},
            {"role": "tool", "content": "OUTPUT"},
            {"role": "assistant", "content": "It is 22C"},
        ],
        "tools": [tool],
    }
    (tmp_path / "data").mkdir()
    training.lines(tmp_path / "data" / "train.jsonl", [row, row | {"tools": None}])
    trainer = build(training.job(qwen, tmp_path / "data", tmp_path, max_length=2048), rows.share(4, 1, "sft")).trainer
    batch = trainer.data_collator([trainer.train_dataset[0]])
    learned = batch["input_ids"][0][batch["labels"][0] != -100]
    text = AutoTokenizer.from_pretrained(qwen).decode(learned)
    called = '{"name": "weather", "arguments": {"city": "Paris"}}'
    # White space between turns is the template's affair.
    assert re.sub(r"\s*(<\|im_end\|>)\s*", r"\1", text) == (
        f"first\n<tool_call>\n{called}\n</tool_call><|im_end|>It is 22C<|im_end|>"
    )


# ---- processes of their own


LACKING = """
import os, signal, torch
most = int(os.environ["MOST_ROWS"])
real = torch.nn.Embedding.forward
def forward(self, ids):
    if torch.is_grad_enabled() and ids.shape[0] > most:
        if os.environ.get("KILL"):
            os.kill(os.getpid(), signal.SIGKILL)
        torch.empty(2**55)  # what a CPU says when there is no more
    return real(self, ids)
torch.nn.Embedding.forward = forward
"""


@pytest.fixture
def lacking(tmp_path, monkeypatch):
    """Training processes that lack the memory for more than so many rows at once; by torch's own error, or killed."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(LACKING)
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def most(rows: int, kill: bool = False) -> None:
        monkeypatch.setenv("MOST_ROWS", str(rows))
        monkeypatch.setenv("KILL", "1" if kill else "")

    return most


@pytest.mark.live
def test_out_of_memory_halves_the_rows_at_once_and_the_step_stays_the_same(base, tmp_path, lacking):
    data = training.write(tmp_path / "data", "sft", rows=8)
    whole = trained(training.job(base, data, tmp_path / "whole", epochs=2))[-1]
    lacking(2)
    job = training.job(base, data, tmp_path / "short", epochs=2)
    done = trainer.get("trl").train(job)
    assert done.details["halved"] == [2]
    assert (done.details["rows_at_once"], done.details["accumulation"]) == (2, 2)
    assert done.losses == pytest.approx(whole["losses"], rel=0.02)
    # A repeated call finds it done, and still says so.
    assert trainer.get("trl").train(job) == done


@pytest.mark.live
def test_a_killed_trainer_goes_on_with_less_and_says_what_to_change_when_there_is_no_less(base, tmp_path, lacking):
    data = training.write(tmp_path / "data", "sft", rows=8)
    lacking(0, kill=True)
    with pytest.raises(TrainingError, match=r"killed, likely out of memory, even with 1 row on a device.*max_length"):
        trainer.get("trl").train(training.job(base, data, tmp_path, batch_size=2))


@pytest.mark.live
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_take_the_same_steps_as_one_and_resume(base, tmp_path, method):
    data = training.write(tmp_path / "data", method, validation=4)
    one = trained(training.job(base, data, tmp_path / "one", method, **FULL))[-1]
    job = training.job(base, data, tmp_path / "two", method, processes=2, **FULL)

    class Stop(Exception):
        pass

    def at_ten(step: int, of: int, loss: float) -> None:
        if step == 10:
            raise Stop

    with pytest.raises(Stop):
        trainer.get("trl").train(job, at_ten)
    assert not _running(job.work)
    seen = []
    two = trainer.get("trl").train(job, lambda step, of, loss: seen.append(step))
    assert seen[0] == 9 and seen[-1] == 18  # from the checkpoint after 8
    assert two.details["processes"] == 2 and two.details["rows_at_once"] == 2
    # KTO's estimate of its KL term is of the rows on a device, so that it moves with their number.
    assert two.losses == pytest.approx(one["losses"], rel=0.25 if method == "kto" else 0.02)


def _running(work: Path) -> list[str]:
    found = subprocess.run(["pgrep", "-f", str(work)], capture_output=True, text=True, check=False)
    return found.stdout.split()


@pytest.mark.live
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_killed_training_ends_with_the_same_bytes(base, tmp_path, method, weights):
    data = training.write(tmp_path / "data", method, validation=4)
    jobs = [
        training.job(
            base, data, tmp_path / name, method, eval_steps=5, early_stop=9, **(FULL if weights == "full" else {})
        )
        for name in ("whole", "killed")
    ]
    whole = trained(jobs[0])[-1]
    path = tmp_path / "killed" / "job.json"
    path.parent.mkdir()
    path.write_text(jobs[1].model_dump_json())
    command = [sys.executable, "-m", "gristmill.trl", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout:
            if json.loads(line).get("step") == 11:
                process.send_signal(signal.SIGKILL)
                break
    events = trained(jobs[1])
    assert events[0]["resumed"] == 10  # the best so far, after the checkpoint at 8
    assert events[-1]["losses"] == whole["losses"]
    assert events[-1]["details"]["validation"] == whole["details"]["validation"]
    ours, theirs = ({p.name: p.read_bytes() for p in job.output.iterdir()} for job in jobs)
    assert ours == theirs


def test_devices_are_only_asked_for_where_there_is_a_driver(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.devices() == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
