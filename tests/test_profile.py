"""The profile, on rows small enough to count by hand."""

import json

import pytest

from gristmill.ingest import ingest
from gristmill.profile import CHECKED_ROWS, profile


def row(task, rollout, reward, text, agent="agent", **change):
    value = {
        "responses_create_params": {"input": [{"role": "user", "content": f"question {task}"}]},
        "response": {
            "model": "m",
            "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]}],
        },
        "reward": reward,
        "_ng_task_index": task,
        "_ng_rollout_index": rollout,
        "agent_ref": {"name": agent},
    }
    return value | change


def profiled(tmp_path, rows):
    file = tmp_path / "r.jsonl"
    file.write_text("".join(json.dumps(value) + "\n" for value in rows))
    (tmp_path / "out").mkdir()
    return profile(ingest([file], tmp_path / "out"))


def test_tasks_and_what_they_could_train(tmp_path):
    rewards = {0: [0, 0], 1: [1, 1, 1], 2: [0, 1, 1], 3: [1]}
    rows = [row(t, i, r, f"answer {r} {i % 2}") for t, rs in rewards.items() for i, r in enumerate(rs)]
    rows += [
        row(
            4,
            0,
            1,
            "cut",
            response=rows[0]["response"] | {"incomplete_details": {"reason": "max_output_tokens"}},
        )
    ]
    (one,) = profiled(tmp_path, rows).environments
    assert (one.rows, one.tasks, one.reward_kind, one.solved_at) == (10, 5, "binary", 1.0)
    assert (one.never, one.sometimes, one.always) == (1, 1, 3)
    # task 1 says one thing twice; the cut answer trains nothing
    assert one.sft_rows == 2 + 2 + 1
    assert (one.dpo_pairs, one.rl_tasks) == (1, 1)
    assert (one.kto_desirable, one.kto_undesirable) == (6, 3)


@pytest.mark.parametrize(
    ("rewards", "kind", "solved_at"),
    [
        ([1, 1], "constant", 1.0),
        ([0.3, 0.3], "constant", 1.0),
        ([10, 10], "constant", 10.0),
        ([0, 1], "binary", 1.0),
        ([0, 0.5, 1], "continuous", 0.5),
        ([-2, 10], "unbounded", 4.0),
    ],
)
def test_reward_kinds_and_a_histogram_that_loses_nothing(tmp_path, rewards, kind, solved_at):
    found = profiled(tmp_path, [row(i, 0, r, "a") for i, r in enumerate(rewards)])
    (one,) = found.environments
    assert (one.reward_kind, one.solved_at) == (kind, solved_at)
    assert sum(one.histogram.counts) == len(rewards)
    assert one.histogram.edges[0] <= min(rewards) and one.histogram.edges[-1] >= max(rewards)


def test_environments_are_judged_apart(tmp_path):
    found = profiled(tmp_path, [row(0, 0, 1, "a", "x"), row(0, 0, 100, "b", "y"), row(0, 1, -100, "c", "y")])
    assert {one.name: one.reward_kind for one in found.environments} == {"x": "constant", "y": "unbounded"}


def test_metrics_have_all_their_statistics(tmp_path):
    values = [0.25, 0.75, 1.0]
    rows = [row(i, 0, 1, "a", score=v, ok=i == 0, reward_components={"f": v}) for i, v in enumerate(values)]
    found = profiled(tmp_path, rows)
    score = found.metrics["score"]
    assert (score.count, score.min, score.median, score.max) == (3, 0.25, 0.75, 1.0)
    assert score.mean == pytest.approx(2 / 3) and score.std == pytest.approx(0.381881, abs=1e-6)
    assert found.metrics["ok"].mean == pytest.approx(1 / 3)
    assert found.environments[0].components == ("f",)


def test_rows_without_a_chat_form_are_named(tmp_path):
    hosted = row(1, 0, 1, "a")
    hosted["response"]["output"].insert(0, {"type": "web_search_call", "id": "w", "status": "completed"})
    checked = profiled(tmp_path, [row(0, 0, 1, "a"), hosted]).checked
    assert (checked.rows, checked.of, checked.trainable) == (2, 2, 1)
    assert checked.problems == {"unsupported_item": 1}


def test_a_large_table_is_sampled(tmp_path):
    found = profiled(tmp_path, [row(i, 0, 1, "a") for i in range(CHECKED_ROWS + 1)])
    assert found.checked.of == CHECKED_ROWS + 1 and found.checked.rows == CHECKED_ROWS // 2 + 1


def test_nothing_usable(tmp_path):
    found = profiled(tmp_path, [row(0, 0, None, "a")])
    assert (found.rows_read, found.rows_kept, found.dropped) == (1, 0, {"reward_null": 1})
    assert found.environments == () and found.checked.rows == 0


def test_real_run(shared, tmp_path):
    (one,) = profile(_ingested(shared / "live" / "rg", tmp_path)).environments
    assert (one.tasks, one.dpo_pairs, one.histogram.counts[-1]) == (200, 175, 409)


def _ingested(path, out):
    return ingest([path], out)
