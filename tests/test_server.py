"""The embedded server: used when nothing is configured, gone with its parent."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from flows.server import EmbeddedServer, configured_api, fresh_database, prefect_api
from gristmill.errors import EngineError


def test_what_the_user_configured_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    assert configured_api() is None
    (tmp_path / "profiles.toml").write_text(
        'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "http://127.0.0.1:1/profile"\n'
    )
    assert configured_api() == "http://127.0.0.1:1/profile"
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:1/file"\n')
    assert configured_api() == "http://127.0.0.1:1/file"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/environment")
    assert configured_api() == "http://127.0.0.1:1/environment"
    with pytest.raises(EngineError, match="does not answer; start it, or unset"), prefect_api(tmp_path):
        pass


def test_a_killed_run_takes_its_server_with_it(tmp_path: Path) -> None:
    code = (
        "import time; from pathlib import Path; from flows.server import EmbeddedServer\n"
        f"server = EmbeddedServer(Path({str(tmp_path)!r})); server.wait()\n"
        "print(server.process.pid, server.url, flush=True); time.sleep(300)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, url = parent.stdout.readline().split()
        with urllib.request.urlopen(f"{url}/health") as answer:
            assert answer.status == 200
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        try:
            os.kill(int(pid), 0)
            gone = Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # nobody is left to reap it in a container
        except (ProcessLookupError, FileNotFoundError):
            gone = True
        if gone:
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent by ten seconds")


def test_a_fresh_database_is_made_once_and_again_when_it_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if a start does not use what the one before kept, or is stopped by what it cannot use."""
    monkeypatch.setenv("GRISTMILL_CACHE", str(tmp_path / "cache"))
    kept = fresh_database()

    def variable() -> str | None:
        server = EmbeddedServer(tmp_path)
        try:
            server.wait()
            with urllib.request.urlopen(f"{server.url}/variables/name/mark") as answer:
                return str(json.load(answer)["value"])
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return None
        finally:
            server.stop()

    assert variable() is None
    with closing(sqlite3.connect(kept)) as file, file:
        file.execute("INSERT INTO variable (id, name, value) VALUES (?, 'mark', '\"here\"')", [str(uuid4())])
    assert variable() == "here"
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    assert variable() is None
    with closing(sqlite3.connect(kept)) as file:
        assert file.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]
