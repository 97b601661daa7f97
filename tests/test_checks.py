"""Each check fires, and each stays silent."""

from __future__ import annotations

from typing import Any

import pytest

from gristmill.checks import check_dataset, require_no_errors
from gristmill.errors import GateError
from gristmill.recipe import ChecksRecipe


def counts(**changes: Any) -> dict[str, Any]:
    return {
        "examples": 50,
        "rows_read": 100,
        "rows_kept": 50,
        "dropped": {"below_reward": 40, "truncated": 10},
        "truncated": 10,
        "rewards": {"min": 0.0, "max": 1.0},
    } | changes


def ids(**changes: Any) -> list[str]:
    return [finding.id for finding in check_dataset(counts(**changes), ChecksRecipe())]


def test_good_data_has_no_findings() -> None:
    assert ids() == []


@pytest.mark.parametrize(("examples", "fires"), [(15, True), (16, False)])
def test_too_few_examples(examples: int, fires: bool) -> None:
    assert ("GM102" in ids(examples=examples)) is fires


@pytest.mark.parametrize(("truncated", "fires"), [(51, True), (50, False)])
def test_too_many_cut_answers(truncated: int, fires: bool) -> None:
    assert ("GM110" in ids(truncated=truncated)) is fires


def test_one_reward_for_all_is_a_warning() -> None:
    (finding,) = check_dataset(counts(rewards={"min": 1.0, "max": 1.0}), ChecksRecipe())
    assert (finding.id, finding.severity) == ("GM104", "warning")
    require_no_errors([finding])


def test_no_rows_at_all_is_too_few_not_a_crash() -> None:
    nothing = counts(examples=0, rows_read=0, rows_kept=0, dropped={}, truncated=0, rewards={"min": None, "max": None})
    findings = check_dataset(nothing, ChecksRecipe())
    with pytest.raises(GateError, match=r"GM102 too few examples: 0 < 16 .*no rows were read"):
        require_no_errors(findings)
