"""The dependency audit of `.ci/run`: what it says of a database that knows something, knows nothing, or is away."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit"
PROJECT = '[project]\nname = "x"\nversion = "0"\nrequires-python = ">=3.11"\ndependencies = ["idna"]\n'


class Database(http.server.BaseHTTPRequestHandler):
    """OSV's API, as far as `uv audit` asks: it knows of one vulnerability, in the package `bad`."""

    bad = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["queries"]
        known = [{"id": "GHSA-x", "modified": "2026-01-01T00:00:00Z"}]
        self.answer({"results": [{"vulns": known} if q["package"]["name"] == self.bad else {} for q in asked]})

    def do_GET(self) -> None:
        span = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}
        affected = [{"package": {"name": self.bad, "ecosystem": "PyPI"}, "ranges": [span]}]
        self.answer({"id": "GHSA-x", "summary": "s", "modified": "2026-01-01T00:00:00Z", "affected": affected})

    def answer(self, value: dict) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def database() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Database)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
@pytest.mark.parametrize(
    ("bad", "strict", "code", "said"),
    [
        ("idna", "", 0, "GHSA-x"),
        ("idna", "strict", 1, "GHSA-x"),
        ("another", "strict", 0, "no known vulnerability"),
        (None, "strict", 0, "not done"),
    ],
)
def test_the_audit_tells_what_is_known(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str | None, strict: str, code: int, said: str
) -> None:
    monkeypatch.setattr(Database, "bad", bad or "")
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    url = database if bad else "http://127.0.0.1:9"
    env = {
        **os.environ,
        "OSV_URL": url,
        "AUDIT": strict,
        "UV": "uv",
        "UV_PYTHON": sys.executable,
        "UV_HTTP_RETRIES": "0",
    }
    done = subprocess.run([AUDIT, tmp_path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    assert said in done.stdout
