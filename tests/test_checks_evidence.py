"""Evidence from real tables: what is measured is what the rows hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gristmill.checks import Evidence, Report, validate
from gristmill.checks.content import read_content
from gristmill.checks.gather import gather
from gristmill.curate import SELECTION, curate
from gristmill.recipe import ChecksRecipe, CurateRecipe, FormatRecipe, build
from tests.rows import rollout, table

LONG = (
    "To find the answer we first add the two numbers, then we take the sum apart again, check every digit twice, "
    "and only then do we write down what we found on the last line of the page."
)


def check(
    folder: Path,
    *tables: list[dict[str, Any]],
    method: Any = "sft",
    curation: dict[str, Any] | None = None,
    **checks: Any,
) -> Report:
    """Ingest each table, curate, validate."""
    made = [table(folder / str(n), rows) for n, rows in enumerate(tables)]
    files, counted = [one[0] for one in made], [one[1] for one in made]
    recipe = CurateRecipe(**({"min_reward": None} | (curation or {})))

    def choose(changed: CurateRecipe) -> int:
        (folder / "again").mkdir(exist_ok=True)
        return int(curate(files, counted, changed, folder / "again")["rows_kept"])

    return validate(
        files,
        folder / SELECTION,
        curate(files, counted, recipe, folder),
        curate=recipe,
        format=FormatRecipe(method=method),
        checks=ChecksRecipe(**({"min_examples": 1} | checks)),
        choose=choose,
    )


def evidence(folder: Path, *tables: list[dict[str, Any]], **more: Any) -> Evidence:
    return check(folder, *tables, **more).evidence


def content(folder: Path, *rows: dict[str, Any], **more: Any) -> Any:
    return evidence(folder, list(rows), **more).content


def ids(report: Report) -> list[str]:
    return [finding.id for finding in report.findings]


@pytest.mark.parametrize(
    ("rewards", "kind", "solved_at"),
    [
        ([0, 1, 1], "binary", 1.0),
        ([0, 0.25, 1], "continuous", 0.5),
        ([-100, 0, 19.4], "unbounded", -40.3),
        ([3, 3, 3], "constant", 3.0),
        ([0, 0, 0], "constant", 1.0),
    ],
)
def test_the_kind_of_rewards(tmp_path: Path, rewards: list[float], kind: str, solved_at: float) -> None:
    rows = [rollout(str(n), task=n, reward=reward) for n, reward in enumerate(rewards)]
    (found,) = evidence(tmp_path, rows).environments
    assert (found.kind, found.solved_at) == (kind, pytest.approx(solved_at))
    assert sum(found.bins.counts) == len(rewards)


def test_tasks_by_solve_rate(tmp_path: Path) -> None:
    solved = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}  # of four rollouts each
    rows = [
        rollout(f"{task} {repeat}", task=task, repeat=repeat, reward=float(repeat < count))
        for task, count in solved.items()
        for repeat in range(4)
    ]
    (found,) = evidence(tmp_path, rows).environments
    assert found.solve_rates == (1, 1, 1, 1, 0, 1)
    assert (found.never, found.always, found.signal_tasks, found.repeated_tasks, found.solved) == (1, 1, 3, 5, 10)
    assert sum(found.solve_rates) == found.repeated_tasks


def test_environments_are_judged_apart(tmp_path: Path) -> None:
    rows = [rollout(str(n), task=n, reward=n % 2) for n in range(6)]
    rows += [rollout(str(n), task=n, reward=-50.0 + n, agent_ref={"name": "games"}) for n in range(6)]
    found = evidence(tmp_path, rows).environments
    assert [(one.name, one.kind) for one in found] == [("agent", "binary"), ("games", "unbounded")]


def test_parts_of_a_reward_that_pull_against_each_other(tmp_path: Path) -> None:
    rows = [
        rollout(str(n), task=n, reward=0.5, reward_components={"right": float(n), "short": -float(n), "kind": float(n)})
        for n in range(25)
    ]
    report = check(tmp_path, rows)
    found = {(one.first, one.second): one.correlation for one in report.evidence.environments[0].conflicts}
    assert found == {("kind", "short"): -1.0, ("right", "short"): -1.0}
    assert "GM304" in ids(report)


def test_pairs_are_those_that_formatting_makes(tmp_path: Path) -> None:
    rows = [
        *(rollout("good answer", task=0, repeat=0), rollout("bad", task=0, repeat=1, reward=0.0)),
        *(rollout("better", task=1, repeat=0, reward=0.6), rollout("worse", task=1, repeat=1, reward=0.5)),
        *(rollout("same", task=2, repeat=0), rollout("same", task=2, repeat=1)),
        *(rollout("cut", task=3, repeat=0, truncated=True), rollout("whole", task=3, repeat=1, reward=0.0)),
    ]
    found = evidence(tmp_path, rows, method="dpo")
    assert found.examples == 1
    pairs = found.pairs
    assert pairs is not None
    assert (pairs.count, pairs.small, pairs.longer_chosen, pairs.binary) == (1, 1, 1, False)
    assert pairs.gaps is not None
    assert pairs.gaps.max == 1.0


@pytest.mark.parametrize("pairs", [{}, {"strategy": "all", "min_gap": 0.4}, {"strategy": "folded"}])
def test_pairs_of_real_rollouts_too(shared: Path, tmp_path: Path, pairs: dict[str, Any]) -> None:
    from gristmill.dataset import write_dataset
    from gristmill.ingest import ingest

    result = ingest([shared / "live" / "rg" / "rollouts.jsonl"], tmp_path)
    counted = {"rows_read": result.rows_read, "rows_kept": result.rows_kept, "dropped": {}}
    recipe = build({"format": {"method": "dpo", "pairs": pairs}})
    counts = curate([result.tables], [counted], recipe.curate, tmp_path)
    found = gather([result.tables], tmp_path / SELECTION, counts, method="dpo", pairs=recipe.format.pairs).evidence
    (tmp_path / "out").mkdir()
    written = write_dataset(tmp_path / SELECTION, [result.tables], counts, recipe.format, tmp_path / "out")
    assert found.pairs is not None
    assert found.pairs.count == written["examples"] > 100


def test_what_the_other_methods_would_train_on(tmp_path: Path) -> None:
    rows = [
        *(rollout("good", task=0, repeat=0), rollout("bad", task=0, repeat=1, reward=0.4)),
        *(rollout("fine", task=1, repeat=0, reward=0.7), rollout("cut", task=1, repeat=1, truncated=True)),
        *(rollout("one", task=2, repeat=0), rollout("two", task=2, repeat=1)),
    ]
    kto = evidence(tmp_path / "kto", rows, method="kto")
    assert (kto.desirable, kto.undesirable, kto.examples) == (4, 1, 5)
    assert evidence(tmp_path / "rl", rows, method="rl").examples == 2  # tasks whose rewards differ
    even = [
        rollout(f"{task} {repeat}", task=task, repeat=repeat, reward=reward)
        for task, rewards in enumerate([(1.0, 0.0)] * 2 + [(1.0, 1.0)] * 3 + [(0.0, 0.0)] * 3)
        for repeat, reward in enumerate(rewards)
    ]
    (few,) = [f for f in check(tmp_path / "few", even, method="rl", min_examples=5).findings if f.id == "GM102"]
    assert [remedy.setting for remedy in few.remedies] == ["collect.samples"]
    rows_then = few.remedies[0].rows
    assert rows_then is not None
    assert 5 <= rows_then < 8
    files, counted = table(tmp_path / "strict", rows)
    counts = curate([files], [counted], CurateRecipe(min_reward=None), tmp_path)
    strict = gather([files], tmp_path / SELECTION, counts, method="kto", label_threshold=0.8).evidence
    assert (strict.desirable, strict.undesirable) == (3, 2)


def test_lengths_and_repeats(tmp_path: Path) -> None:
    rows = [rollout("x" * 10, task=0, repeat=n) for n in range(3)] + [rollout("y" * 30, task=1)]
    found = evidence(tmp_path, rows, curation={"deduplicate": False})
    assert found.answer_chars is not None
    assert (found.answer_chars.min, found.answer_chars.max, found.answer_chars.count) == (10, 30, 4)
    assert (found.duplicates, found.chosen_tasks, found.largest_task) == (2, 2, 3)


def test_turns_keep_their_models_and_their_diversity(tmp_path: Path) -> None:
    def answers(model: str, said: list[str]) -> list[dict[str, Any]]:
        rows = [rollout(text, task=task, repeat=n) for task in range(2) for n, text in enumerate(said)]
        for row in rows:
            row["response"]["model"] = model
        return rows

    report = check(tmp_path, answers("old", ["a", "b", "c", "d"]), answers("new", ["a", "a", "a", "b"]))
    assert [(turn.distinct, turn.models) for turn in report.evidence.turns] == [(1.0, {"old": 8}), (0.5, {"new": 8})]
    assert {"GM401", "GM402"} <= set(ids(report))
    assert report.evidence.chosen_models == {"old": 8, "new": 4}


def test_leaks_are_found_in_every_turn_though_files_have_one_name(tmp_path: Path) -> None:
    made = [table(tmp_path / str(n), [rollout(f"{n}", question=f"is this question number {n}?")]) for n in range(3)]
    files, counted = [one[0] for one in made], [one[1] for one in made]
    counts = curate(files, counted, CurateRecipe(), tmp_path)
    heldout = [{"responses_create_params": {"input": f"Is this question number {n}?"}} for n in range(3)]
    report = validate(
        files,
        tmp_path / SELECTION,
        counts,
        curate=CurateRecipe(),
        format=FormatRecipe(),
        checks=ChecksRecipe(min_examples=1),
        choose=lambda _: 0,
        evaluation=heldout,
    )
    found = report.evidence.contamination
    assert found is not None
    assert found.prompts == 3
    assert sorted(leak.where for leak in found.exact) == [f"turn {n} rollouts.jsonl:1" for n in (1, 2, 3)]


def tool(parameters: Any, name: str = "add") -> list[dict[str, Any]]:
    return [{"type": "function", "name": name, "parameters": parameters, "strict": None, "description": "adds"}]


def calling(name: str, arguments: str, tools: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    row = rollout(
        output=[
            {"type": "function_call", "call_id": "1", "name": name, "arguments": arguments},
            {"type": "function_call_output", "call_id": "1", "output": "3"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "3"}]},
        ],
        **more,
    )
    row["responses_create_params"]["tools"] = tools
    return row


ADD = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def test_calls_are_held_against_their_tool(tmp_path: Path) -> None:
    found = content(
        tmp_path,
        calling("add", '{"a": 1}', tool(ADD), task=0),
        calling("add", '{"a": "one"}', tool(ADD), task=1),
        calling("add", '{"a": 1, "b": 2}', tool(ADD), task=2),
        calling("divide", '{"a": 1}', tool(ADD), task=3),
    )
    assert (found.tools, found.calls, found.bad_calls) == (1, 3, 2)
    assert found.undeclared == {"divide": 1}
    assert found.bad_tools == {}
    assert "'one' is not of type 'integer'" in found.bad_call_where[0]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"type": "objekt"}, "'objekt' is not valid"),
        ({"type": "array"}, "expected 'object'"),
        ({"type": "object", "properties": {"a": {"type": "integer", "minimum": "low"}}}, "properties/a/minimum"),
        ({"type": "object", "required": "a"}, "required"),
    ],
)
def test_schemas_that_are_none(tmp_path: Path, parameters: Any, said: str) -> None:
    found = content(tmp_path, calling("add", "{}", tool(parameters)))
    assert said in found.bad_tools["add"]
    assert found.calls == 0


def test_a_schema_is_never_fetched(tmp_path: Path) -> None:
    remote = {"type": "object", "properties": {"a": {"$ref": "https://127.0.0.1:1/schema.json"}}}
    found = content(tmp_path, calling("add", '{"a": 1}', tool(remote)))
    assert (found.calls, found.bad_calls) == (0, 0)


def test_scripts_that_the_prompt_does_not_use(tmp_path: Path) -> None:
    chinese = "我们先把两个数字相加然后再检查每一位数字最后写下答案" * 3
    found = content(
        tmp_path,
        rollout(LONG, task=0),
        rollout(LONG + chinese, task=1),
        rollout(chinese, task=2, question="请用中文回答这个问题"),
        rollout("Antwort: größer, schöner, übermäßig ausführlich und gründlich erklärt.", task=3),
    )
    assert found.drift == {"agent": (1, 4)}
    assert found.drift_where[0].endswith("Han")


def test_near_duplicates_are_long_and_nearly_equal(tmp_path: Path) -> None:
    found = content(
        tmp_path,
        rollout(LONG, task=0),
        rollout(LONG.replace("page", "sheet"), task=1),
        rollout(" ".join(reversed(LONG.split())), task=2),
        rollout("short", task=3),
        rollout("short", task=4),
    )
    assert (found.long_answers, found.near_duplicates) == (3, 1)


def test_rows_without_a_chat_form_are_counted_with_their_reason(tmp_path: Path) -> None:
    found = content(tmp_path, rollout("fine", task=0), calling("add", "not json", [], task=1), rollout("  ", task=2))
    assert found.problems == {"empty_answer": 1, "malformed_arguments": 1}
    assert found.rows == 3


def test_before_formatting_rows_without_a_chat_form_are_no_examples(tmp_path: Path) -> None:
    found = evidence(tmp_path, [rollout("fine", task=0), rollout("  ", task=1)])
    assert (found.chosen, found.examples) == (2, 1)


def test_rendered_rows_are_spread_over_all(tmp_path: Path) -> None:
    files, counted = table(tmp_path, [rollout(f"answer {n}", task=n) for n in range(200)])
    curate([files], [counted], CurateRecipe(), tmp_path)
    rendered: list[str] = []

    def render(messages: list[dict[str, Any]], tools: list[Any], prompt: bool) -> str:
        text = "".join(m["content"] for m in messages)
        rendered.append(text)
        return text

    found = read_content([files], tmp_path / SELECTION, limit=1000, render=render)
    assert found.rendered == 50
    assert any("question 196?" in text for text in rendered)


def test_what_is_read_is_a_sample_spread_evenly_and_says_so(tmp_path: Path) -> None:
    rows = [rollout(str(n), task=n) for n in range(10)]
    rows[9]["responses_create_params"]["input"] = []
    report = check(tmp_path, [*rows, *(calling("nope", "{}", [], task=20 + n) for n in range(10))], content_rows=5)
    found = report.evidence.content
    assert found is not None
    assert (found.rows, found.of) == (5, 20)
    (undeclared,) = [finding for finding in report.findings if finding.id == "GM121"]
    assert ", a sample of 20" in undeclared.message


def test_the_chat_template_is_tried(tmp_path: Path) -> None:
    files, counted = table(tmp_path, [rollout("the answer", task=0), rollout("other", task=1)])
    counts = curate([files], [counted], CurateRecipe(), tmp_path)

    def report(render: Any) -> Report:
        return validate(
            [files],
            tmp_path / SELECTION,
            counts,
            curate=CurateRecipe(),
            format=FormatRecipe(),
            checks=ChecksRecipe(min_examples=1, min_tasks=1, silence=("GM104",)),
            choose=lambda _: 0,
            render=render,
        )

    def plain(messages: list[dict[str, Any]], tools: list[Any], prompt: bool) -> str:
        return "".join(f"<{m['role']}>{m['content']}" for m in messages) + ("<assistant>" if prompt else "")

    def loses(messages: list[dict[str, Any]], tools: list[Any], prompt: bool) -> str:
        return plain([m for m in messages if m["content"] != "other"], tools, prompt)

    def refuses(messages: list[dict[str, Any]], tools: list[Any], prompt: bool) -> str:
        raise ValueError("no system message, please")

    def rewrites(messages: list[dict[str, Any]], tools: list[Any], prompt: bool) -> str:
        return f"{len(messages)} {plain(messages, tools, prompt)}"

    assert ids(report(plain)) == ["GM503"]
    assert "0 raise an error and 1 come out without" in report(loses).findings[0].message
    assert "2 raise an error" in report(refuses).findings[0].message
    assert report(refuses).findings[0].where[0].endswith("ValueError: no system message, please")
    assert ids(report(rewrites)) == ["GM128", "GM503"]


def test_equal_input_gives_an_equal_report(tmp_path: Path) -> None:
    rows = [
        rollout(f"{LONG} {n % 3}", task=n % 5, repeat=n, reward=(n * 7 % 10) / 10, reward_components={"a": n, "b": -n})
        for n in range(60)
    ]
    assert check(tmp_path / "1", rows) == check(tmp_path / "2", rows)


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "rl"])
def test_every_real_file_can_be_checked(shared: Path, tmp_path: Path, method: Any) -> None:
    from gristmill.validate_command import check_files

    recipe = build({"format": {"method": method}, "curate": {"min_reward": None}})
    report = check_files([str(shared)], recipe, known=False)
    assert report.evidence.rows_read > 1000
    assert sum(one.rows for one in report.evidence.environments) == report.evidence.usable
