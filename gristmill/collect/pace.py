"""How many requests may be in flight, when to wait, and when to give the endpoint up.

Concurrency follows TCP's rule (RFC 5681): halved on congestion, at most once for what was in flight together; then
doubled per round trip up to half of what it was, and raised slowly from there to the recipe's bound. Congestion is an
overloaded, limiting or absent endpoint, or more than half of the recent attempts failing: single errors say
something about single rollouts.

The endpoint is suspected when nothing has succeeded for `patience` seconds, the last attempts all failed, and none
that started before that time may still succeed: a server that only takes long is not dead. The engine then asks for
a rollout that it has had before, so that a last few impossible rollouts are not mistaken for a dead endpoint either.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gristmill.collect.failure import Failed, FailureClass
from gristmill.errors import CollectionError

_RECENT = 16
_ENOUGH = 10
"""So many failures in a row before the endpoint is suspected."""
_REFUSED = 20
"""So many refusals (4xx), and no success ever: the request itself is wrong."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1 / 120, 1 / 4
"""As shares of the patience: 1 s and 30 s where that is two minutes."""


class Slot:
    """A place among the requests in flight, held since `started` (monotonic seconds)."""

    def __init__(self) -> None:
        self.started = time.monotonic()


class Pace:
    """One endpoint's limits, shared by all attempts. Lives on one event loop.

    Args:
        most: requests in flight at most.
        patience: seconds without a success after which a failing endpoint is given up.
        seed: of the jitter.
    """

    def __init__(self, most: int, patience: float, seed: int) -> None:
        self.most, self.patience = most, patience
        self.limit = self._threshold = float(most)
        self._random = random.Random(seed)
        self._held: set[Slot] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._streak = self._cuts = 0  # failures and cuts of the limit since the last success
        self._good_at = time.monotonic()
        self._ever_good = False
        self._paused_until = self._cut_at = self._asked = 0.0

    @property
    def in_flight(self) -> int:
        return len(self._held)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[Slot]:
        """Wait for a place among the requests in flight, and hold it."""
        while True:
            if (pause := self._paused_until - time.monotonic()) > 0:
                await asyncio.sleep(pause)
            elif len(self._held) >= int(self.limit):
                turn = asyncio.get_running_loop().create_future()
                self._waiting.append(turn)
                await turn
            else:
                break
        slot = Slot()
        self._held.add(slot)
        try:
            yield slot
        finally:
            self._held.remove(slot)
            self._wake()

    def good(self) -> None:
        """An attempt succeeded."""
        self._streak = self._cuts = 0
        self._asked = 0.0
        self._ever_good = True
        self._good_at = time.monotonic()
        self._recent.append(True)
        # A thirty-second of the bound a round trip: back at full speed after some thirty, however large the bound.
        step = 1.0 if self.limit < self._threshold else max(1.0, self.most / 32) / self.limit
        self.limit = min(float(self.most), self.limit + step)

    def bad(self, failed: Failed, slot: Slot) -> None:
        """The attempt in this slot failed.

        Raises:
            CollectionError: every request is refused; says how.
        """
        now = time.monotonic()
        self._streak += 1
        self._recent.append(False)
        together = slot.started < self._cut_at  # what was in flight at the last cut says nothing new
        if failed.kind.of_endpoint:
            if not together:
                self._cut(now)
                self._paused_until = max(self._paused_until, now + self.backoff(self._cuts))
            if failed.wait is not None:
                self._paused_until = max(self._paused_until, now + failed.wait)
                self._asked = max(self._asked, failed.wait)
        elif self._recent.count(False) > _RECENT // 2 and not together:
            self._cut(now)
        if failed.kind is FailureClass.REJECTED and not self._ever_good and self._streak >= _REFUSED:
            raise CollectionError(f"every request is refused, {self._streak} so far; the last: {failed}")

    def backoff(self, failures: int) -> float:
        """Seconds to wait after so many failures, from 1: doubling, bounded, and jittered by up to a half."""
        share = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (failures - 1))
        return self.patience * share * self._random.uniform(0.5, 1)

    def _cut(self, now: float) -> None:
        if self._cuts == 0:
            self._threshold = max(1.0, self.limit / 2)
        self._cuts += 1
        self.limit = max(1.0, self.limit / 2)
        self._cut_at = now
        self._recent.clear()

    @property
    def suspicious(self) -> str | None:
        """What speaks for a dead endpoint; None while it may be alive."""
        now = time.monotonic()
        silent = now - self._good_at
        if self._streak < min(_ENOUGH, self.most) or silent < self.patience + self._asked:
            return None
        if any(now - slot.started >= self.patience for slot in self._held):
            return None
        return f"nothing succeeded for {silent:.0f} s and the last {self._streak} attempts failed"

    def _wake(self) -> None:
        free = int(self.limit) - len(self._held)
        while free > 0 and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                free -= 1
