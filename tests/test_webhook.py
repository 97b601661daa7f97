"""The webhook: what a receiver gets over real HTTP, signed, and never the URL or the secret anywhere else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from gristmill.recipe import WebhookSinkRecipe
from gristmill.sinks.events import RunEnded, RunOf, RunStarted
from gristmill.sinks.webhook import WebhookSink
from gristmill.workspace import Workspace

SECRET = "whsec_" + base64.b64encode(b"a planted secret of some length").decode()


class Receiver:
    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/planted-path"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("GRISTMILL_WEBHOOK_URL", made.url)
    monkeypatch.setenv("MY_SECRET", SECRET)
    yield made
    made.close()


def ended() -> RunEnded:
    run = RunOf(name="tiny", key="0" * 64)
    return RunEnded(id="f" * 64, time="2026-11-21T00:00:00+00:00", run=run, number=1, outcome="done", error=None)


def test_a_receiver_can_check_who_sent_it(receiver: Receiver, tmp_path: Any) -> None:
    sink = WebhookSink(WebhookSinkRecipe(secret_env="MY_SECRET"), Workspace(tmp_path))
    sink.send(ended())
    sink.close()
    ((headers, body),) = receiver.got
    said = json.loads(body)
    assert said["type"] == "gristmill.run.ended"
    assert said["data"] == {"run": "tiny", "outcome": "done", "error": None}
    assert headers["webhook-id"] == "f" * 64
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = hmac.new(base64.b64decode(SECRET[6:]), signed, hashlib.sha256).digest()
    assert headers["webhook-signature"] == f"v1,{base64.b64encode(expected).decode()}"


def test_what_concerns_nobody_is_not_sent(receiver: Receiver, tmp_path: Any) -> None:
    sink = WebhookSink(WebhookSinkRecipe(), Workspace(tmp_path))
    run = RunOf(name="tiny", key="0" * 64)
    sink.send(RunStarted(id="a" * 64, time="2026-11-21", run=run, number=1, recipe={}, gristmill="0"))
    sink.close()
    assert receiver.got == []


def test_a_refusal_and_a_dead_receiver_are_told_without_the_url(receiver: Receiver, tmp_path: Any) -> None:
    sink = WebhookSink(WebhookSinkRecipe(), Workspace(tmp_path))
    receiver.status = 500
    with pytest.raises(ConnectionError, match=r"^the webhook answered 500$"):
        sink.send(ended())
    sink.url = "http://127.0.0.1:1/planted-path"
    with pytest.raises(ConnectionError) as caught:
        sink.send(ended())
    assert "planted" not in str(caught.value) and caught.value.__cause__ is None
    sink.close()


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("GRISTMILL_WEBHOOK_URL", raising=False)
    with pytest.raises(LookupError, match="GRISTMILL_WEBHOOK_URL"):
        WebhookSink(WebhookSinkRecipe(), Workspace(tmp_path))
