"""What was made of what, down to rows, by command: text, JSON, mermaid and the page."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gristmill import names
from gristmill.cli import app
from gristmill.decisions import ReviewDecision, now
from gristmill.errors import GristmillError, UsageError
from gristmill.lineage import Lineage, Walk
from gristmill.lineage_page import mermaid, page
from gristmill.review.waiting import log_of
from gristmill.tracing import impact, trace
from tests.lineages import Filled, filled, stub


@pytest.fixture
def made(tmp_path: Path) -> Filled:
    return filled(tmp_path)


def how(walk: Walk) -> dict[str, str]:
    return {node.id: node.how for node in walk.nodes}


def test_a_model_is_traced_to_rollouts_tasks_and_base(made: Filled) -> None:
    walk = trace(made.workspace, "model v2")
    told = how(walk)
    assert told[str(made.next_model)] == "asked"
    for ref in (made.base, made.table, made.next_table, made.dataset, made.model, made.next_dataset):
        assert told[str(ref)] == "made of"
    assert {node.kind for node in walk.nodes} >= {"tasks", "rollouts", "selection"}
    assert str(made.evaluation) not in told  # that came after, or beside
    (model,) = [node for node in walk.nodes if node.id == str(made.model)]
    assert (model.label, model.names, model.marks) == ("model v1", ("champion",), ("promoted in turn 1",))
    assert (str(made.table), str(made.dataset)) not in walk.edges  # implied by the way through the selection


@pytest.mark.parametrize("command", ["trace", "impact"])
def test_no_line_is_cut_where_it_is_piped(made: Filled, command: str) -> None:
    said = "answers twice as long on gcd, " * 12 + "and so on"
    names.note(made.workspace, made.model, said)
    shown = CliRunner().invoke(app, [command, "model", "v1", "-w", str(made.workspace.root)])
    assert shown.exit_code == 0
    assert f"“{said}”" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) < 2 * len(said), "and none is filled up with blanks"


def test_two_parents_of_a_model_are_both_walked(made: Filled) -> None:
    """A checkpoint that goes on from the champion."""
    on = stub(made.workspace, "checkpoint", "train", [made.next_dataset, made.model], steps=1, losses=[1.0])
    assert (str(made.model), str(on)) not in trace(made.workspace, str(on)).edges  # its rollouts are in the data
    other = stub(made.workspace, "checkpoint", "train", [made.dataset, made.next_model], steps=1, losses=[1.0])
    walk = trace(made.workspace, str(other))
    assert (str(made.next_model), str(other)) in walk.edges
    learned = {node.id for node in impact(made.workspace, "model v2").nodes if node.how == "learned from it"}
    assert learned == {str(other)}


def test_a_row_is_traced_to_its_rollout(made: Filled) -> None:
    walk = trace(made.workspace, "data v2#4", show=True)
    (one,) = walk.rollouts
    assert (one.reward, one.role, one.task, one.attempt, one.source) == (1.0, "only", 0, 0, "rollouts.jsonl")
    assert one.policy == f"model v1 ({made.model})" and one.table == str(made.next_table)
    assert one.line == 1
    assert walk.content["completion"][0]["content"] == "f"
    assert str(made.next_table) in how(walk)
    line = (made.workspace.store.path(_rollouts(made, made.next_table)) / "rollouts.jsonl").read_text().splitlines()
    assert json.loads(line[one.line - 1])["response"]["output"][0]["content"][0]["text"] == "f"


def _rollouts(made: Filled, table: Any) -> Any:
    return made.workspace.store.manifest(table).parents[0]


def test_the_review_that_the_dataset_saw_is_told(made: Filled) -> None:
    one = trace(made.workspace, "data v1#0").rollouts[0]
    entry = {"rollout_id": one.rollout_id, "decision": "accept", "reviewer": "ada", "time": now()}
    log_of(made.workspace).append(ReviewDecision.model_validate(entry))
    assert trace(made.workspace, one.rollout_id).rollouts[0].review == "accept"
    assert trace(made.workspace, "data v1#0").rollouts[0].review is None  # it was made before


def test_a_rollout_is_followed_to_rows_models_and_promotions(made: Filled) -> None:
    one = trace(made.workspace, "data v1#1").rollouts[0]
    walk = impact(made.workspace, one.rollout_id[:10])
    assert [(found.label, found.rows, found.of, found.first) for found in walk.touched] == [
        ("data v1", 1, 4, ("train#1",)),
        ("data v2", 1, 6, ("train#1",)),
    ]
    told = how(walk)
    assert told[str(made.model)] == told[str(made.next_model)] == "learned from it"
    assert told[str(made.decision)] == told[str(made.evaluation)] == "measured with it"
    assert told[str(made.next_table)] == "after it"
    assert [(one.model, one.champion) for one in walk.promotions] == [(str(made.model), True)]
    assert [fate.chosen for fate in walk.rollouts[0].fates] == [True, True]


def test_a_rollout_of_the_second_turn_touches_nothing_of_the_first(made: Filled) -> None:
    one = trace(made.workspace, "data v2#5").rollouts[0]
    told = how(impact(made.workspace, one.rollout_id))
    assert str(made.next_model) in told
    assert not {str(made.model), str(made.dataset), str(made.table)} & told.keys()


def test_a_rollout_that_was_not_chosen_says_why(made: Filled) -> None:
    rows = trace(made.workspace, str(made.table))
    assert rows.rollouts == ()
    walk = impact(made.workspace, str(made.table))
    assert walk.rollouts_found == 5 and [found.rows for found in walk.touched] == [4, 4]
    (bad,) = [one for one in walk.rollouts if one.reward == 0]
    alone = impact(made.workspace, bad.rollout_id)
    assert alone.touched == () and str(made.model) not in how(alone)
    (first, _) = alone.rollouts[0].fates
    assert (first.chosen, first.reason) == (False, "below_reward")


def test_a_task_and_a_file_are_followed(made: Filled) -> None:
    one = trace(made.workspace, "data v1#0").rollouts[0]
    assert one.task_key is not None
    walk = impact(made.workspace, one.task_key)
    assert walk.rollouts_found == 3  # two attempts, and one of the same prompt in the next turn
    with pytest.raises(UsageError, match=r"2 files are called rollouts\.jsonl"):
        impact(made.workspace, "rollouts.jsonl")
    file = made.workspace.store.path(_rollouts(made, made.next_table)) / "rollouts.jsonl"
    assert [found.label for found in impact(made.workspace, str(file)).touched] == ["data v2"]
    assert impact(made.workspace, f"file:{one.run}").rollouts_found == 5


def test_a_dataset_s_models_are_those_trained_on_it(made: Filled) -> None:
    told = how(impact(made.workspace, "data v1"))
    assert told[str(made.model)] == "learned from it"
    assert told[str(made.next_model)] == "after it"  # through rollouts of that model


def test_what_was_deleted_stays_in_the_graph(made: Filled) -> None:
    shutil.rmtree(made.workspace.store.path(made.table))
    walk = trace(made.workspace, "data v1#0")
    assert walk.rollouts[0].reward == 1.0 and walk.rollouts[0].table is None  # what the provenance knows
    marks = {node.id: node.marks for node in trace(made.workspace, "data v1").nodes}
    assert marks[str(made.table)] == ("gone",)


def test_content_made_twice_has_both_histories(made: Filled) -> None:
    place = made.workspace
    again = stub(place, "selection", "curate", [made.table], rows_read=5, rows_kept=4)
    place.record({"turn": 3, "stage": "format", "cached": False, "result": str(made.dataset), "inputs": [str(again)]})
    assert str(again) in how(trace(place, "data v1"))
    assert str(made.dataset) in how(impact(place, str(again)))


def test_equal_content_in_a_circle_is_no_endless_walk(made: Filled) -> None:
    made.workspace.record(
        {"turn": 3, "stage": "ingest", "cached": False, "result": str(made.table), "inputs": [str(made.next_model)]}
    )
    walk = trace(made.workspace, "model v2")
    assert str(made.table) in how(walk) and walk.edges
    assert impact(made.workspace, "data v1#0").touched


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("nothing", "nor is it a rollout, a task or a rollout file"),
        ("data v1#99", r"data v1 .* has no row train#99; it has train#0 to train#3"),
        ("data v1#validation:0", "has no row validation#0"),
        ("model v1#0", "only datasets have rows"),
        ("data v7#0", "there is no data v7"),
    ],
)
def test_what_cannot_be_traced_says_what_can(made: Filled, text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        trace(made.workspace, text)


def test_an_empty_workspace(tmp_path: Path) -> None:
    from gristmill.workspace import Workspace

    with pytest.raises(UsageError, match="means nothing"):
        trace(Workspace(tmp_path), "abcdef12")


# ---- as people and programs get it


def run(made: Filled, *arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "-w", str(made.workspace.root)], env={"COLUMNS": "200"})


def test_the_commands(made: Filled, tmp_path: Path) -> None:
    shown = run(made, "trace", "model", "v2")
    assert shown.exit_code == 0 and "└── " in shown.stdout and "base (tester)" in shown.stdout
    value = json.loads(run(made, "impact", "data-v1#0", "--json").stdout)
    assert value["direction"] == "down" and value["touched"][0]["rows"] == 1
    assert json.loads(run(made, "tag", "model", "v1", "good", "--json").stdout)["name"] == "good"
    assert "“looks fine”" in run(made, "note", "good", "looks fine").stdout
    shown = run(made, "trace", "good").stdout
    assert "[champion] [good]" in shown and "“looks fine”" in shown
    out = tmp_path / "page" / "lineage.html"
    assert run(made, "trace", "champion", "--html", str(out)).exit_code == 0 and out.is_file()
    failed = run(made, "trace", "nothing")
    assert isinstance(failed.exception, GristmillError) and failed.exception.exit_code == 2


def test_marks_by_command(made: Filled) -> None:
    shown = run(made, "impact", "data", "v1#0", "--taint", "--reason", "leaked")
    assert "is marked as bad: leaked" in shown.stdout and "model v1" in shown.stdout
    assert "the champion learned from it" in shown.stdout
    value = json.loads(run(made, "impact", "data-v1#0", "--untaint", "--json").stdout)
    assert value["models"] == [] and value["entries"][0]["action"] == "untaint"


def test_mermaid_holds_every_node_and_nothing_that_breaks_it(made: Filled) -> None:
    names.note(made.workspace, made.model, 'a "note" <b>')
    names.give(made.workspace, "end", made.model)
    walk = trace(made.workspace, "model v2")
    drawn = mermaid(walk).splitlines()
    assert drawn[0] == "flowchart LR"
    assert sum(":::" in line for line in drawn) == len(walk.nodes)
    assert sum(" --> " in line for line in drawn) == len(walk.edges)
    for line in drawn:
        if ":::" in line:
            assert re.fullmatch(r'n\d+\W+"[^"<>]*(<br/>[^"<>]*)*"\W+:::\w+', line), line
    assert mermaid(trace(made.workspace, "model v2")) == "\n".join(drawn)


def test_the_page_is_self_contained_and_escapes(made: Filled) -> None:
    names.note(made.workspace, made.model, "</script><script>alert(1)</script>")
    html = page(made.workspace, trace(made.workspace, "model v2"))
    assert html.count("<script") == 2 and "alert(1)</script>" not in html
    assert not re.search(r"(src|href)=|url\(|@import|http", html.replace("http-equiv", ""))
    assert "default-src &#39;none&#39;" in html
    assert str(made.workspace.root) not in html
    assert html == page(made.workspace, trace(made.workspace, "model v2"))


@pytest.fixture(scope="module")
def browser() -> Any:
    pytest.importorskip("playwright")
    from playwright.sync_api import sync_playwright

    from tests.test_review_page import CHROMIUM

    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    with sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_the_page_in_a_browser(made: Filled, tmp_path: Path, browser: Any) -> None:
    file = tmp_path / "lineage.html"
    file.write_text(page(made.workspace, trace(made.workspace, "model v2")))
    for width in (320, 1280):
        tab = browser.new_page(viewport={"width": width, "height": 800})
        wrong: list[str] = []
        tab.on("pageerror", lambda error, seen=wrong: seen.append(str(error)))
        tab.on("console", lambda said, seen=wrong: seen.append(said.text) if said.type == "error" else None)
        tab.goto(file.as_uri())
        assert tab.locator("#details h2").inner_text() == "model v2"  # what was asked is chosen
        node = tab.locator(f'[id="{made.dataset}"]')
        node.click()
        assert tab.locator("#details h2").inner_text() == "data v1"
        assert "train#0" in tab.locator("#details").inner_text()
        assert tab.locator(".node:not(.on)").count() > 0  # what is neither above nor below is dimmed
        tab.keyboard.press("ArrowRight")
        assert tab.locator("#details h2").inner_text() == "model v1"
        tab.keyboard.press("Escape")
        assert tab.locator(".graph.chosen").count() == 0
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert wrong == []
        tab.close()


def test_reading_the_graph_opens_no_payload(made: Filled) -> None:
    for file in (made.workspace.root / "artifacts").glob("*/*/*"):
        if file.name != "manifest.json":
            file.unlink()
    lineage = Lineage(made.workspace)
    assert made.base in lineage.ancestors(made.next_model)
