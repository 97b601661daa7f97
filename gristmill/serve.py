"""Serve a policy: start a server for a model folder, wait until it answers, and end it whatever happens.

vLLM where it is installed and there is a GPU, else `transformers serve` (the extra `serve`), on loopback. A folder with
an `adapter_config.json` is an adapter: its base is served with it. What the server says goes to a log file.

The server runs in its own process group under gristmill/guard.py: it ends with the `with` block, and also when this
process is killed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from gristmill.collect.engine import once, post
from gristmill.collect.failure import Failed
from gristmill.collect.openai import Endpoint
from gristmill.errors import CollectionError, UsageError
from gristmill.recipe import PolicyRecipe

_GRACE = 15.0
"""Seconds that a server gets to end by itself; Gym's takes 4 to 6."""
_POLL = 0.3
_TAIL = 1 << 15


class Process:
    """A guarded child. `what` names it in errors."""

    def __init__(
        self, command: Sequence[str], log: Path, what: str, env: dict[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        self.what, self.log = what, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gristmill.guard", str(_GRACE), *command],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | (env or {}),
                cwd=cwd,
            )

    def require_alive(self) -> None:
        """Raises:
        CollectionError: it has ended; with its code, its last words and where its log is.
        """
        if (code := self._process.poll()) is not None:
            raise CollectionError(f"{self.what} ended with code {code}: {last_words(self.log)} (whole log: {self.log})")

    def stop(self) -> None:
        """End the whole group; returns when it is gone."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_GRACE + 5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()


@contextmanager
def running(
    command: Sequence[str], log: Path, what: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Process]:
    """A command that runs while the block does. An error of the block that its death explains says so.

    Raises:
        CollectionError: it could not be started, or it died meanwhile.
    """
    process = Process(command, log, what, env, cwd)
    try:
        yield process
    except CollectionError as error:
        if "ended with code" not in str(error):
            try:
                process.require_alive()
            except CollectionError as death:
                raise CollectionError(f"{death}; {error}") from error
        raise
    finally:
        process.stop()


def wait_until(ready: object, process: Process, seconds: float) -> None:
    """Poll until `ready()` is true.

    Raises:
        CollectionError: the process ended, or it takes too long.
    """
    assert callable(ready)
    deadline = time.monotonic() + seconds
    while not ready():
        process.require_alive()
        if time.monotonic() > deadline:
            raise CollectionError(
                f"{process.what} does not answer after {seconds:g} s: {last_words(process.log)} (whole log: "
                f"{process.log}); give it more with requests.start_timeout"
            )
        time.sleep(_POLL)


@contextmanager
def served(folder: Path, settings: PolicyRecipe, *, log: Path, start_timeout: float) -> Iterator[Endpoint]:
    """An endpoint for the model in `folder`, while the block runs.

    Raises:
        UsageError: no server is installed, or the port is taken.
        CollectionError: the server died or did not start.
    """
    port = settings.port or free_port()
    require_free(port)
    command, what = server_command(folder, settings, port)
    endpoint = Endpoint(f"http://127.0.0.1:{port}/v1", settings.served_name)
    # `transformers serve` answers only to the name that it loads: a link of the wanted name, in a folder of its own.
    place = log.parent / f"{log.stem}-model"
    place.mkdir(parents=True, exist_ok=True)
    link = place / settings.served_name
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    # Idle threads that sleep: the environment's servers need the cores too (policy.yield_cores says what it costs).
    env = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with running(command, log, what, env, place) as process:
        wait_until(lambda: _answers(endpoint), process, start_timeout)
        yield endpoint


def server_command(folder: Path, settings: PolicyRecipe, port: int) -> tuple[list[str], str]:
    """The command that serves a folder, and what to call it.

    Raises:
        UsageError: no server is installed.
    """
    kind = settings.server
    if kind == "auto":
        kind = "vllm" if shutil.which("vllm") and _has_gpu() else "transformers"
    base, adapter = _base_of(folder)
    if kind == "vllm":
        found = shutil.which("vllm")
        if found is None:
            raise UsageError("policy.server is vllm, and there is no `vllm` command: install vLLM, or use transformers")
        command = [found, "serve", base, "--host", "127.0.0.1", "--port", str(port)]
        if adapter:
            rank = json.loads((folder / "adapter_config.json").read_text()).get("r", 16)
            most = max(16, 1 << (int(rank) - 1).bit_length())  # vLLM takes powers of two
            command += ["--served-model-name", "base", "--enable-lora", "--max-lora-rank", str(most)]
            command += ["--lora-modules", f"{settings.served_name}={folder.resolve()}"]
        else:
            command += ["--served-model-name", settings.served_name]
        return [*command, *settings.server_args], "vllm serve"
    _require_transformers_serving()
    device = [] if settings.device == "auto" else ["--device", settings.device]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", settings.served_name]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16", *device]
    return [*command, *settings.server_args], "transformers serve"


def free_port() -> int:
    """A port of loopback that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def require_free(port: int) -> None:
    """Raises:
    UsageError: something listens there already, and would be taken for our server.
    """
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError as error:
        raise UsageError(f"port {port} is taken ({error.strerror}); stop what listens there, or name another") from None


def last_words(log: Path) -> str:
    """The last line of a log that looks like an error, or the last line."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1][:400]


def _answers(endpoint: Endpoint) -> bool:
    """Whether the server gives a token: a healthy port alone may still be loading weights."""
    body = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

    async def ask(http: httpx.AsyncClient) -> bool:
        await post(http, f"{endpoint.base_url}/chat/completions", json.dumps(body).encode())
        return True

    try:
        return bool(once(ask, 60))
    except Failed:
        return False


def _base_of(folder: Path) -> tuple[str, bool]:
    """The model to load, and whether `folder` is an adapter of it."""
    config = folder / "adapter_config.json"
    if not config.is_file() or (folder / "config.json").is_file():
        return str(folder.resolve()), False
    return str(json.loads(config.read_text())["base_model_name_or_path"]), True


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _require_transformers_serving() -> None:
    from importlib.util import find_spec

    absent = [name for name in ("transformers", "openai", "uvicorn", "fastapi") if find_spec(name) is None]
    if absent:
        raise UsageError(
            f"`transformers serve` needs {', '.join(absent)}: install the extra `gristmill[serve]`, or vLLM on a "
            "machine with a GPU"
        )
