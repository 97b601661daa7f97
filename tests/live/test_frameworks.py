"""Every framework's own loader on our exports: the handwritten conversations, and real rollouts where there are some.

Each framework has an environment of its own, made once with uv and kept in the cache (GRISTMILL_TEST_CACHE, else
~/.cache/gristmill-tests); where one cannot be made its tests are skipped, and say why. With GRISTMILL_RECORD=write a
run writes what it proved to docs/targets.json, of which `python docs/targets_table.py` makes the table.
"""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from gristmill import chat, targets
from gristmill.example import Example, Method, Sft
from gristmill.rollout import parse
from gristmill.targets import Launch
from tests import conversations as talk
from tests.kept import kept
from tests.learned import ask, problems, template
from tests.test_chat_oracle import gym_python  # noqa: F401 - a fixture

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "docs" / "targets.json"

TORCH = "torch==2.13.0"
TRL = ["trl==1.16.0", "peft==0.21.2", "transformers==5.23.0", "datasets==5.2.0", "accelerate==1.15.0"]
# Framework → package installed without its GPU dependencies, and what its data side needs instead.
ENVIRONMENTS: dict[str, tuple[str, list[str]]] = {
    "openrlhf": ("openrlhf==0.11.2", [*TRL, "pylatexenc==2.11"]),
    "verl": (
        "verl==0.9.1",
        [
            "transformers==5.10.4",
            "datasets==5.2.0",
            "ray==2.60.0",
            "tensordict==0.10.0",
            "torchdata==0.11.0",
            "accelerate==1.15.0",
            "peft==0.21.2",
            "pandas==3.1.1",
            "pyarrow==26.0.1",
            "omegaconf==2.3.1",
            "hydra-core==1.3.8",
            "codetiming==1.4.0",
            "pillow",
            "uvicorn",
            "fastapi",
        ],
    ),
    "llamafactory": (
        "llamafactory==0.9.5",
        [
            "transformers==5.6.2",
            "datasets==4.0.0",
            "trl==0.24.0",
            "peft==0.18.1",
            "accelerate==1.11.0",
            "omegaconf==2.4.0",
            "pillow",
        ],
    ),
    "axolotl": (
        "axolotl==0.19.0",
        [
            "trl==1.9.0",
            "peft==0.21.2",
            "transformers==5.16.1",
            "datasets==4.8.4",
            "accelerate==1.15.0",
            "colorama",
            "addict",
        ],
    ),
}


def python_of(framework: str) -> Path:
    """The interpreter of a framework's environment; skips the test where none can be made."""
    package, others = ENVIRONMENTS[framework]
    cache = kept()
    home = cache / package.replace("==", "-")
    python = home / "bin" / "python"
    name, _, version = package.partition("==")
    probe = f"import importlib.metadata as m; assert m.version('{name}') == '{version}'; import datasets, torch"
    if python.exists() and subprocess.run([python, "-c", probe], capture_output=True).returncode == 0:
        return python
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    if sys.version_info >= (3, 13):
        pytest.skip(f"{package} needs Python 3.11 or 3.12")
    cache.mkdir(parents=True, exist_ok=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    install = [uv, "pip", "install", "--quiet", "--no-config", "--python", str(python)]
    for command in (
        [uv, "venv", "--quiet", "--no-config", "--clear", "--python", str(base), str(home)],
        [*install, "--no-deps", package],
        [*install, TORCH, *others],
    ):
        # Not in the checkout: uv would take its constraints.
        environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
        made = subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"{package} cannot be installed: {made.stderr.strip()[-300:]}")
    return python


class Job(NamedTuple):
    """One export that one loader reads with one chat template."""

    method: Method
    template: str
    without: tuple[Example, ...] = ()
    """Handwritten examples that the template (not the format) has no form for."""
    examples: Sequence[Example] | None = None
    model: str = "Qwen/Qwen3-0.6B"


