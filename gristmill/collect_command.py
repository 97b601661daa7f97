"""`gristmill collect`: a recipe's rollouts, into a folder, without the loop.

Writes NeMo Gym's files (gristmill/collect), so `gristmill prepare FOLDER` and Gym's own tools read them. The same
command goes on where it was interrupted, asks again for what failed, and refuses a folder of other settings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson

from gristmill.collect import ROLLOUTS, Counts, Progress, collect
from gristmill.collect.run import Actor, check, run
from gristmill.collect.tasks import chosen
from gristmill.environment import GYM, make_tasks, verifier
from gristmill.errors import UsageError
from gristmill.recipe import Recipe
from gristmill.store import Store

_WORK = ".collect"


def collect_recipe(
    recipe: Recipe, out: Path, *, heldout: bool, limit: int | None, shard: str | None, json: bool
) -> None:
    """The rollouts of the recipe's policy on its first turn's training tasks, or on its held-out ones.

    Raises:
        UsageError: a shard that is none, or a policy that does not fit the environment.
        CollectionError, GateError: as `gristmill.collect.collect`.
    """
    check(recipe.policy, recipe.environment, trains=False)
    part = _shard(shard)
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    rows = make_tasks(recipe.environment, "heldout" if heldout else "train", recipe.seed, 0 if heldout else 1)
    # Not .jsonl: whoever reads the folder's rollout files must not take it for one.
    tasks = work / "tasks"
    tasks.write_bytes(b"".join(orjson.dumps(r, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE) for r in rows))
    with _shown(f"{recipe.name}: collecting into {out}") as progress:
        counts = run(
            recipe.environment,
            recipe.policy,
            _actor(recipe, work),
            recipe.evaluate if heldout else recipe.collect.at(1),
            recipe.requests,
            tasks=tasks,
            seed=recipe.seed,
            out=out,
            work=work,
            positions=chosen(len(rows), limit, part),
            progress=progress,
        )
    _tell(counts, out, json)


def reverify(recipe: Recipe, rollouts: Path, out: Path, *, json: bool) -> None:
    """The rollouts of a file, scored again by the recipe's environment.

    Raises:
        InputError: no such rollouts, or no materialized inputs beside them.
        CollectionError, GateError: as `gristmill.collect.collect`.
    """
    from gristmill.collect.gym import servers
    from gristmill.collect.reverify import Reverifier
    from gristmill.collect.stored import Stored

    environment = recipe.environment
    with Stored(rollouts) as stored, _shown(f"{recipe.name}: verifying {rollouts} again, into {out}") as progress:
        if environment.name == GYM:
            collector = Reverifier(stored, servers(environment.head), name=GYM)
        else:
            collector = Reverifier(stored, None, verify=verifier(environment.name), name=environment.name)
        counts = collect(
            collector,
            out,
            tasks=stored.identity,
            count=1 + max(task for task, _ in stored.known),
            wanted=stored.known,
            samples=1 + max(repeat for _, repeat in stored.known),
            requests=recipe.requests,
            seed=recipe.seed,
            min_completion=recipe.collect.min_completion,
            progress=progress,
        )
        changed = _changed(stored, out / ROLLOUTS)
    _tell(counts, out, json, {"reward_changed": changed})


def take_over(recipe: Recipe, rollouts: Path, out: Path, *, json: bool) -> None:
    """The collection that NeMo Gym's CLI began, complete and sorted in `out`.

    Raises:
        InputError: no such rollouts, or no materialized inputs beside them.
        CollectionError, GateError: as `gristmill.collect.collect`.
    """
    from gristmill.collect.files import Continuation
    from gristmill.collect.gym import servers
    from gristmill.collect.stored import Stored

    with Stored(rollouts) as stored, _shown(f"{recipe.name}: finishing {rollouts}, in {out}") as progress:
        collector = Continuation(stored, lambda: servers(recipe.environment.head))
        rows = {(row["_ng_task_index"], row["_ng_rollout_index"]) for row in collector.rows()}
        if rows != set(stored.inputs):
            collector.connect()
        wanted = sorted(stored.inputs, key=lambda key: (key[1], key[0]))
        counts = collect(
            collector,
            out,
            tasks=stored.inputs_identity,
            count=1 + max(task for task, _ in wanted),
            wanted=wanted,
            samples=1 + max(repeat for _, repeat in wanted),
            requests=recipe.requests,
            seed=recipe.seed,
            min_completion=recipe.collect.min_completion,
            have=collector.rows(),
            progress=progress,
        )
    _tell(counts, out, json)


def _changed(stored: object, path: Path) -> int:
    from gristmill.collect.stored import Stored

    assert isinstance(stored, Stored)
    with path.open("rb") as file:
        rows = (orjson.loads(line) for line in file)
        return sum(
            row["reward"] != stored.row((row["_ng_task_index"], row["_ng_rollout_index"])).get("reward") for row in rows
        )


def _actor(recipe: Recipe, work: Path) -> Actor:
    """The recipe's own model."""
    if recipe.policy.kind == "endpoint":
        return Actor(Path(), recipe.policy.served_name, "endpoint")
    from gristmill import model

    store = Store(work)
    identity = model.identity(recipe.policy.model)
    ref = model.register(store, recipe.policy.model, identity)
    return Actor(model.folder(store, ref), model.name(store, ref), identity)


def _shard(text: str | None) -> tuple[int, int]:
    if text is None:
        return 0, 1
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise UsageError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/4")
    return int(number) - 1, int(of)


@contextmanager
def _shown(title: str) -> Iterator[Progress]:
    """One line that moves in a terminal, a line now and then in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    console.print(title, highlight=False, soft_wrap=True)
    columns = (SpinnerColumn(), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.description}"))
    last = -1
    with Bar(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        line = bar.add_task("", total=None)

        def show(done: int, total: int, note: str) -> None:
            nonlocal last
            bar.update(line, completed=done, total=total or None, description=note)
            tenth = 10 * done // total if total else -1
            if not console.is_terminal and tenth != last:
                last = tenth
                print(f"{done} of {total} {note}" if total else note, file=sys.stderr)

        yield show


def _tell(counts: Counts, out: Path, as_json: bool, more: dict[str, int] | None = None) -> None:
    result = {**counts.asdict(), "failed": sum(counts.failures.values()), **(more or {}), "folder": str(out)}
    if as_json:
        print(orjson.dumps(result).decode())
        return
    print(f"{counts.rollouts} of {counts.expected} rollouts ({counts.tasks} tasks × {counts.samples})", end="")
    print(f", {counts.resumed} were there before" if counts.resumed else "", end="")
    print(f", {counts.tokens:,} tokens" if counts.tokens else "")
    for name, number in counts.failures.items():
        print(f"  failed: {number} {name}")
    for name, number in (more or {}).items():
        print(f"  {name.replace('_', ' ')}: {number}")
    print(f"files: {out}")
