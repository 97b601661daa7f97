"""The loop with the library alone, to measure it: does the embedded model learn, how surely, and where does time go?

    python benchmarks/learning.py --seeds 0 1 2 [--tasks 96] [--samples 4] …

Two turns of collect → keep correct, deduplicate → SFT from base, then base and both models on the same held-out tasks.
Prints seconds and peak memory for each phase, mean rewards, and the paired difference (last model − base) with its
95 % interval clustered by task. Nothing here uses Prefect or the store.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from gristmill import arithmetic, smollm, trainer
from gristmill.cache import default_cache
from gristmill.generate import batches, generate
from gristmill.policy import Policy, load
from gristmill.recipe import TrainRecipe
from gristmill.trainer import TrainJob

Scored = list[list[tuple[str, float]]]
"""For each task its samples: answer and reward."""


def main() -> None:
    options = _options()
    base = smollm.materialise(default_cache())
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            learn(base, Path(folder), seed, options)


def learn(base: Path, folder: Path, seed: int, options: argparse.Namespace) -> None:
    began = time.monotonic()
    heldout = arithmetic.make_tasks(options.heldout, seed, "heldout")
    rows: list[dict[str, Any]] = []
    model, rewards = base, []
    for turn in range(options.turns + 1):
        policy = load(model)
        with phase(f"seed {seed} turn {turn} evaluate"):
            scored = attempt(policy, heldout, options.eval_samples, options, seed + 1000)
        rewards.append(np.array([[reward for _, reward in group] for group in scored]))
        print(f"  mean {rewards[-1].mean():.3f}  {by_type(heldout, rewards[-1])}", flush=True)
        print("  e.g. " + " | ".join(repr(group[0][0]) for group in scored[:4]))
        if turn == options.turns:
            break
        tasks = arithmetic.make_tasks(options.tasks, seed, "train", turn)
        with phase(f"seed {seed} turn {turn} collect"):
            scored = attempt(policy, tasks, options.samples, options, seed + turn)
        del policy
        rows += correct(tasks, scored)
        total = sum(reward for group in scored for _, reward in group)
        print(f"  reward {total / options.tasks / options.samples:.3f}, {len(rows)} examples so far")
        with phase(f"seed {seed} turn {turn} train"):
            model = train(base, folder / f"turn{turn}", rows, seed, options)
    difference = (rewards[-1] - rewards[0]).mean(axis=1)
    low, high = stats.t.interval(0.95, len(difference) - 1, loc=difference.mean(), scale=stats.sem(difference))
    curve = " → ".join(f"{reward.mean():.3f}" for reward in rewards)
    print(f"seed {seed}: {curve}; lift {difference.mean():+.3f} [{low:+.3f}, {high:+.3f}]", end="; ")
    print(f"{time.monotonic() - began:.0f} s", flush=True)


def attempt(
    policy: Policy, tasks: list[dict[str, Any]], samples: int, options: argparse.Namespace, seed: int
) -> Scored:
    prompts = [task["responses_create_params"]["input"] for task in tasks]
    lengths = [len(policy.tokenizer.apply_chat_template(prompt)["input_ids"]) for prompt in prompts]
    scored: Scored = [[] for _ in tasks]
    for number, batch in enumerate(batches(lengths, options.batch)):
        groups = generate(
            policy,
            [prompts[i] for i in batch],
            samples=samples,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=options.max_new_tokens,
            seed=seed * 10_000 + number,
        )
        for i, group in zip(batch, groups, strict=True):
            for answer in group:
                response = arithmetic.response(
                    answer.text,
                    model=policy.name,
                    prompt_tokens=answer.prompt_tokens,
                    completion_tokens=answer.completion_tokens,
                    truncated=answer.truncated,
                )
                reward = arithmetic.verify(tasks[i], response)["reward"]
                # A cut-off answer is never trained on, right as it may be.
                scored[i].append((answer.text + "…" if answer.truncated else answer.text, reward))
    return scored


def correct(tasks: list[dict[str, Any]], scored: Scored) -> list[dict[str, Any]]:
    rows = []
    for task, group in zip(tasks, scored, strict=True):
        right = dict.fromkeys(text for text, reward in group if reward == 1 and not text.endswith("…"))
        for text in list(right)[:4]:
            answer = {"role": "assistant", "content": text}
            rows.append({"messages": [*task["responses_create_params"]["input"], answer]})
    return rows


def train(base: Path, folder: Path, rows: list[dict[str, Any]], seed: int, options: argparse.Namespace) -> Path:
    data = folder / "data"
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    job = TrainJob(
        method="sft",
        base=base,
        data=data,
        output=folder / "model",
        work=folder / "work",
        settings=TrainRecipe(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch_size=options.batch_size,
            lora_rank=options.rank,
            lora_targets=options.targets,
        ),
        seed=seed,
    )
    began = time.monotonic()
    done = trainer.get("trl").train(job)
    seconds = time.monotonic() - began
    print(f"  {done.steps} steps, {seconds:.0f} s, loss {done.losses[0]:.2f} → {done.losses[-1]:.2f}")
    return folder / "model"


def by_type(tasks: list[dict[str, Any]], rewards: np.ndarray) -> dict[str, float]:
    kinds = [task["task_type"] for task in tasks]
    return {
        kind: round(float(rewards[[i for i, k in enumerate(kinds) if k == kind]].mean()), 2)
        for kind in dict.fromkeys(kinds)
    }


@contextmanager
def phase(name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{name}: {time.monotonic() - began:.1f} s, peak {own:.2f} GiB + trainer {child:.2f} GiB", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=96)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--heldout", type=int, default=96)
    parser.add_argument("--eval-samples", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=16)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
