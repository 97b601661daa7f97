"""The decision log: what is on disk after a kill, and what follows from the entries."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.decisions import (
    DecisionLog,
    Opinion,
    ReviewDecision,
    disagreements,
    effective,
    last_of,
    now,
    opinions,
    write_opinions,
)
from gristmill.errors import StoreError


def entry(rollout: str, decision: str, reviewer: str = "ada", second: int = 0, **more: object) -> ReviewDecision:
    values = {"rollout_id": rollout, "decision": decision, "reviewer": reviewer, **more}
    return ReviewDecision.model_validate({"time": f"2026-01-01T00:00:{second:02d}+00:00", **values})


def test_the_last_word_of_a_reviewer_counts() -> None:
    assert effective([entry("x", "accept"), entry("x", "reject", second=1)]) == {"x": "reject"}
    assert effective([entry("x", "reject"), entry("x", "accept", second=1)]) == {"x": "accept"}


def test_one_rejection_is_enough_until_it_is_taken_back() -> None:
    log = [entry("x", "accept", "ada"), entry("x", "reject", "bob", 1), entry("x", "accept", "eve", 2)]
    assert effective(log) == {"x": "reject"}
    assert list(disagreements(opinions(log))) == ["x"]
    log.append(entry("x", "undo", "bob", 3))
    assert effective(log) == {"x": "accept"}
    assert disagreements(opinions(log)) == {}


def test_undo_takes_back_one_entry_at_a_time() -> None:
    log = [entry("x", "accept", tags=["a"]), entry("x", "reject", second=1, note="no"), entry("x", "undo", second=2)]
    (opinion,) = opinions(log)
    assert (opinion.judgement, opinion.tags, opinion.note) == ("accept", ("a",), "")
    log.append(entry("x", "undo", second=3))
    assert opinions(log) == []
    log.append(entry("x", "undo", second=4))  # nothing left: no harm
    assert effective(log) == {}


def test_a_comment_leaves_the_judgement() -> None:
    (opinion,) = opinions([entry("x", "accept"), entry("x", "comment", second=1, tags=["b", " a ", "b", ""], note="n")])
    assert (opinion.judgement, opinion.tags, opinion.note) == ("accept", ("a", "b"), "n")
    assert effective([entry("x", "comment", note="only this")]) == {}


def test_times_are_utc_whatever_was_written() -> None:
    assert entry("x", "accept", time="2026-01-01T02:00:00.5+02:00").time == "2026-01-01T00:00:00.500+00:00"
    with pytest.raises(ValueError, match="without its zone"):
        entry("x", "accept", time="2026-01-01T02:00:00")


def test_a_clock_set_back_does_not_reorder_entries() -> None:
    future = entry("x", "accept", time="2999-01-01T00:00:00+00:00")
    assert now(after=[future]) == future.time


entries = st.builds(
    entry,
    st.sampled_from("xyz"),
    st.sampled_from(["accept", "reject", "comment", "undo"]),
    st.sampled_from(["ada", "bob"]),
    st.integers(0, 59),
    note=st.sampled_from(["", "n"]),
)


def replay(log: list[ReviewDecision]) -> dict[tuple[str, str], list[str | None]]:
    """The stacks of judgements, the plain way."""
    stacks: dict[tuple[str, str], list[str | None]] = {}
    for one in sorted(log, key=lambda each: each.time):
        stack = stacks.setdefault((one.rollout_id, one.reviewer), [])
        if one.decision == "undo":
            stack[-1:] = []
        else:
            stack.append(one.decision if one.decision != "comment" else (stack or [None])[-1])
    return stacks


@given(st.lists(entries, max_size=30))
def test_effective_is_what_a_plain_replay_gives(log: list[ReviewDecision]) -> None:
    expected: dict[str, set[str]] = {}
    for (rollout, _), stack in replay(log).items():
        if stack and stack[-1]:
            expected.setdefault(rollout, set()).add(stack[-1])
    assert effective(log) == {rollout: "reject" if "reject" in said else "accept" for rollout, said in expected.items()}


@given(st.lists(entries, max_size=20, unique_by=lambda one: one.time), st.randoms())
def test_logs_put_together_in_any_order_say_the_same(log: list[ReviewDecision], random: object) -> None:
    mixed = list(log)
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert opinions(mixed) == opinions(log)


@given(st.lists(entries, max_size=20))
def test_undo_takes_back_what_last_of_says(log: list[ReviewDecision]) -> None:
    last = last_of(log, "ada")
    alive = [rollout for (rollout, who), stack in replay(log).items() if who == "ada" and stack]
    assert (last.rollout_id in alive) if last else alive == []


# ---- the file


def test_what_was_appended_is_read_again(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "reviews" / "log.jsonl")
    assert log.entries() == ()
    first, second = entry("x", "accept", note="ünï\n\u202e"), entry("y", "reject", tags=["t"])
    log.append(first)
    assert log.entries() == (first,)
    DecisionLog(log.path).append(second)  # another process
    assert log.entries() == (first, second)


def test_a_torn_tail_is_no_entry_and_is_cut_by_the_next(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    log.append(entry("x", "accept"))
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"rollout_id": "y", "deci')
    assert [one.rollout_id for one in log.entries()] == ["x"]
    log.append(entry("z", "reject"))
    assert [one.rollout_id for one in log.entries()] == ["x", "z"]
    assert log.path.read_bytes().startswith(whole)


def test_a_damaged_line_is_named_and_not_passed_over(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "log.jsonl")
    log.append(entry("x", "accept"))
    log.path.write_bytes(log.path.read_bytes() + b'{"rollout_id": "y", "decision": "maybe"}\n')
    with pytest.raises(StoreError, match=r"log\.jsonl, line 2: expected a decision, found decision"):
        log.entries()


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="nothing was saved"):
        DecisionLog(tmp_path / "file" / "log.jsonl").append(entry("x", "accept"))


def test_killed_while_writing_what_was_said_to_be_saved_is_there(tmp_path: Path) -> None:
    """A process appends and names each entry only when `append` has returned; it is killed at some point."""
    path = tmp_path / "log.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from gristmill.decisions import DecisionLog, ReviewDecision, now\n"
        "log = DecisionLog(Path(sys.argv[1]))\n"
        "for i in range(100000):\n"
        "    log.append(ReviewDecision(rollout_id=f'r{i}', decision='accept', reviewer='a', time=now()))\n"
        "    print(i, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 20:
            break
    os.kill(process.pid, signal.SIGKILL)
    said = 20 + len(process.stdout.read().splitlines())
    process.wait()
    process.stdout.close()
    ids = [one.rollout_id for one in DecisionLog(path).entries()]
    assert ids[: said + 1] == [f"r{i}" for i in range(said + 1)]


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from gristmill.decisions import DecisionLog, ReviewDecision, now\n"
        "for i in range(50):\n"
        "    DecisionLog(Path(sys.argv[1])).append(\n"
        "        ReviewDecision(rollout_id=f'r{i}', decision='accept', reviewer=sys.argv[2], time=now()))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), who]) for who in ("ada", "bob")]
    assert [process.wait() for process in both] == [0, 0]
    found = DecisionLog(path).entries()
    assert {(one.rollout_id, one.reviewer) for one in found} == {
        (f"r{i}", w) for i in range(50) for w in ("ada", "bob")
    }


def test_equal_opinions_give_equal_bytes(tmp_path: Path) -> None:
    held = opinions([entry("y", "reject"), entry("x", "accept", "bob"), entry("x", "accept")])
    write_opinions(held, tmp_path / "a")
    write_opinions(opinions([entry("x", "accept"), entry("x", "accept", "bob"), entry("y", "reject")]), tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    lines = (tmp_path / "a").read_bytes().splitlines()
    assert [Opinion.model_validate_json(line) for line in lines] == held
