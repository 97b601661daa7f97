"""Servers of buckets for tests, on loopback: S3 by moto, Azure's by Microsoft's emulator Azurite, and what can go wrong
between them and us: a proxy that breaks requests as it is told to."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import hashlib
import hmac
import http.client
import os
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal

import pytest

from tests.kept import kept

Fault = Literal["403", "503", "lose request", "lose answer", "hang", "ignore conditions"]
AZURITE = "azurite@3.37.0"
AZURE_ACCOUNT = "devstoreaccount1"
# The emulator's well-known key: https://learn.microsoft.com/azure/storage/common/storage-use-azurite
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
SECRET = "not-to-be-seen-anywhere"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answering(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until somebody listens."""
    for _ in range(600):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, "the server ended at its start"
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


@contextmanager
def s3() -> Iterator[int]:
    """The port of an S3 server with a bucket `bucket`."""
    port = free_port()
    with start_s3(port):
        yield port


@contextmanager
def start_s3(port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answering(port, process)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield process
    finally:
        process.kill()
        process.wait()


def s3_environment(port: int) -> dict[str, str]:
    return {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def azurite() -> str:
    """The emulator's command: named by AZURITE, on the PATH, or installed once by npm into the cache
    (GRISTMILL_TEST_CACHE, else ~/.cache/gristmill-tests); skips the test where it cannot be had, and says why."""
    if there := os.environ.get("AZURITE") or shutil.which("azurite-blob"):
        return there
    home = kept("azurite")
    command = home / "node_modules" / ".bin" / "azurite-blob"
    if not command.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no azurite-blob on the PATH, and no npm to install it with")
        home.mkdir(parents=True, exist_ok=True)
        words = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(home), AZURITE]
        made = subprocess.run(words, cwd=home, capture_output=True, text=True)
        if made.returncode != 0 or not command.exists():
            pytest.skip(f"{AZURITE} cannot be installed: {made.stderr.strip()[-300:]}")
    return str(command)


@contextmanager
def azure(folder: Path) -> Iterator[int]:
    """The port of an Azure server with a container `bucket`."""
    command = azurite()
    port = free_port()
    arguments = [command, "--blobPort", str(port), "--location", str(folder), "--silent", "--skipApiVersionCheck"]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        answering(port, process)
        date = email.utils.formatdate(usegmt=True)
        names = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/bucket\nrestype:container"
        words = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n{names}"
        signed = hmac.new(base64.b64decode(AZURE_KEY), words.encode(), hashlib.sha256).digest()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}/bucket?restype=container",
            method="PUT",
            headers={
                "x-ms-date": date,
                "x-ms-version": "2021-08-06",
                "Authorization": f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(signed).decode()}",
            },
        )
        urllib.request.urlopen(request, timeout=30).close()
        yield port
    finally:
        process.kill()
        process.wait()


def azure_environment(port: int) -> dict[str, str]:
    return {
        "AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY,
        "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}",
    }


class Proxy:
    """Forwards to a server, and breaks the requests that `breaks` names. `seen` has (method, path) of every one."""

    def __init__(self, port: int) -> None:
        self.behind = port
        self.breaks: Callable[[str, str], Fault | None] = lambda method, path: None
        self.seen: list[tuple[str, str]] = []
        self.hanging = threading.Event()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                proxy.seen.append((self.command, self.path))
                fault = proxy.breaks(self.command, self.path)
                if fault == "hang":
                    proxy.hanging.set()
                    time.sleep(60)
                if fault in ("lose request", "hang"):
                    self.close_connection = True
                    return
                if fault in ("403", "503"):
                    self.send_response(int(fault))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                headers = dict(self.headers)
                if fault == "ignore conditions":
                    headers = {k: v for k, v in headers.items() if k.lower() not in ("if-match", "if-none-match")}
                try:
                    behind = http.client.HTTPConnection("127.0.0.1", proxy.behind, timeout=30)
                    behind.request(self.command, self.path, body, headers)
                    answer = behind.getresponse()
                    data = answer.read()
                    behind.close()
                except OSError:  # the server died
                    self.close_connection = True
                    return
                if fault == "lose answer":
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length", "server", "date"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else None
                self.send_header("Content-Length", length or str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
            daemon_threads = True
            block_on_close = False
            allow_reuse_address = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client was killed, which is what the tests are about

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Proxy:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
