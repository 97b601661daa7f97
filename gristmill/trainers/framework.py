"""What all frameworks share: from a job to launch files, from the framework's output to a Hugging Face folder.

A framework says how it is configured and started (`plan`); this runs it. In the job's work folder lie

    launch/         the export's own launch files, rendered with the recipe's values, beside links to its data
    run/            what the framework writes: checkpoints, logs, and `model`, the converted whole model
    train.sh        what every machine runs                     finish.sh    what then runs once: merge, convert
    trainer.log     what all of it said                         launch.json  the submission (gristmill/launch)

Guarantees: `output` is written under a temporary name and renamed last, with the start's own tokenizer and chat
template; checkpoints in `run/` are continued by the same job alone (base, data, method, settings and seed by content;
where it runs is not part of it) and removed for any other.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gristmill import launch, targets
from gristmill.errors import RecipeError, TrainingError, UsageError
from gristmill.example import Method
from gristmill.identity import digest, file_digest
from gristmill.launch import LOG, LaunchJob
from gristmill.model import identity as model_identity
from gristmill.recipe import TrainRecipe
from gristmill.trainer import OnStep, Trained, TrainJob
from gristmill.trainers.progress import Reader, Tail
from gristmill.trl import checkpoints, output, rows
from gristmill.trl.launch import devices, last_words

VERSION = 1
"""Part of a job's identity: raise it when the same job would train otherwise."""

# What PyTorch, the kernel and Slurm say when memory is short.
_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|oom[-_ ]kill|Out Of Memory")
_SEEN = 1 << 16  # bytes of the log's end to look at for that


@dataclass(frozen=True)
class Plan:
    """How one framework does one job. Commands are shell lines that run in `launch/`."""

    train: tuple[str, ...]
    reader: Reader
    """Finds steps in the log."""
    finish: tuple[str, ...] = ()
    model: str = "run/model"
    """Folder of the whole model, below the work folder."""
    adapter: str | None = None
    """Folder of the adapter, if the framework leaves one."""
    steps: str = LOG
    """File that tells the steps, below the work folder."""
    env: dict[str, str] = field(default_factory=dict)


