"""Fixtures for all tests: no network, no telemetry, a cache of their own, and one Prefect server when asked for."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job is deaf to SIGINT, and so are its children; some tests send it to theirs.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, so that what fails was broken by a change; `--hypothesis-profile explore` looks for
# new ones. Neither depends on how busy the machine is.
hypothesis.settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
hypothesis.settings.register_profile("explore", hypothesis.settings.get_profile("same"), derandomize=False)
hypothesis.settings.load_profile("same")

_STARTED = time.monotonic()
_LAST = {"test_kills.py", "test_deployments.py", "test_learning.py"}  # their tests take minutes each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where time is limited, the tests that take most of it come last, so that few are left out for them."""
    if "GRISTMILL_LIVE_SECONDS" in os.environ:
        items.sort(key=lambda item: item.path.name in _LAST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Live tests that would begin after GRISTMILL_LIVE_SECONDS of the session are skipped, and say so."""
    limit = float(os.environ.get("GRISTMILL_LIVE_SECONDS", "inf"))
    if item.get_closest_marker("live") and time.monotonic() - _STARTED > limit:
        pytest.skip(f"not begun: the session's {limit:g} seconds for live tests are up")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real rollouts beside the checkout, where there are some."""
    path = Path(__file__).resolve().parents[2] / "shared" / "rollouts"
    if not path.is_dir():
        pytest.skip("no ../shared/rollouts here")
    return path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prefect server with its database in memory; settings of this process point to it."""
    from flows.server import EmbeddedServer

    home = tmp_path_factory.mktemp("prefect")
    os.environ["PREFECT_HOME"] = str(home)
    server = EmbeddedServer(home)
    try:
        server.wait()
        from prefect.settings import (
            PREFECT_API_URL,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY,
            PREFECT_LOGGING_TO_API_ENABLED,
            temporary_settings,
        )

        settings = {
            PREFECT_API_URL: server.url,
            PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None,
            PREFECT_LOGGING_TO_API_ENABLED: False,
        }
        with temporary_settings(settings):
            yield server.url
    finally:
        server.stop()


# ---- buckets


@pytest.fixture(scope="session")
def s3() -> Iterator[int]:
    """The port of an S3 server with a bucket `bucket`."""
    pytest.importorskip("moto")
    from tests import buckets

    with buckets.s3() as port:
        yield port


@pytest.fixture(scope="session")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an Azure server with a container `bucket`."""
    from tests import buckets

    with buckets.azure(tmp_path_factory.mktemp("azurite")) as port:
        yield port


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of Ceph's S3 server with a bucket `bucket`."""
    from tests import ceph

    with ceph.s3(tmp_path_factory.mktemp("ceph")) as served:
        yield served.port


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a program for which `gs://bucket` is there."""
    from tests import gcs

    with gcs.gs(tmp_path_factory.mktemp("google")) as environment:
        yield environment


# What the live ones need is fetched once, up to 66 MB.
STORES = ["memory", "s3", *(pytest.param(name, marks=pytest.mark.live) for name in ("azure", "gateway", "google"))]


@pytest.fixture(params=STORES)
def bucket_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A URL in each kind of store, nothing under it yet, which this process may use."""
    from tests import buckets

    monkeypatch.setenv("GRISTMILL_REMOTE_PATIENCE", "5")
    if request.param == "memory":
        return f"memory://{tmp_path.name}"
    served = request.getfixturevalue(request.param)
    scheme, environment = {
        "azure": lambda: ("az", buckets.azure_environment(served)),
        "google": lambda: ("gs", served),
    }.get(request.param, lambda: ("s3", buckets.s3_environment(served)))()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return f"{scheme}://bucket/{tmp_path.name}"
