"""The training process on the tiny model: protocol, masks, a plain HF folder, and resuming to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gristmill import arithmetic, smollm
from gristmill.errors import TrainingError, UsageError
from gristmill.recipe import TrainRecipe
from gristmill.trainer import TrainJob
from gristmill.trl.checkpoints import acquire
from gristmill.trl.process import identity
from gristmill.trl.rows import data_files
from gristmill.trl.template import training_template


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A tiny base model and 24 examples of unequal length."""
    folder = tmp_path_factory.mktemp("inputs")
    smollm.tiny(folder / "base")
    (folder / "data").mkdir()
    rows = []
    for task in arithmetic.make_tasks(24, 0, "train"):
        answer = {"role": "assistant", "content": f"It is {task['expected_answer']}."}
        # `note` has mixed types: columns that TRL does not read must not stop it.
        rows.append({"messages": [*task["responses_create_params"]["input"], answer], "note": len(rows) % 2 or "x"})
    (folder / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _job(inputs: Path, folder: Path, **other) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {
        "epochs": 4,
        "batch_size": 4,
        "save_steps": 3,
        "learning_rate": 5e-3,
        "lora_targets": ("q_proj", "v_proj"),
    }
    job = TrainJob(
        method=other.pop("method", "sft"),
        base=inputs / "base",
        data=other.pop("data", inputs / "data"),
        output=folder / "model",
        work=folder / "work",
        settings=TrainRecipe(**settings | other),
        seed=1,
    )
    path = folder / "job.json"
    path.write_text(job.model_dump_json())
    return path


def _start(job: Path) -> subprocess.Popen:
    with (job.parent / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gristmill.trl", str(job)], stdout=subprocess.PIPE, stderr=log, text=True
        )


def _end(process: subprocess.Popen, job: Path) -> list[dict]:
    with process:
        out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, (job.parent / "log").read_text()[-2000:]
    # Every line must be JSON: a library that prints to stdout would break the protocol.
    return [json.loads(line) for line in out.splitlines()]


def test_killed_and_resumed_training_ends_with_the_same_bytes(inputs, tmp_path):
    whole_job, killed_job = _job(inputs, tmp_path / "whole"), _job(inputs, tmp_path / "killed")
    whole, killed = _start(whole_job), _start(killed_job)
    for line in killed.stdout:
        # Step 8 is two steps past the checkpoint at 6: the resumed run must do 7 and 8 again, and equally.
        if json.loads(line).get("step") == 8:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate()  # reaps it and closes the pipe
    # A torn checkpoint, as a kill in the middle of saving leaves one, must not be resumed from.
    (tmp_path / "killed" / "work" / "checkpoint-9").mkdir(exist_ok=True)
    (tmp_path / "killed" / "work" / "checkpoint-9" / "whole").unlink(missing_ok=True)
    assert not (tmp_path / "killed" / "model").exists()

    resumed = _end(_start(killed_job), killed_job)
    events = _end(whole, whole_job)
    assert [event["event"] for event in events] == ["start", *["step"] * 24, "done"]
    assert resumed[0] == {"event": "start", "of": 24, "rows": 24, "resumed": 6}
    assert events[-1]["steps"] == 24 and events[-1]["tokens"] > 24 * 4 * 50
    assert len(events[-1]["losses"]) == 24 and events[-1]["losses"][-1] < events[-1]["losses"][0]
    assert resumed[-1]["losses"] == events[-1]["losses"]
    files = {path.name: path.read_bytes() for path in (tmp_path / "whole" / "model").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "killed" / "model").iterdir()}

    _loads_plainly(tmp_path / "whole" / "model", inputs / "base")
    # A finished job is found, not done again.
    assert [event["event"] for event in _end(_start(whole_job), whole_job)] == ["done"]