class Framework(ABC):
    """A trainer (gristmill/trainer.py) whose training is a framework's own command."""

    name: str
    methods: frozenset[Method]
    targets: frozenset[str]
    command: str
    """The executable that must be there."""
    install: str
    """How to get it."""
    package: str
    """Its distribution, whose version is recorded."""
    whole_epochs = False
    """It cannot stop within an epoch."""
    other_reference = False
    """It takes a reference model that is not the start."""
    lacks: frozenset[str] = frozenset()
    """Fields of the recipe that it has nothing for; they must be left as they are."""
    several_nodes = True

    @abstractmethod
    def plan(self, job: TrainJob, share: rows.Share, options: dict[str, Any]) -> Plan:
        """Finish the launch files in `job.work / "launch"`, and say how to run them.

        Args:
            share: rows at once on each of so many devices, and how often that is accumulated.
            options: `train.options`, which win.
        """

    def check(self, method: Method, settings: TrainRecipe) -> None:
        """Refuse, before anything is collected, what cannot be trained.

        Raises:
            RecipeError: the settings do not fit, or the framework or its launcher is not there.
        """
        where = f"train.trainer: {self.name}"
        if method not in self.methods:
            raise RecipeError(f"{where} trains by {', '.join(sorted(self.methods))}, not by {method}")
        if self.whole_epochs and settings.epochs != math.floor(settings.epochs):
            raise RecipeError(f"{where} trains whole epochs; train.epochs is {settings.epochs}")
        for name in sorted(self.lacks):
            if getattr(settings, name) != TrainRecipe.model_fields[name].default:
                raise RecipeError(f"{where} has nothing for train.{name}; leave it out, or use train.options")
        if settings.reference == "base" and settings.init_from == "champion" and not self.other_reference:
            raise RecipeError(f"{where} holds the policy to the model it starts from; train.reference must be start")
        if settings.launch.nodes > 1 and (settings.launch.launcher != "slurm" or not self.several_nodes):
            raise RecipeError(
                f"{where} runs on several machines {'by slurm alone' if self.several_nodes else 'by its own scripts'}; "
                f"train.launch.nodes is {settings.launch.nodes}"
            )
        _share(method, settings)
        launcher = launch.get(settings.launch)
        launcher.check()
        if settings.launch.launcher == "local":
            self._require_here(settings)

    def train(self, job: TrainJob, on_step: OnStep | None = None) -> Trained:
        """Train to the end, or find that it is done.

        Raises:
            UsageError: base or data cannot be used.
            TrainingError: the framework ended without a model; names the log and its last words.
        """
        self.check(job.method, job.settings)
        if job.reference is not None and not self.other_reference:
            raise RecipeError(f"train.trainer: {self.name} takes no reference model beside the start")
        own = self._identity(job)
        job.work.mkdir(parents=True, exist_ok=True)
        with (job.work / "lock").open("w") as lock:
            checkpoints.acquire(lock, job.work)
            if job.output.exists():
                done = checkpoints.recorded(job.work, own)
                if done is None:
                    raise UsageError(f"{job.output} is there already and is not this job's: remove it, or name another")
                return Trained.model_validate(done)
            _keep_only(job.work, own)
            trained = self._run(job, own, on_step)
            return trained

    def _run(self, job: TrainJob, own: str, on_step: OnStep | None) -> Trained:
        work = job.work
        plan = self.prepare(job)
        progress = Tail(work / plan.steps)
        losses: dict[int, float] = {}
        log = work / LOG
        began = log.stat().st_size if log.is_file() else 0

        def look(_: launch.Status) -> None:
            for line in progress.lines():
                if (step := plan.reader(line)) is not None:
                    losses[step.number] = step.loss
                    if on_step:
                        on_step(step.number, max(step.of, step.number), step.loss)

        launcher = launch.get(job.settings.launch)
        # The folder is part of the name: an equal job of another workspace is not this one.
        name = f"gristmill-{digest({'job': own, 'folder': str(work.resolve())})[:16]}"
        seen = tuple(dict.fromkeys(p.resolve() for p in (job.base, job.data, job.reference) if p))
        launched = LaunchJob(name=name, work=work, train=work / "train.sh", finish=work / "finish.sh", paths=seen)
        try:
            handle = launch.run(launcher, launched, job.settings.launch, look)
        except TrainingError as error:
            raise TrainingError(self._why(job, str(error), began)) from None
        except launch.Unreachable as error:
            raise TrainingError(
                f"{launcher.name} does not answer ({error}); the job may still run: run the same command again, "
                "it finds it"
            ) from None
        details: dict[str, Any] = {"framework": self.name, "launcher": launcher.name, "submissions": handle.attempt}
        version = work / "run" / "version"
        if version.is_file() and (text := version.read_text().strip()):
            details["version"] = text
        numbers = sorted(losses)
        trained = Trained(
            steps=numbers[-1] if numbers else 0, losses=tuple(losses[n] for n in numbers), details=details
        )
        self._collect(job, plan, own, trained)
        return trained

    def prepare(self, job: TrainJob) -> Plan:
        """Write everything that a launcher needs into the job's work folder.

        Raises:
            UsageError: the data folder holds no rows of one of this trainer's targets.
        """
        work, settings = job.work, job.settings
        folder = work / "launch"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (work / "run").mkdir(exist_ok=True)
        self.render(job, folder)
        share = _share(job.method, settings)
        plan = self.plan(job, share, dict(settings.options))
        python = f"import importlib.metadata as m; print(m.version({self.package!r}))"
        version = f"{self._prefixed(settings, ['python', '-c', python])} > ../run/version 2>/dev/null || true"
        self._script(job, "train.sh", plan, (version, *plan.train))
        self._script(job, "finish.sh", plan, plan.finish)
        return plan

    def render(self, job: TrainJob, folder: Path) -> None:
        """Beside links to the data, the launch files that its export has, with this job's values."""
        suffixes: dict[str, str] = {targets.get(name).suffix: name for name in self.targets}
        names = {
            split: tuple(sorted(p.name for p in job.data.glob(f"{split}*") if p.suffix[1:] in suffixes))
            for split in ("train", "validation")
        }
        if not names["train"]:
            raise UsageError(
                f"{job.data} has no train files for {self.name}; write the dataset with format.target="
                f"{' or '.join(sorted(self.targets))}"
            )
        for name in (*names["train"], *names["validation"]):
            (folder / name).symlink_to((job.data / name).resolve())
        settings = job.settings
        values = targets.Launch(
            model=str(job.base.resolve()),
            epochs=settings.epochs,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            max_length=settings.max_length,
            lora_rank=settings.lora_rank,
            lora_targets=settings.lora_targets,
            beta=settings.beta,
            seed=job.seed,
        )
        target = targets.get(suffixes[Path(names["train"][0]).suffix[1:]])
        target.finish(targets.Export(folder, job.method, names["train"], names["validation"], values))

    def _script(self, job: TrainJob, name: str, plan: Plan, lines: tuple[str, ...]) -> None:
        settings = job.settings.launch
        exports = {**plan.env, **settings.env}
        head = [
            "#!/usr/bin/env bash",
            f"# {self.name}, {job.method}: written by Gristmill, anew for every start.",
            "set -eo pipefail",
            *settings.setup,
            *(f"export {key}={shlex.quote(value)}" for key, value in sorted(exports.items())),
            f"cd {shlex.quote(str((job.work / 'launch').resolve()))}",
        ]
        (job.work / name).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")

    def _prefixed(self, settings: TrainRecipe, words: list[str]) -> str:
        return shlex.join([*settings.launch.prefix, *words])

    def _require_here(self, settings: TrainRecipe) -> None:
        """The framework's command, as the job's shell would find it."""
        first = settings.launch.prefix[0] if settings.launch.prefix else self.command
        env = " ".join(f"export {k}={shlex.quote(v)};" for k, v in settings.launch.env.items())
        shell = "\n".join([*settings.launch.setup, env, f"command -v {shlex.quote(first)} >/dev/null"])
        ran = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if ran.returncode != 0:
            said = f" (the shell said: {ran.stderr.strip().splitlines()[-1]})" if ran.stderr.strip() else ""
            raise RecipeError(
                f"train.trainer: {self.name} needs the command {first}, which is not there{said}; {self.install}, and "
                'name its environment, for example train.launch.setup=["source ENVIRONMENT/bin/activate"]'
            )

    def _identity(self, job: TrainJob) -> str:
        """Hex sha256 of everything that decides the weights."""
        if not (job.base / "config.json").is_file():
            raise UsageError(f"{job.base} holds no Hugging Face model to start from: expected config.json in it")
        data = [p for p in sorted(job.data.glob("*")) if p.name.startswith(("train", "validation"))]
        settings = job.settings.model_dump(mode="json", exclude={"launch", "init_from", "reference"})
        return digest(
            {
                "trainer": self.name,
                "version": VERSION,
                "method": job.method,
                "seed": job.seed,
                "base": model_identity(str(job.base)),
                "reference": model_identity(str(job.reference)) if job.reference else None,
                "data": {p.name: file_digest(p) for p in data},
                "settings": settings,
            }
        )

    def _collect(self, job: TrainJob, plan: Plan, own: str, trained: Trained) -> None:
        """The finished folder: the framework's weights and configuration, the start's tokenizer and chat template."""
        made = job.work / plan.model
        weights = [*made.glob("*.safetensors*"), *made.glob("*.bin*")] if made.is_dir() else []
        weights = [p for p in weights if p.name not in ("training_args.bin", "adapter_model.bin")]
        if not weights or not (made / "config.json").is_file():
            raise TrainingError(
                f"{self.name} ended well and left no model in {made}: {last_words(job.work / LOG)} (whole log: "
                f"{LOG} in {job.work})"
            )
        job.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{job.output.name}-", dir=job.output.parent))
        try:
            for path in [*weights, made / "config.json"]:
                shutil.copyfile(path, temporary / path.name)
            for path in output.beside_weights(job.base):
                if path.name != "config.json":
                    shutil.copyfile(path, temporary / path.name)
            if job.settings.adapter == "keep" and job.settings.lora_rank and plan.adapter:
                _copy_adapter(job.work / plan.adapter, temporary / output.ADAPTER)
            temporary.chmod(0o755)
            checkpoints.record(job.work, own, trained.model_dump(mode="json"))
            temporary.rename(job.output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _why(self, job: TrainJob, said: str, began: int) -> str:
        log = job.work / LOG
        with log.open("rb") as file:
            file.seek(max(began, log.stat().st_size - _SEEN))
            tail = file.read().decode(errors="replace")
        if _OUT_OF_MEMORY.search(tail):
            settings = job.settings
            smaller = [f"train.max_length (now {settings.max_length})"]
            smaller.append(
                f"train.lora_rank (now {settings.lora_rank})" if settings.lora_rank else "all weights: use LoRA"
            )
            return (
                f"{self.name} ran out of memory (log: {LOG} in {job.work}); lower {', '.join(smaller)}, give the job "
                "more GPUs (train.launch.gpus), or set what the framework has for it in train.options"
            )
        return (
            f"{self.name} gave no model: {said}; its last words: {last_words(log)} (whole log: {LOG} in {job.work}); "
            "fix the cause and run the same command again, it resumes"
        )


def _share(method: Method, settings: TrainRecipe) -> rows.Share:
    """One row at once on each device, where nobody asks for more: what fits everywhere."""
    where = settings.launch
    here = devices() if where.launcher == "local" else 0
    each = settings.processes or where.gpus or here or 1
    at_once = settings.options.get("per_device_train_batch_size") or settings.options.get("micro_batch_size")
    return rows.share(settings.batch_size, each * where.nodes, method, at_once or rows.least_at_once(method))


def on_cpu(settings: TrainRecipe) -> bool:
    """Whether the training runs here, without a GPU: half precision and the like must then be off."""
    return settings.launch.launcher == "local" and not settings.launch.gpus and devices() == 0


def rendezvous(settings: TrainRecipe, share: rows.Share) -> str:
    """Arguments of torchrun, as shell text: this machine alone, or all of a job's (gristmill/launch/slurm.py)."""
    nodes = settings.launch.nodes
    each = f"--nproc_per_node={share.processes // nodes}"
    if nodes == 1:
        return f"--standalone --nnodes=1 {each}"
    return (
        f"--nnodes={nodes} {each} --rdzv_backend=c10d --rdzv_id=$GRISTMILL_PORT "
        "--rdzv_endpoint=$GRISTMILL_HEAD:$GRISTMILL_PORT"
    )


WHOLE_CHECKPOINTS = (
    'for each in ../run/output/checkpoint-*; do tail -n 1 "$each/trainer_state.json" 2>/dev/null | grep -qx "}" || '
    'rm -rf "$each"; done'
)
"""Shell line: removes checkpoints of transformers' Trainer that a kill cut short, from which no resuming works. The
state is what it writes last. A line of the script, so that it also runs where a cluster starts the job again."""


def overlay(path: Path, values: dict[str, Any]) -> None:
    """Replace top-level fields of a rendered YAML file; None takes one out. What is not there goes to the end."""
    found = yaml.safe_load(path.read_text(encoding="utf-8")) | values
    kept = {key: value for key, value in found.items() if value is not None}
    path.write_text(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True), encoding="utf-8")


def dotted(options: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested options as dotted names, as hydra and OpenRLHF have them."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= dotted(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _keep_only(work: Path, own: str) -> None:
    """Remove another job's checkpoints and log from `work`."""
    owner = work / "identity.json"
    if owner.is_file() and json.loads(owner.read_text()) == {"identity": own}:
        return
    for name in ("run", "launch"):
        shutil.rmtree(work / name, ignore_errors=True)
    (work / LOG).unlink(missing_ok=True)
    checkpoints.keep_only(work, own)


def _copy_adapter(made: Path, folder: Path) -> None:
    folder.mkdir()
    for path in sorted(made.glob("adapter_model*")):
        shutil.copyfile(path, folder / path.name)
    config = json.loads((made / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None  # a path of that machine; the manifest says which model it was
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
