"""The loop by hand: what `gristmill improve recipes/arithmetic.yaml` does, with the library alone.

    uv run python docs/loop_by_hand.py [FOLDER] [KEY=VALUE ...]

No Prefect, no store, no cache: plain folders, one below the other, that you can look into. Everything here does one
thing, so a loop of another shape is a matter of calling it otherwise. What the real flow adds is that each of these
steps is cached by content, retried, resumed after a kill, and recorded with all that it was made of.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from gristmill import model
from gristmill.artifact import ArtifactRef
from gristmill.collect import ROLLOUTS
from gristmill.collect.run import Actor, run
from gristmill.comparison import compare, guards
from gristmill.curate import SELECTION, curate
from gristmill.dataset import write_dataset
from gristmill.environment import make_tasks
from gristmill.evaluation import Evaluation, evaluate, scored
from gristmill.identity import digest
from gristmill.ingest import ingest
from gristmill.promotion import decide
from gristmill.recipe import Recipe, SamplingRecipe, load
from gristmill.store import Store
from gristmill.train import train
from gristmill.trainer import TrainJob


def collect(recipe: Recipe, actor: Actor, tasks: Path, sampling: SamplingRecipe, out: Path) -> Path:
    """Let a policy attempt every task `samples` times, and verify: rollouts as NeMo Gym writes them."""
    work = out / "work"
    run(
        recipe.environment,
        recipe.policy,
        actor,
        sampling,
        recipe.requests,
        tasks=tasks,
        seed=recipe.seed,
        out=out,
        work=work,
    )
    return out / ROLLOUTS


def write_tasks(recipe: Recipe, turn: int, path: Path) -> list[dict[str, object]]:
    """Training tasks of a turn; turn 0 has the held-out ones, which share no problem with any other."""
    rows = make_tasks(recipe.environment, "train" if turn else "heldout", recipe.seed, turn)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return rows


def measure(recipe: Recipe, actor: Actor, heldout: Path, tasks: list[dict[str, object]], out: Path) -> Evaluation:
    """A policy on the held-out tasks: the same tasks, sampling and seeds for every policy."""
    table = ingest([collect(recipe, actor, heldout, recipe.evaluate, out / "rollouts")], out / "table")
    return evaluate(
        ArtifactRef(kind="checkpoint", digest=digest(actor.identity)),
        ArtifactRef(kind="tasks", digest=digest(tasks)),
        tasks,
        scored(table.tables),
        samples=recipe.evaluate.samples,
        confidence=recipe.promote.confidence,
        solved_at=recipe.environment.solved_at,
    )


def main(folder: Path, recipe: Recipe) -> None:
    store = Store(folder)  # for the base model alone: it is unpacked into a cache on first use
    base_ref = model.register(store, recipe.policy.model, model.identity(recipe.policy.model))
    base = champion = Actor(model.folder(store, base_ref), recipe.policy.model, base_ref.digest)

    heldout = folder / "heldout.jsonl"
    heldout_tasks = write_tasks(recipe, 0, heldout)
    standing = measure(recipe, base, heldout, heldout_tasks, folder / "base")
    print(f"base: {standing.estimate.mean:.3f}")

    tables, counts = [], []
    for turn in range(1, recipe.turns + 1):
        place = folder / f"turn-{turn}"
        # Collect with the champion; read every line, kept or dropped with a reason.
        write_tasks(recipe, turn, place / "tasks.jsonl")
        rollouts = collect(recipe, champion, place / "tasks.jsonl", recipe.collect, place / "rollouts")
        read = ingest([rollouts], place / "table")
        tables.append(read.tables)
        counts.append({"rows_read": read.rows_read, "rows_kept": read.rows_kept, "dropped": dict(read.dropped)})
        # Choose from the rollouts of all turns so far, and write what TRL trains on.
        chosen = curate(tables, counts, recipe.curate, place, seed=recipe.seed)
        (place / "data").mkdir()
        data = write_dataset(place / SELECTION, tables, chosen, recipe.format, place / "data", seed=recipe.seed)
        # The challenger starts from the base again: what is accumulated is data, not training.
        train(
            TrainJob(
                method=recipe.format.method,
                base=base.folder,
                data=place / "data",
                output=place / "model",
                work=place / "trainer",
                settings=recipe.train,
                seed=recipe.seed,
            )
        )
        challenger = Actor(place / "model", f"turn-{turn}", f"{folder.name} turn {turn}")
        # Promote on evidence: paired by task, with an interval, and no guard may fail.
        result = measure(recipe, challenger, heldout, heldout_tasks, place / "heldout")
        comparison = compare(result, standing, recipe.promote.confidence)
        decision = decide(comparison.lift, recipe.promote, guards(comparison, recipe.promote))
        print(f"turn {turn}: {result.estimate.mean:.3f} from {data['examples']} examples: {decision.verdict}")
        print(f"        {decision.reason}")
        if decision.promoted:
            champion, standing = challenger, result


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "by-hand")
    main(target, load(Path(__file__).parents[1] / "recipes" / "arithmetic.yaml", sys.argv[2:]))
