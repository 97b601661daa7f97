"""Status: what of a recipe a workspace holds, what is stale and why, what runs now, and what a resume would do.

Reads the journal, the manifests of what it names and the recorded recipes; runs nothing and needs no engine. The
recipe is compared with the recorded run that differs from it in the fewest fields. A stage is

    fresh     its result is there, and all that it was made of is as it was
    stale     a setting, the version of its code, a file or a result before it is another; `why` says which
    missing   its result, or the record that finds it, is gone or damaged
    owed      that run did not get to it
    running   it is being done now

Stale is said on the safe side: a stage before it that comes out equal leaves it cached, and so does another run that
already made it under these settings.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gristmill.artifact import ArtifactRef
from gristmill.champions import champions
from gristmill.errors import RecipeError
from gristmill.recipe import Recipe, build
from gristmill.runs import EVALUATE, Production, Run, folder_bytes, holder, running, runs
from gristmill.stages import VERSIONS, changes, expected, reads, shown
from gristmill.taints import FILE as TAINTS
from gristmill.workspace import Workspace

State = Literal["fresh", "stale", "missing", "owed", "running"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StageStatus(_Model):
    """One stage of one turn."""

    turn: int
    stage: str
    state: State
    why: tuple[str, ...] = ()
    result: str | None = Field(None, description="Short form of its artifact.")
    seconds: float | None = Field(None, description="Taken when it was last done in earnest, in any run.")


class Now(_Model):
    """The run at work."""

    run: int | None
    pid: int | None
    turn: int | None = None
    stage: str | None = None
    done: int = 0
    total: int = 0
    note: str = ""
    since: str | None = Field(None, description="When the stage began; UTC, ISO 8601.")


class Held(_Model):
    """The champion."""

    checkpoint: str
    recipe: str
    turn: int
    since: str
    lift: float
    low: float | None
    high: float | None


class LastRun(_Model):
    """How the last run ended."""

    run: int
    command: str
    began: str
    ended: str | None
    outcome: str = Field(description="done, failed, refused, interrupted, killed, or running.")
    error: str | None


class Status(_Model):
    """What a workspace holds of a recipe."""

    workspace: str
    recipe: str | None = Field(description="Its name; null if nothing is recorded.")
    compared_with: int | None = Field(description="Number of the run that the stages are compared with.")
    changed: tuple[str, ...] = Field(description="Fields that differ from that run's recipe.")
    stages: tuple[StageStatus, ...]
    now: Now | None
    last: LastRun | None
    owed: int = Field(description="Stages that the next run would do, unless they turn out cached.")
    owed_seconds: float | None = Field(description="What they took before; null if some were never done.")
    champion: Held | None
    disk: dict[str, int] = Field(description="Bytes by kind of artifact, and of the other folders.")
    free: int = Field(description="Bytes free on the file system.")


def status(workspace: Workspace, recipe: Recipe | None = None, *, sizes: bool = True) -> Status:
    """Look at a workspace.

    Args:
        recipe: what one would run; the last run's if None.
        sizes: whether to add up what is on disk.

    Raises:
        StoreError: a file of the workspace cannot be read.
    """
    workspace.refresh()
    known = runs(workspace)
    alive = holder(workspace) is not None
    now = _now_running(workspace, known) if alive else None
    flow = "improve"
    if recipe is None:
        last = next((run for run in reversed(known) if run.recipe is not None and run.flow != EVALUATE), None)
        if last is not None and last.recipe is not None:
            recipe, flow = _recorded_recipe(last), last.flow
    reference = _nearest(recipe, flow, known)
    stages: tuple[StageStatus, ...] = ()
    changed: dict[str, tuple[Any, Any]] = {}
    if recipe is not None:
        changed = changes(reference.recipe, recipe.resolved()) if reference and reference.recipe else {}
        stages = _stages(workspace, recipe, flow, known, reference, changed, now)
    elif known:
        stages = tuple(_bare(workspace, known[-1]))
    todo = [one for one in stages if one.state not in ("fresh", "running")]
    took = [one.seconds for one in todo]
    held = champions(workspace)
    last_run = next((run for run in reversed(known) if run.number), None)
    return Status(
        workspace=str(workspace),
        recipe=recipe.name if recipe else None,
        compared_with=reference.number if reference else None,
        changed=tuple(f"{name}: {shown(a)} → {shown(b)}" for name, (a, b) in changed.items()),
        stages=stages,
        now=now,
        last=None if last_run is None else _last(last_run, alive and last_run is known[-1]),
        owed=len(todo),
        owed_seconds=round(sum(s for s in took if s is not None), 1) if todo and None not in took else None,
        champion=None
        if not held
        else Held(
            checkpoint=held[-1].checkpoint.short,
            recipe=held[-1].recipe,
            turn=held[-1].turn,
            since=held[-1].time,
            lift=held[-1].lift.mean,
            low=held[-1].lift.low,
            high=held[-1].lift.high,
        ),
        disk=disk(workspace.root) if sizes else {},
        free=shutil.disk_usage(workspace.root if workspace.root.exists() else Path.cwd()).free,
    )


def disk(root: Path) -> dict[str, int]:
    """Bytes by kind of artifact, and of the other folders of a workspace; what is empty is left out."""
    found = {path.name: folder_bytes(path) for path in sorted((root / "artifacts").glob("*")) if path.is_dir()}
    for path in sorted(root.iterdir()) if root.exists() else ():
        if path.is_dir() and path.name != "artifacts":
            found[f"{path.name}/"] = folder_bytes(path)
    return {name: size for name, size in found.items() if size}


def _nearest(recipe: Recipe | None, flow: str, known: Sequence[Run]) -> Run | None:
    """The run whose recipe differs in the fewest fields; of equals the last."""
    if recipe is None:
        return None
    resolved = recipe.resolved()
    candidates = [run for run in known if run.recipe is not None and run.flow == flow]
    return min(
        candidates,
        key=lambda run: (len(changes(run.recipe or {}, resolved)), -run.number),
        default=None,
    )


def _recorded_recipe(run: Run) -> Recipe | None:
    """The recipe of a run; None if this version cannot read it any more."""
    assert run.recipe is not None
    try:
        return build(run.recipe)
    except RecipeError:
        return None


def _stages(
    workspace: Workspace,
    recipe: Recipe,
    flow: str,
    known: Sequence[Run],
    reference: Run | None,
    changed: dict[str, tuple[Any, Any]],
    now: Now | None,
) -> tuple[StageStatus, ...]:
    made: dict[tuple[int, str], Production] = {}
    for run in known:  # what runs of the very same recipe made counts, the last of them first
        if reference and run.recipe == reference.recipe and run.flow == flow:
            made |= run.latest
    wanted = expected(recipe, flow)
    if reference is not None and reference.outcome == "done" and "turns" not in changed:
        wanted = [at for at in wanted if at in made]  # stop rules may have ended it early, for good
    last = max((turn for turn, _ in wanted), default=0)
    extra = [at for at in made if at not in wanted and at[0] <= last and at[1] != "report"]
    order = sorted([*wanted, *extra], key=lambda at: (at[0], _place(at, wanted, made)))
    there = {ref.short: ref for ref in workspace.store.refs()}
    seconds = _took(known)
    newest = _files_changed(workspace, recipe)
    stale: dict[str, str] = {}  # short form of a result → the stage that would make another
    undecided: int | None = None
    found = []
    for turn, stage in order:
        one = made.get((turn, stage))
        took = seconds.get((turn, stage)) or seconds.get((None, stage))
        state: State = "fresh"
        why: list[str] = []
        if one is None:
            state = "owed"
        else:
            why = _missing(workspace, there, one)
            state = "missing" if why else state
            why += [f"{name}: {shown(a)} → {shown(b)}" for name, (a, b) in changed.items() if reads(stage, name)]
            today = VERSIONS.get(one.task or "", "1")
            if one.version is not None and one.task is not None and one.version != today:
                why.append(f"the code of {one.task} is version {today}, was {one.version}")
            why += [text for names, when, text in newest if stage in names and when > one.time]
            why += sorted({f"follows {stale[given]}" for given in one.inputs if given in stale})
            if not why and undecided is not None and turn > undecided:
                why.append(f"follows promote of turn {undecided}, which may decide otherwise")
            if why and state == "fresh":
                state = "stale"
            if state == "stale" or (state == "missing" and len(why) > 1):
                stale.setdefault(one.result, stage if turn == 0 else f"{stage} of turn {turn}")
                if stage == "promote" and undecided is None:
                    undecided = turn
        if now is not None and (turn, stage) == (now.turn, now.stage):
            state, why = "running", []
        found.append(
            StageStatus(
                turn=turn,
                stage=stage,
                state=state,
                why=tuple(dict.fromkeys(why)),
                result=one.result if one else None,
                seconds=took,
            )
        )
    return tuple(found)


def _place(at: tuple[int, str], wanted: list[tuple[int, str]], made: dict[tuple[int, str], Production]) -> float:
    """Where a stage stands among those of its turn: as expected, or right behind the one that it was made after."""
    if at in wanted:
        return float(wanted.index(at))
    before = list(made)[: list(made).index(at)]
    return next((wanted.index(other) + 0.5 for other in reversed(before) if other in wanted), -1.0)


def _bare(workspace: Workspace, run: Run) -> list[StageStatus]:
    """The stages of a run that recorded no recipe (by an earlier version): only whether their results are there."""
    there = {ref.short: ref for ref in workspace.store.refs()}
    found = []
    for (turn, stage), one in run.latest.items():
        why = _missing(workspace, there, one)
        state: State = "missing" if why else "fresh"
        found.append(StageStatus(turn=turn, stage=stage, state=state, why=tuple(why), result=one.result))
    return found


def _missing(workspace: Workspace, there: dict[str, ArtifactRef], one: Production) -> list[str]:
    """What of a stage's result is gone."""
    ref = there.get(one.result)
    if ref is None or not workspace.store.exists(ref):
        return [f"{one.result} is gone or damaged"]
    if one.key is not None and not (workspace.results / one.key).exists():
        return ["the record that finds it is gone from results/"]
    return []


