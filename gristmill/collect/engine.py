"""Ask for many rollouts at once and leave nothing in doubt: each ends as a row or as a failure in the journal.

What asks for one rollout is a collector's `attempt`; here is all that an unattended run needs around it: bounded and
adapting concurrency (pace.py), time limits, retries, the circuit breaker, durable batches and progress. Nothing
is held but what is in flight: tasks are read when they are asked for, rows go to the journal.

A rollout is asked for again when its attempt failed in a way that may pass, `attempts` times at most. The
endpoint's own trouble (nothing listens, rate limit) is nobody's attempt; the circuit breaker bounds it. Rollouts that
an overloaded endpoint spoiled get a second round at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import httpx

from gristmill.collect import Progress
from gristmill.collect.failure import Failed, FailureClass, from_status, from_transport, record
from gristmill.collect.journal import Journal
from gristmill.collect.pace import Pace
from gristmill.errors import CollectionError
from gristmill.recipe import RequestsRecipe
from gristmill.words import duration

_SPEED_OVER = 60.0
"""Seconds that speed and time left are estimated from."""
_TELL_EVERY = 0.25
"""Seconds between two words on progress."""


class Job(NamedTuple):
    """One rollout that is owed."""

    task: int
    repeat: int


class Reply(NamedTuple):
    """A rollout: the row as it is written, and the tokens that were generated for it."""

    row: dict[str, Any]
    tokens: int


class Collector(Protocol):
    """What knows how to ask one kind of endpoint for a rollout."""

    def identity(self) -> dict[str, Any]:
        """What the rollouts depend on, as plain JSON; a resumed collection must have the same."""
        ...

    def stamps(self, job: Job) -> dict[str, Any]:
        """The keys that say which rollout a row or a failure is."""
        ...

    def materialized(self, job: Job) -> dict[str, Any]:
        """What is asked for, as one row: the task's fields, the sampling and the stamps."""
        ...

    async def attempt(self, http: httpx.AsyncClient, job: Job) -> Reply:
        """Ask once.

        Raises:
            Failed: there is no rollout, and why.
            httpx.RequestError: the same, for the engine to classify.
        """
        ...


class Tally(NamedTuple):
    """What a run of the engine came to."""

    succeeded: int
    failed: int
    tokens: int


def gather(
    collector: Collector,
    jobs: Iterable[Job],
    total: int,
    *,
    journal: Journal,
    requests: RequestsRecipe,
    seed: int,
    progress: Progress | None = None,
) -> Tally:
    """Ask for every job that the journal lacks.

    Args:
        jobs: rollouts that are owed, in the order in which to ask.
        total: how many rollouts there are to be, the journal's included; for progress.

    Raises:
        CollectionError: the endpoint is dead or refuses everything; the journal has all that came before.
    """
    engine = _Engine(collector, iter(jobs), total, journal, requests, seed, progress)
    return asyncio.run(engine.run())


