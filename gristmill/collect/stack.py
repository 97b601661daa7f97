"""NeMo Gym's servers, started on a policy and stopped with it; or the running ones, checked to use that policy.

`gym env start` needs a Python of its own (3.12 for Gym 0.4.0), so it is a command and never an import. It reads
`env.yaml` of the folder that we run in, as it does for its users.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from gristmill.collect.engine import once
from gristmill.collect.failure import Failed
from gristmill.collect.gym import Server, global_config, servers
from gristmill.collect.openai import Endpoint
from gristmill.errors import CollectionError, UsageError
from gristmill.recipe import EnvironmentRecipe
from gristmill.serve import require_free, running, wait_until


@contextmanager
def started(
    settings: EnvironmentRecipe, policy: Endpoint, *, log: Path, start_timeout: float
) -> Iterator[dict[str, Server]]:
    """Run `gym env start` with `settings.start`, on `policy`; gives its servers when all answer.

    Raises:
        UsageError: there is no such command, or its head server's port is taken.
        CollectionError: the servers died or did not start.
    """
    found = shutil.which(settings.gym)
    if found is None:
        raise UsageError(
            f"environment.gym: there is no command {settings.gym!r}; name the `gym` of NeMo Gym's own Python"
        )
    head = urlsplit(settings.head)
    port = head.port or 11000
    require_free(port)
    command = [found, "env", "start", *settings.start]
    command += [f"+head_server.host={head.hostname}", f"+head_server.port={port}"]
    command += [f"hydra.run.dir={log.parent / 'hydra'}"]  # else it leaves a folder `outputs` where we run
    command += ["--model", policy.model, "--model-url", policy.base_url]
    command += ["--model-api-key", os.environ.get(policy.api_key_env or "", "") or "none"]
    bin_folder = str(Path(found).resolve().parent)
    env = {
        # Gym starts its servers with `uv` and `ray` from its own environment, for the interpreter that runs it.
        "PATH": os.pathsep.join([bin_folder, *_interpreter(found), os.environ.get("PATH", "")]),
        "VIRTUAL_ENV": str(Path(bin_folder).parent),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray listens on every interface otherwise.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0"),
    }
    with running(command, log, "gym env start", env) as process:
        wait_until(lambda: _all_answer(settings.head), process, start_timeout)
        yield servers(settings.head)


def attached(settings: EnvironmentRecipe, policy: Endpoint | None) -> dict[str, Server]:
    """The servers that run already.

    Raises:
        CollectionError: none does.
        UsageError: their policy is another than `policy`.
    """
    known = servers(settings.head)
    if policy is not None:
        config = global_config(settings.head)
        url, name = str(config.get("policy_base_url", "")), config.get("policy_model_name")
        if _place(url) != _place(policy.base_url) or name != policy.model:
            raise UsageError(
                f"the running Gym servers ask {name!r} at {url}, and the policy is {policy.model!r} at "
                f"{policy.base_url}: start them with `--model {policy.model} --model-url {policy.base_url}`, or set "
                "policy.port and policy.served_name to theirs"
            )
    return known


def policy_behind(settings: EnvironmentRecipe) -> dict[str, Any]:
    """What the running servers say about their own policy, for a collection's identity."""
    config = global_config(settings.head)
    return {"model": config.get("policy_model_name"), "base_url": config.get("policy_base_url")}


def _all_answer(head: str) -> bool:
    try:
        known = servers(head, 5)

        async def ask(http: httpx.AsyncClient) -> bool:
            return all([(await http.get(server.url)).status_code == 200 for server in known.values()])

        return bool(known) and bool(once(ask, 10))
    except (CollectionError, Failed):
        return False


def _place(url: str) -> tuple[str | None, int | None, str]:
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return host, parts.port, parts.path.rstrip("/")


def _interpreter(gym: str) -> list[str]:
    """The folder of the interpreter that Gym's environment was made with: uv looks for that very version on PATH."""
    config = Path(gym).resolve().parent.parent / "pyvenv.cfg"
    if not config.is_file():
        return []
    values = dict(line.split("=", 1) for line in config.read_text().splitlines() if "=" in line)
    return [values[name].strip() for name in values if name.strip() == "home"]
