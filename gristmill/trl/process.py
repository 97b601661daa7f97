"""One process of a training: `python -m gristmill.trl JOB.json [ROWS_AT_ONCE]`, alone or as one rank of several.

Reads a `TrainJob`; the first rank writes the finished folder. RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT, as torchrun sets them, make it one of several.

Guarantees:
- Standard output carries the protocol alone, one JSON object a line: `start`, `step`, `eval`, then `done`, or `oom`
  (out of memory), or `error`. The rest goes to stderr. Only the first rank speaks, except of memory.
- A killed run resumes from its last whole checkpoint in `work`, and on a CPU ends with the same bytes as an
  undisturbed one.
- The process ends when its parent does, and holds a lock on `work`, so a stale twin cannot interleave.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from pydantic import ValidationError

from gristmill.artifact import MANIFEST
from gristmill.errors import GristmillError, TrainingError, UsageError
from gristmill.identity import digest, file_digest
from gristmill.policy import threads, yield_cores
from gristmill.trainer import TrainJob
from gristmill.trl import checkpoints, rows

VERSION = 2
"""Part of the job's digest: raise it when the same job would train otherwise; no old checkpoint is then continued."""

_TRAINING = {
    *("epochs", "learning_rate", "warmup", "batch_size", "max_length", "lora_rank", "lora_targets", "adapter"),
    *("beta", "nll_weight", "processes", "eval_steps", "early_stop", "options"),
}
"""Fields of the recipe that change what comes out."""

OUT_OF_MEMORY = 75  # EX_TEMPFAIL: the same again with fewer rows at once may do


def identity(job: TrainJob) -> str:
    """Hex sha256 over settings and contents; two jobs with one identity end with the same weights.

    Paths are not part of it, nor is which of the recipe's models `base` and `reference` are; what they hold is.
    """
    settings = job.settings.model_dump(mode="json", include=_TRAINING)
    folders = {"base": job.base} | ({"reference": job.reference} if job.reference else {})
    contents = {name: {path.name: file_digest(path) for path in _files(folder)} for name, folder in folders.items()}
    data = [*rows.data_files(job.data), *rows.data_files(job.data, "validation")]
    contents["data"] = {path.name: file_digest(path) for path in data}
    return digest({"version": VERSION, "method": job.method, "seed": job.seed, "settings": settings, **contents})


def main(arguments: list[str]) -> int:
    """Run the job in the file that `arguments` names; returns the exit status (design §6)."""
    protocol = _claim_stdout()
    _end_with_parent()
    yield_cores()
    # Before the imports that read them: no hub, no usage ping, no forked tokenizer threads.
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_DISABLE_TELEMETRY="1",
        HF_DATASETS_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
    )
    try:
        if not 1 <= len(arguments) <= 2:
            raise UsageError("usage: python -m gristmill.trl JOB.json [ROWS_AT_ONCE]")
        run(_read(Path(arguments[0])), protocol, at_once=int(arguments[1]) if arguments[1:] else None)
    except GristmillError as error:
        print(f"error: {error}", file=sys.stderr)
        emit(protocol, {"event": "error", "message": str(error)})
        return error.exit_code
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"out of memory: {error}", file=sys.stderr)
        emit(protocol, {"event": "oom"})
        # Not through the interpreter's end, which would wait for the other ranks.
        sys.stderr.flush()
        os._exit(OUT_OF_MEMORY)
    return 0


