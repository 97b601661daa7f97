"""A real Ray cluster on this machine: a head and nodes, each a raylet of its own, that can be killed."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_STORE = 150_000_000  # bytes of each node's object store
_START = 180.0  # seconds
_TRIES = 3


class Cluster:
    """A head with `cpus` processors and no dashboard; more nodes by `add`."""

    def __init__(self, cpus: int = 1) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
        self.env = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self.nodes: list[subprocess.Popen] = []
        head = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        self._start(head, cpus, ())

    def add(self, cpus: int = 1, *, under: Sequence[str] = ()) -> subprocess.Popen:
        """One more node; `under` is a command that starts it."""
        return self._start([f"--address={self.address}"], cpus, under)

    def _start(self, options: list[str], cpus: int, under: Sequence[str]) -> subprocess.Popen:
        said = ""
        for _ in range(_TRIES):  # on a busy machine Ray gives up after half a minute
            node, said = self._try(options, cpus, under)
            if node is not None:
                self.nodes.append(node)
                return node
        raise RuntimeError(f"no Ray here:\n{said}")

    def _try(self, options: list[str], cpus: int, under: Sequence[str]) -> tuple[subprocess.Popen | None, str]:
        ray = str(Path(sys.executable).with_name("ray"))
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as out:
            node = subprocess.Popen(
                [*under, ray, "start", "--block", f"--num-cpus={cpus}", f"--object-store-memory={_STORE}", *options],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START
        while "Ray runtime started" not in log.read_text():
            if node.poll() is not None or time.monotonic() > deadline:
                if node.poll() is None:
                    self.kill(node)
                return None, log.read_text()
            time.sleep(0.2)
        return node, ""

    def shards(self, node: subprocess.Popen) -> list[psutil.Process]:
        """The node's processes that run a shard now."""
        try:
            below = psutil.Process(node.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        found = []
        for process in below:
            try:
                if process.cmdline()[:1] == ["ray::shard"]:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self, node: subprocess.Popen) -> None:
        """As if the machine were gone: everything of the node, at once."""
        below = psutil.Process(node.pid).children(recursive=True)
        for process in (psutil.Process(node.pid), *below):
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        node.wait()

    def close(self) -> None:
        for node in reversed(self.nodes):
            if node.poll() is None:
                self.kill(node)
        shutil.rmtree(self.folder, ignore_errors=True)
