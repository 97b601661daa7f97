"""Conditions: every name means what docs/curate.md says, and nothing reaches beyond the row."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill import scan
from gristmill.condition import DERIVED, TASK, Names
from gristmill.errors import RecipeError
from gristmill.presets import PRESETS
from gristmill.recipe import build
from gristmill.scale import scale
from tests.rows import rollout, table


@contextmanager
def names(folder: Path, rows: list[dict[str, Any]]) -> Iterator[Names]:
    files, _ = table(folder, rows)
    with scan.connect([files]) as db:
        db.execute("CREATE TEMP TABLE decisions (rollout_id VARCHAR, decision VARCHAR)")
        found = Names(db)
        found.db = db  # type: ignore[attr-defined]
        yield found


def holds(found: Names, text: str) -> list[int]:
    """Lines for which the conditions are true."""
    conditions = found.conditions(text, "where")
    found.check([(one.text, "where", one.sql) for one in conditions])
    every = " AND ".join(one.sql for one in conditions)
    query = f"SELECT line FROM ({found.source()}) WHERE {every} ORDER BY line"
    return [row[0] for row in found.db.execute(query).fetchall()]  # type: ignore[attr-defined]


def with_inputs(folder: Path, fields: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        orjson.dumps({"_ng_task_index": task, "_ng_rollout_index": 0, **one}) + b"\n" for task, one in enumerate(fields)
    ]
    (folder / "rollouts_materialized_inputs.jsonl").write_bytes(b"".join(lines))


def test_metrics_labels_and_columns_by_their_bare_names(tmp_path: Path) -> None:
    rows = [
        rollout("a", accuracy=1.0, level="hard", is_correct=True, reward_components={"form": 0.5}),
        rollout("bb", repeat=1, accuracy=0.5, level="easy", is_correct=False, reward_components={"form": 1.0}),
        rollout("ccc", repeat=2),
    ]
    with names(tmp_path, rows) as found:
        assert holds(found, "accuracy == 1.0") == [1]
        assert holds(found, "level = 'easy'") == [2]
        assert holds(found, "is_correct") == [1]
        assert holds(found, "NOT is_correct") == [2]
        assert holds(found, "reward_components.form > 0.7") == [2]
        assert holds(found, "metrics.accuracy < 1 AND labels.level = 'easy'") == [2]
        assert holds(found, "accuracy IS NULL") == [3]
        assert holds(found, "answer_chars BETWEEN 2 AND 3") == [2, 3]
        assert holds(found, "Reward >= 1 AND contains(environment, 'agent')") == [1, 2, 3]


def test_a_column_comes_before_a_metric_of_its_name(tmp_path: Path) -> None:
    rows = [rollout("a", truncated=True) | {"truncated": 0}, rollout("b", repeat=1) | {"truncated": 1}]
    with names(tmp_path, rows) as found:
        assert holds(found, "truncated") == [1]
        assert holds(found, "metrics.truncated = 1") == [2]


def test_task_fields_from_beside_the_file(tmp_path: Path) -> None:
    with_inputs(
        tmp_path,
        [
            {"difficulty": "hard", "options": 4, "metadata": {"source": "gcd", "a/b": 1}},
            {"difficulty": "easy", "options": 5, "metadata": {"source": "lcm", "a/b": 2}},
        ],
    )
    rows = [rollout("a", task=0), rollout("b", task=1), rollout("c", task=2)]
    with names(tmp_path, rows) as found:
        assert holds(found, "difficulty = 'hard'") == [1]
        assert holds(found, "options > 4") == [2]
        assert holds(found, "metadata.source = 'gcd'") == [1]
        assert holds(found, "fields.metadata.source = 'gcd'") == [1]
        assert holds(found, 'metadata."a/b" = 2') == [2]
        assert holds(found, "fields->>'difficulty' = 'easy'") == [2]
        assert holds(found, "difficulty IS NULL") == [3]  # no input row: nothing is guessed


def test_a_field_of_mixed_kinds_is_text(tmp_path: Path) -> None:
    with_inputs(tmp_path, [{"level": 3}, {"level": "three"}, {"level": True}])
    with names(tmp_path, [rollout(str(i), task=i) for i in range(3)]) as found:
        assert holds(found, "level = '3'") == [1]
        assert holds(found, "level IN ('three', 'true')") == [2, 3]


def test_what_is_known_of_the_task(tmp_path: Path) -> None:
    rewards = [[0.0, 1.0, 1.0], [1.0, 1.0], [0.0]]
    rows = [
        rollout(f"{task} {repeat}", task=task, repeat=repeat, reward=reward)
        for task, some in enumerate(rewards)
        for repeat, reward in enumerate(some)
    ]
    rows.append(rollout("of no task", reward=0.5) | {"_ng_task_index": None})
    with names(tmp_path, rows) as found:
        assert holds(found, "0 < task_mean AND task_mean < 1") == [1, 2, 3]
        assert holds(found, "task_min < task_max") == [1, 2, 3]
        assert holds(found, "task_rollouts = 2 AND task_std = 0 AND task_answers = 2") == [4, 5]
        assert holds(found, "task_solved >= 0.6") == [2 - 1, 2, 3, 4, 5]
        assert holds(found, "task_mean IS NULL") == [7]


some_rewards = st.lists(
    st.tuples(
        st.sampled_from(["one", "two"]), st.integers(0, 2), st.sampled_from([-3.0, 0.0, 0.1, 0.25, 0.7, 1.0, 9.5])
    ),
    min_size=1,
    max_size=12,
)


@given(some_rewards)
@settings(max_examples=15)
def test_task_values_are_those_of_plain_python_and_of_the_scale(given_rows: list[tuple[str, int, float]]) -> None:
    rows = [
        rollout(str(n % 4), task=task, repeat=n, reward=reward, agent_ref={"name": agent})
        for n, (agent, task, reward) in enumerate(given_rows)
    ]
    columns = [*TASK, "reward_scaled", "solved"]
    with TemporaryDirectory() as folder, names(Path(folder), rows) as found:
        values = ", ".join(found.value(column, "test") for column in columns)
        query = f"SELECT {values} FROM ({found.source()}) ORDER BY line"
        told = found.db.execute(query).fetchall()  # type: ignore[attr-defined]
    rewards = {agent: [r for a, _, r in given_rows if a == agent] for agent in {a for a, _, _ in given_rows}}
    scales = {agent: scale(min(some), max(some), set(some) <= {0.0, 1.0}) for agent, some in rewards.items()}
    for n, ((agent, task, reward), row) in enumerate(zip(given_rows, told, strict=True)):
        mates = [(m, r) for m, (a, t, r) in enumerate(given_rows) if (a, t) == (agent, task)]
        same = [r for _, r in mates]
        one = scales[agent]
        expected = {
            "task_rollouts": len(same),
            "task_mean": pytest.approx(statistics.mean(same)),
            "task_min": min(same),
            "task_max": max(same),
            "task_std": pytest.approx(statistics.stdev(same)) if len(same) > 1 else None,
            "task_answers": len({m % 4 for m, _ in mates}),
            "task_solved": pytest.approx(sum(r >= one.solved_at for r in same) / len(same)),
            "reward_scaled": None if (quality := one.quality(reward)) is None else pytest.approx(quality),
            "solved": reward >= one.solved_at,
        }
        assert dict(zip(columns, row, strict=True)) == expected, n


def test_and_makes_several_conditions_in_the_users_words(tmp_path: Path) -> None:
    with names(tmp_path, [rollout(accuracy=1)]) as found:
        text = "reward >= 0.8 and accuracy == 1.0 AND turns between 3 and 15\n and (turns > 1 or agent = 'x and y')"
        assert [one.text for one in found.conditions(text, "where")] == [
            "reward >= 0.8",
            "accuracy == 1.0",
            "turns between 3 and 15",
            "(turns > 1 or agent = 'x and y')",
        ]
        assert len(found.conditions("reward > 0 or turns > 1 and turns < 3", "where")) == 1
        nested = found.conditions("(reward > 0 and turns > 1) and turns < 3", "where")
        assert [one.text for one in nested] == ["(reward > 0)", "(turns > 1)", "(turns < 3)"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rewrad > 1", r"there is no `rewrad`; did you mean reward.*columns: .*tool_calls.*metrics: accuracy"),
        ("acuracy > 1", r"did you mean accuracy"),
        ("metrics.nope > 1", r"there is no `metrics.nope`"),
        ("reward >", r"syntax error"),
        ("", r"SELECT clause without selection list"),
        ("reward > 0, 1", r"more than one expression"),
        ("reward > 0 nonsense", r"more than one expression"),
        ("reward > 0 FROM rollouts", r"more than one expression"),
        ("reward > 0; DROP TABLE decisions", r"Only SELECT"),
        ("reward > 0) OR (1 = 1", r"syntax error"),
        ("EXISTS (SELECT 1)", r"may not hold a subquery"),
        ("reward IN (SELECT 1)", r"may not hold a subquery"),
        ("row_number() OVER () > 1", r"may not hold a window function"),
        ("* = 1", r"may not hold `\*`"),
        ("reward > ?", r"may not hold a parameter"),
        ("avg(reward) > 1", r"avg is not allowed.*task_mean"),
        ("random() < 0.5", r"random is not allowed"),
        ("now() > '2020-01-01'", r"now is not allowed"),
        ("current_setting('threads') = '1'", r"current_setting is not allowed"),
        ("getvariable('x') = 1", r"getvariable is not allowed"),
        ("read_text('/etc/hostname') = 'x'", r"read_text is not allowed"),
        ("getenv('HOME') = 'x'", r"no function getenv"),
        ("absolute(reward) > 1", r"no function absolute"),
        ("agent > 3", r"Cannot compare"),
        ("agent", r"gives VARCHAR, not true or false"),
        ("metrics", r"gives MAP"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    with (
        names(tmp_path, [rollout(accuracy=1)]) as found,
        pytest.raises(RecipeError, match=r"^where: .*" + said) as told,
    ):
        holds(found, text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "len(list_filter(tools_called, lambda tool: tool = 'search')) = 0",
        "list_contains(tools_called, 'x') IS NOT TRUE -- a comment",
        "regexp_matches(agent, '^ag') AND agent LIKE 'a%' AND lower(model) = 'tester'",
        "CASE agent WHEN 'agent' THEN reward >= 1 ELSE reward >= 5 END",
        "nullif(reward, 0) IS NOT NULL AND coalesce(task_index, 0) + 1 > 0 AND list_sum([1, 2]) = 3",
    ],
)
def test_the_rest_of_sql_expressions_works(tmp_path: Path, text: str) -> None:
    with names(tmp_path, [rollout()]) as found:
        assert holds(found, text) == [1]


def test_the_documentation_names_what_there_is() -> None:
    page = (Path(__file__).parents[1] / "docs" / "curate.md").read_text()
    assert [name for name in DERIVED if f"`{name}`" not in page] == []
    assert [name for name, (one,) in PRESETS.items() if f"`{name}`" not in page or f"`{one}`" not in page] == []


def test_the_documented_conditions_work(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "curate.md").read_text()
    snippet = next(part for part in page.split("```yaml\n") if "list_contains" in part).split("```")[0]
    recipe = build(yaml.safe_load(snippet)).curate
    with names(tmp_path, [rollout(accuracy=1)]) as found:
        for text in (*recipe.where, *(one for conditions in PRESETS.values() for one in conditions)):
            holds(found, text)
