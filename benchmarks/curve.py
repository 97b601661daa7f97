"""The loop's curve: four turns by two ways of training, on 200 held-out tasks with 8 samples each.

    uv run --with matplotlib python benchmarks/curve.py [--seed N] [-w FOLDER] [--picture docs/curve.svg]

SFT starts from the base every turn, on the verified answers of all turns so far. DPO goes on from the champion, on
pairs of the champion's own answers. Both share environment, base model and held-out tasks, and so the base's
evaluation. Prints the table of the README: pass@1 and pass@8 with 95 % intervals clustered by task, the paired lift
over the champion of that turn, and what the gate said. What was done in the folder already is not done again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from gristmill.artifact import ArtifactRef
from gristmill.evaluation import Evaluation, read_evaluation
from gristmill.promotion import Verdict, read_decision
from gristmill.statistics import Estimate
from gristmill.store import Store

ROOT = Path(__file__).parents[1]
SHARED = [
    "turns=4",
    "environment.heldout=200",
    "evaluate.samples=8",
    "collect.samples=8",
]
ARMS = {
    "SFT from the base, all turns' data": [
        "name=curve-sft",
    ],
    "DPO from the champion, its own answers": [
        "name=curve-dpo",
        "format.method=dpo",
        "format.pairs.strategy=folded",
        "curate.min_reward=null",
        "curate.per_task=null",
        "curate.deduplicate=false",
        "curate.data=replace",
        "train.learning_rate=1e-3",
    ],
}


class Step(NamedTuple):
    """A challenger, and what the gate said of it; the base has no verdict."""

    evaluation: Evaluation
    verdict: Verdict | None = None
    lift: Estimate | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-w", "--workspace", type=Path)
    parser.add_argument("--picture", type=Path, help="Draw the curves to this file (.svg or .png).")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = options.workspace or Path(folder)
        arms = {name: take(overrides, workspace, options.seed) for name, overrides in ARMS.items()}
    for name, steps in arms.items():
        print(f"\n{name}\n\n{table(steps)}")
    if options.picture:
        draw(arms, options.picture)


def take(overrides: list[str], workspace: Path, seed: int) -> list[Step]:
    """Run the loop; the base and every challenger, in order."""
    began = time.monotonic()
    recipe = ROOT / "recipes" / "arithmetic.yaml"
    command = [sys.executable, "-m", "gristmill", "improve", str(recipe), *SHARED, *overrides, f"seed={seed}"]
    done = subprocess.run([*command, "-w", str(workspace), "--json"], stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(f"{result['recipe']}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    store = Store(workspace.resolve())
    decisions = [ref for ref in store.refs() if ref.kind == "decision"]
    steps: list[Step] = []
    for turn in result["turns"]:
        challenger = ArtifactRef(kind="checkpoint", digest=turn["checkpoint"])
        for ref in decisions:
            ours, theirs = (read_evaluation(store, one) for one in store.manifest(ref).parents[:2])
            if ours.policy != challenger:
                continue
            if not steps:
                steps.append(Step(theirs))
            decision = read_decision(store, ref)
            steps.append(Step(ours, decision.verdict, decision.lift))
            break
    return steps


def table(steps: list[Step]) -> str:
    """A table in Markdown."""
    k = max(steps[0].evaluation.pass_at)
    lines = [f"| | pass@1 | pass@{k} | lift over the champion | the gate |", "|---|---|---|---|---|"]
    for number, step in enumerate(steps):
        one, many = (_said(step.evaluation.pass_at[n]) for n in (1, k))
        lift = _said(step.lift, sign="+") if step.lift else ""
        lines.append(f"| {f'turn {number}' if number else 'base'} | {one} | {many} | {lift} | {step.verdict or ''} |")
    return "\n".join(lines)


def _said(estimate: Estimate, sign: str = "") -> str:
    return f"{estimate.mean:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def draw(arms: dict[str, list[Step]], path: Path) -> None:
    """pass@1 and pass@k by turn, with intervals; hollow where the gate did not promote."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.hashsalt": "gristmill", "svg.fonttype": "none", "font.size": 10}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 3.6), layout="constrained")
    for (name, steps), colour in zip(arms.items(), ("#0b61a4", "#b3560b"), strict=True):
        k = max(steps[0].evaluation.pass_at)
        for at, style in ((k, ":"), (1, "-")):
            points = [step.evaluation.pass_at[at] for step in steps]
            turns = range(len(points))
            means = [point.mean for point in points]
            spread = [[p.mean - (p.low or 0) for p in points], [(p.high or 0) - p.mean for p in points]]
            axes.plot(turns, means, style, color=colour, label=name if at == 1 else f"pass@{k}", linewidth=1.6)
            axes.errorbar(turns, means, yerr=spread, fmt="none", ecolor=colour, elinewidth=1, capsize=2.5)
            for turn, (mean, step) in enumerate(zip(means, steps, strict=True)):
                held = step.verdict in (None, Verdict.PROMOTED)
                axes.plot(turn, mean, "o", color=colour, markerfacecolor=colour if held else "white", markersize=6)
    axes.set_xticks(range(max(map(len, arms.values()))), ["base", *(f"turn {n}" for n in range(1, 5))])
    axes.set_ylim(0, 1)
    axes.set_ylabel("held-out tasks solved")
    axes.set_title("Solid: pass@1. Hollow: the gate did not promote. Bars: 95 % intervals over tasks.", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower right", ncols=2)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
