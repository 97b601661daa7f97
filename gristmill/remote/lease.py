"""The lock of a workspace in a bucket: a lease in the object `lock`, held by one run at a time.

    {"state": "held" | "free", "token", "place", "beat", "seconds"}

Every change is a conditional write against the version that was read, so of several writers one wins. The holder
renews four times in `seconds`. Who finds a lease that was not renewed for that long by the *server's* clock takes it
over; no two machines' clocks are compared. A holder on the same machine (`place`) that is dead is recognised at once,
by the kernel's lock on the mirror, which the taker holds. Nothing in it names a machine or a person.

A holder that was taken over learns it at the latest before its next commit: `check` asks the bucket who holds it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from gristmill.errors import StoreError, StoreUnreachable, WorkspaceBusy, WorkspaceLost
from gristmill.remote.bucket import Bucket, Stored, Version

KEY = "lock"
SECONDS = 60.0
_GRAIN = 2.0  # seconds: objects' times are given in whole ones
_ATTEMPTS = 5


class Body(BaseModel):
    """What the object says. `seconds` is the holder's, so that versions may differ in it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    state: Literal["held", "free"]
    token: str
    place: str
    beat: int
    seconds: float

    def dump(self) -> bytes:
        return self.model_dump_json().encode()


class Lease:
    """One holding. Acquire it once, check it before what must not happen twice, release it at the end.

    Args:
        place: of this machine's mirror; whoever acquires holds that mirror's kernel lock.
        seconds: how long it holds without being renewed.
    """

    def __init__(self, bucket: Bucket, place: str, seconds: float = SECONDS) -> None:
        self.token = uuid.uuid4().hex
        self._bucket, self._place, self._seconds = bucket, place, seconds
        self._beat = 0
        self._version: Version = {}
        self._renewed = 0.0
        self._lost = False
        self._stop = threading.Event()
        self._changing = threading.Lock()
        self._thread = threading.Thread(target=self._renew_on, name="gristmill-lease", daemon=True)

    def acquire(self) -> None:
        """Take the lease, and keep it until `release`.

        Raises:
            WorkspaceBusy: another run holds it.
            StoreError: the store keeps no conditions, or does not answer.
        """
        now = self._bucket.require_conditional_writes(self.token)
        for _ in range(_ATTEMPTS):
            started = time.monotonic()
            found = self._bucket.read(KEY)
            if found is None:
                version = self._bucket.create(KEY, self._body("held").dump())
            else:
                self._refuse_living(found, now.timestamp())
                version = self._bucket.replace(KEY, self._body("held").dump(), found.version)
            if version is not None:
                self._version, self._renewed = version, started
                self._thread.start()
                return
        raise WorkspaceBusy(f"workspace {self._bucket.url} is being taken by other runs just now; try again")

    def check(self) -> None:
        """Return only if the lease is ours, and for half its time from now.

        Raises:
            WorkspaceLost: another run has it.
            StoreUnreachable: nobody knows.
        """
        with self._changing:
            if not self._lost and time.monotonic() - self._renewed > self._seconds / 2:
                self._renew(self._bucket.patience)
            if not self._lost and not self._ours():
                self._lost = True
        if self._lost:
            raise WorkspaceLost(
                f"workspace {self._bucket.url} is no longer this run's: another run took it over, because this one had "
                f"not renewed its lease for {self._seconds:.0f} s. It stops before it writes anything more; what it "
                "committed is safe, and the same command goes on when the other run is over"
            )

    def release(self) -> None:
        """Free the lease, if it is still ours."""
        self._stop.set()
        self._thread.join()
        with self._changing:
            if not self._lost:
                self._beat += 1
                with contextlib.suppress(StoreUnreachable):  # it runs out by itself
                    self._bucket.replace(KEY, self._body("free").dump(), self._version)

    def _body(self, state: Literal["held", "free"]) -> Body:
        return Body(state=state, token=self.token, place=self._place, beat=self._beat, seconds=self._seconds)

    def _refuse_living(self, found: Stored, now: float) -> None:
        body = _read(found, self._bucket.url)
        age = now - found.modified.timestamp()
        left = body.seconds + _GRAIN - age
        if body.state == "free" or body.place == self._place or left <= 0:
            return
        raise WorkspaceBusy(
            f"workspace {self._bucket.url} is in use by another run, which renewed its lease {max(0.0, age):.0f} s "
            "ago; wait for it, or choose another with --workspace (if that run is dead, its lease ends in "
            f"{left:.0f} s)"
        )

    def _renew_on(self) -> None:
        """The heartbeat. An outage is waited out: until somebody else takes it, the lease is ours to renew."""
        pause = self._seconds / 4
        while not self._lost and not self._stop.wait(pause):
            with self._changing:
                try:
                    self._renew(pause)
                except StoreError:  # `check` meets it again, where it can be told
                    continue

    def _renew(self, patience: float) -> None:
        """Write the next beat. The caller holds `_changing`."""
        started = time.monotonic()
        self._beat += 1
        body = self._body("held").dump()
        version = self._bucket.replace(KEY, body, self._version, patience=patience)
        if version is None and (found := self._ours()):  # an earlier beat arrived, and its answer did not
            version = self._bucket.replace(KEY, body, found.version, patience=patience)
        if version is None:
            self._lost = True
        else:
            self._version, self._renewed = version, started

    def _ours(self) -> Stored | None:
        """The lock's object, if we wrote it."""
        found = self._bucket.read(KEY)
        return found if found is not None and _read(found, self._bucket.url).token == self.token else None


class Held(NamedTuple):
    """A lease that somebody has, or had when they died."""

    renewed: datetime
    """By the store's clock."""
    seconds: float


def held(bucket: Bucket) -> Held | None:
    """The lease as the bucket has it; None if it is free."""
    found = bucket.read(KEY)
    if found is None or (body := _read(found, bucket.url)).state == "free":
        return None
    return Held(found.modified, body.seconds)


def _read(found: Stored, url: str) -> Body:
    try:
        return Body.model_validate_json(found.data)
    except ValueError:
        raise StoreError(
            f"{url}/{KEY} cannot be read as a lock; if no run is at work there, delete that object and try again"
        ) from None
