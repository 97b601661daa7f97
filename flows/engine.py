"""Flow runs that a killed process left unfinished at the configured Prefect API, for `gristmill doctor`.

An API learns nothing from a process that was killed: its flow run stays `Running` there for ever. The workspace knows
better, since it recorded the flow run's id and holds a lock that died with the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from flows.server import configured_api
from gristmill.doctor import Engine


def engine() -> Engine:
    """The configured API, and what the doctor may ask of it; Prefect is imported only if there is one."""
    url = configured_api()
    if url is None:
        return Engine(url=None)
    from prefect import get_client

    with get_client(sync_client=True) as client:
        answers = client.api_healthcheck() is None
    return Engine(url=url, answers=answers, unfinished=_unfinished, crash=_crash)


def _unfinished(runs: Sequence[str]) -> list[tuple[str, str]]:
    """Of these flow runs and their children, those that have not ended: id and state's name."""
    from prefect import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterId,
        FlowRunFilterParentFlowRunId,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import TERMINAL_STATES, StateType

    ids = [UUID(one) for one in runs]
    alive = FlowRunFilterState(
        type=FlowRunFilterStateType(any_=[kind for kind in StateType if kind not in TERMINAL_STATES])
    )
    found = []
    with get_client(sync_client=True) as client:
        for chosen in (
            FlowRunFilter(id=FlowRunFilterId(any_=ids), state=alive),
            FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=ids), state=alive),
        ):
            found += client.read_flow_runs(flow_run_filter=chosen)
    return [(str(run.id), run.state.name if run.state and run.state.name else "unfinished") for run in found]


def _crash(run: str) -> None:
    from prefect import State, get_client
    from prefect.states import Crashed

    state: State[None] = Crashed(message="Its process is gone; gristmill doctor found its workspace free.")
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(run), state, force=True)
