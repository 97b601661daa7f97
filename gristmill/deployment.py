"""What `gristmill deploy` applies: a Prefect deployment file with a recipe and a workspace filled in.

The files under `deployments/` are ordinary ones (`prefect deploy --all --prefect-file` takes them), one for each kind
of work pool, with one key more: `work_pools`, the pools that they need. Their deployments are `improve/nightly` (on a
schedule, one run at a time, the others queue), `prepare/on-demand`, and `train-step/gpu` for a recipe's
`train.deployment`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from gristmill.errors import RecipeError, UsageError
from gristmill.recipe import Recipe, load

Kind = Literal["process", "docker", "kubernetes"]
_FILES: dict[Kind, str] = {"process": "prefect.yaml", "docker": "docker.yaml", "kubernetes": "kubernetes.yaml"}


@dataclass(frozen=True)
class Pool:
    """A work pool that deployments need."""

    name: str
    type: str
    job_template: dict[str, Any] | None
    """Prefect's base job template; None takes the type's own."""


@dataclass(frozen=True)
class Plan:
    """What is to be applied."""

    pools: tuple[Pool, ...]
    file: dict[str, Any]
    """The deployment file, for Prefect."""

    @property
    def names(self) -> tuple[str, ...]:
        """The deployments by the names that people use: `improve/nightly` …"""
        return tuple(map(self.title, self.file["deployments"]))

    @staticmethod
    def title(deployment: dict[str, Any]) -> str:
        """One deployment by that name."""
        return f"{deployment['entrypoint'].rpartition('.')[2].replace('_', '-')}/{deployment['name']}"

    def yaml(self) -> str:
        """The deployment file as text."""
        return yaml.dump(self.file, Dumper=_Plain, sort_keys=False, allow_unicode=True)


class _Plain(yaml.SafeDumper):
    """Writes every value out, instead of anchors that refer to an earlier one."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def file_for(kind: Kind) -> Path:
    """The deployment file of a kind: in the wheel beside this module, in a clone under `deployments/`."""
    here = Path(__file__).resolve().parent
    packaged = here / "deployments" / _FILES[kind]
    return packaged if packaged.exists() else here.parent / "deployments" / _FILES[kind]


def prepare(recipe: Path, overrides: Sequence[str], *, kind: Kind, file: Path | None, **options: str | None) -> Plan:
    """The plan for a recipe's file; `options` are those of `plan`.

    Raises:
        RecipeError, UsageError: as `load` and `plan`.
    """
    loaded = load(recipe, overrides)
    workspace = options.pop("workspace", None)
    if file is None and kind == "process":
        # A worker starts its runs in another folder.
        workspace = workspace or "workspace"
        workspace = workspace if "://" in workspace else str(Path(workspace).resolve())
    return plan(file or file_for(kind), loaded, workspace=workspace, **options)


def tell(plan: Plan, made: Mapping[str, bool], workers: Mapping[str, int]) -> None:
    """For people: what is there now, and what is missing."""
    for one in plan.file["deployments"]:
        schedule = next((each for each in one.get("schedules", []) if each.get("active", True)), None)
        when = f"  at {schedule['cron']} {schedule['timezone']}" if schedule else ""
        print(f"{plan.title(one):<24} in work pool {one['work_pool']['name']}{when}")
    for pool, new in made.items():
        print(f"work pool {pool} " + ("was made" if new else "was there, and stays as it is"))
        if not workers[pool]:
            print(f"  no worker is there for it; start one: prefect worker start --pool {pool}")
    print("a run without heartbeats will be marked as crashed; start it again, and it goes on where it was")


def plan(
    file: Path,
    recipe: Recipe,
    *,
    workspace: str | None = None,
    image: str | None = None,
    pool: str | None = None,
    name: str | None = None,
    cron: str | None = None,
    timezone: str | None = None,
) -> Plan:
    """Fill a deployment file in; what is None stays as it stands there.

    Args:
        workspace: folder or URL, as the runs will see it.
        image: container image of the runs.
        pool: the CPU pool's name; the GPU pool is called the same with `-gpu`.
        name: of the deployments of this recipe, where several recipes share a server.
        cron: schedule of `improve`; `none` pauses it.
        timezone: of the schedule, such as Europe/Berlin.

    Raises:
        UsageError: the file cannot be read, or an image or a workspace is missing.
        RecipeError: Prefect would read a text of the recipe as a template.
    """
    content = _read(file)
    values = recipe.resolved()
    _refuse_templates(values)
    renamed: dict[str, str] = {}
    if pool is not None:
        first = content["work_pools"][0]["name"]
        renamed = {one["name"]: one["name"].replace(first, pool, 1) for one in content["work_pools"]}
    for one in content["deployments"]:
        parameters = one.get("parameters", {})
        if "recipe" in parameters:
            one["name"] = name or one["name"]
            parameters["recipe"] = values
            parameters["workspace"] = _filled(workspace, parameters["workspace"], "--workspace", file)
        one["work_pool"]["name"] = renamed.get(one["work_pool"]["name"], one["work_pool"]["name"])
        variables = one["work_pool"].get("job_variables", {})
        if "image" in variables:
            variables["image"] = _filled(image, variables["image"], "--image", file)
        elif image is not None:
            raise UsageError(f"{file.name} runs no containers; --image is for --on docker and --on kubernetes")
        for schedule in one.get("schedules", []):
            if cron == "none":
                schedule["active"] = False
            elif cron is not None:
                schedule["cron"] = cron
            if timezone is not None:
                schedule["timezone"] = timezone
    pools = []
    for one in content.pop("work_pools"):
        template = one.get("job_template")
        loaded = json.loads((file.parent / template).read_bytes()) if template else None
        pools.append(Pool(renamed.get(one["name"], one["name"]), one["type"], loaded))
    content.pop("definitions", None)
    return Plan(tuple(pools), content)


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"deployment file {file} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content.get("deployments") or not content.get("work_pools"):
        raise UsageError(f"{file} is no deployment file: expected the keys `deployments` and `work_pools`")
    loaded: dict[str, Any] = json.loads(json.dumps(content))  # YAML's anchors are one object, and would change together
    return loaded


def _filled(value: str | None, there: str, option: str, file: Path) -> str:
    if value is not None:
        return value
    if there.startswith("{{"):
        raise UsageError(f"{option} is missing: {file.name} does not say it")
    return there


def _refuse_templates(values: Any, where: str = "") -> None:
    """Prefect replaces `{{ … }}` in deployment files, by variables, by secrets, or by nothing."""
    if isinstance(values, dict):
        for key, value in values.items():
            _refuse_templates(value, f"{where}.{key}" if where else str(key))
    elif isinstance(values, list):
        for value in values:
            _refuse_templates(value, where)
    elif isinstance(values, str) and "{{" in values:
        raise RecipeError(f"`{where}` holds {{{{, which Prefect would replace in a deployment; write it another way")
