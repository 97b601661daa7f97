"""Duplicates, lengths, caps, balance and review decisions: the same as plain Python would choose, in any order."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gristmill.balance import quotas
from gristmill.curate import SELECTION, curate
from gristmill.errors import ArtifactDamaged, RecipeError, UsageError
from gristmill.recipe import BalanceRecipe, CurateRecipe, build
from tests.rows import rollout, table


def select(
    folder: Path, rows: list[dict[str, Any]], decisions: dict[int, str] | None = None, seed: int = 0, **recipe: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Selection and counts; `decisions` by row number."""
    files, counts = table(folder, rows)
    said: dict[str, str] = {}
    if decisions:
        ids = [row["rollout_id"] for row in pq.read_table(files[0], columns=["rollout_id"]).to_pylist()]
        said = {ids[number]: decision for number, decision in decisions.items()}
    found = curate([files], [counts], CurateRecipe(**recipe), folder, decisions=said, seed=seed)
    return pq.read_table(folder / SELECTION).to_pylist(), found


def fates(selection: list[dict[str, Any]]) -> list[str | None]:
    return [row["reason"] for row in selection]


# ---- rules


def test_each_condition_has_its_own_line_and_drops_its_own_rows(tmp_path: Path) -> None:
    rows = [
        rollout("good", accuracy=1.0),
        rollout("wrong", task=1, accuracy=0.0),
        rollout("unsure", task=2),
        rollout("a very long answer", task=3, accuracy=1.0),
    ]
    selection, counts = select(tmp_path, rows, where="reward >= 0.5 and accuracy = 1", max_chars=20)
    assert fates(selection) == [None, "filtered", "filtered", "over_length"]
    assert [row["rule"] for row in selection] == [
        None,
        "accuracy = 1",
        "accuracy = 1",
        "prompt_chars + answer_chars <= 20",
    ]
    told = {step["rule"]: step for step in counts["rules"]}
    assert told["accuracy = 1"] == {
        "rule": "accuracy = 1",
        "origin": "where",
        "reason": "filtered",
        "before": 4,
        "dropped": 2,
        "alone": 2,
        "only": 2,
        "unknown": 1,
    }
    assert counts["warnings"] == [
        "`reward >= 0.5` (where) is true for every rollout, so it does nothing",
        "`accuracy = 1` (where) is unknown (null) for 1 of 4 rollouts, and drops them; "
        "write `(accuracy = 1) IS NOT FALSE` to keep them",
    ]


def test_a_condition_that_no_rollout_meets_is_told(tmp_path: Path) -> None:
    _, counts = select(tmp_path, [rollout("a"), rollout("b", repeat=1)], where="turns > 5")
    assert counts["warnings"] == ["`turns > 5` (where) is true for no rollout, so it drops all 2"]


def test_a_condition_that_fails_on_a_row_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"curate.where: 'level::INT > 1' cannot be used: Conversion Error"):
        select(tmp_path, [rollout("a", level="x")], where=["turns > 0", "level::INT > 1"])


