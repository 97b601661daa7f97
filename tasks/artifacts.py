"""What Prefect's UI shows of a run, under stable keys: one artifact a stage, versioned from turn to turn.

    samples      transcripts of the turn's rollouts           training     the loss by step
    funnel       rollouts read, kept, dropped by reason       evaluation   mean reward and pass@k with intervals
    rewards      rewards, and how far they differ in a task   gate         the decision, its evidence, every guard
    dataset      the dataset's card                           lineage      what the decision rests on, as a graph
    checks       what the checks found                        report       what the run proved; where the page is

They are made of the artifact that a stage gave, by a hook that Prefect calls whether the stage ran or was cached: every
run shows all of its own. A hook that fails is Prefect's to log; it fails no run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
from prefect import State, Task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import TaskRun

from gristmill import charts, chat, picture
from gristmill.artifact import ArtifactRef, summary
from gristmill.checks import Report, page
from gristmill.dataset.card import describe
from gristmill.evaluation import read_evaluation
from gristmill.histogram import Histogram, histogram
from gristmill.lineage_page import mermaid
from gristmill.promotion import read_decision
from gristmill.recipe import FormatRecipe
from gristmill.rollout import parse
from gristmill.run_report import Summary
from gristmill.sample import stratified
from gristmill.statistics import Estimate
from gristmill.store import Store
from gristmill.table import parts, read_raw
from gristmill.tracing import trace
from gristmill.words import percent
from gristmill.workspace import Workspace

_SAMPLES = 2  # of low, middle and high reward each
_LONGEST = 1500  # characters of a message in a sample
_LINES = 400  # of a graph; mermaid draws no more than 500 arrows

Show = Callable[[Store, ArtifactRef, str, str], None]
"""Makes artifacts of (store, what a stage gave, the stage as the terminal shows it, its turn)."""


def shown(step: Task[..., ArtifactRef], show: Show) -> None:
    """Whenever the step ends with an artifact, cached or not, show it."""

    def hook(task: Task[..., Any], task_run: TaskRun, state: State[ArtifactRef]) -> None:
        stage, _, turn = task_run.name.rpartition("-")
        if turn.isdigit():  # named by tasks/caching.py: it is a stage of a flow
            show(Workspace.current().store, state.result(), stage, turn)

    hook.__name__ = f"show_{show.__name__}"
    step.on_completion(hook)


def samples(store: Store, table: ArtifactRef, stage: str, turn: str) -> None:
    """A few of the rollouts that are trained on, of low, middle and high reward."""
    if stage not in ("ingest", "read"):
        return
    files = parts(store.path(table))
    parted = [f"{summary(store.manifest(table))}, {table}"]
    for one in stratified([files], low=_SAMPLES, middle=_SAMPLES, high=_SAMPLES, seed=0):
        ((_, raw),) = zip([one.at_row], read_raw(files[one.at_file], [one.at_row]), strict=True)
        try:
            messages = chat.convert(parse(raw)).messages
            told = "\n\n".join(f"**{_plain(str(m['role']))}**\n\n{_fenced(_said(m))}" for m in messages)
        except chat.Unrepresentable as problem:
            told = f"no chat form: {_plain(str(problem))}"
        head = f"reward {one.reward:g} ({one.stratum}), rollout {one.rollout_id}"
        parted.append(f"<details><summary>{head}</summary>\n\n{told}\n\n</details>")
    create_markdown_artifact("\n\n".join(parted), key="samples", description=f"Rollouts of turn {turn}")


def funnel(store: Store, selection: ArtifactRef, stage: str, turn: str) -> None:
    """Where every rollout went, and the rewards that were chosen from."""
    counts = store.manifest(selection).counts
    rules = counts["rules"]
    rows = [{"rule": "", "reason": "kept", "rollouts": counts["rows_kept"]}]
    rows += [{"rule": step["rule"], "reason": step["reason"], "rollouts": step["dropped"]} for step in rules]
    reading = {step["reason"] for step in rules}
    rows += [
        {"rule": "", "reason": reason, "rollouts": count}
        for reason, count in counts["dropped"].items()
        if reason not in reading
    ]
    said = [f"Turn {turn}: {counts['rows_read']} rollouts read for {selection}", *counts["warnings"]]
    create_table_artifact(rows, key="funnel", description="; ".join(said))
    if not counts["rewards"]["histogram"]["edges"]:
        return
    bins = Histogram(**counts["rewards"]["histogram"])
    text = [f"Mean reward {counts['rewards']['mean']:.3f}, {counts['rows_read']} rollouts, turn {turn}."]
    text.append(picture.markdown(charts.histogram(bins, title="Rewards"), "Rewards of the rollouts"))
    tables = [ref for ref in store.manifest(selection).parents if ref.kind == "table"]
    gaps = _gaps(store, tables)
    if gaps:
        text.append(
            f"Best − worst reward within a task: in {sum(gap > 0 for gap in gaps)} of {len(gaps)} tasks rollouts "
            "differ; only these tell good from poor."
        )
        drawn = charts.histogram(histogram(gaps, low=0.0, high=1.0), title="Gaps", unit="tasks")
        text.append(picture.markdown(drawn, "Gaps between best and worst rollout of a task"))
    create_markdown_artifact("\n\n".join(text), key="rewards", description=f"Turn {turn}, {selection}")


def training(store: Store, checkpoint: ArtifactRef, stage: str, turn: str) -> None:
    """The loss."""
    manifest = store.manifest(checkpoint)
    losses = manifest.counts.get("losses") or ()
    text = [f"Turn {turn}: {summary(manifest)}; {manifest.seconds:.0f} s, {checkpoint}."]
    if losses:
        text.append(picture.markdown(charts.line(losses, title="Training loss", low=0.0), "Training loss by step"))
    create_markdown_artifact("\n\n".join(text), key="training", description=f"Turn {turn}, {checkpoint}")


def evaluation(store: Store, ref: ArtifactRef, stage: str, turn: str) -> None:
    """A policy on the held-out tasks, with intervals."""
    found = read_evaluation(store, ref)
    measures = [("mean reward", found.estimate)]
    measures += [(f"pass@{k}", one) for k, one in sorted(found.pass_at.items())]
    measures += [(f"mean reward: {_plain(one.name)}", one.estimate) for one in found.categories]
    missing = f"{found.missing} of {found.expected} samples missing" if found.missing else "no sample missing"
    who = "base policy" if turn == "0" else f"challenger of turn {turn}"
    table = _table(
        ("measure", "mean", "interval", "tasks"),
        ((name, f"{one.mean:.3f}", _interval(one), str(one.tasks)) for name, one in measures),
    )
    points = [charts.Point(name, one.mean, one.low, one.high, "base") for name, one in measures[:8]]
    drawn = charts.curve(points, title="Held-out results", interval="interval")
    text = f"{stage}, {who}: {found.policy}; {missing}.\n\n{table}\n\n{picture.markdown(drawn, 'Held-out results')}"
    create_markdown_artifact(text, key="evaluation", description=f"Turn {turn}, {ref}")


def gate(store: Store, ref: ArtifactRef, stage: str, turn: str) -> None:
    """The decision and what it rests on."""
    decision = read_decision(store, ref)
    ours, theirs = (read_evaluation(store, one) for one in store.manifest(ref).parents[:2])
    text = [
        f"## Turn {turn}: {decision.verdict}",
        f"{decision.reason}.",
        _table(
            ("", "policy", "mean reward", "interval"),
            (
                (name, str(one.policy), f"{one.estimate.mean:.3f}", _interval(one.estimate))
                for name, one in (("challenger", ours), ("champion", theirs))
            ),
        ),
    ]
    if decision.guards:
        rows = ((one.name, "passed" if one.passed else "**failed**", one.evidence) for one in decision.guards)
        text.append(_table(("guard", "", "evidence"), rows))
    points = [
        charts.Point("champion", theirs.estimate.mean, theirs.estimate.low, theirs.estimate.high, "base"),
        charts.Point(
            "challenger",
            ours.estimate.mean,
            ours.estimate.low,
            ours.estimate.high,
            "promoted" if decision.promoted else "rejected",
        ),
    ]
    drawn = charts.curve(points, title="Champion and challenger", interval=f"{percent(decision.confidence)} interval")
    text.append(picture.markdown(drawn, "Champion and challenger"))
    create_markdown_artifact("\n\n".join(text), key="gate", description=f"Turn {turn}, {ref}")
    create_markdown_artifact(lineage(Workspace.current(), ref), key="lineage", description=f"What {ref} rests on")


def dataset(store: Store, ref: ArtifactRef, stage: str, turn: str) -> None:
    """The dataset's card."""
    manifest = store.manifest(ref)
    settings = FormatRecipe.model_validate(
        {k: v for k, v in manifest.settings.items() if k in FormatRecipe.model_fields}
    )
    text = describe(settings, manifest.counts)
    create_markdown_artifact(text, key="dataset", description=f"Turn {turn}, {ref}")


