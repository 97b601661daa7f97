"""The embedded Prefect server: started for a run when no API is configured, quick, quiet, and never left behind.

It keeps its database in memory (a file costs a second or more a flow in lock retries), sends no analytics, and
ends with the process that started it, even by SIGKILL. Run state that outlives the run is in the workspace. The
database of a server that has just started, which takes Prefect's hundred migrations half of its start to make, is
kept in the cache folder for the next one of that version.
`prefect_api` must be entered before Prefect is imported, because Prefect reads its settings then.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path

from gristmill.cache import default_cache
from gristmill.errors import EngineError

_MEMORY = "file::memory:?cache=shared"  # one database a process, while a connection to it is open
_DATABASE = f"sqlite+aiosqlite:///{_MEMORY}&uri=true&check_same_thread=false"
_START_TIMEOUT = 120.0  # seconds; a cold import on a busy machine takes 30
_PARENT_POLL = 0.5  # seconds

_QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Stopping a server before the log handler has flushed hangs the exit for more than a minute.
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_CLI_COLORS": "false",
}


def configured_api() -> str | None:
    """The API that the user configured: environment, prefect.toml here, or the active profile."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    local = _toml(Path("prefect.toml")).get("api", {})
    if isinstance(local, dict) and local.get("url"):
        return str(local["url"])
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    profiles = _toml(home / "profiles.toml")
    active = profiles.get("profiles", {}).get(os.environ.get("PREFECT_PROFILE") or profiles.get("active", ""), {})
    url = active.get("PREFECT_API_URL")
    return str(url) if url else None


def _toml(path: Path) -> dict:  # type: ignore[type-arg]
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return {}


class EmbeddedServer:
    """A Prefect API on a loopback port, as a child process."""

    def __init__(self, home: Path) -> None:
        """Start it (without waiting); `home` is its PREFECT_HOME."""
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        environment = {
            **os.environ,
            **_QUIET,
            "PREFECT_HOME": str(home),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": _DATABASE,
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.server", str(self.port), str(os.getpid())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C ends the flow first, then `stop` ends the server
        )

    def wait(self) -> None:
        """Until it answers.

        Raises:
            EngineError: it died or did not answer in time; with its last words.
        """
        deadline = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                words = self.process.stderr.read().decode(errors="replace").strip().splitlines()
                raise EngineError(f"the embedded Prefect server did not start: {words[-1] if words else 'no message'}")
            if _answers(self.url):
                return
            time.sleep(0.05)
        raise EngineError(f"the embedded Prefect server did not answer within {_START_TIMEOUT:.0f} s")

    def stop(self) -> None:
        """End it at once: everything worth keeping is in the workspace."""
        self.process.kill()
        self.process.wait()
        if self.process.stderr:
            self.process.stderr.close()


@contextmanager
def prefect_api(home: Path) -> Iterator[EmbeddedServer | None]:
    """The configured API (yields None), or an embedded one for the duration of the block.

    Yields at once, while the server still starts: import the flows first, then `wait` for it. Prefect must not have
    been imported before the block when the server is embedded.

    Raises:
        EngineError: a configured API does not answer.
    """
    if url := configured_api():
        if not _answers(url):
            raise EngineError(f"the Prefect API at {url} does not answer; start it, or unset PREFECT_API_URL")
        yield None
        return
    home.mkdir(parents=True, exist_ok=True)
    server = EmbeddedServer(home)
    settings = {**_QUIET, "PREFECT_API_URL": server.url, "PREFECT_HOME": str(home)}
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield server
    finally:
        server.stop()
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value


def _answers(url: str) -> bool:
    """Whether an API answers at all; a server that asks for a password does."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _serve(port: int, parent: int) -> None:
    """The child: Prefect's API until the parent is gone."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
    kept = fresh_database()
    held = sqlite3.connect(_MEMORY, uri=True, check_same_thread=False)
    restored = _restore(kept, held)
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if not restored:
                _keep(held, kept)

    app = "prefect.server.api.server:create_app"
    Server(uvicorn.Config(app, factory=True, host="127.0.0.1", port=port, log_level="error")).run()


def fresh_database() -> Path:
    """Where the database of a server that has just started is kept, for this version of Prefect."""
    return default_cache() / f"prefect-{version('prefect')}.sqlite3"


def _restore(kept: Path, held: sqlite3.Connection) -> bool:
    """Whether the database now is what was kept; if that is absent or damaged, it is empty as it was."""
    try:
        with closing(sqlite3.connect(f"{kept.absolute().as_uri()}?immutable=1", uri=True)) as file:
            if file.execute("PRAGMA quick_check").fetchall() != [("ok",)]:
                return False
            if not file.execute("SELECT version_num FROM alembic_version").fetchall():
                return False
            file.backup(held)
    except sqlite3.Error:
        return False
    return True


def _keep(held: sqlite3.Connection, kept: Path) -> None:
    """Keep the database, whole or not at all; without it the next start is slower, no more."""
    with suppress(OSError, sqlite3.Error):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".prefect-") as folder:
            made = Path(folder) / kept.name
            with closing(sqlite3.connect(made)) as file:
                held.backup(file)
            made.replace(kept)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