# What templates leave out of what they are given: Qwen 2.5's reasoning; Llama 3.1's that, the text before a call, and
# parallel calls, for which it raises; in verl, which renders messages one by one, all of them grouped results.
QWEN = (talk.REASONING,)
LLAMA = (talk.REASONING, talk.PARALLEL, talk.TEXT_AND_CALL, talk.PAIRS[2])
JOBS: dict[str, list[Job]] = {
    "trl": [
        Job("sft", "qwen3"),
        Job("sft", "qwen2_5", QWEN),
        Job("sft", "qwen3", examples=talk.TOKENS),
        Job("dpo", "qwen3"),
        Job("dpo", "llama3_1", LLAMA),
        Job("kto", "qwen3"),
        Job("reward", "qwen3"),
    ],
    "trl-jsonl": [
        Job("sft", "qwen3"),
        Job("sft", "qwen3", examples=talk.TOKENS),
        Job("dpo", "qwen3"),
        Job("kto", "qwen3"),
        Job("reward", "qwen3"),
    ],
    "openrlhf": [
        Job("sft", "qwen3_training"),
        Job("sft", "qwen2_5", QWEN),
        Job("sft", "llama3_1", LLAMA),
        Job("dpo", "qwen3_training"),
        Job("dpo", "llama3_1", LLAMA),
        Job("reward", "qwen2_5"),
    ],
    "verl": [
        Job("sft", "qwen3_training", (talk.PARALLEL,)),
        Job("sft", "qwen2_5", (talk.PARALLEL, talk.REASONING)),
        Job("sft", "qwen2_5", examples=talk.TOKENS),
    ],
    "llamafactory": [
        Job("sft", "qwen3"),
        Job("sft", "qwen3", QWEN),
        Job("sft", "llama3_1", (talk.PARALLEL,), model="meta-llama/Llama-3.1-8B-Instruct"),
        Job("dpo", "qwen3"),
        Job("kto", "qwen3"),
        Job("reward", "qwen3"),
    ],
    "axolotl": [
        Job("sft", "qwen2_5", QWEN),
        Job("sft", "llama3_1", LLAMA),
        Job("sft", "qwen2_5", examples=talk.TOKENS),
        Job("dpo", "qwen2_5"),
        Job("dpo", "llama3_1", LLAMA),
    ],
    "nemo-rl": [
        Job("sft", "qwen2_5", QWEN),
        Job("sft", "qwen3_training"),
        Job("dpo", "qwen2_5"),
        Job("dpo", "qwen3_training"),
        Job("reward", "qwen2_5"),
    ],
}
OWN_ENVIRONMENT = {"trl": "TRL 1.16.0", "trl-jsonl": "TRL 1.16.0", "nemo-rl": "NeMo RL main, mirrored"}


@pytest.fixture(scope="module")
def record() -> Iterator[dict[tuple[str, str], dict[str, Any]]]:
    """What was proved, by target and method; written at the end if asked for, beside what other runs wrote."""
    proved: dict[tuple[str, str], dict[str, Any]] = {}
    yield proved
    if os.environ.get("GRISTMILL_RECORD") == "write" and proved:
        known = orjson.loads(RECORD.read_bytes()) if RECORD.exists() else []
        entries = {(entry["target"], entry["method"]): entry for entry in known}
        entries |= proved
        RECORD.write_bytes(orjson.dumps([entries[key] for key in sorted(entries)], option=orjson.OPT_INDENT_2) + b"\n")


def prove(record: Any, target: str, method: str, framework: str, proof: str, rows: int, chat: str | None) -> None:
    """Add to what is proved of a target and method."""
    entry = record.setdefault(
        (target, method),
        {
            "target": target,
            "method": method,
            "framework": framework,
            "proof": proof,
            "templates": [],
            "rows": 0,
            "date": datetime.date.today().isoformat(),
        },
    )
    entry["rows"] += rows
    if chat is not None:
        entry["templates"] = sorted({*entry["templates"], chat})


def run(name: str, jobs: Sequence[tuple[Job, Sequence[Example]]], folder: Path) -> list[tuple[Job, int, list[str]]]:
    """Export each job, load all of them in one process; what was loaded and what is wrong with it."""
    asked, kept = [], []
    for number, (job, examples) in enumerate(jobs):
        launch = Launch(model=job.model, max_length=65536)
        made, held, _ = talk.export(targets.get(name), job.method, folder / f"{number}", examples, launch)
        asked.append({"export": made.folder, "method": job.method, "template": template(job.template)})
        kept.append(held)
    python = Path(sys.executable) if name in OWN_ENVIRONMENT else python_of(name)
    answers = ask(python, name.removesuffix("-jsonl").replace("-", "_"), asked, folder / "loader")
    return [
        (job, len(held), problems(answer, held, job.method, template(job.template)))
        for (job, _), held, answer in zip(jobs, kept, answers, strict=True)
    ]


@pytest.mark.parametrize("name", JOBS)
def test_the_frameworks_loader_learns_the_answers_and_nothing_else(name: str, tmp_path: Path, record: Any) -> None:
    def examples(job: Job) -> list[Example]:
        given = talk.EXAMPLES[job.method] if job.examples is None else job.examples
        return [example for example in given if not any(example is other for other in job.without)]

    found = {}
    for job, rows, wrong in run(name, [(job, examples(job)) for job in JOBS[name]], tmp_path):
        if wrong:
            found[f"{job.method} {job.template}"] = wrong
            continue
        framework = OWN_ENVIRONMENT.get(name) or ENVIRONMENTS[name][0].replace("==", " ")
        proof = "mirror" if name == "nemo-rl" else "loader"
        prove(record, name, job.method, framework, proof, rows, job.template)
    assert found == {}


@pytest.mark.parametrize(("name", "method"), [("unsloth", "sft"), ("unsloth", "dpo")])
def test_what_hands_rows_to_trl_writes_trls_rows(name: str, method: Method, tmp_path: Path, record: Any) -> None:
    examples = [example for example in talk.EXAMPLES[method] if example is not talk.ANSWERED_BEFORE]
    exports = [talk.export(targets.get(its), method, tmp_path / its, examples) for its in (name, "trl")]
    ours, theirs = ((made.folder / made.train[0]).read_bytes() for made, _, _ in exports)
    assert ours == theirs
    prove(record, name, method, OWN_ENVIRONMENT["trl"], "same rows as trl", len(exports[0][1]), None)