def checks(store: Store, ref: ArtifactRef, stage: str, turn: str) -> None:
    """What the checks found; called by the step itself where an error stops the run."""
    found = store.read_json(ref, "findings.json")
    del found["dataset"]
    text = f"{page.markdown(Report.model_validate(found))}\n\nPage: `{ref.location}/checks.html`"
    create_markdown_artifact(text, key="checks", description=f"Turn {turn}, {ref}")


def report(store: Store, ref: ArtifactRef, stage: str, turn: str) -> None:
    """What the run proved, the curve of its turns, and where the page is."""
    made = Summary.model_validate(store.read_json(ref, "summary.json"))
    lift = made.lift
    interval = ""
    if lift.low is not None:
        interval = f", {percent(lift.confidence)} interval {lift.low:+.3f} to {lift.high:+.3f}"
    rows = [("base", f"{made.base.mean:.3f}", "", "")]
    rows += [(f"turn {t.turn}", f"{t.mean_reward:.3f}", str(t.verdict), f"{t.examples:,}") for t in made.turns]
    measured = [read_evaluation(store, one).estimate for one in store.manifest(ref).parents if one.kind == "evaluation"]
    marks: list[charts.Mark] = ["base", *("promoted" if t.promoted else "rejected" for t in made.turns)]
    points = [
        charts.Point(row[0], one.mean, one.low, one.high, mark)
        for row, one, mark in zip(rows, measured, marks, strict=False)
    ]
    text = [
        f"## champion − base on {lift.tasks} held-out tasks: {lift.mean:+.3f}{interval}",
        picture.markdown(charts.curve(points, title="Mean reward by turn", interval="interval"), "Mean reward by turn"),
        _table(("", "mean reward", "gate", "examples"), rows),
        *([f"Stopped: {made.stopped}."] if made.stopped else []),
        f"The whole page: `reports/{made.recipe}.html` in the workspace.",
    ]
    create_markdown_artifact("\n\n".join(text), key="report", description=str(ref))


