"""Rollouts of a policy in this process, or in a cluster's: batched generation, verified, journaled.

Reads task rows, a policy folder and sampling settings; writes `rollouts.jsonl` and
`rollouts_materialized_inputs.jsonl` as NeMo Gym does, sorted by task and repeat.

The unit of work is a batch. Which tasks share a batch and each batch's seed follow from the inputs alone, and a
finished batch is one fsynced line of the journal, so a killed collection resumes with the batches that are
missing and ends with the same bytes. The journal's folder must belong to these inputs (its caller keys it).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from gristmill import fleet, model
from gristmill.arithmetic import response as respond
from gristmill.collect import INPUTS, ROLLOUTS, Counts
from gristmill.environment import Verify
from gristmill.identity import digest
from gristmill.recipe import SamplingRecipe
from gristmill.workspace import append_line, read_lines

_JOURNAL = "batches.journal"


def collect(
    tasks: Sequence[dict[str, Any]],
    verify: Verify,
    policy_folder: Path,
    *,
    policy_name: str,
    device: str,
    sampling: SamplingRecipe,
    seed: int,
    journal: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Counts:
    """Sample every task `sampling.samples` times and verify each answer.

    Args:
        tasks: Gym dataset rows; a row's position is its `_ng_task_index`.
        journal: folder of this collection's unfinished work.
        out: folder that gets the two files.
        progress: called with (rollouts done, rollouts in all) after each batch.

    Returns:
        Counts; nothing fails here, or everything does.
    """
    done = {line["batch"]: line["rows"] for line in read_lines(journal / _JOURNAL)}
    resumed = sum(len(rows) for rows in done.values())
    total = len(tasks) * sampling.samples
    finished = resumed
    if progress:
        progress(finished, total)
    if finished < total:
        # torch is imported only when there is something to generate
        from gristmill import generate
        from gristmill.policy import prompt_lengths, release, threads

        lengths = prompt_lengths(policy_folder, [_messages(task) for task in tasks])
        missing = [
            Batch(
                number,
                [(index, tasks[index]) for index in members],
                verify,
                str(policy_folder),
                policy_name,
                device,
                threads(),
                sampling,
                int(digest({"seed": seed, "batch": number})[:15], 16),
            )
            for number, members in enumerate(generate.batches(lengths, sampling.batch_size))
            if number not in done
        ]
        cluster = fleet.current()
        answered = (
            fleet.map_on(cluster, "gristmill.collect.local:answer", missing, threads=threads(), generates=True)
            if cluster
            else map(answer, missing)
        )
        for number, rows in zip([batch.number for batch in missing], answered, strict=True):
            append_line(journal / _JOURNAL, {"batch": number, "rows": rows})
            done[number] = rows
            finished += len(rows)
            if progress:
                progress(finished, total)
        release()
    rows = sorted((r for batch in done.values() for r in batch), key=_position)
    _write_lines(out / ROLLOUTS, rows)
    _write_lines(
        out / INPUTS,
        (
            {**task, "_ng_task_index": index, "_ng_rollout_index": repeat}
            for index, task in enumerate(tasks)
            for repeat in range(sampling.samples)
        ),
    )
    return Counts(
        tasks=len(tasks),
        samples=sampling.samples,
        expected=total,
        rollouts=len(rows),
        resumed=resumed,
        tokens=sum(row["response"]["usage"]["output_tokens"] for row in rows),
        failures={},
    )


class Batch(NamedTuple):
    """Tasks that are answered together, and all that their answers depend on."""

    number: int
    tasks: list[tuple[int, dict[str, Any]]]
    """Position and row of each."""
    verify: Verify
    policy: str
    """Folder of the model."""
    policy_name: str
    device: str
    threads: int
    """Of torch: on a CPU the last bits of a sum depend on them, and so sampled tokens do."""
    sampling: SamplingRecipe
    seed: int


def answer(batch: Batch) -> list[dict[str, Any]]:
    """Rollout rows of a batch, by task and repeat; in any process that finds the model."""
    from gristmill import generate
    from gristmill.policy import held

    folder = Path(batch.policy)
    if not folder.is_dir():  # on a node with a cache of its own, an embedded model is unpacked there
        folder = model.locate(batch.policy_name)
    sampling = batch.sampling
    answers = generate.generate(
        held(folder, batch.device, batch.threads),
        [_messages(task) for _, task in batch.tasks],
        samples=sampling.samples,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_new_tokens=sampling.max_new_tokens,
        seed=batch.seed,
    )
    rows = []
    for (index, task), completions in zip(batch.tasks, answers, strict=True):
        for repeat, completion in enumerate(completions):
            response = respond(
                completion.text,
                model=batch.policy_name,
                prompt_tokens=completion.prompt_tokens,
                completion_tokens=completion.completion_tokens,
                truncated=completion.truncated,
            )
            rows.append(_row(task, index, repeat, response, batch.verify, sampling))
    return rows


def _row(
    task: dict[str, Any],
    index: int,
    repeat: int,
    response: dict[str, Any],
    verify: Verify,
    sampling: SamplingRecipe,
) -> dict[str, Any]:
    """A rollout row as Gym's collector stamps it: the request echoed, the verifier's answer, the indices."""
    request = {
        **task["responses_create_params"],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_output_tokens": sampling.max_new_tokens,
    }
    return {
        "responses_create_params": request,
        "response": response,
        **verify(task, response),
        "_ng_task_index": index,
        "_ng_rollout_index": repeat,
        "agent_ref": task.get("agent_ref") or {"name": "local"},
    }


def _messages(task: dict[str, Any]) -> list[dict[str, Any]]:
    prompt: list[dict[str, Any]] | str = task["responses_create_params"]["input"]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _position(row: dict[str, Any]) -> tuple[int, int]:
    return row["_ng_task_index"], row["_ng_rollout_index"]


def _write_lines(path: Path, rows: Any) -> None:
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))
