"""What Gristmill tells Prefect's event stream, for automations.

    gristmill.rollouts.arrived    resource gristmill.rollouts.<sha256>; payload path (or URL), bytes, sha256
    gristmill.turn.finished       resource gristmill.decision.<digest>; payload recipe, turn, verdict, lift …

An arrival is posted, and its answer awaited, because what starts on it must not be lost. A finished turn goes the way
of Prefect's own events, which never holds a run up.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events import emit_event
from prefect.events.schemas.events import Event, Resource
from prefect.exceptions import PrefectHTTPStatusError

from flows.server import configured_api
from gristmill.arrivals import Arrival, Arrivals
from gristmill.errors import EngineError, StoreUnreachable
from gristmill.loop import Turn
from gristmill.promotion import read_decision
from gristmill.recipe import Recipe
from gristmill.store import Store
from gristmill.workspace import Workspace

ARRIVED = "gristmill.rollouts.arrived"
FINISHED = "gristmill.turn.finished"


def finished(store: Store, recipe: Recipe, turn: Turn, *, since: str) -> None:
    """Tell of a turn whose decision was made at `since` (UTC, ISO 8601) or later, and not found in the cache."""
    if store.manifest(turn.decision).created < since:
        return
    decision = read_decision(store, turn.decision)
    emit_event(
        FINISHED,
        resource={
            "prefect.resource.id": f"gristmill.decision.{turn.decision.digest}",
            "prefect.resource.name": f"{recipe.name} turn {turn.turn}",
        },
        payload={
            "recipe": recipe.name,
            "turn": turn.turn,
            "verdict": decision.verdict,
            "promoted": decision.promoted,
            "reason": decision.reason,
            "lift": decision.lift.model_dump(mode="json"),
            "challenger": turn.checkpoint.location,
            "champion": turn.champion.location,
        },
    )


def watch(
    place: Path | str, workspace: Workspace, *, settle: float, poll: float, once: bool, tell: Callable[[str], None]
) -> int:
    """Tell of files as they arrive in a folder or under a URL; how many. `once`: ends when what is there was seen.

    Raises:
        EngineError: no server is configured; or, `once`, it does not take an event.
        InputError: there is no such folder.
        StoreError: the bucket cannot be read; one that does not answer is waited for, unless `once`.
        UsageError: the URL means nothing, or needs an extra that is not installed.
    """
    if configured_api() is None:
        raise EngineError("no Prefect server is configured; start one and set PREFECT_API_URL (docs/deploy-server.md)")
    arrivals, count = Arrivals(place, workspace, settle=settle, warn=tell), 0
    end = float("inf")
    while True:
        last = time.monotonic() >= end
        try:
            with get_client(sync_client=True) as client:
                for arrival in arrivals.look():
                    _post(client, arrival)
                    arrivals.told(arrival)
                    count += 1
                    tell(f"{arrival.path}: {arrival.bytes} bytes, sha256 {arrival.sha256[:12]}")
        except (httpx.TransportError, PrefectHTTPStatusError) as error:
            if once:
                raise EngineError(f"the Prefect server did not take an event: {error}") from error
            tell(f"the Prefect server did not take an event, which will be told again: {error}")
        except StoreUnreachable as error:
            if once:
                raise
            tell(str(error))
        if last:
            return count
        if once:  # what was seen first has settled by then
            end = min(end, time.monotonic() + settle)
        time.sleep(max(0.1, min(poll, end - time.monotonic())))


def _post(client: SyncPrefectClient, arrival: Arrival) -> None:
    event = Event(
        id=uuid.uuid5(uuid.NAMESPACE_URL, f"gristmill:{arrival.sha256}"),
        event=ARRIVED,
        resource=Resource.model_validate(
            {
                "prefect.resource.id": f"gristmill.rollouts.{arrival.sha256}",
                "prefect.resource.name": Path(arrival.path).name,
            }
        ),
        payload=arrival.model_dump(mode="json", include={"path", "bytes", "sha256"}),
    )
    client.request("POST", "/events", json=[event.model_dump(mode="json")])
