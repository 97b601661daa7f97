"""Marks of what is bad: the log, what a mark means in other files, and that curation leaves it out by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gristmill import scan
from gristmill.curate import curate
from gristmill.errors import UsageError
from gristmill.recipe import CurateRecipe
from gristmill.taints import append, entry, history, rollouts, standing
from gristmill.workspace import Workspace
from tests.lineages import filled
from tests.rows import rollout, table


def test_the_last_entry_on_a_thing_counts(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    append(place, entry("taint", "rollout", "a", reason="leak"), entry("taint", "file", "a", from_turn=3))
    append(place, entry("untaint", "rollout", "a"))
    assert [(one.what, one.key) for one in standing(place)] == [("file", "a")]
    assert standing(place, turn=2) == []
    assert [one.what for one in standing(place, turn=3)] == ["file"]
    assert [one.what for one in standing(place, turn=0)] == ["file"]  # outside of a loop every mark counts
    assert len(history(place)) == 3


def ids(files: list[Path]) -> dict[tuple[int, int], str]:
    import pyarrow.parquet as pq

    rows = pq.read_table(files, columns=["task_index", "rollout_index", "rollout_id"]).to_pylist()
    return {(row["task_index"], row["rollout_index"]): row["rollout_id"] for row in rows}


def test_a_mark_means_a_rollout_a_task_or_a_file(tmp_path: Path) -> None:
    one, _ = table(tmp_path / "one", [rollout("a", task=0), rollout("b", task=0, repeat=1), rollout("c", task=1)])
    two, _ = table(tmp_path / "two", [rollout("d", task=7, question="question 0?")])  # the first task, asked again
    import pyarrow.parquet as pq

    rows = pq.read_table(one, columns=["rollout_id", "task_key", "prompt_key", "run"]).to_pylist()
    first = rows[0]
    with scan.connect([one, two]) as db:

        def meant(**what: Any) -> int:
            return len(rollouts(db, [{"agent": None, "prompt_key": None, **what}])[0])

        assert meant(what="rollout", key=first["rollout_id"]) == 1
        assert meant(what="task", key=first["task_key"]) == 2
        assert meant(what="task", key=first["task_key"], agent="agent", prompt_key=first["prompt_key"]) == 3
        assert meant(what="task", key=first["task_key"], agent="other", prompt_key=first["prompt_key"]) == 2
        assert meant(what="file", key=first["run"]) == 3
        assert rollouts(db, [{"what": "rollout", "key": "none"}]) == ([], [])


def test_curation_leaves_it_out_and_says_so(tmp_path: Path) -> None:
    files, counts = table(tmp_path, [rollout("a"), rollout("b", repeat=1), rollout("c", task=1)])
    known = ids(files)
    out = tmp_path / "out"
    out.mkdir()

    def chosen(decisions: dict[str, str]) -> dict[str, Any]:
        return curate([files], [counts], CurateRecipe(), out, decisions=decisions)

    plain = chosen({})
    rules = (out / "rules.json").read_bytes()
    told = chosen({known[0, 0]: "taint", known[0, 1]: "accept"})
    assert (plain["rows_kept"], told["rows_kept"]) == (3, 2)
    assert told["dropped"] == {"tainted": 1}
    assert told["rows_read"] == told["rows_kept"] + sum(told["dropped"].values())
    assert b"marked" not in rules  # nothing is marked: nothing is asked, and no digest changes
    only = chosen({known[0, 0]: "taint"})
    assert [step["rule"] for step in only["rules"]][:2] == ["not marked as bad", "not truncated"]


def test_what_is_marked_is_found_again_by_the_command(tmp_path: Path) -> None:
    from gristmill.tracing import impact, taint, tainted, trace

    made = filled(tmp_path)
    place = made.workspace
    assert tainted(place) == ({}, ())
    bad = trace(place, "data v1#0").rollouts[0]
    said = taint(place, "data v1#0", "leaked")
    assert said.rollouts == 1 and said.entries[0].key == bad.rollout_id
    assert taint(place, bad.rollout_id[:8], "leaked").entries == ()  # marked already
    reached = tainted(place)
    assert [ref.digest for ref in reached.models] == [made.model.digest, made.next_model.digest]
    assert [(one.rows, one.of) for one in reached.datasets.values()] == [(1, 4), (1, 6)]
    marks = {node.label: node.marks for node in trace(place, "model v2").nodes}
    assert "tainted" in marks["model v1"] and "tainted" in marks["data v2"]
    assert trace(place, bad.rollout_id).rollouts[0].tainted == "leaked"
    taint(place, bad.rollout_id, undo=True)
    assert tainted(place) == ({}, ())
    with pytest.raises(UsageError, match="is not marked as bad"):
        taint(place, bad.rollout_id, undo=True)
    assert impact(place, bad.rollout_id).rollouts[0].tainted is None


def test_a_table_is_marked_by_its_file(tmp_path: Path) -> None:
    from gristmill.tracing import taint, tainted

    made = filled(tmp_path)
    said = taint(made.workspace, str(made.table))
    assert [one.what for one in said.entries] == ["file"] and said.rollouts == 5
    assert [one.share for one in tainted(made.workspace).datasets.values()] == [1.0, 4 / 6]


@pytest.mark.parametrize(("what", "sentence"), [("data v1", "#0"), ("model v1", "mark a rollout, a task")])
def test_what_follows_from_rollouts_is_not_marked(tmp_path: Path, what: str, sentence: str) -> None:
    from gristmill.tracing import taint

    made = filled(tmp_path)
    with pytest.raises(UsageError, match=sentence):
        taint(made.workspace, what)
    assert history(made.workspace) == []


def test_a_task_is_meant_in_other_files_if_its_prompt_tells_it(tmp_path: Path) -> None:
    from gristmill.tracing import taint, tainted, trace

    made = filled(tmp_path)
    key = trace(made.workspace, "data v1#0").rollouts[0].task_key
    assert key is not None
    said = taint(made.workspace, key)
    assert said.entries[0].prompt_key is not None
    (first, second) = tainted(made.workspace).datasets.values()
    assert (first.rows, second.rows) == (2, 3)  # two attempts in the first file, one more in the second


def test_the_next_run_leaves_it_out_by_itself(prefect_server: str, tmp_path: Path) -> None:
    """Through the flow: another selection with a mark, the very same one as before without it."""
    from flows.prepare import prepare
    from gristmill.recipe import build
    from gristmill.tracing import taint, trace
    from tests.rows import write

    rows = [rollout(f"answer {number}", task=number, question=f"what is {number}?") for number in range(12)]
    file = write(tmp_path / "mine.jsonl", rows)
    recipe = build({"name": "tiny", "rollouts": [str(file)], "checks": {"min_examples": 1, "min_tasks": 1}}, [])
    place = Workspace(tmp_path / "workspace")

    def run() -> Any:
        return prepare(recipe, str(place.root))

    before = run()
    bad = trace(place, f"{before.dataset}#3").rollouts[0]
    taint(place, bad.rollout_id, "leaked")
    after = run()
    assert place.store.manifest(after.selection).counts["dropped"] == {"tainted": 1}
    assert place.store.manifest(after.dataset).counts["examples"] == 11
    assert not [one for one in range(11) if trace(place, f"{after.dataset}#{one}").rollouts[0] == bad]
    (decisions,) = [one for one in place.store.manifest(after.selection).parents if one.kind == "decisions"]
    assert place.store.manifest(decisions).counts["tainted"] == 1
    append(place, entry("taint", "rollout", "of another workspace"))  # nothing here is meant by it
    assert run() == after
    taint(place, bad.rollout_id, undo=True)
    assert run() == before
    lines = [line for line in place.read("journal.jsonl") if line["stage"] == "curate"]
    assert [line["cached"] for line in lines] == [False, False, True, True]
    assert [str(one) for one in (before.dataset, after.dataset)] == [
        f"dataset:{line['digest'][:12]}" for line in place.read("versions.jsonl")
    ]
