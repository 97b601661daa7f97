"""Why a rollout could not be had. A failure is a record with a class and a cause, and never a reward.

Two kinds of trouble are told apart, because they are treated differently:

* the endpoint's (nothing listens, it is overloaded, it limits the rate): everybody waits;
* the rollout's (an error, a time-out, a reply that is none): it alone is asked again, a bounded number of times.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import httpx

_CAUSE = 500
"""Characters of a cause that are kept: Gym's error texts embed the whole request."""


class FailureClass(StrEnum):
    """What went wrong with the last attempt."""

    TIMEOUT = "timeout"  # no answer within the time of a request, or of the rollout with all its attempts
    UNREACHABLE = "unreachable"  # nothing accepts connections
    OVERLOADED = "overloaded"  # 502, 503, 504, 520, 529: a server that asks to be left alone
    RATE_LIMITED = "rate_limited"  # 429
    CUT = "cut"  # the connection ended before the reply did
    SERVER_ERROR = "server_error"  # any other 5xx
    REJECTED = "rejected"  # 4xx: the same request would be refused again
    INVALID_REPLY = "invalid_reply"  # 200 with something that is no rollout
    NO_REWARD = "no_reward"  # a reply without a finite reward
    AGENT_FAILED = "agent_failed"  # the environment itself reports a failed run (`_ng_failure_class`)
    VERIFIER = "verifier"  # our verifier raised

    @property
    def of_endpoint(self) -> bool:
        """Whether everybody should wait."""
        return self in _OF_ENDPOINT

    @property
    def blames_rollout(self) -> bool:
        """Whether it counts as one of the rollout's attempts. An overload may be this rollout's doing."""
        return self not in _OF_ENDPOINT or self is FailureClass.OVERLOADED

    @property
    def final(self) -> bool:
        """Whether asking again is pointless."""
        return self in _FINAL


_OF_ENDPOINT = {FailureClass.UNREACHABLE, FailureClass.OVERLOADED, FailureClass.RATE_LIMITED}
_FINAL = {FailureClass.REJECTED, FailureClass.NO_REWARD, FailureClass.VERIFIER}
_OVERLOAD_STATUS = {502, 503, 504, 520, 529}


class Failed(Exception):
    """One attempt failed. `wait`: seconds that the server asked for."""

    def __init__(self, kind: FailureClass, cause: str, wait: float | None = None) -> None:
        super().__init__(kind, cause, wait)
        self.kind, self.wait = kind, wait
        self.cause = shortened(cause)

    def __str__(self) -> str:
        return f"{self.kind}: {self.cause}"


def from_transport(error: httpx.RequestError) -> Failed:
    """An attempt that ended without a whole reply."""
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Failed(FailureClass.UNREACHABLE, said)
    if isinstance(error, httpx.TimeoutException):
        return Failed(FailureClass.TIMEOUT, said)
    if isinstance(error, httpx.TransportError):
        return Failed(FailureClass.CUT, said)
    return Failed(FailureClass.INVALID_REPLY, said)  # a body that is not encoded as its header says


def from_status(status: int, body: bytes, retry_after: str | None) -> Failed:
    """A reply that is not 200."""
    if status == 429:
        kind = FailureClass.RATE_LIMITED
    elif status in _OVERLOAD_STATUS:
        kind = FailureClass.OVERLOADED
    elif status >= 500 or status == 408:
        kind = FailureClass.SERVER_ERROR
    else:
        kind = FailureClass.REJECTED
    said = body.decode(errors="replace").strip()
    return Failed(kind, f"HTTP {status}" + (f": {said}" if said else ""), _seconds(retry_after))


def record(stamps: dict[str, Any], failed: Failed, attempts: int) -> dict[str, Any]:
    """A line of the failures sidecar: which rollout, and why; neither reward nor response."""
    return {
        **stamps,
        "_ng_failure_class": str(failed.kind),
        "_ng_failure_terminal": failed.kind.final,
        "cause": failed.cause,
        "attempts": attempts,
    }


def shortened(text: str) -> str:
    """One line of at most 500 characters: beginning and end, where errors say what they are."""
    line = " ".join(text.split())
    if len(line) <= _CAUSE:
        return line
    return f"{line[: _CAUSE - 120]} … {line[-117:]}"


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds: a number, or an HTTP date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        from datetime import UTC, datetime
        from email.utils import parsedate_to_datetime

        try:
            then = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = (then.replace(tzinfo=then.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if seconds < 1e6 else None  # also refuses NaN
