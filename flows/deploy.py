"""Apply deployments to a Prefect server: work pools, the automation that finds dead runs, the deployments.

Each may be applied again and again: a pool that is there stays as it is (so what was changed about it stays), the
automation and the deployments are brought to what is asked for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkerFilter
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker
from pydantic import BaseModel, ConfigDict

from flows.server import configured_api
from gristmill.deployment import Plan, Pool
from gristmill.errors import EngineError, UsageError

DEAD = "gristmill: dead runs"
FLOWS = ("improve", "iterate", "prepare", "train-step")
_ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
_TIMEOUT = 300.0  # seconds for `prefect deploy`; it takes about ten


class Applied(BaseModel):
    """What the server has now."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployments: tuple[str, ...]
    pools: dict[str, bool]
    """Name → whether it was made now."""
    automation: str
    workers: dict[str, int]
    """Pool → workers that are there for it."""


def apply(plan: Plan, *, dead_after: float) -> Applied:
    """Bring the configured server to the plan.

    Args:
        dead_after: seconds without a heartbeat after which a run counts as crashed.

    Raises:
        EngineError: no server is configured, it does not answer, or it refuses.
        UsageError: a work pool is there with another type.
    """
    if configured_api() is None:
        raise EngineError("no Prefect server is configured; start one and set PREFECT_API_URL (docs/deploy-server.md)")
    with get_client(sync_client=True) as client:
        if (problem := client.api_healthcheck()) is not None:
            raise EngineError(f"the Prefect server at {client.api_url} does not answer: {problem}")
        pools = {pool.name: _require(client, pool) for pool in plan.pools}
        _automation(client, dead_after)
        _deploy(plan)
        _pause(client, plan)
        online = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
        workers = {
            pool.name: len(client.read_workers_for_work_pool(pool.name, worker_filter=online)) for pool in plan.pools
        }
    return Applied(deployments=plan.names, pools=pools, automation=DEAD, workers=workers)


def _require(client: SyncPrefectClient, pool: Pool) -> bool:
    """Make the pool if it is not there; whether it was made."""
    try:
        there = client.read_work_pool(pool.name)
    except ObjectNotFound:
        template = pool.job_template
        if template is None and pool.type == "process":
            template = ProcessWorker.get_default_base_job_template()
        made = WorkPoolCreate(name=pool.name, type=pool.type, base_job_template=template or {})
        client.create_work_pool(made)
        return True
    if there.type != pool.type:
        raise UsageError(
            f"work pool {pool.name} is of type {there.type}, and these deployments are for {pool.type}; "
            "name another with --pool"
        )
    return False


def _automation(client: SyncPrefectClient, dead_after: float) -> None:
    """A run of ours that goes silent is marked as crashed: its process cannot say so when the machine is gone.

    By flow and not by tag, because the turn inside a run has heartbeats of its own and carries no tags.
    """
    wanted = AutomationCore(
        name=DEAD,
        description="A run of Gristmill without a heartbeat is dead. Start it again: it goes on where it was.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in _ENDS)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "flow", "prefect.resource.name": list(FLOWS)}
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=dead_after),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"No heartbeat for {dead_after:.0f} s: its process or machine is gone. Start it again.",
            )
        ],
    )
    there = client.read_automations_by_name(DEAD)
    if there:
        # Prefect sends what was set by name: without this round the kind of the action would not be among it.
        complete = AutomationCore.model_validate(wanted.model_dump(exclude={"owner_resource"}))
        client.update_automation(there[0].id, complete)
    else:
        client.create_automation(wanted)


def _pause(client: SyncPrefectClient, plan: Plan) -> None:
    """Take back what inactive schedules had set down already: `prefect deploy` leaves an hour of runs standing."""
    for name, one in zip(plan.names, plan.file["deployments"], strict=True):
        if any(not schedule.get("active", True) for schedule in one.get("schedules", [])):
            there = client.read_deployment_by_name(name)
            for schedule in there.schedules:
                if not schedule.active:
                    client.update_deployment_schedule(there.id, schedule.id, active=False)


def _deploy(plan: Plan) -> None:
    """By Prefect's own command, so that the file means what it means there."""
    with tempfile.TemporaryDirectory(prefix="gristmill-deploy-") as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(plan.yaml(), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
    if done.returncode != 0:
        words = " ".join((done.stderr or done.stdout).split())
        # A refusal by the server repeats all that it was sent.
        told = re.search(r"'msg': (['\"])(.+?)\1, '", words)
        raise EngineError(f"`prefect deploy` refused: {told[2] if told else words[-600:]}")
