"""A server that misbehaves to order: NeMo Gym's head and agents, and an OpenAI endpoint, on loopback.

What happens to a request is said by its prompt, a list of words taken one an attempt (the last one stays): `ok`,
`500`, `503`, `422`, `429`, `garbage`, `gzip` (that is none), `half` (of a body), `hang`, `noreward`, `failed`. Raw
sockets, so that half a body is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from typing import Any

import orjson


class FaultServer:
    """Runs in a thread while it is entered. `asked` counts attempts by prompt."""

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.asked: Counter[str] = Counter()
        self.served = 0
        self.bodies: list[dict[str, Any]] = []
        self.die_after: int | None = None
        """Answers after which everything is cut off and nothing listens."""
        self.limited_for: float | None = None
        """Seconds from the first request during which all get 429 with Retry-After."""
        self.limited = 0
        self._first: float | None = None

    def __enter__(self) -> FaultServer:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop: asyncio.Event

        async def main() -> None:
            self._stop = asyncio.Event()
            self._tasks: set[asyncio.Task[None]] = set()
            server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await self._stop.wait()
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(main()), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._request(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        length = next((int(h.split(":")[1]) for h in head.splitlines() if h.lower().startswith("content-length:")), 0)
        body = orjson.loads(await reader.readexactly(length)) if length else {}
        if method == "GET":
            return await self._reply(writer, 200, self._get(path))
        self.bodies.append(body)
        now = self._loop.time()
        self._first = self._first or now
        if self.limited_for is not None and (left := self._first + self.limited_for - now) > 0:
            self.limited += 1
            return await self._reply(writer, 429, "slow down", {"retry-after": f"{left:.3f}"})
        if self.die_after is not None and self.served >= self.die_after:
            self._stop.set()
            return False
        prompt = _prompt(body)
        words = prompt.split()[1:]
        word = words[min(self.asked[prompt], len(words) - 1)]
        self.asked[prompt] += 1
        await asyncio.sleep(0.002)
        return await self._act(word, path, body, writer)

    async def _act(self, word: str, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        good = orjson.dumps(_answer(path, body))
        match word:
            case "ok":
                self.served += 1
                return await self._reply(writer, 200, good)
            case "500" | "503" | "422" | "429":
                return await self._reply(writer, int(word), f"the server says {word}")
            case "garbage":
                return await self._reply(writer, 200, b"<html>so sorry</html>")
            case "gzip":
                return await self._reply(writer, 200, good, {"content-encoding": "gzip"})
            case "half":
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(good) + good[: len(good) // 2])
                await writer.drain()
                return False
            case "noreward":
                return await self._reply(writer, 200, good.replace(b'"reward":1.0', b'"reward":null'))
            case "failed":
                return await self._reply(writer, 200, good[:-1] + b',"_ng_failure_class":"agent_run_error"}')
            case "hang":
                await self._stop.wait()
                return False
        raise AssertionError(word)

    def _get(self, path: str) -> Any:
        agent = {"process_name": "agent", "server_type": "responses_api_agents", "url": self.url}
        return [agent] if path == "/server_instances" else "agent: {}"

    async def _reply(
        self, writer: asyncio.StreamWriter, status: int, value: Any, headers: dict[str, str] | None = None
    ) -> bool:
        data = value if isinstance(value, bytes) else orjson.dumps(value)
        extra = "".join(f"{name}: {text}\r\n" for name, text in (headers or {}).items())
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{extra}\r\n".encode() + data)
        await writer.drain()
        return True


def task(number: int, words: str = "ok") -> dict[str, Any]:
    """A dataset row that is treated as `words` say."""
    return {
        "responses_create_params": {"input": [{"role": "user", "content": f"task{number} {words}"}]},
        "agent_ref": {"type": "responses_api_agents", "name": "agent"},
        "expected_answer": str(number),
    }


def _prompt(body: dict[str, Any]) -> str:
    if "messages" in body:
        return str(body["messages"][-1]["content"])
    prompt = body.get("responses_create_params", body)["input"]
    return str(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def _answer(path: str, body: dict[str, Any]) -> dict[str, Any]:
    text = f"answer to {_prompt(body)}"
    if path.endswith("/chat/completions"):
        return {
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        }
    content = [{"type": "output_text", "text": text, "annotations": []}]
    response = {
        "id": "r",
        "object": "response",
        "model": "m",
        "output": [{"type": "message", "role": "assistant", "id": "x", "status": "completed", "content": content}],
        "usage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
    }
    if path.endswith("/responses"):
        return response
    return {"responses_create_params": body["responses_create_params"], "response": response, "reward": 1.0}
