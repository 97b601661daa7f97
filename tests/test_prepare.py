"""prepare: from rollout files to a folder that a trainer reads, or one sentence and an exit code."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

from gristmill.dataset import provenance
from gristmill.errors import GateError, RecipeError, UsageError
from gristmill.prepare import MANIFEST, launch_values, prepare
from gristmill.prepare_command import Options, read_arguments, read_tasks
from gristmill.recipe import build
from tests.rows import rollout, write


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        rollout(f"answer {i}", task=i // 4, repeat=i % 4, reward=[1.0, 0.0, 0.5, 1.0][i % 4], accuracy=float(i % 2))
        for i in range(80)
    ]
    rows.append(rollout("cut", task=90, truncated=True))
    rows.append(rollout("failed", task=91, exception_type="RuntimeError"))
    return write(tmp_path / "rollouts.jsonl", rows)


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object) -> Done:
    """The command, in this process."""
    from gristmill import cli

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gristmill", "prepare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
            sys.exit(0)
    code = ended.value.code
    return Done(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def recipe(**format: Any) -> Any:
    return build({"format": {"target": "trl-jsonl", **format}, "checks": {"min_examples": 1}})


def test_the_command_says_what_came_of_every_row(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gristmill", "prepare", str(file), "--method", "dpo", "--target", "trl"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--json"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = orjson.loads(done.stdout)
    assert told["rows_read"] == told["rows_kept"] + sum(told["dropped"].values()) == 82
    assert told["examples"] == told["train"] + told["validation"] == 20
    assert told["dropped"] == {"failure": 1, "not_paired": 40, "truncated": 1}
    assert told["export"] == str(tmp_path / "out") and (tmp_path / "out" / "dpo.yaml").is_file()


def test_without_json_it_is_said_in_words(file: Path, tmp_path: Path) -> None:
    done = run(file, "--out", tmp_path / "out", "--target", "trl-jsonl")
    assert done.returncode == 0, done.stderr
    assert "40 rows for trl-jsonl, sft" in done.stdout and "below reward" in done.stdout
    assert "README.md" in done.stdout


def test_the_manifest_holds_for_every_file(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([file], recipe(validation=0.2), out)
    manifest = orjson.loads((out / MANIFEST).read_bytes())
    (given,) = manifest["inputs"]
    assert given == {
        "name": "rollouts.jsonl",
        "bytes": file.stat().st_size,
        "rows": 82,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    held = {entry["name"]: entry["sha256"] for entry in manifest["files"]}
    assert held == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.name != MANIFEST
    }
    assert {"train.jsonl", "validation.jsonl", "provenance.parquet", "README.md", "train.py"} <= set(held)
    assert manifest["settings"]["format"]["validation"] == 0.2 and manifest["counts"]["rewards"]["histogram"]
    assert str(tmp_path) not in (out / MANIFEST).read_text()


def test_equal_input_gives_an_equal_folder(file: Path, tmp_path: Path) -> None:
    for name, workers in (("a", 1), ("b", 2)):
        prepare([file], recipe(method="dpo", target="trl", validation=0.2), tmp_path / name, workers=workers)
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert a == b


def test_a_compressed_copy_gives_the_same_rows(file: Path, tmp_path: Path) -> None:
    import gzip

    packed = tmp_path / "rollouts.jsonl.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    for name, source in (("a", file), ("b", packed)):
        prepare([source], recipe(), tmp_path / name)
    # the task keys differ: they are of a run, and a run is a file by its bytes
    a, b = (
        [{**orjson.loads(line), "meta": None} for line in (tmp_path / name / "train.jsonl").read_bytes().splitlines()]
        for name in "ab"
    )
    assert a == b
    assert provenance(tmp_path / "b", 0)[0].source == "rollouts.jsonl.gz"


# ---- where it goes


def test_an_earlier_export_is_replaced_only_if_asked(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare([file], recipe(), out)
    with pytest.raises(UsageError, match="holds an export already; name another folder, or replace it with --force"):
        prepare([file], recipe(), out)
    prepare([file], recipe(method="dpo"), out, force=True)
    assert b'"chosen"' in (out / "train.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "rollouts.jsonl"}


def test_what_is_not_ours_is_never_touched(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    for out in (tmp_path / "mine", file):
        with pytest.raises(UsageError, match=r"other things than an export|is not a folder"):
            prepare([file], recipe(), out, force=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"


def test_a_check_that_fails_leaves_nothing(file: Path, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="GM102 too few examples"):
        prepare([file], build({"format": {"target": "trl-jsonl"}, "checks": {"min_examples": 1000}}), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"rollouts.jsonl"}
    assert run(file, "-o", tmp_path / "out", "checks.min_examples=1000").returncode == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope.jsonl", "-o", "out"], "no such file"),
        (["{file}"], "name a folder for the export with --out"),
        (["{file}", "-o", "out", "--target", "tlr"], "no target is called 'tlr'; did you mean 'trl'"),
        (["{file}", "-o", "out", "--method", "ppo"], "format.method"),
        (["{file}", "-o", "out", "--method", "rl", "--target", "trl"], "does not take the method rl"),
        (["{file}", "-o", "out", "--method", "rl", "--target", "gym", "--min-reward", "1"], "says nothing about"),
        (["{file}", "-o", "out", "--min-reward", "much"], "--min-reward is a number or none"),
        (["{file}", "-o", "out", "--max-tokens", "100"], "needs format.tokenizer"),
        (["{file}", "-o", "out", "--tokenizer", "nope"], "neither smollm2-135m"),
        (["{file}", "-o", "out", "--where", "acuracy > 0"], "acuracy"),
        (["{file}", "-o", "out", "format.mehtod=dpo"], "did you mean `method`"),
        (["{file}", "-o", "out", "--method", "dpo", "curate.min_reward=1"], "must be null"),
        (["-o", "out", "format.method=dpo"], "no rollout files and no recipe"),
    ],
)
def test_wrong_use_is_one_sentence(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*[one.format(file=file) for one in arguments])
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# ---- options


def test_options_are_recipe_fields(file: Path) -> None:
    def asked(options: Options, *more: str) -> Any:
        return read_arguments([str(file), *more], options).recipe

    assert asked(Options()).format.validation == 0.05 and asked(Options()).checks.min_examples == 1
    assert asked(Options(min_reward="0.5")).curate.min_reward == 0.5
    assert asked(Options(min_reward="none")).curate.min_reward is None
    assert asked(Options(method="dpo", min_reward="0.5", per_task=2)).format.pairs.min_chosen == 0.5
    assert asked(Options(method="dpo", per_task=2)).format.pairs.per_task == 2
    assert asked(Options(per_task=2)).curate.per_task == 2
    assert asked(Options(min_reward="3"), "format.method=kto").format.label_threshold == 3.0
    assert asked(Options(where=["reward > 0", "turns = 1"])).curate.where == ("reward > 0", "turns = 1")
    assert asked(Options(seed=1), "seed=2").seed == 2  # what stands as key=value comes last
    assert launch_values(asked(Options(model="m"), "train.epochs=3")) == {"model": "m", "epochs": 3.0, "seed": 0}
    limited = Options(tokenizer="tiny-random", max_tokens=99)
    assert launch_values(asked(limited)) == {"max_length": 99, "seed": 0}
    assert launch_values(asked(limited, "train.max_length=50")) == {"max_length": 50, "seed": 0}


def test_a_recipe_names_its_files(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"rollouts: [{file}]\nformat: {{method: kto}}\n")
    request = read_arguments([str(path), "seed=4"], Options(min_reward="0.5"))
    assert (request.path, request.files) == (path, (str(file),))
    assert request.recipe.format.label_threshold == 0.5 and request.recipe.seed == 4
    assert read_arguments([str(path), "other.jsonl"], Options()).files == ("other.jsonl",)
    with pytest.raises(UsageError, match="one recipe at a time"):
        read_arguments([str(path), "b.yaml"], Options())


def test_explain_says_what_each_condition_costs(file: Path) -> None:
    done = run(file, "--explain", "--where", "accuracy = 1", "--json")
    assert done.returncode == 0, done.stderr
    told = orjson.loads(done.stdout)
    assert told["rows"] == 81 and "accuracy = 1" in {step["rule"] for step in told["steps"]}


def test_a_reviews_rejections_are_left_out(file: Path, tmp_path: Path) -> None:
    prepare([file], recipe(), tmp_path / "all")
    first = provenance(tmp_path / "all", 0)[0].rollout_id
    done = prepare([file], recipe(), tmp_path / "less", decisions={first: "reject"})
    assert done.counts["dropped"]["review_rejected"] == 1


def test_leaks_stop_it(file: Path, tmp_path: Path) -> None:
    tasks = write(tmp_path / "eval.jsonl", [{"responses_create_params": {"input": "question 3?"}}])
    with pytest.raises(GateError, match="GM5"):
        prepare([file], recipe(), tmp_path / "out", evaluation=read_tasks(tasks))
    assert run(file, "-o", tmp_path / "out", "--against", tasks).returncode == 3


def test_the_flow_makes_the_same_data_and_caches(file: Path, tmp_path: Path, prefect_server: str) -> None:
    from flows.prepare import prepare as flow
    from gristmill.prepare import publish_run
    from gristmill.workspace import Workspace

    settings = recipe(method="dpo", validation=0.2)
    place = Workspace(tmp_path / "workspace")
    runs = [flow(settings, str(place.root), files=[str(file)]) for _ in range(2)]
    assert runs[0] == runs[1]
    journal = (place.root / "journal.jsonl").read_text().splitlines()
    assert [orjson.loads(line)["cached"] for line in journal] == [False] * 4 + [True] * 4
    made = runs[0]
    publish_run(place.store, made.table, made.dataset, made.report, tmp_path / "a", settings)
    prepare([file], settings, tmp_path / "b")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert set(a) == set(b)
    assert [name for name in a if a[name] != b[name]] in ([], [MANIFEST])


def test_the_flow_waits_for_its_review(
    file: Path, tmp_path: Path, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody watches, so it ends with the sentence; decided, the same run goes on without what was rejected."""
    from flows.prepare import prepare as flow
    from gristmill.decisions import FILE
    from gristmill.workspace import Workspace

    monkeypatch.setenv("GRISTMILL_REVIEW_WAIT", "0")
    asking = ["curate.min_reward=null", "review.required=true", "review.low=0", "review.middle=0", "review.high=1"]
    settings = build({"name": "p", "checks": {"min_examples": 1}}, asking)
    place = Workspace(tmp_path / "workspace")
    with pytest.raises(GateError, match="1 of 1 undecided; run `gristmill review p"):
        flow(settings, str(place.root), files=[str(file)])
    command = [sys.executable, "-m", "gristmill", "review", "p", "-w", str(place.root), "--reviewer", "ada"]
    sheet = tmp_path / "sheet.jsonl"
    subprocess.run([*command, "--export", str(sheet)], check=True, capture_output=True)
    (row,) = [orjson.loads(line) for line in sheet.read_bytes().splitlines()]
    sheet.write_bytes(orjson.dumps({**row, "decision": "reject"}))
    subprocess.run([*command, "--import", str(sheet)], check=True, capture_output=True)
    made = flow(settings, str(place.root), files=[str(file)])
    manifest = place.store.manifest(made.selection)
    assert manifest.counts["dropped"]["review_rejected"] == 1
    (decisions,) = [parent for parent in manifest.parents if parent.kind == "decisions"]
    assert row["rollout_id"].encode() in (place.store.path(decisions) / FILE).read_bytes()


@pytest.mark.parametrize("format", [{"method": "rl", "target": "gym"}, {"target": "verl"}, {"token_ids": True}])
def test_the_loop_refuses_what_its_trainer_cannot_read(format: dict[str, Any]) -> None:
    from flows.iterate import require_trainable

    require_trainable(build({}))
    with pytest.raises(RecipeError, match=r"train.trainer trl trains by .* and the recipe's format is"):
        require_trainable(build({"format": format}))
