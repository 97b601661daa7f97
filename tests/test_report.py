"""The report page: true to its numbers, safe with hostile text, and whole without a network."""

from __future__ import annotations

import math

from gristmill.charts import bin_values
from gristmill.promotion import decide
from gristmill.recipe import PromoteRecipe
from gristmill.report import (
    Answer,
    ArtifactRow,
    CategoryRow,
    Funnel,
    Gate,
    Histogram,
    RunReport,
    StageRow,
    Transcript,
    TurnReport,
    render,
)
from gristmill.statistics import Estimate


def estimate(mean: float, half: float = 0.08, tasks: int = 64) -> Estimate:
    return Estimate(
        mean=mean, low=mean - half, high=mean + half, standard_error=half / 2, tasks=tasks, samples=tasks * 4
    )


def category(name: str, before: float, after: float) -> CategoryRow:
    return CategoryRow(
        category=name,
        before=estimate(before, tasks=21),
        after=estimate(after, tasks=21),
        lift=estimate(after - before, 0.11, 21),
    )


def a_report(turns: int = 2, *, scale: float = 1.0, shift: float = 0.0, promote: bool = True) -> RunReport:
    """A realistic run whose rewards are scale * [0, 1] + shift; every third challenger fails the gate."""
    champion, champion_score = "SmolLM2-135M-Instruct", estimate(0.31 * scale + shift, 0.07 * scale)
    base_score, rows = champion_score, []
    for n in range(1, turns + 1):
        gain = 0.22 * 0.8**n if n % 3 else -0.01
        gain = gain if promote else -0.02
        score = estimate(champion_score.mean + gain * scale, 0.06 * scale)
        lift = estimate(score.mean - champion_score.mean, 0.05 * scale)
        decision = decide(lift, PromoteRecipe())
        rewards = [shift + scale * ((i * 7) % 10 > 9 - n - 2) for i in range(384)]
        bins = bin_values(rewards)
        rows.append(
            TurnReport(
                turn=n,
                challenger=f"turn {n} SFT",
                score=score,
                gate=Gate(champion=champion, champion_score=champion_score, decision=decision),
                funnel=Funnel(
                    rows_read=384,
                    rows_kept=118,
                    dropped={
                        "below_reward": 204,
                        "duplicate_answer": 41,
                        "over_task_cap": 12,
                        "truncated": 9,
                    },
                    examples=118,
                ),
                rewards=Histogram(edges=bins.edges, counts=bins.counts, mean=sum(rewards) / len(rewards)),
                loss=tuple(1.9 * math.exp(-i / 18) + 0.35 + 0.12 * math.sin(i * 2.7) for i in range(60)),
            )
        )
        if decision.promoted:
            champion, champion_score = f"turn {n} SFT", score
    return RunReport(
        title="Arithmetic demo",
        run_id="7f3a91c2",
        base="SmolLM2-135M-Instruct",
        environment="arithmetic",
        turns=tuple(rows),
        base_score=base_score,
        lift=estimate(champion_score.mean - base_score.mean, 0.05 * scale) if promote else None,
        categories=(
            category("addition", 0.52 * scale + shift, 0.91 * scale + shift),
            category("subtraction", 0.30 * scale + shift, 0.66 * scale + shift),
            category("multiplication", 0.11 * scale + shift, 0.08 * scale + shift),
        ),
        transcripts=(
            Transcript(
                task="a3f09b11",
                category="addition",
                question="What is 47 + 38? End with the number alone.",
                before=Answer(
                    text="To find 47 + 38 we add the tens: 40 + 30 = 70, so the answer is 75.", reward=0.0
                ),
                after=Answer(text="47 + 38 = 85\n\n85", reward=1.0),
            ),
            Transcript(
                task="77be20c4",
                category="multiplication",
                question="What is 12 * 13?",
                before=Answer(text="12 * 13 = 144", reward=0.0),
                after=Answer(text="12 * 13 = 146", reward=0.0),
            ),
        ),
        stages=tuple(
            StageRow(stage=name, turn=n, cached=n == 1, seconds=seconds, kind=kind, digest=f"{n}{i}" * 32)
            for n in range(1, turns + 1)
            for i, (name, seconds, kind) in enumerate(
                [
                    ("collect", 18.2, "rollouts"),
                    ("filter", 0.4, "selection"),
                    ("format", 0.3, "dataset"),
                    ("validate", 0.1, None),
                    ("train", 41.7, "checkpoint"),
                    ("evaluate", 19.6, "evaluation"),
                    ("promote", 0.0, None),
                ]
            )
        ),
        artifacts=(
            ArtifactRow(label="Turn 1 training data", kind="dataset", digest="ab" * 32),
            ArtifactRow(label="Turn 1 SFT", kind="checkpoint", digest="cd" * 32),
        ),
        recipe="name: demo\nturns: 2\ncollect:\n  tasks: 96\n  samples: 4\n",
        versions={"python": "3.12.4", "torch": "2.13.0", "trl": "1.16.0", "prefect": "3.8.8"},
        seconds=243.7,
    )


def test_a_whole_run_renders() -> None:
    page = render(a_report())
    assert "Held-out mean reward rose from 0.31 to" in page
