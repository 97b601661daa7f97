"""MLflow's own server, over HTTP: told while a run works, and once it is back after it was gone.

Its environment is made once with uv and kept in the cache (GRISTMILL_TEST_CACHE, else ~/.cache/gristmill-tests); where
it cannot be made the tests are skipped, and say why.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from gristmill.evaluation import read_evaluation
from gristmill.sinks.delivery import deliver, owes, standing
from gristmill.workspace import Workspace
from tests.buckets import free_port
from tests.kept import kept
from tests.test_sinks_loop import recipe as with_every_sink
from tests.test_sinks_loop import runs_of

pytest.importorskip("mlflow", reason="mlflow is not installed")
pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning"), pytest.mark.live]


def mlflow() -> Path:
    """The command of the client's own version, in an environment of its own; skips where there can be none."""
    package = f"mlflow=={version('mlflow-skinny')}"
    cache = kept()
    home = cache / package.replace("==", "-")
    command = home / "bin" / "mlflow"
    if command.exists() and subprocess.run([command, "--version"], capture_output=True).returncode == 0:
        return command
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("needs uv")
    cache.mkdir(parents=True, exist_ok=True)
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    for words in (
        [uv, "venv", "--quiet", "--no-config", "--clear", "--python", str(base), str(home)],
        [uv, "pip", "install", "--quiet", "--no-config", "--python", str(home / "bin" / "python"), package],
    ):
        environment = os.environ | {"UV_PYTHON_DOWNLOADS": "never"}
        made = subprocess.run(words, cwd=cache, env=environment, capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"{package} cannot be installed: {made.stderr.strip()[-300:]}")
    return command


class Server:
    """`mlflow server`, which keeps what it is told and sent in a folder, and can be ended and begun again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = ["server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        words += ["--backend-store-uri", f"sqlite:///{self.folder / 'server.db'}"]
        words += ["--artifacts-destination", str(self.folder / "files")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [mlflow(), *words],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 180
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)

    def stop(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)  # it forks workers
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("server"))
    found.start()
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def told(server: Server, prefect_server: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Any, Any]:
    """A workspace, its recipe, and what the run ended with."""
    from flows.improve import improve

    folder = tmp_path_factory.mktemp("told")
    told = with_every_sink(folder)
    sinks = {"mlflow": {"uri": server.url, "copy_models": True}, "patience": 120}
    asked = told.model_copy(update={"sinks": type(told.sinks).model_validate(sinks)})
    outcome = improve(asked, str(folder / "ws"))
    return Workspace(folder / "ws"), asked, outcome


@pytest.fixture
def client(server: Server) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=server.url)


def test_the_server_has_the_run_its_turns_and_the_page(told: tuple[Workspace, Any, Any], client: Any) -> None:
    place, _, outcome = told
    assert (standing(place, "mlflow").error, owes(place, "mlflow")) == (None, 0)
    assert not (place.root / "mlflow.db").exists()
    runs = runs_of(client)
    assert set(runs) == {"tiny", "base", "turn 1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    losses = place.store.manifest(outcome.turns[0].checkpoint).counts["losses"]
    history = client.get_metric_history(runs["turn 1"].info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == list(enumerate(losses, 1))
    assert [one.step for one in client.get_metric_history(runs["tiny"].info.run_id, "mean_reward")] == [0, 1]
    inputs = {one.dataset.name: one.dataset.digest for one in runs["turn 1"].inputs.dataset_inputs}
    assert inputs["tiny/format"] == outcome.turns[0].dataset.digest[:36]
    assert [one.path for one in client.list_artifacts(runs["tiny"].info.run_id)] == ["report.html"]


def test_the_server_serves_the_champion_itself(
    told: tuple[Workspace, Any, Any], client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.artifacts import download_artifacts

    place, _, outcome = told
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["gristmill.checkpoint"] == outcome.champion.digest
    assert version.source.startswith("mlflow-artifacts:")
    fetched = Path(
        download_artifacts(artifact_uri=version.source, dst_path=str(tmp_path), tracking_uri=client.tracking_uri)
    )
    for file in place.store.manifest(outcome.champion).files:
        ours = place.store.path(outcome.champion) / file.name
        assert (fetched / file.name).read_bytes() == ours.read_bytes()


def test_what_a_dead_server_missed_it_is_told_when_it_is_back(
    told: tuple[Workspace, Any, Any], server: Server, client: Any
) -> None:
    from flows.evaluate import evaluate_policies

    place, asked, outcome = told
    server.stop()
    soon = asked.model_copy(update={"sinks": asked.sinks.model_copy(update={"patience": 3.0})})
    (found,) = evaluate_policies(soon, str(place.root), [outcome.champion])  # it is none of the evaluation's business
    assert owes(place, "mlflow") > 0
    server.start()
    assert deliver(place, "mlflow", asked.sinks).error is None
    assert owes(place, "mlflow") == 0
    run = runs_of(client)[f"evaluate {outcome.champion}"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["mean_reward"] == read_evaluation(place.store, found).estimate.mean
