"""Datasets: nothing mangled or null-filled, every row knows its rollouts, equal bytes on any number of workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gristmill import targets
from gristmill.chat import convert
from gristmill.curate import SELECTION, curate
from gristmill.dataset import PROVENANCE, check, provenance, rows_of, shards, write_dataset
from gristmill.dataset.compare import compare
from gristmill.dataset.split import place, threshold
from gristmill.errors import RecipeError, UsageError
from gristmill.ingest import ingest
from gristmill.recipe import CurateRecipe, FormatRecipe, PairsRecipe, Recipe, build
from tests.rows import rollout, table, write

SAID = {"type": "message", "id": "m", "role": "assistant", "content": [{"type": "output_text", "text": "22 degrees"}]}
TOOLS = [{"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}]
EVERYTHING = CurateRecipe(min_reward=None, deduplicate=False, per_task=None)


def call(call_id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {
        "type": "function_call",
        "call_id": call_id,
        "name": "weather",
        "arguments": orjson.dumps(arguments).decode(),
    }


def result(call_id: str = "c1", text: str = "22°C") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def say(text: str) -> dict[str, Any]:
    return {**SAID, "content": [{"type": "output_text", "text": text}]}


def with_tools(task: int, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    row = rollout(task=task, output=output, **more)
    row["responses_create_params"]["tools"] = TOOLS
    return row


def dataset(
    folder: Path,
    rows: list[dict[str, Any]],
    *,
    curation: CurateRecipe = EVERYTHING,
    workers: int = 1,
    **recipe: Any,
) -> dict[str, Any]:
    """Rows → an export in `folder/export`; its counts, which conserve."""
    files, counts = table(folder, rows)
    selected = curate([files], [counts], curation, folder)
    out = folder / "export"
    out.mkdir()
    settings = FormatRecipe(**{"target": "trl-jsonl", **recipe})
    told = write_dataset(folder / SELECTION, [files], selected, settings, out, workers=workers)
    assert told["rows_read"] == told["rows_kept"] + sum(told["dropped"].values()) == len(rows)
    assert told["examples"] == told["train"] + told["validation"]
    return told


def lines(folder: Path, split: str = "train") -> list[Any]:
    path = folder / "export" / f"{split}.jsonl"
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


# ---- sft


def test_rows_are_exact(tmp_path: Path) -> None:
    arguments = {"city": "Zürich", "days": None}
    counts = dataset(
        tmp_path, [rollout("plain", task=0), with_tools(1, [call(**arguments), result(), SAID], reward=0.25)]
    )
    assert counts["examples"] == 2
    plain, tools = lines(tmp_path)
    assert plain["prompt"] == [{"role": "user", "content": "question 0?"}]
    assert plain["completion"] == [{"role": "assistant", "content": "plain"}]
    assert plain["tools"] == []
    asked, answered, said = tools["completion"]
    assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": arguments}
    assert asked["content"] == ""
    assert (answered["role"], answered["content"], answered["tool_call_id"]) == ("tool", "22°C", "c1")
    assert said == {"role": "assistant", "content": "22 degrees"}
    assert tools["tools"][0]["function"]["name"] == "weather"
    assert tools["meta"]["reward"] == tools["meta"]["quality"] == 0.25 and tools["meta"]["task_type"] == "agent"


def test_the_trainers_library_reads_the_parquet_back_exactly(tmp_path: Path) -> None:
    from datasets import Dataset

    dataset(tmp_path, [rollout("plain"), with_tools(1, [call(city="Rome", days=None), result(), SAID])], target="trl")
    files = [str(path) for path in (tmp_path / "export").glob("train-*.parquet")]
    loaded = Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    function = loaded[1]["completion"][0]["tool_calls"][0]["function"]
    assert function["arguments"] == {"city": "Rome", "days": None}
    assert "tool_calls" not in loaded[0]["completion"][0]  # no key of another row


def test_what_has_no_chat_form_is_dropped_with_its_reason(tmp_path: Path) -> None:
    hosted = rollout(task=1, output=[{"type": "web_search_call", "id": "w", "status": "completed"}, SAID])
    broken = rollout(task=2, output=[{**call(), "arguments": "{city"}, result(), SAID])
    counts = dataset(tmp_path, [rollout(task=0), hosted, broken])
    assert counts["dropped"] == {"malformed_arguments": 1, "unsupported_item": 1}
    assert counts["examples"] == 1


def test_quality_is_the_rewards_place_in_its_environment(tmp_path: Path) -> None:
    rows = [rollout(str(i), task=i, reward=reward) for i, reward in enumerate([-100.0, 0.0, 100.0])]
    rows += [rollout(str(i), task=i, reward=5.0, agent_ref={"name": "constant"}) for i in range(3, 5)]
    dataset(tmp_path, rows)
    assert [line["meta"].get("quality") for line in lines(tmp_path)] == [0.0, 0.5, 1.0, None, None]


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=0, max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(
    question=text.filter(lambda s: bool(s)),
    said=text.filter(lambda s: bool(s.strip())),
    arguments=st.dictionaries(text, values, max_size=3),
    output=text,
    target=st.sampled_from(["trl", "trl-jsonl"]),
)
@hypothesis_settings(max_examples=25)
def test_text_survives_unchanged(
    tmp_path_factory: pytest.TempPathFactory,
    question: str,
    said: str,
    arguments: dict[str, Any],
    output: str,
    target: str,
) -> None:
    folder = tmp_path_factory.mktemp("export")
    row = rollout(
        output=[call(**{"x": 1}) | {"arguments": orjson.dumps(arguments).decode()}, result("c1", output), say(said)]
    )
    row["responses_create_params"]["input"] = [{"role": "user", "content": question}]
    row["responses_create_params"]["tools"] = TOOLS
    dataset(folder, [row], target=target)
    if target == "trl":
        held = pq.read_table(folder / "export" / "train-00000-of-00001.parquet").to_pylist()[0]
        made = {k: [orjson.loads(m) if isinstance(m, str) else m for m in held[k]] for k in ("prompt", "completion")}
    else:
        made = lines(folder)[0]
    asked, answered, last = made["completion"]
    assert made["prompt"] == [{"role": "user", "content": question}]
    assert asked["tool_calls"][0]["function"]["arguments"] == arguments
    assert answered["content"] == output
    assert last["content"] == said


# ---- provenance, split, determinism


def test_every_row_knows_its_rollout_file_and_line(tmp_path: Path) -> None:
    rows = [rollout(f"answer {i}", task=i) for i in range(40)]
    dataset(tmp_path, rows, validation=0.3)
    source = (tmp_path / "rollouts.jsonl").read_bytes().splitlines()
    for split in ("train", "validation"):
        found = lines(tmp_path, split)
        assert found
        for number, row in enumerate(found):
            (origin,) = provenance(tmp_path / "export", number, split)
            told = orjson.loads(source[origin.line - 1])
            assert told["response"]["output"][0]["content"][0]["text"] == row["completion"][0]["content"]
            assert origin.rollout_id == row["meta"]["rollout_id"] and origin.source == "rollouts.jsonl"
            assert [(o.split, o.row) for o in rows_of(tmp_path / "export", origin.rollout_id)] == [(split, number)]


def test_a_row_or_an_export_that_is_not_there(tmp_path: Path) -> None:
    dataset(tmp_path, [rollout()])
    with pytest.raises(UsageError, match="no row 1 in train"):
        provenance(tmp_path / "export", 1)
    with pytest.raises(UsageError, match="no export"):
        provenance(tmp_path, 0)


def test_equal_prompts_never_straddle_and_stay_where_they_are(tmp_path: Path) -> None:
    rows = [rollout(f"answer {i}", task=i, question=f"question {i % 30}?") for i in range(60)]

    def split(folder: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
        dataset(folder, rows, validation=0.3)
        places = [
            (line["prompt"][0]["content"], name) for name in ("train", "validation") for line in lines(folder, name)
        ]
        assert len(set(places)) == len({question for question, _ in places})
        return dict(places)

    some, more = split(tmp_path / "a", rows[:40]), split(tmp_path / "b", rows)
    assert set(more.values()) == {"train", "validation"}
    assert {question: more[question] for question in some} == some


def test_the_share_of_validation() -> None:
    places = sorted(place(str(i), 0) for i in range(10_000))
    assert 900 < sum(one < threshold(places, 0.1) for one in places) < 1100
    assert threshold(places, 0.0) == "" and threshold(places[:1], 0.5) == ""
    for few in (places[-2:], places[:2]):  # of two tasks, one each
        assert [one < threshold(few, 0.5) for one in few] == [True, False]
    assert places != sorted(place(str(i), 1) for i in range(10_000))


@pytest.mark.parametrize(("method", "target"), [("sft", "trl"), ("dpo", "trl-jsonl"), ("kto", "trl-jsonl")])
def test_equal_bytes_on_any_number_of_workers(
    tmp_path: Path, target: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 4000)
    rows = [rollout(f"answer {i}", task=i // 4, repeat=i % 4, reward=i % 4 / 3) for i in range(80)]
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        dataset(folder, rows, workers=workers, target=target, method=method, validation=0.2)
        made.append({path.name: path.read_bytes() for path in (folder / "export").iterdir()})
    assert made[0] == made[1]
    assert sum(name.startswith("train") for name in made[0]) > 1 or target == "trl-jsonl"
    assert not [name for name in made[0] if name.endswith(".part")]


def test_nothing_chosen_is_an_empty_dataset_not_a_crash(tmp_path: Path) -> None:
    for target in ("trl", "trl-jsonl"):
        counts = dataset(tmp_path / target, [rollout(reward=None)], target=target)
        assert (counts["examples"], counts["rows_read"]) == (0, 1)


def test_a_row_with_a_byte_order_mark_is_formatted_as_it_was_read(tmp_path: Path) -> None:
    from gristmill.ingest import ingest

    path = write(tmp_path / "rollouts.jsonl", [rollout("plain")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    (tmp_path / "table").mkdir()
    read = ingest([path], tmp_path / "table")
    counts = {"rows_read": read.rows_read, "rows_kept": read.rows_kept, "dropped": {}}
    selected = curate([read.tables], [counts], CurateRecipe(), tmp_path)
    (tmp_path / "export").mkdir()
    recipe = FormatRecipe(target="trl-jsonl")
    told = write_dataset(tmp_path / SELECTION, [read.tables], selected, recipe, tmp_path / "export", workers=1)
    assert told["examples"] == 1


# ---- dpo, reward


def test_pairs_are_of_one_task_and_differ(tmp_path: Path) -> None:
    rows = [
        rollout(answer, task=task, repeat=i, reward=reward)
        for task in range(5)
        for i, (answer, reward) in enumerate([("good", 1.0), ("bad", 0.0), ("fair", 0.5), ("good", 1.0)])
    ]
    counts = dataset(tmp_path, rows, method="dpo")
    assert counts["dropped"] == {"duplicate_answer": 5, "not_paired": 5}
    assert counts["pairs"]["gap"]["mean"] == 1.0 and counts["pairs"]["chosen_longer"] == 1.0
    for number, line in enumerate(lines(tmp_path)):
        assert line["chosen"] == [{"role": "assistant", "content": "good"}]
        assert line["rejected"] == [{"role": "assistant", "content": "bad"}]
        assert line["margin"] == 1.0
        better, worse = provenance(tmp_path / "export", number)
        assert (better.role, worse.role, better.task_key) == ("chosen", "rejected", worse.task_key)
        assert (better.rollout_id, worse.rollout_id) == (
            line["meta"]["chosen"]["rollout_id"],
            line["meta"]["rejected"]["rollout_id"],
        )


def test_what_may_not_be_paired_is_not(tmp_path: Path) -> None:
    rows = [
        rollout("cut", task=0, repeat=0, reward=0.0, truncated=True),
        rollout("good", task=0, repeat=1),
        rollout("masked", task=1, repeat=0, reward=0.0, mask_sample=True),
        rollout("good", task=1, repeat=1),
        rollout("no task", task=2, reward=0.0, _ng_task_index=None),
        rollout("ok", task=3, question="one?"),
        rollout("other prompt", task=3, repeat=1, question="two?", reward=0.0),
    ]
    keep_cut = EVERYTHING.model_copy(update={"keep_truncated": True})
    counts = dataset(tmp_path, rows, method="dpo", curation=keep_cut)
    assert counts["examples"] == 0
    assert counts["dropped"] == {"truncated": 1, "masked": 1, "ungroupable": 1, "no_partner": 4}


def test_an_unusable_side_is_replaced(tmp_path: Path) -> None:
    broken = rollout(task=0, repeat=0, reward=1.0, output=[{**call(), "arguments": "{"}, result(), SAID])
    rows = [broken, rollout("second", repeat=1, reward=0.9), rollout("worst", repeat=2, reward=0.0)]
    counts = dataset(tmp_path, rows, method="dpo")
    assert counts["dropped"] == {"malformed_arguments": 1}
    assert lines(tmp_path)[0]["chosen"][0]["content"] == "second"


def multi_turn(repeat: int, last: str, reward: float, reply: str = "22°C", first: str = "Rome") -> dict[str, Any]:
    name = f"c{repeat}"
    return with_tools(0, [call(name, city=first), result(name, reply), say(last)], repeat=repeat, reward=reward)


def test_a_pair_parts_at_the_first_message_that_differs(tmp_path: Path) -> None:
    dataset(tmp_path, [multi_turn(0, "warm", 1.0), multi_turn(1, "cold", 0.0)], method="dpo")
    (line,) = lines(tmp_path)
    assert [message["role"] for message in line["prompt"]] == ["user", "assistant", "tool"]
    assert line["prompt"][1]["tool_calls"][0]["id"] == "c0"
    assert (line["chosen"], line["rejected"]) == (
        [{"role": "assistant", "content": "warm"}],
        [{"role": "assistant", "content": "cold"}],
    )


def test_a_pair_may_part_at_a_call(tmp_path: Path) -> None:
    rows = [multi_turn(0, "warm", 1.0), multi_turn(1, "cold", 0.0, first="Oslo")]
    dataset(tmp_path, rows, method="dpo")
    (line,) = lines(tmp_path)
    assert [message["role"] for message in line["prompt"]] == ["user"]
    cities = [line[side][0]["tool_calls"][0]["function"]["arguments"]["city"] for side in ("chosen", "rejected")]
    assert cities == ["Rome", "Oslo"] and len(line["chosen"]) == len(line["rejected"]) == 1


def test_no_pair_where_the_environment_parted_first(tmp_path: Path) -> None:
    rows = [multi_turn(0, "warm", 1.0), multi_turn(1, "cold", 0.0, reply="2°C")]
    assert dataset(tmp_path, rows, method="dpo")["dropped"] == {"no_divergence": 2}


def test_another_partner_is_found_where_histories_part(tmp_path: Path) -> None:
    rows = [multi_turn(0, "warm", 1.0), multi_turn(1, "cold", 0.0, reply="2°C"), multi_turn(2, "mild", 0.5)]
    counts = dataset(tmp_path, rows, method="dpo")
    assert counts["dropped"] == {"not_paired": 1}  # with "mild" it has not been tried
    assert lines(tmp_path)[0]["rejected"][0]["content"] == "mild"


def test_whole_trajectories_are_compared_where_the_target_can() -> None:
    one, other = (
        convert(multi_turn(i, text, 0.0, first=city)) for i, text, city in ((0, "a", "Rome"), (1, "b", "Oslo"))
    )
    sides = compare(one, other, single=False)
    assert sides is not None and [len(side) for side in sides] == [1, 3, 3]


@pytest.mark.parametrize("other", ["same  words", "same words ", "same\nwords"])
def test_sides_that_differ_in_white_space_are_one_answer(other: str) -> None:
    sides = [convert(rollout(text)) for text in ("same words", other)]
    assert compare(*sides, single=True) is None


def test_sides_that_differ_in_reasoning_alone_are_one_answer() -> None:
    thoughts = [{"type": "reasoning", "summary": [{"type": "summary_text", "text": t}]} for t in ("so", "thus")]
    sides = [convert(rollout(output=[thought, SAID])) for thought in thoughts]
    assert compare(*sides, single=True) is None


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from(["a", "b", " a", "c"]),
            st.sampled_from([0.0, 0.5, 0.6, 1.0]),
            st.booleans(),
        ),
        max_size=12,
    ),
    strategy=st.sampled_from(["best_worst", "folded", "all", "random"]),
)
@hypothesis_settings(max_examples=30)
def test_no_cross_task_pair_no_tie_no_identical_sides(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, float, bool]], strategy: str
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    made = [
        rollout(answer, task=task, repeat=i, reward=reward, truncated=cut)
        for i, (task, answer, reward, cut) in enumerate(rows)
    ]
    if not made:
        return
    dataset(folder, made, method="dpo", pairs=PairsRecipe(strategy=strategy), curation=EVERYTHING)  # type: ignore[arg-type]
    for number, line in enumerate(lines(folder)):
        better, worse = provenance(folder / "export", number)
        assert better.task_key == worse.task_key and better.reward - worse.reward >= 0.2 - 1e-9
        assert line["chosen"][0]["content"].split() != line["rejected"][0]["content"].split()
        assert line["prompt"][0]["content"] == f"question {made[better.line - 1]['_ng_task_index']}?"


def test_metrics_must_be_better_too(tmp_path: Path) -> None:
    rows = [
        rollout("best", repeat=0, reward=1.0, accuracy=0.0),
        rollout("good", repeat=1, reward=0.9, accuracy=1.0),
        rollout("bad", repeat=2, reward=0.0, accuracy=0.0),
    ]
    dataset(tmp_path / "a", rows, method="dpo", pairs=PairsRecipe(metrics=("accuracy",)))
    assert [line["chosen"][0]["content"] for line in lines(tmp_path / "a")] == ["good"]
    with pytest.raises(RecipeError, match="no rollout has the metric 'acuracy'; there are: accuracy"):
        dataset(tmp_path / "b", rows, method="dpo", pairs=PairsRecipe(metrics=("acuracy",)))


# ---- kto, rl, token ids


def test_kto_labels_by_the_environments_own_threshold(tmp_path: Path) -> None:
    rows = [rollout(str(i), task=i // 2, repeat=i % 2, reward=reward) for i, reward in enumerate([1.0, 0.0, 1.0, 0.0])]
    rows += [
        rollout(str(i), task=9, repeat=i, reward=reward, agent_ref={"name": "wide"})
        for i, reward in enumerate([-10.0, 4.0, 6.0, 20.0])
    ]
    counts = dataset(tmp_path, rows, method="kto")
    assert [line["label"] for line in lines(tmp_path)] == [True, False, True, False, False, False, True, True]
    assert counts["labels"] == {
        "desirable": 4,
        "undesirable": 4,
        "tasks_with_both": 3,
        "tasks_only_desirable": 0,
        "tasks_only_undesirable": 0,
    }


def test_kto_refuses_contradictions_and_repeats(tmp_path: Path) -> None:
    rows = [
        rollout("same", repeat=0, reward=1.0),
        rollout("same", repeat=1, reward=0.0),
        rollout("good", repeat=2),
        rollout("good", repeat=3),
    ]
    counts = dataset(tmp_path, rows, method="kto", label_threshold=0.5)
    assert counts["dropped"] == {"contradictory_reward": 2, "duplicate_answer": 1}


def test_kto_learns_from_the_last_turn(tmp_path: Path) -> None:
    dataset(tmp_path, [multi_turn(0, "warm", 1.0)], method="kto")
    (line,) = lines(tmp_path)
    assert [message["role"] for message in line["prompt"]] == ["user", "assistant", "tool"]
    assert line["completion"] == [{"role": "assistant", "content": "warm"}]


class Tasks:
    """A target that writes rl tasks as they are."""

    name = "tasks"
    methods = frozenset({"rl"})
    suffix = "jsonl"
    single_message = False

    def row(self, example: Any) -> bytes:
        return orjson.dumps({**example.row, "meta": example.meta}) + b"\n"

    def write(self, rows: list[bytes], path: Path) -> None:
        path.write_bytes(b"".join(rows))

    def finish(self, export: Any) -> None: ...


@pytest.fixture
def rl_target(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(targets, "get", lambda name: Tasks())
    return "tasks"


def test_rl_tasks_are_those_with_signal_as_gym_can_run_them(tmp_path: Path, rl_target: str) -> None:
    rows = []
    for task, rewards in enumerate([(0.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0,)]):
        for repeat, reward in enumerate(rewards):
            row = rollout(f"{task}{repeat}", task=task, repeat=repeat, reward=reward)
            row["responses_create_params"] |= {
                "temperature": 1.0,
                "user": None,
                "metadata": {"extra_body": orjson.dumps({"seed": repeat}).decode()},
            }
            rows.append(row)
    inputs = [
        {"responses_create_params": {}, "answer": f"a{i}", "_ng_task_index": i, "_ng_rollout_index": 0}
        for i in range(4)
    ]
    write(tmp_path / "rollouts_materialized_inputs.jsonl", inputs)
    counts = dataset(tmp_path, rows, method="rl", target=rl_target)
    (line,) = lines(tmp_path)
    assert line["responses_create_params"] == {
        "input": [{"role": "user", "content": "question 0?"}],
        "temperature": 1.0,
    }
    assert line["answer"] == "a0" and line["agent_ref"] == {"name": "agent"}
    assert line["meta"]["solve_rate"] == 0.5 and line["meta"]["rollouts"] == 2
    assert counts["dropped"] == {"no_signal": 5} and counts["notes"] == {}
    assert counts["rl"] | {"mean_std": 0.125, "mean_solve_rate": 0.625} == counts["rl"]
    assert counts["rl"]["solve_rates"]["counts"] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert [origin.role for origin in provenance(tmp_path / "export", 0)] == ["attempt", "attempt"]


def test_rl_without_inputs_takes_what_the_rollout_echoes(tmp_path: Path, rl_target: str) -> None:
    rows = [rollout(str(i), repeat=i, reward=float(i), expected_answer="7", _ng_rollout_id="x") for i in range(2)]
    counts = dataset(tmp_path, rows, method="rl", target=rl_target)
    (line,) = lines(tmp_path)
    assert line["expected_answer"] == "7" and not {"response", "reward", "_ng_rollout_id"} & set(line)
    assert counts["notes"] == {"task_without_inputs": 1}


def test_an_rl_task_that_utf8_does_not_hold_is_dropped(tmp_path: Path) -> None:
    """Python's json writes half a surrogate pair, and reads it; no other file can hold it."""
    files = []
    for repeat in range(2):
        row = rollout(str(repeat), repeat=repeat, reward=float(repeat))
        row["responses_create_params"]["input"] = "\ud800"
        files.append(json.dumps(row))
    (tmp_path / "rollouts.jsonl").write_text("\n".join(files))
    (tmp_path / "table").mkdir()
    read = ingest([tmp_path / "rollouts.jsonl"], tmp_path / "table")
    (tmp_path / "export").mkdir()
    recipe = FormatRecipe(method="rl", target="gym")
    counted = {"rows_read": 2, "rows_kept": 2, "dropped": {}}
    curated = curate(
        [read.tables], [counted], CurateRecipe(min_reward=None, deduplicate=False, per_task=None), tmp_path
    )
    counts = write_dataset(tmp_path / SELECTION, [read.tables], curated, recipe, tmp_path / "export")
    assert counts["dropped"] == {"malformed_item": 2} and counts["examples"] == 0