def _loads_plainly(model: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trained = AutoModelForCausalLM.from_pretrained(model)
    start = AutoModelForCausalLM.from_pretrained(base)
    assert {value.dtype for value in trained.state_dict().values()} == {torch.bfloat16}
    changed = {name for name, value in trained.state_dict().items() if not torch.equal(value, start.state_dict()[name])}
    # The adapter is merged into its targets, and nothing else has moved.
    assert changed == {f"model.layers.{i}.self_attn.{name}_proj.weight" for i in (0, 1) for name in "qv"}
    assert AutoTokenizer.from_pretrained(model).chat_template == smollm.TEMPLATE
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (model / name).read_bytes() == (base / name).read_bytes()


def test_the_training_template_renders_the_same_and_marks_answers(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm.tiny(tmp_path / "m"))
    chats = [
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\n b"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
        [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")],
        [{"role": "tool", "content": "t"}, {"role": "assistant", "content": ""}],
    ]
    training = training_template(tokenizer.chat_template)
    assert training != tokenizer.chat_template
    for chat in chats:
        for prompt in (False, True):
            texts = [
                tokenizer.apply_chat_template(
                    chat, tokenize=False, add_generation_prompt=prompt, chat_template=template
                )
                for template in (None, training)
            ]
            assert texts[0] == texts[1]
    marked = tokenizer.apply_chat_template(
        chats[2], chat_template=training, return_assistant_tokens_mask=True, return_dict=True
    )
    loss = [i for i, on in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(loss) == "assistant<|im_end|>" * 2


def test_other_templates_are_left_alone():
    assert training_template("{{ messages }}") == "{{ messages }}"


def test_identity_follows_content_not_paths(inputs, tmp_path):
    job = TrainJob.model_validate_json(_job(inputs, tmp_path / "a").read_text())
    moved = job.model_copy(update={"output": tmp_path / "elsewhere", "work": tmp_path / "w"})
    assert identity(job) == identity(moved)
    assert identity(job) != identity(job.model_copy(update={"seed": 2}))
    other = tmp_path / "data"
    other.mkdir()
    (other / "train.jsonl").write_text('{"messages": []}\n')
    assert identity(job) != identity(job.model_copy(update={"data": other}))


def test_no_data_and_bad_jobs_are_told_in_a_sentence(inputs, tmp_path):
    with pytest.raises(UsageError, match=r"train\*.parquet or train.jsonl"):
        data_files(tmp_path)
    bad = tmp_path / "bad.json"
    bad.write_text(
        '{"method": "sft", "base": "b", "data": "d", "output": "o", "work": "w", "settings": {}, "epoch": 1}'
    )
    run = subprocess.run([sys.executable, "-m", "gristmill.trl", str(bad)], capture_output=True, text=True, check=False)
    assert run.returncode == 2 and json.loads(run.stdout)["event"] == "error"
    assert "epoch: Extra inputs are not permitted" in run.stderr and "Traceback" not in run.stderr


def test_a_locked_work_folder_is_refused(tmp_path):
    with (tmp_path / "lock").open("w") as mine, (tmp_path / "lock").open("w") as theirs:
        acquire(mine, tmp_path)
        with pytest.raises(TrainingError, match="Another process trains"):
            acquire(theirs, tmp_path, patience=0)


def test_the_process_ends_with_its_parent():
    child = (
        "import time; from gristmill.trl.process import _end_with_parent;"
        "_end_with_parent(); print(1, flush=True); time.sleep(99)"
    )
    parent = (
        "import subprocess, sys, os;"
        f"p = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE);"
        "p.stdout.read(1); print(p.pid, flush=True); os._exit(0)"
    )
    # The child writes only after its watch began, and must then be gone although it would sleep.
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True, timeout=60)
    pid = int(done.stdout)
    until = time.monotonic() + 30
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie that nobody reaps is dead for our purpose.
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_importing_the_module_needs_no_torch():
    # The command line and the tasks import the trainer; it must stay quick for them.
    script = "import sys, gristmill.trl.trainer; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
