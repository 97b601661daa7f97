"""Presets: filters by name, each a list of conditions that stand in every selection made with them.

The reward thresholds are those of NeMo Gym's offline-training tutorials and suit rewards within 0 to 1. Where an
environment scores on another scale, write `where: reward_scaled >= 0.95` instead.
"""

from __future__ import annotations

PRESETS: dict[str, tuple[str, ...]] = {
    "sft-strict": ("reward >= 0.95",),
    "sft-lenient": ("reward >= 0.8",),
    "sft-binary": ("reward = 1",),
    "tool-use": ("tool_calls > 0",),
    "solved-tasks": ("task_solved >= 0.5",),  # the tutorials' minimum success rate of a task
    "has-signal": ("task_min < task_max",),  # a task of which some rollout did better than another
}
