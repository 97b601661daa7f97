"""The dataset card: what is in an export folder and where it came from, as a README.md that hubs understand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gristmill.dataset.provenance import PROVENANCE
from gristmill.recipe import FormatRecipe

CARD = "README.md"
_NAMES = {
    "sft": "supervised fine-tuning",
    "dpo": "preference pairs (DPO)",
    "kto": "labelled answers (KTO)",
    "reward": "preference pairs for a reward model",
    "rl": "tasks for reinforcement learning",
}


def write_card(folder: Path, recipe: FormatRecipe, counts: dict[str, Any]) -> None:
    """Write the card."""
    head = (
        "---\n"
        "license: other  # not known to the tool: name the licence of the tasks and of the model that answered\n"
        f"tags: [agent-rollouts, {recipe.method}]\n"
        "---\n"
    )
    (folder / CARD).write_text(head + describe(recipe, counts), encoding="utf-8")


def describe(recipe: FormatRecipe, counts: dict[str, Any]) -> str:
    """The card's text, in Markdown."""
    return "\n".join(_lines(recipe, counts)) + "\n"


def _lines(recipe: FormatRecipe, counts: dict[str, Any]) -> list[str]:
    rewards = counts.get("rewards", {})
    lines = [
        f"# Training data: {_NAMES[recipe.method]}",
        "",
        f"{counts['examples']:,} rows for {recipe.target}: {counts['train']:,} to train on, "
        f"{counts['validation']:,} for validation (of {counts['tasks']:,} tasks, {counts['validation_tasks']:,} set "
        "apart; equal prompts are on one side). Made by Gristmill from scored agent rollouts.",
        "",
        "## Where the rollouts went",
        "",
        "| | rollouts |",
        "|---|---:|",
        f"| read | {counts['rows_read']:,} |",
        *(f"| dropped: {reason} | {count:,} |" for reason, count in sorted(counts["dropped"].items())),
        f"| in at least one row | {counts['rows_kept']:,} |",
        "",
    ]
    if rewards.get("min") is not None:
        lines += [
            f"Rewards of the usable rollouts: {rewards['min']:g} to {rewards['max']:g}, mean {rewards['mean']:.4g}.",
            "",
        ]
    lines += _method(recipe, counts)
    if counts.get("notes"):
        lines += [
            "## Worth knowing",
            "",
            *(f"- {name.replace('_', ' ')}: {count:,}" for name, count in counts["notes"].items()),
            "",
        ]
    lines += [
        "## Lineage",
        "",
        f"`{PROVENANCE}` names the rollouts behind every row, with the file and line of each. `manifest.json` has the "
        "sha256 of every input and output file, the settings and the counts.",
    ]
    return lines


def _method(recipe: FormatRecipe, counts: dict[str, Any]) -> list[str]:
    if (pairs := counts.get("pairs")) and counts["examples"]:
        chosen, rejected = pairs["chosen_chars"], pairs["rejected_chars"]
        return [
            "## Pairs",
            "",
            f"Strategy {recipe.pairs.strategy}, least gap {recipe.pairs.min_gap:g}; gaps {pairs['gap']['min']:.3g} to "
            f"{pairs['gap']['max']:.3g}, mean {pairs['gap']['mean']:.3g}. The chosen side has {chosen['mean']:.0f} "
            f"characters on average, the rejected one {rejected['mean']:.0f}; it is longer in "
            f"{pairs['chosen_longer']:.0%} of the pairs.",
            "",
        ]
    if labels := counts.get("labels"):
        return [
            "## Labels",
            "",
            f"{labels['desirable']:,} desirable, {labels['undesirable']:,} undesirable; {labels['tasks_with_both']:,} "
            f"tasks have both, {labels['tasks_only_desirable']:,} only desirable ones, "
            f"{labels['tasks_only_undesirable']:,} only undesirable ones.",
            "",
        ]
    if signal := counts.get("rl"):
        return [
            "## Tasks",
            "",
            f"{signal['tasks_with_signal']:,} of {signal['tasks']:,} tasks have rollouts of different rewards; never "
            f"solved {signal['never_solved']:,}, sometimes {signal['sometimes_solved']:,}, always "
            f"{signal['always_solved']:,}.",
            "",
        ]
    return []