def test_presets_stand_as_their_conditions(tmp_path: Path) -> None:
    rows = [rollout("a", reward=0.96), rollout("b", repeat=1, reward=0.8)]
    selection, counts = select(tmp_path, rows, preset=["sft-strict", "has-signal"])
    assert fates(selection) == [None, "filtered"]
    assert [(s["rule"], s["origin"]) for s in counts["rules"][1:3]] == [
        ("reward >= 0.95", "preset sft-strict"),
        ("task_min < task_max", "preset has-signal"),
    ]
    asked = orjson.loads((tmp_path / "rules.json").read_bytes())
    assert {"rule": "reward >= 0.95", "origin": "preset sft-strict"} in asked["rules"]
    assert asked["settings"]["preset"] == ["sft-strict", "has-signal"]


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ({}, 1.0),
        ({"where": "turns > 1"}, 1.0),
        ({"where": "turns > 1 and reward > 0"}, None),
        ({"where": ["reward_scaled > 0.5"]}, None),
        ({"preset": "sft-lenient"}, None),
        ({"preset": "tool-use"}, 1.0),
        ({"preset": "sft-lenient", "min_reward": 0.9}, 0.9),
    ],
)
def test_the_default_threshold_steps_aside_for_one_of_the_users_own(given: dict[str, Any], left: float | None) -> None:
    recipe = build({"curate": given}).curate
    assert recipe.min_reward == left
    assert CurateRecipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"preset": "sft-strct"}, "did you mean sft-strict"),
        ({"balance": {"by": "agent"}}, "either `cap` or `weights`"),
        ({"balance": {"by": "agent", "weights": {"a": 0}}}, "one is more than 0"),
        ({"max_tokens": 10}, "go together"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        build({"curate": given})


# ---- review


def test_rejected_rows_go_and_accepted_ones_come_first(tmp_path: Path) -> None:
    rows = [rollout(text, repeat=n) for n, text in enumerate(["short", "a bit longer", "the longest of all", "no"])]
    decisions = {0: "reject", 2: "accept"}
    selection, counts = select(tmp_path, rows, decisions, per_task=1)
    assert fates(selection) == ["review_rejected", "over_task_cap", None, "over_task_cap"]
    assert counts["decisions"] == {"accept": 1, "reject": 1}
    again, _ = select(tmp_path / "only", rows, decisions, where="decision = 'accept'")
    assert fates(again) == ["review_rejected", "filtered", None, "filtered"]


# ---- duplicates


def test_a_duplicate_names_the_rollout_that_was_kept(tmp_path: Path) -> None:
    rows = [rollout(" same ", repeat=0), rollout("same", repeat=1), rollout("Same", repeat=2)]
    selection, _ = select(tmp_path, rows)
    kept = next(row for row in selection[:2] if row["reason"] is None)
    gone = next(row for row in selection[:2] if row["reason"] is not None)
    assert (gone["reason"], gone["twin"]) == ("duplicate_answer", kept["rollout_id"])
    assert selection[2]["reason"] is None  # case is content: code and formulas differ by it


WORDS = ("mill", "grinds", "slowly", "exceedingly", "fine", "what", "was", "put", "into", "it", "yesterday")


def long_text(seed: int, changed: int = 0) -> str:
    draw = random.Random(seed)
    words = [draw.choice(WORDS) + str(draw.randrange(50)) for _ in range(200)]
    for at in range(changed):
        words[at * 40] = "changed"
    return " ".join(words)


def test_near_duplicates_across_tasks(tmp_path: Path) -> None:
    rows = [
        rollout(long_text(1), task=0, question="q"),
        rollout(long_text(1, changed=2).upper() + " !", task=1, question="q"),  # case and punctuation do not count
        rollout(long_text(1, changed=1), task=0, repeat=1, question="q"),  # of the same task: not compared
        rollout(long_text(2), task=2, question="q"),
        rollout("", task=3, question="q", output=[{"type": "function_call", "name": "f", "arguments": "{"}]),
    ]
    selection, counts = select(tmp_path, rows, near_duplicates=0.8)
    gone = [row for row in selection if row["reason"] == "near_duplicate"]
    kept = {row["rollout_id"] for row in selection if row["reason"] is None}
    assert gone
    assert all(row["twin"] in kept for row in gone)
    assert {row["at_row"] for row in gone} in ({1}, {0, 2})
    assert [row["reason"] for row in selection[3:]] == [None, None]
    assert counts["rows_kept"] + sum(counts["dropped"].values()) == 5
    shuffled, _ = select(tmp_path / "other", rows[::-1], near_duplicates=0.8)
    assert {row["rollout_id"] for row in shuffled if row["reason"] is None} == kept
    apart, _ = select(tmp_path / "strict", rows, near_duplicates=1.0)
    assert "near_duplicate" not in fates(apart)


def test_alike_is_measured_as_plain_python_would(tmp_path: Path) -> None:
    import rensa

    def runs(text: str) -> set[str]:
        words = text.split()
        return {" ".join(words[at : at + 5]) for at in range(len(words) - 4)}

    for changed in range(5):
        one, two = runs(long_text(3)), runs(long_text(3, changed))
        exact = len(one & two) / len(one | two)
        first, second = rensa.RMinHash.from_token_sets([sorted(one), sorted(two)], 128, 1)
        assert first.jaccard(second) == pytest.approx(exact, abs=0.13)  # three standard errors


def test_texts_in_scripts_without_spaces_and_short_ones(tmp_path: Path) -> None:
    chinese = "磨坊慢慢地转但是磨得非常细而且昨天放进去的东西今天就会出来" * 3
    rows = [
        rollout(chinese, task=0, question="甲"),
        rollout(chinese + "完", task=1, question="甲"),
        rollout("4", task=2, question="2 + 2"),
        rollout("5", task=3, question="2 + 3"),
    ]
    selection, _ = select(tmp_path, rows, near_duplicates=0.8)
    assert Counter(fates(selection)) == {None: 3, "near_duplicate": 1}
    assert [row["reason"] for row in selection[2:]] == [None, None]


# ---- lengths


def test_length_in_tokens_of_the_rendered_conversation(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    rows = [rollout("x" * n, task=n) for n in (10, 400)]
    selection, counts = select(tmp_path, rows, max_tokens=200, tokenizer="tiny-random")
    assert fates(selection) == [None, "over_length"]
    assert selection[1]["rule"] == "at most 200 tokens (tiny-random)"
    assert counts["dropped"] == {"over_length": 1}
    with pytest.raises(UsageError, match="no/such/folder"):
        select(tmp_path / "again", rows, max_tokens=200, tokenizer="no/such/folder")


def test_a_row_over_the_limit_leaves_its_place_to_another(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    rows = [rollout("é" * 300, repeat=0), rollout("x" * 310, repeat=1)]  # é is two tokens here
    selection, _ = select(tmp_path, rows, max_tokens=450, tokenizer="tiny-random", per_task=1)
    assert fates(selection) == ["over_length", None]


# ---- balance


def by_agent(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [
        rollout(f"{agent} {n}", task=n, agent_ref={"name": agent})
        for agent, many in counts.items()
        for n in range(many)
    ]


def test_a_cap_on_each_category(tmp_path: Path) -> None:
    selection, counts = select(tmp_path, by_agent({"a": 7, "b": 2}), balance={"by": "agent", "cap": 3})
    assert counts["balance"] == {"a": {"before": 7, "kept": 3}, "b": {"before": 2, "kept": 2}}
    assert fates(selection).count("balanced_out") == 4
    assert {row["rule"] for row in selection} == {None, "balanced by agent, at most 3 each"}


def test_balance_by_an_expression_and_by_what_some_rows_lack(tmp_path: Path) -> None:
    rows = [rollout(str(n), task=n, **({"level": f"L{n % 2}"} if n < 6 else {})) for n in range(9)]
    _, counts = select(tmp_path, rows, balance={"by": "level", "weights": {"L0": 1, "L1": 0.5, "(none)": 0}})
    assert {name: one["kept"] for name, one in counts["balance"].items()} == {"(none)": 0, "L0": 3, "L1": 1}
    _, counts = select(tmp_path / "two", rows, balance={"by": "task_index >= 5", "cap": 1})
    assert {name: one["kept"] for name, one in counts["balance"].items()} == {"false": 1, "true": 1}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1),
    st.lists(st.sampled_from([0.1, 0.3, 1, 2, 2.5]), min_size=4, max_size=4),
)
def test_weights_are_kept_as_well_as_whole_numbers_can(available: dict[str, int], weights: list[float]) -> None:
    shares = dict(zip("abcd", weights, strict=True))
    recipe = BalanceRecipe(by="x", weights={name: share for name, share in shares.items() if name in available})
    found = quotas(available, recipe)
    assert all(found[name] <= available[name] for name in available)
    scarcest = min(available[name] / shares[name] for name in available)
    assert all(abs(found[name] - shares[name] * scarcest) <= 1 for name in available)
    assert any(found[name] == available[name] for name in available)


def test_a_category_without_a_weight_or_a_weight_without_a_category_is_an_error(tmp_path: Path) -> None:
    rows = by_agent({"a": 3, "b": 2})
    with pytest.raises(RecipeError, match=r"has none for b of agent.*_default.*a \(3\), b \(2\)"):
        select(tmp_path / "1", rows, balance={"by": "agent", "weights": {"a": 1}})
    with pytest.raises(RecipeError, match=r"names c, which no rollout has"):
        select(tmp_path / "2", rows, balance={"by": "agent", "weights": {"_default": 1, "c": 1}})
    with pytest.raises(RecipeError, match=r"curate.balance.by: 'agnt' cannot be used.*did you mean agent"):
        select(tmp_path / "3", rows, balance={"by": "agnt", "cap": 1})


def test_the_draw_is_the_seeds_and_more_rows_change_little(tmp_path: Path) -> None:
    balance = {"by": "agent", "cap": 20}

    def drawn(name: str, rows: list[dict[str, Any]], seed: int) -> set[str]:
        selection, _ = select(tmp_path / name, rows, seed=seed, balance=balance)
        return {row["rollout_id"] for row in selection if row["reason"] is None}

    rows = by_agent({"a": 110})
    first = drawn("1", rows[:100], 0)
    assert drawn("2", rows[:100][::-1], 0) == first
    assert drawn("3", rows[:100], 1) != first
    assert len(drawn("4", rows, 0) & first) >= 14  # about 18 of 20 are expected to stay


# ---- all together, against plain Python

many_rows = st.lists(
    st.builds(
        rollout,
        st.sampled_from(["a", "b", " b", "ccc", "dddd"]),
        task=st.integers(0, 2),
        repeat=st.integers(0, 9),
        reward=st.sampled_from([0.0, 0.5, 1.0, None]),
        truncated=st.booleans(),
        agent_ref=st.sampled_from([{"name": "x"}, {"name": "y"}]),
        accuracy=st.sampled_from([0.0, 1.0]),
    ),
    min_size=1,
    max_size=30,
)
recipes = st.fixed_dictionaries(
    {
        "min_reward": st.sampled_from([None, 0.5, 1.0]),
        "where": st.sampled_from([(), "accuracy = 1", "accuracy = 1 and task_mean > 0.3"]),
        "keep_truncated": st.booleans(),
        "deduplicate": st.booleans(),
        "per_task": st.sampled_from([None, 1, 2]),
        "balance": st.sampled_from([None, {"by": "agent", "cap": 2}, {"by": "agent", "weights": {"_default": 1}}]),
    }
)
judgements = st.dictionaries(st.integers(0, 29), st.sampled_from(["accept", "reject"]), max_size=6)


def plainly(rows: list[dict[str, Any]], recipe: dict[str, Any], said: dict[str, str], seed: int) -> set[str]:
    """What a person would write: one row at a time."""
    usable, seen = [], set()
    for row in rows:
        line = orjson.dumps(row)
        one = (row["agent_ref"]["name"], row["_ng_task_index"], row["_ng_rollout_index"])
        if row["reward"] is None or one in seen:
            continue
        seen.add(one)
        text = row["response"]["output"][0]["content"][0]["text"].strip()
        usable.append({"row": row, "line": line, "task": one[:2], "text": text, "agent": one[0]})
    means = {u["task"]: [v["row"]["reward"] for v in usable if v["task"] == u["task"]] for u in usable}
    left = [
        u
        for u in usable
        if (recipe["keep_truncated"] or u["row"]["response"]["incomplete_details"] is None)
        and said.get(identity(u["line"])) != "reject"
        and (recipe["min_reward"] is None or u["row"]["reward"] >= recipe["min_reward"])
        and ("accuracy" not in recipe["where"] or u["row"]["accuracy"] == 1)
        and ("task_mean" not in recipe["where"] or sum(means[u["task"]]) / len(means[u["task"]]) > 0.3)
    ]
    left.sort(key=lambda u: (said.get(identity(u["line"])) != "accept", len(u["text"]), identity(u["line"])))
    kept: list[dict[str, Any]] = []
    for u in left:
        mates = [v for v in kept if v["task"] == u["task"]]
        if recipe["deduplicate"] and any(v["text"] == u["text"] for v in mates):
            continue
        if recipe["per_task"] is None or len(mates) < recipe["per_task"]:
            kept.append(u)
    if recipe["balance"]:
        agents = Counter(u["agent"] for u in kept)
        most = recipe["balance"].get("cap") or min(agents.values(), default=0)

        def draw(u: dict[str, Any]) -> tuple[bool, int]:
            accepted = said.get(identity(u["line"])) == "accept"
            return not accepted, int.from_bytes(
                hashlib.md5(f"{seed}:{identity(u['line'])}".encode()).digest(), "little"
            )

        kept = [u for agent in agents for u in sorted((v for v in kept if v["agent"] == agent), key=draw)[:most]]
    return {identity(u["line"]) for u in kept}


def identity(line: bytes) -> str:
    from gristmill.identity import fingerprint

    return fingerprint(line)


@given(many_rows, recipes, judgements, st.integers(0, 3))
@settings(max_examples=40, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
def test_the_same_is_chosen_as_by_plain_python(
    rows: list[dict[str, Any]], recipe: dict[str, Any], judged: dict[int, str], seed: int
) -> None:
    with TemporaryDirectory() as name:
        decisions = {n: said for n, said in judged.items() if n < len(rows)}
        selection, counts = select(Path(name), rows, decisions, seed, **recipe)
    assert counts["rows_read"] == len(rows) == counts["rows_kept"] + sum(counts["dropped"].values())
    said = {identity(orjson.dumps(rows[n])): decision for n, decision in decisions.items()}
    chosen = [row["rollout_id"] for row in selection if row["reason"] is None]
    assert set(chosen) == plainly(rows, recipe, said, seed)
    assert len(chosen) == len(set(chosen))


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    rows = [
        rollout(str(n % 7), task=n % 5, repeat=n, reward=n % 3 / 2, agent_ref={"name": f"a{n % 2}"}) for n in range(60)
    ]
    recipe = {"where": "task_mean > 0.1", "balance": {"by": "agent", "cap": 4}, "near_duplicates": 0.9}
    for name in ("1", "2"):
        select(tmp_path / name, rows, {3: "accept"}, **recipe)
    for file in (SELECTION, "rules.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_a_table_without_a_usable_row(tmp_path: Path) -> None:
    selection, counts = select(
        tmp_path,
        [rollout(reward=None)],
        where="task_mean > 0 and accuracy = 1",
        balance={"by": "agent", "cap": 1},
        near_duplicates=0.8,
    )
    assert selection == []
    assert (counts["rows_read"], counts["rows_kept"], counts["dropped"]) == (1, 0, {"reward_null": 1})
    assert counts["rewards"]["mean"] is None


@pytest.mark.parametrize("name", ["it's", "a[1]b", "q?y", "white space é"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    _, counts = select(tmp_path / name, [rollout("a"), rollout("b", repeat=1)], where="task_rollouts = 2")
    assert counts["rows_kept"] == 2


def test_a_damaged_table_is_not_blamed_on_a_condition(tmp_path: Path) -> None:
    files, counts = table(tmp_path, [rollout("x" * 500, repeat=n) for n in range(50)])
    whole = files[0].read_bytes()
    for name, data in (("cut", whole[:1000]), ("changed", b"PAR1" + b"\xff" * 3000 + whole[3004:])):
        (tmp_path / name).mkdir()
        part = tmp_path / name / files[0].name
        part.write_bytes(data)
        with pytest.raises(ArtifactDamaged, match="cannot be read"):
            curate([[part]], [counts], CurateRecipe(where="turns > 0"), tmp_path)