def test_token_ids_are_the_policys_own(tmp_path: Path) -> None:
    def said(text: str, prompt: list[int], ids: list[int]) -> dict[str, Any]:
        return {**say(text), "prompt_token_ids": prompt, "generation_token_ids": ids, "generation_log_probs": [0.0]}

    again = {"role": "user", "content": "and?", "type": "message"}
    going_on = rollout(output=[said("a", [1, 2], [3, 4]), again, said("b", [1, 2, 3, 4, 5], [6])], task=0)
    anew = rollout(output=[said("a", [1, 2], [3, 4]), again, said("b", [1, 2, 9], [6])], task=1)
    without = rollout(output=[said("a", [1], [3]), again, say("b")], task=2)
    counts = dataset(tmp_path, [going_on, anew, without], token_ids=True)
    assert [(line["input_ids"], line["labels"]) for line in lines(tmp_path)] == [
        ([1, 2, 3, 4, 5, 6], [-100, -100, 3, 4, -100, 6]),
        ([1, 2, 3, 4], [-100, -100, 3, 4]),
        ([1, 2, 9, 6], [-100, -100, -100, 6]),
    ]
    assert counts["dropped"] == {"no_token_ids": 1} and counts["rows_kept"] == 2


# ---- wrong use


def test_what_is_known_before_reading(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no target is called 'tlr'; did you mean 'trl'"):
        check(FormatRecipe(target="tlr"))
    with pytest.raises(RecipeError, match="does not take the method rl"):
        check(FormatRecipe(target="trl", method="rl"))
    with pytest.raises(RecipeError, match="token_ids is for sft"):
        check(FormatRecipe(method="dpo", token_ids=True))


def test_methods_that_compare_keep_the_poor_rollouts() -> None:
    recipe = build({"format": {"method": "dpo"}})
    assert (recipe.curate.min_reward, recipe.curate.per_task, recipe.curate.deduplicate) == (None, None, False)
    assert build(recipe.resolved()) == recipe and Recipe().curate.min_reward == 1.0
    with pytest.raises(RecipeError, match=r"min_reward must be null for format\.method dpo"):
        build({"format": {"method": "dpo"}, "curate": {"min_reward": 0.5}})
    with pytest.raises(RecipeError, match=r"max_tokens needs format\.tokenizer"):
        build({"format": {"max_tokens": 100}})


# ---- real rollouts


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward"])
def test_real_rollouts_of_all_kinds(tmp_path: Path, shared: Path, method: str) -> None:
    from gristmill.ingest import ingest
    from gristmill.rollout_files import find_rollout_files

    (tmp_path / "table").mkdir()
    read = ingest(find_rollout_files([shared]), tmp_path / "table", workers=1)
    counts = {
        "rows_read": read.rows_read,
        "rows_kept": read.rows_kept,
        "dropped": {str(k): v for k, v in read.dropped.items()},
    }
    selected = curate([read.tables], [counts], EVERYTHING, tmp_path)
    out = tmp_path / "export"
    out.mkdir()
    recipe = FormatRecipe(target="trl-jsonl", method=method, validation=0.1)  # type: ignore[arg-type]
    told = write_dataset(tmp_path / SELECTION, [read.tables], selected, recipe, out, workers=1)
    assert told["rows_read"] == told["rows_kept"] + sum(told["dropped"].values())
    seen = Counter(split for split in ("train", "validation") for _ in lines(tmp_path, split))
    assert seen == {"train": told["train"], "validation": told["validation"]}
    rows = lines(tmp_path) + lines(tmp_path, "validation")
    assert len(rows) > 150
    if method in ("dpo", "reward"):
        origins = pq.read_table(out / PROVENANCE).to_pylist()
        tasks: dict[tuple[str, int], set[str]] = {}
        for origin in origins:
            tasks.setdefault((origin["split"], origin["row"]), set()).add(origin["task_key"])
        assert all(len(keys) == 1 for keys in tasks.values())
        assert all(row["chosen"] != row["rejected"] and row["margin"] > 0 for row in rows)