def _took(known: Sequence[Run]) -> dict[tuple[int | None, str], float]:
    """Seconds of each stage when it was last done in earnest, by turn, and (turn None) in whichever turn."""
    found: dict[tuple[int | None, str], float] = {}
    for run in known:
        for one in run.productions:
            if not one.cached and one.seconds is not None:
                found[one.turn, one.stage] = found[None, one.stage] = one.seconds
    return found


def _files_changed(workspace: Workspace, recipe: Recipe) -> list[tuple[frozenset[str], str, str]]:
    """Stages, a time, and what was written then, of the files that a stage's content depends on beside the store."""
    tasks = frozenset({"tasks", "held-out tasks"})
    policy = frozenset({"base policy"})
    choose = frozenset({"review", "curate"})
    looked: list[tuple[frozenset[str], Path, str]] = [
        (tasks, Path(name), f"{name} was written since")
        for name in (recipe.environment.train_file, recipe.environment.heldout_file)
        if name
    ]
    model = Path(recipe.policy.model).expanduser()
    if model.is_dir():
        looked += [(policy, path, f"{recipe.policy.model}: {path.name} was written since") for path in model.iterdir()]
    looked.append((choose, workspace.root / "reviews" / "decisions.jsonl", "review decisions were made since"))
    looked.append((choose | {"taints"}, workspace.root / TAINTS, "rollouts were tainted since"))
    return [
        (stages, datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds"), text)
        for stages, path, text in looked
        if path.is_file()
    ]


def _now_running(workspace: Workspace, known: Sequence[Run]) -> Now:
    said = running(workspace) or {}
    run = known[-1] if known and known[-1].outcome is None else None
    if run is None or said.get("run") != run.number:
        return Now(run=run.number if run and run.number else None, pid=run.pid if run else None)
    names = ("run", "pid", "turn", "stage", "done", "total", "note", "since")
    return Now(**{name: said[name] for name in names if name in said})


def _last(run: Run, alive: bool) -> LastRun:
    outcome = run.outcome or ("running" if alive else "killed")
    return LastRun(
        run=run.number,
        command=" ".join(run.command),
        began=run.started,
        ended=run.ended,
        outcome=outcome,
        error=run.error,
    )


def by_turn(stages: Sequence[StageStatus]) -> dict[int, list[StageStatus]]:
    """The stages of each turn."""
    found: dict[int, list[StageStatus]] = defaultdict(list)
    for one in stages:
        found[one.turn].append(one)
    return dict(found)
