"""What a check is, and the register that the decorator `check` fills."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from gristmill.checks.evidence import Evidence
from gristmill.checks.finding import Remedy, Severity
from gristmill.example import Method
from gristmill.recipe import ChecksRecipe

PREFERENCES: frozenset[Method] = frozenset({"dpo", "reward"})
ALL: frozenset[Method] = frozenset({"sft", "dpo", "kto", "reward", "rl"})


class Said(NamedTuple):
    """A check that has something to say."""

    message: str
    evidence: dict[str, float | int | str]
    remedies: tuple[Remedy, ...] = ()
    where: tuple[str, ...] = ()


Judge = Callable[[Evidence, ChecksRecipe], Said | None]


class Check(NamedTuple):
    """One entry of the catalogue."""

    id: str
    title: str
    severity: Severity
    question: str
    """What it answers, as one asks it."""
    methods: frozenset[Method]
    """Training methods that it matters to."""
    judge: Judge
    """Pure: equal evidence and thresholds give an equal answer."""


REGISTER: dict[str, Check] = {}


def check(
    id: str, title: str, severity: Severity, question: str, methods: frozenset[Method] = ALL
) -> Callable[[Judge], Judge]:
    """Enter a check in the catalogue; ids are for ever, so that `checks.silence` keeps its meaning."""

    def enter(judge: Judge) -> Judge:
        assert id not in REGISTER, id
        REGISTER[id] = Check(id, title, severity, question, methods, judge)
        return judge

    return enter


def percent(share: float) -> str:
    """A share for people: never 0 % of something, never 100 % of less than all."""
    if 0 < share < 0.01:
        return f"{share:.1%}" if share >= 0.001 else "under 0.1%"
    return "over 99%" if 0.995 <= share < 1 else f"{share:.0%}"