@pytest.mark.parametrize("method", ["sft", "reward"])
def test_the_trl_command_trains_from_the_config_alone(method: Method, tmp_path: Path) -> None:
    made, _, _ = talk.export(targets.get("trl"), method, tmp_path / "export")
    # What an export also holds, which the command must not take for data.
    shutil.copy(made.folder / made.train[0], made.folder / "provenance.parquet")
    (made.folder / "manifest.json").write_text("{}")
    (made.folder / "README.md").write_text("---\nlicense: other\n---\n# Card\n")
    loaders = ROOT / "tests" / "loaders"
    tiny = (
        f"import tiny, pathlib; tiny.model(pathlib.Path({str(template('qwen3'))!r}), pathlib.Path({str(tmp_path)!r}))"
    )
    subprocess.run([sys.executable, "-c", tiny], cwd=loaders, check=True, capture_output=True)
    options = ["--model_name_or_path", tmp_path, "--use_cpu", "true", "--bf16", "false", "--max_steps", "1"]
    environment = os.environ | {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    command = [Path(sys.executable).parent / "trl", method, "--config", f"{method}.yaml", *options]
    whole = ["--dataset_name", made.folder, "--dataset_test_split", "validation", "--eval_strategy", "epoch"]
    config = made.folder / f"{method}.yaml"
    for more in ([], whole) if method == "sft" else ([],):
        if more:
            lines = config.read_text().splitlines()
            kept = [line for line in lines if not line.startswith(("datasets:", "  - {path: parquet"))]
            config.write_text("\n".join(kept) + "\n")
        ran = subprocess.run(
            [*map(str, command), *map(str, more)],
            cwd=made.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert (made.folder / "output" / method / "adapter_model.safetensors").exists()


def test_gym_reads_our_tasks(tmp_path: Path, record: Any, gym_python: Path) -> None:  # noqa: F811 - the fixture
    """With the model that its servers validate requests by; unknown fields there are errors."""
    made, kept, _ = talk.export(targets.get("gym"), "rl", tmp_path / "export")
    driver = (
        "import json, sys\n"
        "from nemo_gym.openai_utils import NeMoGymResponseCreateParamsNonStreaming as Params\n"
        "for line in open(sys.argv[1]):\n"
        "    row = json.loads(line)\n"
        "    Params.model_validate(row['responses_create_params'])\n"
        "    assert row['agent_ref']['name']\n"
        "    print(row['expected_answer'])\n"
    )
    command = [str(gym_python), "-c", driver, str(made.folder / made.train[0])]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.split() == [str(number) for number in range(len(kept))]
    prove(record, "gym", "rl", "nemo-gym 0.4.0", "request model", len(kept), None)


REAL: dict[str, str] = {
    "trl": "qwen3",
    "openrlhf": "qwen3_training",
    "verl": "qwen3_training",
    "llamafactory": "qwen3",
    "axolotl": "qwen2_5",
    "nemo-rl": "qwen3_training",
}


@pytest.fixture(scope="module")
def real(shared: Path) -> list[Sft]:
    """A few conversations of every file of real rollouts."""
    made: list[Sft] = []
    for path in sorted(shared.rglob("*.jsonl")):
        found = 0
        with path.open("rb") as file:
            for line in file:
                if found == 12 or len(line) > 300_000:
                    break
                try:
                    talked = chat.convert(parse(line))
                    chat.require_trainable(talked)
                except (chat.Unrepresentable, ValueError):
                    continue
                found += 1
                split = talked.prompt_length
                meta = {"rollout_id": f"{path.name}:{found}"}
                made.append(Sft(talked.messages[:split], talked.messages[split:], talked.tools, meta))
    assert made
    return made


@pytest.mark.parametrize("name", REAL)
def test_real_rollouts_survive_the_frameworks_loader(name: str, real: list[Sft], tmp_path: Path) -> None:
    def representable(example: Sft) -> bool:
        # Templates, not formats: Qwen 3's rewrites literal thoughts, Qwen 2.5's has no reasoning; verl checks a
        # rendering that groups parallel results.
        messages = example.prompt + example.completion
        if any("</think>" in message["content"] for message in messages if type(message["content"]) is str):
            return False
        roles = [message["role"] for message in messages]
        grouped = any(pair == ("tool", "tool") for pair in pairwise(roles))
        reasoning = any("reasoning_content" in message for message in messages)
        return not (name == "verl" and grouped) and not (name == "axolotl" and reasoning)

    examples = [example for example in real if representable(example)]
    ((_, rows, wrong),) = run(name, [(Job("sft", REAL[name]), examples)], tmp_path)
    assert rows > 0
    assert wrong == []