def lineage(workspace: Workspace, ref: ArtifactRef) -> str:
    """Everything that an artifact rests on, as a mermaid graph."""
    graph = mermaid(trace(workspace, str(ref))).replace("flowchart LR", "flowchart TD", 1)  # the UI's column is narrow
    more = f"`gristmill trace {ref} --html lineage.html` is a page that one can click, down to single rollouts."
    if graph.count("\n") > _LINES:
        return f"The graph is too large for this page. {more}"
    return f"```mermaid\n{graph}\n```\n\n{more}"


def _gaps(store: Store, tables: Sequence[ArtifactRef]) -> list[float]:
    """Best − worst reward of each task with two usable rollouts."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    usable = pc.field("drop_reason").is_null()
    files = [file for table in tables for file in parts(store.path(table))]
    rows = pa.concat_tables(pq.read_table(file, columns=["task_key", "reward"], filters=usable) for file in files)
    found = rows.group_by("task_key").aggregate([("reward", "min"), ("reward", "max"), ("reward", "count")])
    found = found.filter(pc.field("reward_count") > 1)
    return [
        float(high - low)
        for low, high in zip(*(found[f"reward_{end}"].to_pylist() for end in ("min", "max")), strict=True)
    ]


def _interval(one: Estimate) -> str:
    return "none" if one.low is None or one.high is None else f"{one.low:.3f} to {one.high:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Somebody else's words as words: nothing in them is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!&])", r"\\\1", " ".join(text.split()))


def _said(message: dict[str, Any]) -> str:
    """A message's text, and the calls in it."""
    content = message.get("content")
    lines = [content if isinstance(content, str) else orjson.dumps(content).decode()] if content else []
    lines += [f"→ {orjson.dumps(call.get('function', call)).decode()}" for call in message.get("tool_calls") or ()]
    return "\n".join(lines)


def _fenced(text: str) -> str:
    """Somebody else's text as a block that nothing in it can end."""
    shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}\n… {len(text) - _LONGEST} more characters"
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 3)
    return f"{fence}text\n{shown}\n{fence}"
