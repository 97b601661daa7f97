"""Sinks: what they are told, and that no sink can lose, slow or fail anything. No Prefect, no sink's library."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.errors import RecipeError, UsageError
from gristmill.recipe import Recipe, SinksRecipe, build
from gristmill.runs import recorded
from gristmill.sinks import check, configured
from gristmill.sinks.courier import couriering
from gristmill.sinks.delivery import deliver, owes, skip, standing, start_again
from gristmill.sinks.events import Position, Produced, RunEnded, RunStarted, events
from gristmill.sinks_command import run as command
from gristmill.sinks_command import settings as settings_of
from gristmill.workspace import Workspace

FOREIGN = '''
import json, os, time
from pathlib import Path

class Sink:
    """Writes ids to a file; refuses, hangs or dies as it is told."""
    def __init__(self, settings, workspace):
        self.file = Path(settings["file"])
        self.refuse = settings.get("refuse", [])
        self.hang = settings.get("hang", 0)
    def send(self, event):
        marks = self.file.with_suffix(".refused")
        times = int(marks.read_text() or 0) if marks.exists() else 0  # a kill may leave it empty
        if times < len(self.refuse) and self.refuse[times]:
            marks.write_text(str(times + 1))
            raise ConnectionError("nobody answers")
        marks.write_text(str(times + 1))
        time.sleep(self.hang)
        with self.file.open("a") as out:
            out.write(json.dumps([event.id, type(event).__name__]) + "\\n")
    def close(self):
        pass
'''


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package that offers a sink; gives the file that it writes."""
    site = tmp_path / "site"
    package = site / "tester-1.dist-info"
    package.mkdir(parents=True)
    (site / "tester_sink.py").write_text(FOREIGN)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: tester\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[gristmill.sinks]\ntester = tester_sink:Sink\n")
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return tmp_path / "told.jsonl"


def recipe(file: Path, **more: Any) -> SinksRecipe:
    return SinksRecipe(other={"tester": {"file": str(file), **more}}, patience=5)


def filled(place: Workspace, stages: int = 5, name: str = "tiny", **values: Any) -> Recipe:
    """A workspace with one run, of so many stages, each with an artifact of its own."""
    ran = build({"name": name, **values})
    with place.locked(), recorded(place, ["improve"], ran) as recording:
        for number in range(stages):
            produce(place, recording.number, number)
    return ran


def produce(place: Workspace, run: int, number: int, *, cached: bool = False) -> None:
    with place.store.draft("tasks") as draft:
        draft.write_json("tasks.json", [number])
        ref = draft.commit(stage="make-tasks", counts={"tasks": number})
    place.record({"run": run, "turn": 0, "stage": f"tasks {number}", "cached": cached, "result": str(ref)})


def told(file: Path) -> list[tuple[str, str]]:
    return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def all_events(place: Workspace) -> list[Any]:
    return [one.event for one in events(place, Position()) if one.event is not None]