async def post(http: httpx.AsyncClient, url: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """POST JSON and return the body of a 200.

    Raises:
        Failed: any other status.
        httpx.RequestError: no whole reply.
    """
    reply = await http.post(url, content=body, headers={"content-type": "application/json", **(headers or {})})
    if reply.status_code != 200:
        raise from_status(reply.status_code, reply.content, reply.headers.get("retry-after"))
    return reply.content


def client(tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """An HTTP client for one request at a time.

    One a worker, because a shared pool searches all its connections at each request (at 256 in flight that costs more
    than the request). Timeouts are the engine's. Proxies of the environment are for other machines only.
    """
    context = tls or ssl.create_default_context()
    return httpx.AsyncClient(
        verify=context,
        timeout=httpx.Timeout(None, connect=15),
        limits=httpx.Limits(max_connections=1, keepalive_expiry=4),
        mounts=_DIRECT,
    )


_DIRECT: dict[str, None] = {f"all://{host}": None for host in ("127.0.0.1", "localhost", "[::1]")}


class _Engine:
    def __init__(
        self,
        collector: Collector,
        jobs: Iterator[Job],
        total: int,
        journal: Journal,
        requests: RequestsRecipe,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.collector, self.jobs, self.total = collector, jobs, total
        self.journal, self.requests, self.progress = journal, requests, progress
        self.pace = Pace(requests.concurrency, requests.patience, seed)
        self.known_good = Job(*found) if (found := journal.any()) else None
        self.probing = asyncio.Lock()
        self.again: deque[Job] = deque()
        self.second_round = False
        self.written: asyncio.Queue[tuple[dict[str, Any] | None, dict[str, Any] | None, int]]
        self.there, self.succeeded, self.failed, self.tokens = journal.resumed, 0, 0, 0
        self.marks: deque[tuple[float, int, int]] = deque()

    async def run(self) -> Tally:
        # Bounded: a slow disk slows the workers instead of filling the memory.
        self.written = asyncio.Queue(self.requests.concurrency)
        self._tell()
        tls = ssl.create_default_context()
        writer = asyncio.create_task(self._write())
        try:
            await self._round(tls, writer)
            if self.again:
                self.jobs, self.again, self.second_round = iter(self.again), deque(), True
                await self._round(tls, writer)
        finally:
            if not writer.done():
                await self.written.put((None, None, 0))
            await writer
        return Tally(self.succeeded, self.failed, self.tokens)

    async def _round(self, tls: ssl.SSLContext, writer: asyncio.Task[None]) -> None:
        """All jobs once through the workers; the first error of any of them ends all."""
        workers = [asyncio.create_task(self._work(tls)) for _ in range(min(self.requests.concurrency, self.total))]
        try:
            working: set[asyncio.Task[None]] = {writer, *workers}
            while len(working) > 1:
                done, working = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, tls: ssl.SSLContext) -> None:
        async with client(tls) as http:
            for job in self.jobs:
                if self.journal.has(job.task, job.repeat):
                    continue
                got = await self._settle(http, job)
                if isinstance(got, Reply):
                    await self.written.put((got.row, None, got.tokens))
                elif got is not None:
                    await self.written.put((None, got, 0))

    async def _settle(self, http: httpx.AsyncClient, job: Job) -> Reply | dict[str, Any] | None:
        """A rollout, a failure, or None for one that gets a second round."""
        attempts, spent = 0, 0.0
        while True:
            async with self.pace.slot() as slot:
                try:
                    # A collector's own time-outs are httpx's, so this one is always ours.
                    limit = min(self.requests.timeout, self.requests.rollout_timeout - spent)
                    async with asyncio.timeout(limit):
                        reply = await self.collector.attempt(http, job)
                    self.pace.good()
                    self.known_good = job
                    return reply
                except Failed as error:
                    failed = error
                except httpx.RequestError as error:
                    failed = from_transport(error)
                except TimeoutError:
                    failed = Failed(FailureClass.TIMEOUT, f"no answer within {limit:g} s")
                spent += time.monotonic() - slot.started
                self.pace.bad(failed, slot)
            if self.pace.suspicious:
                await self._probe(http, failed)
            if failed.kind.blames_rollout:
                attempts += 1
            if failed.kind.final or attempts >= self.requests.attempts or spent >= self.requests.rollout_timeout:
                if failed.kind is FailureClass.OVERLOADED and not self.second_round:
                    self.again.append(job)
                    return None
                return record(self.collector.stamps(job), failed, attempts)
            if failed.kind.blames_rollout:
                await asyncio.sleep(self.pace.backoff(attempts))

    async def _probe(self, http: httpx.AsyncClient, failed: Failed) -> None:
        """Ask for a rollout that was had before; if that fails too, the endpoint is dead.

        Raises:
            CollectionError: it is.
        """
        async with self.probing:
            if (why := self.pace.suspicious) is None:  # another worker has just found it alive
                return
            if self.known_good is not None:
                with contextlib.suppress(Failed, httpx.RequestError, TimeoutError):
                    async with asyncio.timeout(self.requests.timeout):
                        await self.collector.attempt(http, self.known_good)
                    self.pace.good()
                    return
            raise CollectionError(f"{why}; the last: {failed}")

    async def _write(self) -> None:
        """Whatever is waiting becomes one durable batch, again and again."""
        more = True
        while more:
            batch = [await self.written.get()]
            while not self.written.empty():
                batch.append(self.written.get_nowait())
            rows = [row for row, _, _ in batch if row is not None]
            failures = [failure for _, failure, _ in batch if failure is not None]
            more = (None, None, 0) not in batch
            await asyncio.to_thread(self.journal.append, rows, failures)
            self.there += len(rows)
            self.succeeded += len(rows)
            self.failed += len(failures)
            self.tokens += sum(tokens for _, _, tokens in batch)
            self._tell()

    def _tell(self) -> None:
        if not self.progress:
            return
        now = time.monotonic()
        if self.marks and now - self.marks[-1][0] < _TELL_EVERY and self.there + self.failed < self.total:
            return
        self.marks.append((now, self.there, self.tokens))
        while len(self.marks) > 2 and now - self.marks[0][0] > _SPEED_OVER:
            self.marks.popleft()
        begun, there, tokens = self.marks[0]
        note = ["rollouts"]
        if (seconds := now - begun) >= 1 and self.there > there:
            if self.tokens > tokens:
                note.append(f"{(self.tokens - tokens) / seconds:.3g} tokens/s")
            left = (self.total - self.there - self.failed) * seconds / (self.there - there)
            note.append(f"{duration(left)} left")
        if self.failed:
            note.append(f"{self.failed} failed")
        if self.pace.limit < self.pace.most:
            note.append(f"slowed to {int(self.pace.limit)} at a time")
        self.progress(self.there, self.total, ", ".join(note))


Ask = Callable[[httpx.AsyncClient], Awaitable[Any]]


def once(ask: Ask, seconds: float) -> Any:
    """Run one coroutine with a client of its own, outside an engine.

    Raises:
        Failed: no answer, whatever the reason.
    """

    async def run() -> Any:
        try:
            async with client() as http, asyncio.timeout(seconds):
                return await ask(http)
        except httpx.RequestError as error:
            raise from_transport(error) from error
        except TimeoutError as error:
            raise Failed(FailureClass.TIMEOUT, f"no answer within {seconds:g} s") from error

    return asyncio.run(run())
