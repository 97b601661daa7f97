"""The review page on loopback, for whoever has its URL and for nobody else.

The URL's first segment is a random token. Without it, with another Host than this machine (DNS rebinding), or from
another site's page, every request gets the same 404. There is no cookie to steal or to forge with. The page's policy
(CSP) allows its own script and style, no inline code, no HTML from strings, and nothing from anywhere else; images in
rollouts are shown only where their data stand in the row.

    GET  /TOKEN/                         the page; with review.js and review.css beside it
    GET  /TOKEN/api/state                queue and opinions
    GET  /TOKEN/api/rollouts/ID          one rollout; ID/raw: the line as plain text
    POST /TOKEN/api/decisions            {rollout_id, decision, tags, note}
    POST /TOKEN/api/undo                 {}
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

import orjson
import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gristmill.errors import GristmillError, UsageError
from gristmill.review.session import Session

_STATIC = Path(__file__).parent / "static"
_HOSTS = frozenset({"127.0.0.1", "localhost", "[::1]"})
_MOST_BYTES = 1 << 18  # of a request
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _Decision(BaseModel):
    """What the page posts."""

    model_config = ConfigDict(extra="forbid")

    rollout_id: str
    decision: Literal["accept", "reject", "comment"]
    tags: list[str] = []
    note: str = ""


class Guard:
    """Lets through what has the token and comes from this machine's own page; all else is 404."""

    def __init__(self, app: Starlette, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        path = scope.get("path", "")
        token, slash, rest = path.removeprefix("/").partition("/")
        known = secrets.compare_digest(token.encode("utf-8", "replace"), self._token)
        if scope["type"] != "http" or not (known and slash and self._from_here(scope)):
            await Response("not found\n", 404, _HEADERS, media_type="text/plain")(scope, receive, send)
            return
        await self._app({**scope, "path": f"/{rest}", "raw_path": None, "root_path": ""}, receive, send)

    @staticmethod
    def _from_here(scope: _Scope) -> bool:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        # A browser says which page a request comes from. A link may lead here from anywhere; a script may not ask.
        site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
        follows_link = scope.get("method") == "GET" and headers.get("sec-fetch-mode") == "navigate"
        return (
            name in _HOSTS
            and (site in ("none", "same-origin") or follows_link)
            and (origin is None or origin == f"http://{host}")
        )


def application(session: Session, token: str) -> Guard:
    """The ASGI application."""

    def file(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
        async def send(request: Request) -> Response:
            return Response((_STATIC / name).read_bytes(), headers=_HEADERS, media_type=kind)

        return send

    async def state(request: Request) -> Response:
        return await _answer(session.state)

    async def rollout(request: Request) -> Response:
        return await _answer(session.rollout, request.path_params["id"])

    async def raw(request: Request) -> Response:
        return await _answer(session.raw, request.path_params["id"])

    async def decide(request: Request) -> Response:
        body = bytearray()
        async for block in request.stream():
            body += block
            if len(body) > _MOST_BYTES:
                return _problem(413, "a decision is smaller than that")
        try:
            posted = _Decision.model_validate_json(bytes(body))
        except ValidationError as error:
            first = error.errors()[0]
            return _problem(400, f"not a decision: {'.'.join(map(str, first['loc']))}: {first['msg']}")
        return await _answer(session.decide, posted.rollout_id, posted.decision, posted.tags, posted.note)

    async def undo(request: Request) -> Response:
        return await _answer(session.undo)

    return Guard(
        Starlette(
            routes=[
                Route("/", file("page.html", "text/html")),
                Route("/review.css", file("review.css", "text/css")),
                Route("/review.js", file("review.js", "text/javascript")),
                Route("/api/state", state),
                Route("/api/rollouts/{id}", rollout),
                Route("/api/rollouts/{id}/raw", raw),
                Route("/api/decisions", decide, methods=["POST"]),
                Route("/api/undo", undo, methods=["POST"]),
            ]
        ),
        token,
    )


async def _answer(function: Callable[..., Any], *arguments: Any) -> Response:
    """The function's value as JSON (bytes as plain text), or its error as one sentence that the page shows."""
    try:
        value = await run_in_threadpool(function, *arguments)
    except KeyError:
        return _problem(404, "this rollout is not in the review")
    except UsageError as error:
        return _problem(400, str(error))
    except GristmillError as error:
        return _problem(500, str(error))
    if isinstance(value, bytes):
        return Response(value, headers=_HEADERS, media_type="text/plain")
    return Response(orjson.dumps(value), headers=_HEADERS, media_type="application/json")


def _problem(code: int, sentence: str) -> Response:
    return Response(orjson.dumps({"error": sentence}), code, _HEADERS, media_type="application/json")


class Address(NamedTuple):
    """Where the page is. `listening` is open already: requests wait until they are served."""

    url: str
    token: str
    listening: socket.socket


def bind(port: int = 0) -> Address:
    """Take a loopback port (0: any free one) and make a token.

    Raises:
        UsageError: the port is taken or not allowed.
    """
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
        listening.listen()  # from now on requests wait instead of being refused
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"port {port} cannot be used: {reason}; choose another, or 0 for any free one") from None
    token = secrets.token_urlsafe(24)
    return Address(f"http://127.0.0.1:{listening.getsockname()[1]}/{token}/", token, listening)


def serve(session: Session, address: Address) -> None:
    """Serve until the process is interrupted (KeyboardInterrupt)."""
    _server(session, address).run(sockets=[address.listening])


@contextmanager
def serving(session: Session) -> Iterator[str]:
    """Serve from a thread for the duration of the block; yields the URL."""
    address = bind()
    server = _server(session, address)
    thread = Thread(target=server.run, kwargs={"sockets": [address.listening]}, daemon=True)
    thread.start()
    try:
        yield address.url
    finally:
        server.should_exit = True
        thread.join()
        address.listening.close()


def _server(session: Session, address: Address) -> uvicorn.Server:
    return uvicorn.Server(
        uvicorn.Config(
            application(session, address.token),
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=1,
        )
    )