def test_a_run_is_told_from_start_to_end(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    ran = filled(place, 3)
    first, *middle, last = all_events(place)
    assert isinstance(first, RunStarted) and first.recipe["turns"] == ran.turns and "sinks" not in first.recipe
    assert [(one.stage, one.manifest.counts["tasks"]) for one in middle] == [(f"tasks {n}", n) for n in range(3)]
    assert isinstance(last, RunEnded) and last.outcome == "done"
    assert len({one.id for one in (first, *middle, last)}) == 5
    assert len({one.run for one in (first, *middle, last)}) == 1


def test_a_run_with_more_sinks_is_the_same_run(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 1)
    filled(place, 1, sinks={"mlflow": {}})
    filled(place, 1, seed=1)
    runs = [one.run.key for one in all_events(place) if isinstance(one, RunStarted)]
    assert runs[0] == runs[1] != runs[2]


def test_what_is_cached_is_told_once(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 3)
    filled(place, 3)
    said = all_events(place)
    assert sum(isinstance(one, Produced) for one in said) == 3
    assert sum(isinstance(one, RunStarted | RunEnded) for one in said) == 4


def test_an_artifact_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    import shutil

    place = Workspace(tmp_path / "ws")
    filled(place, 3)
    shutil.rmtree(place.store.path(next(place.store.refs())))
    assert sum(isinstance(one, Produced) for one in all_events(place)) == 2


@settings(max_examples=25)
@given(refuse=st.lists(st.booleans(), max_size=30))
def test_whatever_a_sink_refuses_it_gets_everything_once_and_in_order(
    foreign: Path, tmp_path_factory: pytest.TempPathFactory, refuse: Sequence[bool]
) -> None:
    folder = tmp_path_factory.mktemp("ws")
    place, file = Workspace(folder / "ws"), folder / "told.jsonl"
    filled(place, 4)
    for _ in range(len(refuse) + 1):
        deliver(place, "tester", recipe(file, refuse=list(refuse)))
    assert [one for one, _ in told(file)] == [one.id for one in all_events(place)]
    assert owes(place, "tester") == 0 and standing(place, "tester").error is None


def test_a_refusal_is_remembered_and_can_be_given_up(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 3)
    ended = deliver(place, "tester", recipe(foreign, refuse=[False, False, True]))
    assert ended.sent == 2 and ended.error == "ConnectionError: nobody answers"
    assert owes(place, "tester") == 3
    assert skip(place, "tester")
    assert deliver(place, "tester", recipe(foreign)).error is None
    ids = [one.id for one in all_events(place)]
    assert [one for one, _ in told(foreign)] == [*ids[:2], *ids[3:]]
    start_again(place, "tester")
    assert deliver(place, "tester", recipe(foreign)).error is None
    assert len(told(foreign)) == 4 + 5


def test_what_comes_later_is_told_later(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 2)
    assert deliver(place, "tester", recipe(foreign)).error is None
    filled(place, 4)
    assert deliver(place, "tester", recipe(foreign)).error is None
    assert [one for one, _ in told(foreign)] == [one.id for one in all_events(place)]
    assert sum(name == "Produced" for _, name in told(foreign)) == 4


def test_a_courier_delivers_beside_the_run(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    with couriering(place, recipe(foreign)) as delivered:
        filled(place, 3)
    (one,) = delivered
    assert (one.sink, one.sent, one.owed, one.error) == ("tester", 5, 0, None)
    assert [said for said, _ in told(foreign)] == [said.id for said in all_events(place)]
    with couriering(place, recipe(foreign)) as delivered:
        pass
    assert str(delivered[0]) == "tester up to date"


def test_a_sink_that_hangs_is_left_after_the_patience(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    slow = recipe(foreign, hang=60).model_copy(update={"patience": 0.5})
    with couriering(place, slow) as delivered:
        filled(place, 2)
    (one,) = delivered
    assert one.sent == 0 and one.owed == 4
    assert "owed 4" in str(one)
    assert deliver(place, "tester", recipe(foreign)).sent == 4


def test_a_run_that_fails_is_told_and_its_error_is_the_run_s(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    with (
        pytest.raises(ZeroDivisionError),
        couriering(place, recipe(foreign, refuse=[True] * 99)) as delivered,
        place.locked(),
        recorded(place, ["improve"], build({})),
    ):
        _ = 1 / 0
    assert delivered[0].owed == 2 and delivered[0].error == "ConnectionError: nobody answers"


def test_a_killed_courier_loses_nothing(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 20)
    settings = recipe(foreign, hang=0.05).model_dump_json()
    (place.root / "sinks").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "gristmill.sinks.courier", str(place.root), settings], stdin=subprocess.PIPE
    )
    while len(told(foreign)) < 6:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdin is not None
    process.stdin.close()
    assert deliver(place, "tester", recipe(foreign)).error is None
    ids = [one for one, _ in told(foreign)]
    expected = [one.id for one in all_events(place)]
    assert list(dict.fromkeys(ids)) == expected  # nothing lost, first tellings in order
    assert len(ids) - len(expected) <= 17


def test_a_courier_goes_when_its_run_is_killed(foreign: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 1)
    code = (
        "import time; from gristmill.recipe import SinksRecipe; from gristmill.sinks.courier import couriering\n"
        "from gristmill.workspace import Workspace\n"
        f"place = Workspace({str(place.root)!r})\n"
        f"with couriering(place, SinksRecipe.model_validate_json({recipe(foreign).model_dump_json()!r})):\n"
        "    print('up', flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ)) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.send_signal(signal.SIGKILL)
    for _ in range(200):
        if len(told(foreign)) == 3 and not _held(place):
            return
        time.sleep(0.1)
    pytest.fail("the courier of a killed run is still there, or told nothing")


def _held(place: Workspace) -> bool:
    from gristmill.sinks.courier import occupied

    with occupied(place) as free:
        return not free


def test_nothing_is_started_for_no_sink(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    with couriering(place, SinksRecipe()) as delivered:
        pass
    assert delivered == [] and not place.root.exists()


def test_no_sink_is_on_by_default() -> None:
    assert configured(build({}).sinks) == ()
    assert configured(build({"sinks": {"openlineage": {}, "mlflow": {}}}).sinks) == ("mlflow", "openlineage")


def test_an_unknown_sink_is_wrong_use() -> None:
    with pytest.raises(RecipeError, match=r"no installed package offers a sink mlfow; did you mean mlflow\? there are"):
        check(SinksRecipe(other={"mlfow": {}}))


def test_a_missing_extra_is_one_sentence(tmp_path: Path) -> None:
    """In a Python that sees our library and its own requirements, but not mlflow."""
    code = (
        "import sys; sys.modules['mlflow'] = None\n"
        "from importlib.abc import MetaPathFinder\n"
        "class Hidden(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'mlflow': raise ModuleNotFoundError(name)\n"
        "del sys.modules['mlflow']; sys.meta_path.insert(0, Hidden())\n"
        "from gristmill.recipe import SinksRecipe, MlflowSinkRecipe; from gristmill.sinks import check\n"
        "check(SinksRecipe(mlflow=MlflowSinkRecipe()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "sinks.mlflow needs the package mlflow, which is not installed; install gristmill[mlflow]" in done.stderr


def test_the_command_sends_what_is_owed(foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 2, sinks={"other": {"tester": {"file": str(foreign), "refuse": [True]}}})
    command("status", [], workspace=place.root, json=False)
    assert capsys.readouterr().out == "tester       0 sent; 4 owed\n"
    with pytest.raises(SystemExit) as stopped:
        command("replay", [], workspace=place.root, json=True)
    assert stopped.value.code == 1
    (one,) = json.loads(capsys.readouterr().out)
    assert one["owed"] == 4 and one["error"] == "ConnectionError: nobody answers"
    command("replay", ["tester"], workspace=place.root, json=True)
    (one,) = json.loads(capsys.readouterr().out)
    assert (one["sent"], one["owed"], one["error"]) == (4, 0, None)


def test_the_command_s_wrong_uses(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "ws")
    filled(place, 1)
    with pytest.raises(UsageError, match="no sink is on in"):
        command("status", [], workspace=place.root, json=False)
    with pytest.raises(UsageError, match=r"no sink hub is on in .*; there are mlflow; turn it on with sinks.hub="):
        command("status", ["hub", "sinks.mlflow={}"], workspace=place.root, json=False)
    with pytest.raises(UsageError, match="only fields of `sinks`"):
        command("status", ["turns=3"], workspace=place.root, json=False)
    assert configured(settings_of(place, ["sinks.mlflow={}"])) == ("mlflow",)
