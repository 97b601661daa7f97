"""Each check fires on evidence that calls for it and stays silent on evidence that does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gristmill.checks import Evidence, Report, catalogue, require_no_errors, run_checks
from gristmill.checks.evidence import (
    Conflict,
    Contamination,
    Content,
    Environment,
    Leak,
    MoreRollouts,
    Pairs,
    Spread,
    Turn,
    WhatIf,
)
from gristmill.errors import GateError, RecipeError
from gristmill.histogram import Histogram
from gristmill.recipe import ChecksRecipe

BINS = Histogram(edges=(0.0, 1.0), counts=(100,))


def spread(low: float = 0.0, p25: float = 0.0, median: float = 0.5, p75: float = 1.0, high: float = 1.0) -> Spread:
    return Spread(count=100, mean=(low + high) / 2, min=low, p25=p25, median=median, p75=p75, p99=high, max=high)


def environment(**changes: Any) -> Environment:
    """Graded rewards, tasks of every difficulty."""
    values: dict[str, Any] = {
        "name": "agent",
        "rows": 100,
        "reward": spread(),
        "bins": BINS,
        "kind": "continuous",
        "solved_at": 0.5,
        "solved": 50,
        "commonest": 1.0,
        "commonest_rows": 40,
        "tasks": 25,
        "repeated_tasks": 25,
        "ungroupable": 0,
        "signal_tasks": 20,
        "never": 3,
        "always": 2,
        "solve_rates": (3, 5, 5, 5, 5, 2),
        "within_std": 0.4,
    }
    return Environment(**values | changes)


def content(**changes: Any) -> Content:
    values: dict[str, Any] = {
        "rows": 50,
        "of": 50,
        "problems": {},
        "undeclared": {},
        "undeclared_rows": 0,
        "tools": 2,
        "bad_tools": {},
        "calls": 100,
        "bad_calls": 0,
        "single_turn": 50,
        "multi_turn": 0,
        "no_user": 0,
        "literal_think": 0,
        "drift": {"agent": (0, 50)},
        "long_answers": 40,
        "near_duplicates": 0,
        "rendered": 50,
    }
    return Content(**values | changes)


def pairs(**changes: Any) -> Pairs:
    values: dict[str, Any] = {
        "count": 50,
        "small": 5,
        "gaps": spread(),
        "gap_bins": BINS,
        "near_full": 10,
        "binary": False,
        "chosen_chars": 100.0,
        "rejected_chars": 90.0,
        "longer_chosen": 26,
    }
    return Pairs(**values | changes)


def contamination(**changes: Any) -> Contamination:
    values: dict[str, Any] = {"prompts": 25, "tasks": 10, "n": 13, "exact": (), "overlapping": (), "allowed": 0}
    return Contamination(**values | changes)


LEAK = Leak(
    task="0123456789abcdef",
    exact=True,
    share=1.0,
    evaluation="the question",
    training="the question",
    where="a.jsonl:3",
    rollouts=2,
)


def turn(distinct: float | None, model: str = "new") -> Turn:
    return Turn(rows=50, mean_reward=0.5, distinct=distinct, models={model: 50})


def evidence(**changes: Any) -> Evidence:
    """Data that no check objects to."""
    values: dict[str, Any] = {
        "method": "sft",
        "rows_read": 100,
        "usable": 100,
        "dropped": {"below_reward": 50},
        "examples": 50,
        "chosen": 50,
        "truncated": 0,
        "environments": (environment(),),
        "pairs": pairs(),
        "desirable": 50,
        "undesirable": 50,
        "chosen_tasks": 25,
        "largest_task": 4,
        "answer_chars": spread(10, 50, 60, 70, 80),
        "long_outliers": 0,
        "tokens": spread(10, 50, 60, 70, 80),
        "max_length": 1024,
        "duplicates": 0,
        "commonest_answer_tasks": 1,
        "turns": (turn(0.8, "old"), turn(0.7)),
        "chosen_models": {"old": 25, "new": 25},
        "content": content(),
        "contamination": contamination(),
    }
    return Evidence(**values | changes)


Changes = dict[str, Any]

# id → (changes that fire it, changes that do not, though they come near)
CASES: dict[str, tuple[Changes, Changes]] = {
    "GM102": ({"examples": 15}, {"examples": 16}),
    "GM103": ({"method": "dpo", "examples": 15}, {"method": "dpo", "examples": 16}),
    "GM104": (
        {"environments": (environment(), environment(name="flat", kind="constant", reward=spread(1, 1, 1, 1, 1)))},
        {"environments": (environment(rows=1, kind="constant", solved=1),)},
    ),
    "GM105": ({"environments": (environment(solved=4),)}, {"environments": (environment(solved=5),)}),
    "GM106": (
        {"environments": (environment(commonest_rows=90),)},
        {"environments": (environment(kind="binary", commonest_rows=90),)},
    ),
    "GM107": (
        {"environments": (environment(kind="unbounded", reward=spread(-100, 0, 1, 5, 10)),)},
        {"environments": (environment(kind="unbounded", reward=spread(-10, 0, 1, 5, 10)),)},
    ),
    "GM110": ({"truncated": 51}, {"truncated": 50}),
    "GM111": ({"dropped": {"failure": 15, "response_error": 6}}, {"dropped": {"failure": 20}}),
    "GM112": ({"dropped": {"masked": 21}}, {"dropped": {"masked": 20}}),
    "GM113": ({"dropped": {"not_json": 2, "no_reward": 1}}, {"dropped": {"not_json": 2}}),
    "GM120": (
        {"content": content(problems={"empty_answer": 3})},
        {"content": content(problems={"empty_answer": 2})},
    ),
    "GM121": (
        {"content": content(undeclared={"search": 1}, undeclared_rows=1)},
        {"content": content(tools=0)},
    ),
    "GM122": ({"content": content(bad_tools={"search": "type is 'array'"})}, {"content": content()}),
    "GM123": ({"content": content(bad_calls=2)}, {"content": content(bad_calls=1)}),
    "GM124": ({"content": content(drift={"agent": (5, 50)})}, {"content": content(drift={"translate": (50, 50)})}),
    "GM125": ({"content": content(literal_think=1)}, {"content": content()}),
    "GM126": ({"content": content(no_user=1)}, {"content": content(rows=200, of=200, no_user=2)}),
    "GM127": ({"content": content(render_lost=1)}, {"content": content(rendered=None)}),
    "GM128": ({"content": content(render_not_prefix=1)}, {"content": content(rendered=None)}),
    "GM130": ({"long_outliers": 2}, {"long_outliers": 1}),
    "GM131": ({"over_length": 1}, {"over_length": 1, "max_length": None}),
    "GM140": ({"chosen_tasks": 7, "largest_task": 8}, {"chosen_tasks": 8, "largest_task": 8}),
    "GM141": ({"largest_task": 11}, {"largest_task": 10}),
    "GM142": ({"duplicates": 21}, {"duplicates": 20}),
    "GM143": ({"content": content(near_duplicates=9)}, {"content": content(near_duplicates=8)}),
    "GM144": ({"commonest_answer_tasks": 7}, {"commonest_answer_tasks": 6}),
    "GM145": (
        {"method": "dpo", "environments": (environment(ungroupable=6),)},
        {"method": "sft", "environments": (environment(ungroupable=6),)},
    ),
    "GM201": ({"method": "dpo", "pairs": pairs(small=51)}, {"method": "dpo", "pairs": pairs(small=50)}),
    "GM202": (
        {"method": "dpo", "pairs": pairs(near_full=45)},
        {"method": "dpo", "pairs": pairs(near_full=50, binary=True)},
    ),
    "GM203": (
        {"method": "dpo", "pairs": pairs(chosen_chars=181.0)},
        {"method": "dpo", "pairs": pairs(chosen_chars=180.0)},
    ),
    "GM204": (
        {"method": "kto", "desirable": 19, "undesirable": 81},
        {"method": "kto", "desirable": 20, "undesirable": 80},
    ),
    "GM301": (
        {"method": "rl", "environments": (environment(signal_tasks=4),)},
        {"method": "rl", "environments": (environment(signal_tasks=5),)},
    ),
    "GM302": ({"environments": (environment(always=13),)}, {"environments": (environment(always=12),)}),
    "GM303": ({"environments": (environment(never=13),)}, {"environments": (environment(never=12),)}),
    "GM304": (
        {"environments": (environment(conflicts=(Conflict(first="a", second="b", correlation=-0.3, rows=50),)),)},
        {"environments": (environment(conflicts=(Conflict(first="a", second="b", correlation=-0.2, rows=50),)),)},
    ),
    "GM401": ({"chosen_models": {"old": 26, "new": 24}}, {"chosen_models": {"old": 25, "new": 25}}),
    "GM402": (
        {"turns": (turn(0.8, "old"), turn(0.55))},
        {"turns": (turn(0.8, "old"), turn(None), turn(0.57))},
    ),
    "GM501": ({"contamination": contamination(exact=(LEAK,))}, {"contamination": contamination(allowed=1)}),
    "GM502": (
        {"contamination": contamination(overlapping=(LEAK.model_copy(update={"exact": False, "share": 0.8}),))},
        {"contamination": contamination(allowed=1)},
    ),
    "GM503": ({"contamination": None}, {"contamination": contamination()}),
    "GM504": ({"contamination": contamination(unknown_allowed=("ab",))}, {"contamination": contamination()}),
}


def check(changes: Changes, **recipe: Any) -> Report:
    return run_checks(evidence(**changes), ChecksRecipe(**recipe))


def ids(report: Report) -> list[str]:
    return [finding.id for finding in report.findings]


def test_good_data_has_no_findings() -> None:
    for method in ("sft", "dpo", "kto", "reward", "rl"):
        assert ids(check({"method": method})) == []


@pytest.mark.parametrize("id", sorted(CASES))
def test_it_fires(id: str) -> None:
    assert id in ids(check(CASES[id][0]))


@pytest.mark.parametrize("id", sorted(CASES))
def test_it_stays_silent(id: str) -> None:
    report = check(CASES[id][1])
    assert id not in ids(report)


@pytest.mark.parametrize("id", sorted(CASES))
def test_it_can_be_silenced(id: str) -> None:
    report = check(CASES[id][0], silence=[id])
    assert id not in ids(report)
    assert report.silenced == (id,)


def test_every_check_is_tried_here_and_explained_in_the_docs() -> None:
    known = [one.id for one in catalogue()]
    assert known == sorted(CASES)
    page = (Path(__file__).parents[1] / "docs" / "checks.md").read_text()
    assert re.findall(r'<a id="(gm\d+)"></a>', page) == [id.lower() for id in known]
    for one in catalogue():
        assert f"| [{one.id}](#{one.id.lower()}) | {one.severity} | {one.question} |" in page
        assert f"{one.id} {one.title}" in page


@pytest.mark.parametrize("id", sorted(CASES))
def test_a_finding_says_what_to_do_in_one_readable_sentence(id: str) -> None:
    (finding,) = [found for found in check(CASES[id][0]).findings if found.id == id]
    assert len(finding.message) < 700
    assert "\n" not in finding.sentence
    assert finding.sentence.startswith(f"{id} ")
    assert finding.anchor == f"docs/checks.md#{id.lower()}"


def test_strict_makes_warnings_errors_and_leaves_notes_alone() -> None:
    changes = CASES["GM143"][0] | CASES["GM142"][0]
    assert [f.severity for f in check(changes).findings] == ["warning", "note"]
    assert [f.severity for f in check(changes, strict=True).findings] == ["error", "note"]


def test_only_errors_stop_and_each_is_one_sentence_with_its_remedies() -> None:
    require_no_errors(check(CASES["GM143"][0]).findings)
    report = check(
        {
            "examples": 9,
            "truncated": 60,
            "what_if": (WhatIf(setting="curate.min_reward", old=0.95, new=0.9, rows=118),),
            "more_rollouts": MoreRollouts(samples=4, more=3, rows=150.2),
        }
    )
    with pytest.raises(
        GateError,
        match=r"GM102 too few examples: 9 < 16 .*\. curate\.min_reward: 0\.95 → 0\.9 would choose 118\. "
        r"collect\.samples: 4 → 7 \(3 more rollouts a task\) would give about 150; GM110 60% of the rollouts",
    ):
        require_no_errors(report.findings)


def test_errors_come_first() -> None:
    report = check(CASES["GM142"][0] | CASES["GM110"][0] | CASES["GM141"][0])
    assert [finding.severity for finding in report.findings] == ["error", "warning", "note"]


def test_no_rows_at_all_is_too_few_not_a_crash() -> None:
    nothing: Changes = {
        **dict.fromkeys(("examples", "rows_read", "usable", "chosen", "desirable", "undesirable"), 0),
        **dict.fromkeys(("chosen_tasks", "largest_task", "commonest_answer_tasks"), 0),
        "dropped": {},
        "environments": (),
        "pairs": pairs(count=0, small=0, gaps=None, gap_bins=None, near_full=0, chosen_chars=None, rejected_chars=None),
        "answer_chars": None,
        "tokens": None,
        "turns": (),
        "chosen_models": {},
        "content": content(rows=0, of=0, calls=0, drift={}, long_answers=0, rendered=0),
        "contamination": contamination(prompts=0, tasks=0),
    }
    for method in ("sft", "dpo", "kto", "reward", "rl"):
        report = check(nothing | {"method": method})
        assert ids(report) == ["GM103" if method in ("dpo", "reward") else "GM102", "GM503"]
    with pytest.raises(GateError, match=r"GM102 too few examples: 0 < 16 .*no rows were read"):
        require_no_errors(check(nothing).findings)


def test_silencing_a_check_that_is_not_there_is_wrong_use() -> None:
    with pytest.raises(RecipeError, match=r"checks\.silence: there is no check 'GM999'"):
        check({}, silence=["GM999"])
