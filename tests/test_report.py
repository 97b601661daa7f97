"""The report page: true to its numbers, safe with hostile text, and whole without a network."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gristmill.histogram import histogram
from gristmill.power import Needed
from gristmill.promotion import decide
from gristmill.recipe import PromoteRecipe
from gristmill.report import (
    Answer,
    ArtifactRow,
    CategoryRow,
    Funnel,
    Gate,
    Rewards,
    RunReport,
    StageRow,
    Transcript,
    TurnReport,
)
from gristmill.report_page import fold, render, visible
from gristmill.report_words import decision_words, headline, settling_words
from gristmill.statistics import Estimate, mean_reward
from gristmill.words import duration


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
        bins = histogram(rewards)
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
                rewards=Rewards(edges=bins.edges, counts=bins.counts, mean=sum(rewards) / len(rewards)),
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
                before=Answer(text="To find 47 + 38 we add the tens: 40 + 30 = 70, so the answer is 75.", reward=0.0),
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


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "]]></svg></style></title></pre></textarea><!--",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "</details><base href=//evil.example>",
    "مرحبا بالعالم، الجواب 42 \u202egnihton\u202c",
    "👩‍🔬🧮 naïve 数学",
    "nul \x00 bell \x07 escape \x1b[31m red \x7f \x9b \r\nnext line\rlone",
    "half \ud83d a pair",
)


def hostile_report() -> RunReport:
    """Every text that a model, a task or a recipe can write is hostile; the long answer is 200 kB."""
    text = "\n".join(HOSTILE)
    bad = HOSTILE[1] + HOSTILE[0]
    plain = a_report(1)
    turn = plain.turns[0]
    assert turn.gate is not None
    return RunReport(
        title=bad,
        run_id=bad,
        base=bad,
        environment=bad,
        turns=(
            turn.model_copy(
                update={
                    "challenger": bad,
                    "gate": turn.gate.model_copy(update={"champion": bad}),
                    "funnel": Funnel(rows_read=3, rows_kept=1, dropped={bad: 2}),
                }
            ),
        ),
        base_score=plain.base_score,
        lift=plain.lift,
        categories=(category(bad, 0.2, 0.4),),
        transcripts=(
            Transcript(
                task=bad,
                category=bad,
                question=text,
                before=Answer(text=text, reward=-3.5),
                after=Answer(text=(text + " ") * 900, reward=None),
            ),
        ),
        stages=(StageRow(stage=bad, turn=1, cached=False, seconds=1, kind=bad, digest=bad),),
        artifacts=(ArtifactRow(label=bad, kind=bad, digest=bad),),
        recipe=text,
        versions={bad: bad},
    )


# --------------------------------------------------------------------------------------------------- reading


class Page(HTMLParser):
    """What a browser would make of the page: elements, attributes, texts; unbalanced tags fail."""

    VOID: ClassVar[set[str]] = {"meta", "br", "img", "base", "link", "hr", "input"}

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.texts.setdefault(tag, []).append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def tags(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.elements if tag == name]


def words(html: str) -> str:
    return " ".join(Page(html).texts["body"][0].split())


SHAPES = {
    "two turns": lambda: a_report(2),
    "one turn": lambda: a_report(1),
    "twelve turns": lambda: a_report(12),
    "nothing promoted": lambda: a_report(2, promote=False),
    "rewards from -50 to 150": lambda: a_report(3, scale=200, shift=-50),
    "nothing at all": lambda: RunReport(title="t", base="b", environment="e"),
    "hostile": hostile_report,
}


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES.keys())
def test_the_page_is_whole_and_sound_in_every_shape(make: Callable[[], RunReport]) -> None:
    html = render(make())
    html.encode("utf-8")
    page = Page(html)
    headings = [int(tag[1]) for tag, _ in page.elements if tag in {"h1", "h2", "h3", "h4"}]
    assert headings.count(1) == 1 and headings.count(2) == 9
    assert all(b - a <= 1 for a, b in pairwise(headings))  # no level is skipped
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["aria-labelledby"] for _, attrs in page.elements if "aria-labelledby" in attrs} <= set(ids)
    assert len(page.tags("table")) == len(page.tags("caption"))
    after_image = [b for (a, attrs), (b, _) in pairwise(page.elements) if a == "svg" and attrs.get("role") == "img"]
    assert set(after_image) <= {"title"}  # whoever does not see a drawing is told what it shows
    assert "nan" not in words(html).lower().split() and "None" not in words(html)


@pytest.mark.parametrize("make", SHAPES.values(), ids=SHAPES.keys())
def test_nothing_runs_and_nothing_is_fetched(make: Callable[[], RunReport]) -> None:
    html = render(make())
    page = Page(html)
    allowed = "html head meta title style body header main section article footer h1 h2 h3 h4 p b dl div dt dd"
    allowed += " ul ol li table caption thead tbody tfoot tr th td span code pre details summary"
    allowed += " svg g desc line path rect circle text"
    assert {tag for tag, _ in page.elements} <= set(allowed.split())
    for _, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on") or name in {"src", "href", "srcset", "action"}]
    style = "".join(page.texts["style"]) + "".join(a.get("style") or "" for _, a in page.elements)
    assert "url(" not in style and "@import" not in style and "expression" not in style
    policy = page.tags("meta")[1]["content"] or ""
    assert policy.startswith("default-src 'none'") and "script" not in policy


def test_hostile_text_is_shown_as_it_was_written() -> None:
    report = hostile_report()
    page = Page(render(report))
    shown = "".join(text[1:] for text in page.texts["pre"])  # a browser drops the line end after <pre>
    (one,) = report.transcripts
    assert visible(one.question) + visible(one.before.text) + visible(one.after.text) in shown
    assert "<script>alert(1)</script>" in shown and "{{ 7 * 7 }}" in shown
    controls = {c for c in shown if unicodedata.category(c) == "Cc"} - {"\n"}
    assert controls == set()
    assert "\N{SYMBOL FOR NULL}" in shown and "\N{SYMBOL FOR ESCAPE}" in shown
    # Right-to-left text keeps to its own block, whose direction is its own.
    assert all(attrs.get("dir") == "auto" for attrs in page.tags("pre") if attrs.get("class") == "said")


@given(st.text(max_size=3000), st.integers(1, 500))
def test_folding_loses_nothing(text: str, limit: int) -> None:
    head, rest = fold(text, limit)
    assert head + rest == visible(text)
    assert len(head) <= limit * 1.25


@given(st.text(), st.text())
def test_no_answer_changes_the_structure_of_the_page(question: str, answer: str) -> None:
    def structure(q: str, a: str) -> list[tuple[str, dict[str, str | None]]]:
        one = Transcript(task="t", question=q, before=Answer(text=a), after=Answer(text="b"))
        return Page(render(RunReport(title="t", base="b", environment="e", transcripts=(one,)))).elements

    assert structure(question or "q", answer or "a") == structure("q", "a")


# ------------------------------------------------------------------------------------------------ true words


def test_the_headline_claims_a_rise_only_on_evidence() -> None:
    report = a_report(2)
    assert headline(report).claim == "Held-out mean reward rose from 0.31 to 0.63"
    assert (
        headline(report).evidence == "+0.32, 95% interval [+0.27, +0.37], 64 tasks \N{MULTIPLICATION SIGN} 4 samples."
    )
    doubtful = report.model_copy(update={"lift": estimate(0.1, 0.2)})
    assert headline(doubtful).claim.endswith("which may be chance")
    assert "includes zero" in headline(doubtful).evidence
    worse = report.model_copy(update={"lift": estimate(-0.3, 0.1)})
    assert headline(worse).claim.startswith("Held-out mean reward fell")
    unknown = report.model_copy(update={"lift": None})
    assert "may be chance" in headline(unknown).evidence
    ninety = report.model_copy(update={"confidence": 0.9})
    assert "90% interval" in headline(ninety).evidence
    unscored = report.model_copy(update={"base_score": None})
    assert headline(unscored).claim.startswith("Nothing is proved")


def test_a_run_without_promotion_says_who_stays_and_how_near_it_came() -> None:
    claim, evidence = headline(a_report(2, promote=False))
    assert claim == "No challenger was promoted"
    assert evidence.startswith("SmolLM2-135M-Instruct stays champion with a held-out mean reward of 0.31")
    assert "The best challenger, turn 1 SFT, had a lift of \N{MINUS SIGN}0.02" in evidence


@pytest.mark.parametrize(
    ("mean", "half", "min_effect", "expected"),
    [
        (0.2, 0.1, 0.0, "The lower bound, +0.10, is above the threshold 0: it was promoted."),
        (0.2, 0.196, 0.0, "The lower bound, +0.004, is above the threshold 0: it was promoted."),
        (0.1, 0.2, 0.0, "The interval includes the threshold 0, so this does not decide"),
        (0.04, 0.03, 0.05, "The interval includes the threshold +0.05, so this does not decide"),
        (
            -0.3,
            0.1,
            0.0,
            "Even the upper bound, \N{MINUS SIGN}0.20, is not above the threshold 0: it was rejected",
        ),
    ],
)
def test_a_decision_is_told_with_its_numbers(mean: float, half: float, min_effect: float, expected: str) -> None:
    gate = Gate(
        champion="base",
        champion_score=estimate(0.31),
        decision=decide(estimate(mean, half), PromoteRecipe(min_effect=min_effect)),
    )
    told = decision_words(TurnReport(turn=1, challenger="turn 1", score=estimate(0.5), gate=gate))
    assert expected in told
    assert "turn 1 scored 0.50 [0.42, 0.58]; the champion, base, scored 0.31 [0.23, 0.39]" in told


def test_one_task_has_no_interval_and_no_promotion() -> None:
    alone = mean_reward({"a": [0.0, 1.0]})
    gate = Gate(champion="base", champion_score=alone, decision=decide(alone, PromoteRecipe()))
    turn = TurnReport(turn=1, challenger="turn 1", score=alone, gate=gate)
    assert "Without an interval there is no evidence" in decision_words(turn)
    html = render(RunReport(title="t", base="base", environment="e", turns=(turn,), base_score=alone))
    assert "no interval" in words(html)


def test_the_champion_is_followed_through_promotions_and_rejections() -> None:
    report = a_report(3)  # the third challenger fails
    assert [turn.promoted for turn in report.turns] == [True, True, False]
    assert report.champion == "turn 2 SFT"
    assert report.champion_score == report.turns[1].score
    html = render(report)
    assert html.count('class="point promoted"') == 2 and html.count('class="point rejected"') == 1


def test_a_run_that_began_with_an_older_champion_names_it() -> None:
    gate = Gate(champion="old", champion_score=estimate(0.6), decision=decide(estimate(0.0, 0.1), PromoteRecipe()))
    turn = TurnReport(turn=1, challenger="new", score=estimate(0.6), gate=gate)
    report = RunReport(title="t", base="base", environment="e", turns=(turn,), base_score=estimate(0.3))
    assert (report.champion, report.champion_score) == ("old", gate.champion_score)


def test_the_funnel_shows_every_reason_and_adds_up() -> None:
    html = render(a_report(1))
    assert "384 read = 118 kept + 266 dropped" in words(html)
    rows = re.findall(r'<code>(\w+)</code></th><td class="n">([\d,]+)</td>', html)
    assert rows == [
        ("below_reward", "204"),
        ("duplicate_answer", "41"),
        ("over_task_cap", "12"),
        ("truncated", "9"),
    ]
    with pytest.raises(ValidationError, match="expected rows_read = rows_kept"):
        Funnel(rows_read=10, rows_kept=3, dropped={"truncated": 6})


def test_a_funnel_without_drops_says_so() -> None:
    turn = TurnReport(turn=1, challenger="c", funnel=Funnel(rows_read=5, rows_kept=5, dropped={"truncated": 0}))
    html = words(render(RunReport(title="t", base="b", environment="e", turns=(turn,))))
    assert "5 read = 5 kept + 0 dropped" in html and "nothing dropped" in html
    assert "truncated" not in html


def test_an_absent_part_says_so_in_its_place() -> None:
    html = words(render(RunReport(title="t", base="b", environment="e", turns=(TurnReport(turn=1, challenger="c"),))))
    for line in (
        "No policy was scored on held-out tasks in this run.",
        "The gate made no decision on c.",
        "No rows were selected in this run.",
        "No rewards of training rollouts were recorded in this run.",
        "No training loss was recorded in this run.",
        "No categories of held-out tasks were compared in this run.",
        "No transcripts were sampled in this run.",
        "No stages were recorded.",
        "No datasets or checkpoints were recorded.",
        "The recipe was not recorded.",
        "Versions were not recorded.",
    ):
        assert line in html
    mixed = a_report(2)
    first = mixed.turns[0].model_copy(update={"loss": (), "rewards": None, "funnel": None})
    html = words(render(mixed.model_copy(update={"turns": (first, mixed.turns[1])})))
    assert "Nothing was trained in this turn." in html and "No rollouts were scored in this turn." in html


def test_stages_say_cached_or_ran_only_where_that_is_known() -> None:
    report = a_report(2)  # the first turn's seven stages came from the cache
    told = words(render(report))
    assert "14 stages7 cached2 min 41 s" in told
    unknown = tuple(stage.model_copy(update={"cached": None}) for stage in report.stages)
    told = words(render(report.model_copy(update={"stages": unknown})))
    assert "How long each stage took" in told and "cached" not in told


def test_whole_digests_can_be_copied() -> None:
    page = Page(render(a_report(1)))
    assert "ab" * 32 in page.texts["code"]


# --------------------------------------------------------------------------------------------------- contract


def test_equal_reports_give_equal_pages() -> None:
    assert render(a_report(3)) == render(a_report(3))
    again = RunReport.model_validate_json(a_report(3).model_dump_json())
    assert render(again) == render(a_report(3))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_is_refused_wherever_it_stands(bad: float) -> None:
    fine = a_report(1)
    with pytest.raises(ValidationError):
        TurnReport(turn=1, challenger="c", loss=(1.0, bad))
    with pytest.raises(ValidationError):
        Answer(text="", reward=bad)
    broken = Estimate(mean=bad, low=None, high=None, standard_error=None, tasks=2, samples=2)
    with pytest.raises(ValidationError, match="no canonical JSON"):
        RunReport(title="t", base="b", environment="e", base_score=broken)
    with pytest.raises(ValidationError, match="no canonical JSON"):
        RunReport(title="t", base="b", environment="e", turns=fine.turns, lift=broken)


def test_durations_are_words() -> None:
    assert [duration(s) for s in (0, 9.94, 9.96, 59.6, 312, 7380)] == [
        "0.0 s",
        "9.9 s",
        "10 s",
        "1 min 0 s",
        "5 min 12 s",
        "2 h 3 min",
    ]


@pytest.mark.parametrize(
    ("mean", "more", "said"),
    [
        (0.02, Needed(420, 32), "420 held-out tasks in all or 32 samples of each task would settle it"),
        (0.02, Needed(420, None), "If the lift is what it seems, 420 held-out tasks in all would settle it"),
        (0.02, Needed(None, None), "No number of tasks within reach"),
        (-0.01, Needed(None, None), "Nothing suggests a lift"),
    ],
)
def test_an_inconclusive_decision_says_what_would_settle_it(mean: float, more: Needed, said: str) -> None:
    assert said in settling_words(decide(estimate(mean, 0.05), PromoteRecipe(), more=more))
