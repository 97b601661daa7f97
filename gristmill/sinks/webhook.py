"""A webhook: a finished turn with the gate's decision, and the end of a run, as one JSON object each.

    {"type": "gristmill.turn.finished", "timestamp": …, "data": {"run", "turn", "verdict", "promoted", "reason", "lift",
     "challenger", "champion", "decision"}}
    {"type": "gristmill.run.ended", "timestamp": …, "data": {"run", "outcome", "error"}}

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com): `webhook-id` is equal for what
is sent twice, and `webhook-signature` is `v1,` and the base64 HMAC-SHA256 of `<id>.<timestamp>.<body>`. URL and
secret are read from environment variables, and stand in no file, log or error.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import time
from typing import Any

import httpx
import orjson

from gristmill.recipe import WebhookSinkRecipe
from gristmill.sinks.events import Decided, Event, RunEnded
from gristmill.workspace import Workspace

_TIMEOUT = 10.0  # seconds a request


class WebhookSink:
    """Posts to one URL."""

    def __init__(self, settings: WebhookSinkRecipe, workspace: Workspace) -> None:
        self.url = _variable(settings.url_env)
        self.key = _key(_variable(settings.secret_env)) if settings.secret_env else None
        self.http = httpx.Client(timeout=_TIMEOUT)

    def send(self, event: Event) -> None:
        """Post an event that concerns receivers.

        Raises:
            ConnectionError: there was no answer, or none that says it arrived.
        """
        if (said := _said(event)) is None:
            return
        body = orjson.dumps({"type": said[0], "timestamp": event.time, "data": {"run": event.run.name, **said[1]}})
        headers = {
            "content-type": "application/json",
            "webhook-id": event.id,
            "webhook-timestamp": str(int(time.time())),
        }
        if self.key is not None:
            headers["webhook-signature"] = signature(self.key, event.id, headers["webhook-timestamp"], body)
        try:
            status = self.http.post(self.url, content=body, headers=headers).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ConnectionError(f"the webhook cannot be reached: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise ConnectionError(f"the webhook answered {status}")

    def close(self) -> None:
        self.http.close()


def signature(key: bytes, id: str, timestamp: str, body: bytes) -> str:
    """`v1,` and the base64 HMAC-SHA256, as Standard Webhooks asks for."""
    signed = hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(signed).decode()}"


def _said(event: Event) -> tuple[str, dict[str, Any]] | None:
    match event:
        case Decided():
            decision = event.decision
            return "gristmill.turn.finished", {
                "turn": event.turn,
                "verdict": decision.verdict,
                "promoted": decision.promoted,
                "reason": decision.reason,
                "lift": decision.lift.model_dump(mode="json"),
                "challenger": event.challenger.location,
                "champion": event.champion.location,
                "decision": event.ref.location,
            }
        case RunEnded():
            return "gristmill.run.ended", {"outcome": event.outcome, "error": event.error}
    return None


def _variable(name: str) -> str:
    if not (value := os.environ.get(name)):
        raise LookupError(f"the environment variable {name} is not set")
    return value


def _key(secret: str) -> bytes:
    """Base64 after `whsec_`, as the standard has it; any other text is taken as it is."""
    return base64.b64decode(secret[6:]) if secret.startswith("whsec_") else secret.encode()
