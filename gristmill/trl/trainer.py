"""TRL behind the trainer protocol (gristmill/trainer.py).

Guarantee beside the protocol's: a training that runs out of memory goes on from its last checkpoint with half as many
rows on a device at once and twice as many accumulated, so that a step has the same rows; `details` says so.
"""

from __future__ import annotations

import difflib
import json
from importlib.util import find_spec
from typing import Any

from gristmill import progress
from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.example import Method
from gristmill.identity import digest
from gristmill.recipe import TrainRecipe
from gristmill.trainer import OnStep, Trained, TrainJob
from gristmill.trl import checkpoints, launch, rows

_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "peft", "trl")
_AT_ONCE = "per_device_train_batch_size"


class Trl:
    """SFT, DPO, KTO and reward models by TRL, on this machine."""

    name = "trl"
    methods: frozenset[Method] = frozenset(("sft", "dpo", "kto", "reward"))
    targets = frozenset(("trl", "trl-jsonl", "unsloth"))

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """Refuse what TRL cannot train, before anything is collected.

        Raises:
            RecipeError: the settings do not fit, or TRL is not installed.
        """
        if method not in self.methods:
            raise RecipeError(f"train.trainer: trl trains by {', '.join(sorted(self.methods))}, not by {method}")
        if missing := [name for name in _PACKAGES if find_spec(name) is None]:
            raise RecipeError(
                f"train.trainer: trl needs {', '.join(missing)}, not installed here; install gristmill[train]"
            )
        if settings.launch.launcher != "local":
            raise RecipeError(
                f"train.launch.launcher: trl trains on this machine, not by {settings.launch.launcher}; "
                "set it to local, or name a deployment on the machine with the GPUs (train.deployment)"
            )
        _share(method, settings)
        if not settings.options:
            return
        from gristmill.trl import methods

        known = methods.option_names(method)
        for name in settings.options:
            if name in methods.OWN:
                raise RecipeError(f"train.options.{name} cannot be set: {methods.OWN[name]}")
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                hint = f"; near it are {', '.join(near)}" if near else ""
                raise RecipeError(
                    f"train.options.{name} is no field of TRL's {methods.config_class(method).__name__}{hint}"
                )

    def train(self, job: TrainJob, on_step: OnStep | None = None) -> Trained:
        """Train to the end, or find that it is done.

        Raises:
            UsageError: base or data cannot be used.
            TrainingError: no model came out; names the log and its last words.
        """
        self.check(job.method, job.settings)
        share = _share(job.method, job.settings)
        key = digest({"settings": job.settings.model_dump(mode="json"), "share": list(share)})
        memory = _Memory(job, key)
        for at_once in memory.tried:
            share = share._replace(device=at_once, accumulation=share.device * share.accumulation // at_once)

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "step" and on_step:
                on_step(event["step"], event["of"], event["loss"])

        while True:
            ended = launch.run(job, share, tell)
            if ended.done is not None and ended.codes[0] == 0 and job.output.is_dir():
                return _trained(ended.done, memory)
            if ended.out_of_memory or ended.killed:
                what = "ran out of memory" if ended.out_of_memory else "was killed, likely out of memory,"
                smaller = share.halved(job.method)
                if smaller is None:
                    raise TrainingError(_too_large(job, what, share))
                memory.add(smaller.device)
                progress.advance(0, 0, f"{what} with {share.device} rows at once; goes on with {smaller.device}")
                share = smaller
                continue
            if ended.error is not None and 2 in ended.codes:
                raise UsageError(ended.error)
            said = ended.error or launch.last_words(job.work / launch.LOG)
            raise TrainingError(
                f"the {job.method} trainer ended with code {_first(ended.codes)} and no model: {said} "
                f"(whole log: {launch.LOG} in {job.work}); fix the cause and run the same command again, it resumes"
            )


class _Memory:
    """How many rows at once were too many, kept in the work folder, so that a resumed run does not find out again."""

    def __init__(self, job: TrainJob, key: str) -> None:
        self._file = job.work / "memory.json"
        self._key = key
        found = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self.tried: list[int] = found["rows_at_once"] if found.get("key") == key else []

    def add(self, at_once: int) -> None:
        self.tried = [*self.tried, at_once]
        checkpoints.write(self._file, {"key": self._key, "rows_at_once": self.tried})


def _share(method: Method, settings: TrainRecipe) -> rows.Share:
    at_once = settings.options.get(_AT_ONCE)
    if at_once is not None and (not isinstance(at_once, int) or at_once < 1):
        raise RecipeError(f"train.options.{_AT_ONCE} must be a number of rows, found {at_once!r}")
    if settings.processes is not None:
        return rows.share(settings.batch_size, settings.processes, method, at_once)
    least = rows.least_at_once(method)
    fitting = [n for n in range(launch.devices(), 1, -1) if settings.batch_size % n == 0]
    processes = next((n for n in fitting if settings.batch_size // n >= least), 1)
    return rows.share(settings.batch_size, processes, method, at_once)


def _trained(done: dict[str, Any], memory: _Memory) -> Trained:
    details = dict(done["details"])
    if memory.tried:
        details["halved"] = memory.tried
    return Trained(steps=done["steps"], losses=tuple(done["losses"]), tokens=done["tokens"], details=details)


def _too_large(job: TrainJob, what: str, share: rows.Share) -> str:
    settings = job.settings
    smaller = [f"train.max_length (now {settings.max_length})"]
    smaller.append(
        f"train.lora_rank (now {settings.lora_rank})"
        if settings.lora_rank
        else "train all weights no more: lora_rank=16"
    )
    if not settings.options.get("activation_checkpointing"):
        smaller.append("train.options.activation_checkpointing=true")
    many = "1 row" if share.device == 1 else f"{share.device} rows"
    return (
        f"the {job.method} trainer {what} even with {many} on a device at once (log: {launch.LOG} in {job.work}); "
        f"lower {', '.join(smaller)}, or take a smaller model"
    )


def _first(codes: tuple[int | None, ...]) -> int | None:
    return next((code for code in codes if code), codes[0])


TRL = Trl()
