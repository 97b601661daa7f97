"""Prefect's own UI, on a real server, in a real browser: the artifacts of a run are there, and drawn."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gristmill.recipe import build

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = [pytest.mark.live, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")]
SHOTS = os.environ.get("GRISTMILL_SCREENSHOTS")
"""A folder for screenshots, where somebody wants to look."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`prefect server start` as a user runs it; its root URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    environment = os.environ | {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_PORT": str(port),  # the UI asks the API there, too; `--port` alone does not tell it
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    environment.pop("PREFECT_API_URL", None)
    log = (home / "server.log").open("wb")
    process = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start"], env=environment, stdout=log, stderr=log
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{url}/api/health", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, (home / "server.log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture(scope="module")
def ran(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One turn on a tiny model, by the command line; its workspace."""
    folder = tmp_path_factory.mktemp("ran")
    values: dict[str, Any] = {
        "name": "tiny",
        "turns": 1,
        "policy": {"model": "tiny-random", "device": "cpu"},
        "environment": {"tasks": 6, "heldout": 4},
        "collect": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
        "curate": {"min_reward": None, "keep_truncated": True},
        "checks": {"min_examples": 1, "max_truncated": 1.0},
        "train": {"epochs": 2, "batch_size": 4, "lora_rank": 2},
        "evaluate": {"samples": 2, "max_new_tokens": 4, "batch_size": 4},
    }
    (folder / "tiny.yaml").write_text(build(values).yaml())
    command = [sys.executable, "-m", "gristmill", "improve", str(folder / "tiny.yaml"), "-w", str(folder / "ws")]
    for _ in range(2):  # the second finds everything in the cache, and shows it nevertheless
        done = subprocess.run(command, env=os.environ | {"PREFECT_API_URL": f"{server}/api"}, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    return folder / "ws"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


EXPECTED = {
    "samples": "details",
    "funnel": "table",
    "rewards": "img[src^='data:image/svg']",
    "dataset": "table",
    "checks": "p",
    "training": "img[src^='data:image/svg']",
    "evaluation": "img[src^='data:image/svg']",
    "gate": "table",
    "lineage": "svg[id^='mermaid'], .mermaid svg, svg[aria-roledescription^='flowchart']",
    "report": "img[src^='data:image/svg']",
}
"""Key → what must be drawn on its page."""


@pytest.mark.parametrize("key", EXPECTED)
def test_an_artifact_is_drawn(server: str, ran: Path, browser: Any, key: str) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 1400})
    page.set_default_timeout(30_000)
    page.goto(f"{server}/v2/artifacts/key/{key}")
    page.wait_for_load_state("networkidle")
    try:
        # The page of a key is its history; the newest one opens by its link.
        link = page.locator("a[href*='/artifacts/artifact/']").first
        link.wait_for()
        link.click()
        drawn = page.locator(EXPECTED[key]).first
        drawn.wait_for(state="attached")
        if key == "samples":
            page.locator("summary").first.click()
        if "img" in EXPECTED[key]:
            for one in page.locator("img[src^='data:image/svg']").all():
                assert one.evaluate("image => image.decode().then(() => image.naturalWidth)") > 100
    finally:
        if SHOTS:
            page.wait_for_timeout(500)
            page.screenshot(path=f"{SHOTS}/{key}.png", full_page=True)
        page.close()


def test_a_cached_run_shows_all_of_its_own(server: str, ran: Path) -> None:
    import json

    def ask(route: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{server}/api/{route}", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    found = ask("artifacts/filter", {"limit": 200})
    runs: dict[str, set[str]] = {}
    for one in found:
        if one["key"]:  # results are artifacts without a key
            runs.setdefault(one["flow_run_id"], set()).add(one["key"])
    flows = {run["id"]: run["name"] for run in ask("flow_runs/filter", {})}
    turns = [keys for run, keys in runs.items() if flows[run] == "tiny-turn-1"]
    assert len(turns) == 2
    assert turns[0] == turns[1] == set(EXPECTED) - {"report"}