def is_out_of_memory(error: BaseException) -> bool:
    """torch says so by a class on an accelerator, and by words on a CPU."""
    words = ("DefaultCPUAllocator", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def run(job: TrainJob, protocol: IO[str], at_once: int | None = None) -> None:
    """Train, or find that it is done already, and write events to `protocol`.

    Raises:
        UsageError: base or data are unusable, or `output` exists without being this job's.
        TrainingError: another process trains in `work`, or nothing is left to train on.
    """
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    share = rows.share(job.settings.batch_size, processes, job.method, at_once)
    if rank != 0:  # the first rank has checked what follows before the others meet it
        _train(job, "", share, protocol)
        return
    job.work.mkdir(parents=True, exist_ok=True)
    with (job.work / "lock").open("w") as lock:
        checkpoints.acquire(lock, job.work)
        name = identity(job)
        stats = checkpoints.recorded(job.work, name)
        if not (job.output.is_dir() and stats is not None):
            if job.output.exists():
                raise UsageError(
                    f"{job.output} exists already and is not this job's: remove it, or name another output."
                )
            checkpoints.keep_only(job.work, name)
            checkpoints.remove_torn(job.work)
            stats = _train(job, name, share, protocol)
        emit(protocol, {"event": "done", **stats})


def _train(job: TrainJob, identity: str, share: rows.Share, protocol: IO[str]) -> dict[str, Any]:
    began = time.monotonic()
    import datasets
    import torch
    import transformers

    from gristmill.trl import methods, output

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # partly typed
    torch.set_num_threads(max(1, threads() // share.processes))
    trainer, read = methods.build(job, share)
    left = len(trainer.train_dataset)
    if left == 0:
        raise TrainingError(
            f"no row in {job.data} is left to train on: each is longer than train.max_length "
            f"{job.settings.max_length}, or shows nothing within it that carries loss"
        )
    batches = math.ceil(left / (share.device * share.processes))
    epoch_steps = math.ceil(batches / share.accumulation)
    validates = trainer.eval_dataset is not None and len(trainer.eval_dataset) > 0
    if validates:
        # In steps even if once an epoch: then a checkpoint at that step holds the loss, and resuming is exact.
        trainer.args.eval_steps = job.settings.eval_steps or epoch_steps
        trainer.add_callback(_validation(job.settings.early_stop))
    checkpoint = checkpoints.last(job.work)
    trainer.add_callback(_callback(protocol, left, checkpoints.number(checkpoint) if checkpoint else 0))
    state = _state(checkpoint)
    if state is not None and stopped(_evaluations(state["log_history"]), job.settings.early_stop):
        trainer.state = transformers.TrainerState(**state)  # it was killed between stopping and finishing
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    state = trainer.state
    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    if sharded:
        trainer.save_model(str(job.work / "final"))  # gathers: all ranks
    if not trainer.is_world_process_zero():
        return {}
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    read_once = methods.lengths(trainer, job.method)
    evaluations = _evaluations(state.log_history)
    details: dict[str, Any] = {
        "rows": left,
        "dropped": read - left,
        "at_max_length": read_once.at_limit,
        "learning_rate": trainer.args.learning_rate,
        "device": trainer.args.device.type,
        "rows_at_once": share.device,
        "accumulation": share.accumulation,
        "processes": share.processes,
        "last": _last_metrics(state.log_history),
    }
    step = state.global_step
    if evaluations:
        step = _best(evaluations)[0]
        details["validation"] = [list(pair) for pair in evaluations]
        details["best_step"] = step
        details["stopped_early"] = state.global_step < state.max_steps
    stats = {
        "steps": state.global_step,
        "losses": losses,
        "tokens": round(read_once.tokens * state.epoch),
        "details": details,
        "seconds": round(time.monotonic() - began, 2),
    }
    # Whatever is not in memory whole, or is no longer what is there, comes from its file.
    if step != state.global_step:
        model = output.at(job, job.work / f"checkpoint-{step}")
    else:
        model = output.at(job, job.work / "final") if sharded else trainer.model
    output.finish(job, model, identity, stats)
    return stats


def stopped(evaluations: list[tuple[int, float]], patience: int | None) -> bool:
    """Whether the last `patience` validation losses brought no better one than before them."""
    if patience is None or not evaluations:
        return False
    best = _best(evaluations)[0]
    return sum(step > best for step, _ in evaluations) >= patience


def _best(evaluations: list[tuple[int, float]]) -> tuple[int, float]:
    """The first of the least losses; a loss that is no number is the worst."""
    return min(evaluations, key=lambda pair: math.inf if math.isnan(pair[1]) else pair[1])


def _evaluations(history: list[dict[str, float]]) -> list[tuple[int, float]]:
    return [(int(entry["step"]), entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def _last_metrics(history: list[dict[str, float]]) -> dict[str, float]:
    """What TRL says about the last step beside its loss: a pair's margins, a reward model's accuracy."""
    for entry in reversed(history):
        if "loss" in entry:
            return {
                name: round(value, 6)
                for name, value in entry.items()
                if name not in ("loss", "step", "epoch", "learning_rate") and isinstance(value, float | int)
            }
    return {}


def _state(checkpoint: Path | None) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads((checkpoint / "trainer_state.json").read_text()) if checkpoint else None
    return found


def _callback(protocol: IO[str], rows: int, resumed: int) -> Any:
    from transformers import TrainerCallback

    class Protocol(TrainerCallback):
        """Tells the parent about each step, and marks checkpoints that are whole."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                emit(protocol, {"event": "start", "of": state.max_steps, "rows": rows, "resumed": resumed})

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and state.is_world_process_zero:
                at = {"step": state.global_step, "of": state.max_steps}
                if "loss" in logs:
                    emit(protocol, {"event": "step", **at, "loss": logs["loss"]})
                elif "eval_loss" in logs:
                    emit(protocol, {"event": "eval", **at, "loss": logs["eval_loss"]})

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if args.world_size > 1:
                import torch.distributed

                torch.distributed.barrier()  # each rank writes files of its own
            if state.is_world_process_zero:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / checkpoints.WHOLE).touch()

    return Protocol()


def _validation(patience: int | None) -> Any:
    from transformers import TrainerCallback

    class Validation(TrainerCallback):
        """Looks at the last step too, keeps the best step's checkpoint, and stops when nothing gets better.

        Without memory of its own: all is in the log that a checkpoint holds, so that resuming is exact.
        """

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step >= state.max_steps:
                control.should_evaluate = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            evaluations = _evaluations(state.log_history)
            if _best(evaluations)[0] == state.global_step:
                control.should_save = True
            if stopped(evaluations, patience):
                control.should_training_stop = True

    return Validation()


def emit(protocol: IO[str], event: dict[str, Any]) -> None:
    """One event, as one line."""
    protocol.write(json.dumps(event) + "\n")
    protocol.flush()


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)


def _claim_stdout() -> IO[str]:
    """Keeps standard output for the protocol and sends what libraries print there to stderr."""
    protocol = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    return protocol


def _end_with_parent() -> None:
    """Ends this process at once when its parent dies.

    By polling: Linux's PR_SET_PDEATHSIG fires when the parent *thread* ends, and parents start us from worker threads.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _read(path: Path) -> TrainJob:
    try:
        return TrainJob.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read the training job {path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {field}: {first['msg']}") from error
