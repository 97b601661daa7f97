"""What is deployed: files filled in, job templates and manifests by their schemas, and what must never be in them."""

from __future__ import annotations

import ast
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gristmill.deployment import Kind, Plan, file_for, plan
from gristmill.errors import RecipeError, UsageError
from gristmill.recipe import Recipe, build
from gristmill.workspace import Workspace

ROOT = Path(__file__).parents[1]
HERE = ROOT / "deployments"
KINDS: list[Kind] = ["process", "docker", "kubernetes"]


def planned(kind: Kind, recipe: Recipe | None = None, **options: str) -> Plan:
    given = {"workspace": "/srv/gristmill"} | ({"image": "gristmill:1"} if kind != "process" else {}) | options
    return plan(file_for(kind), recipe or Recipe(), **given)  # type: ignore[arg-type]


def deployments(made: Plan) -> dict[str, dict[str, Any]]:
    return dict(zip(made.names, made.file["deployments"], strict=True))


def documents(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@pytest.mark.parametrize("kind", KINDS)
def test_recipe_and_workspace_are_filled_in(kind: Kind) -> None:
    recipe = build({"name": "mine", "format": {"method": "dpo"}}, ["train.epochs=7"])
    made = planned(kind, recipe, cron="30 4 * * 1", timezone="Europe/Berlin", pool="cluster", name="weekly")
    assert made.names == ("improve/weekly", "prepare/weekly", "train-step/gpu")
    found = deployments(made)
    for name in ("improve/weekly", "prepare/weekly"):
        parameters = found[name]["parameters"]
        assert Recipe.model_validate(parameters["recipe"]) == recipe
        assert parameters["workspace"] == "/srv/gristmill"
        assert found[name]["work_pool"]["name"] == "cluster"
    assert found["train-step/gpu"]["work_pool"]["name"] == "cluster-gpu"
    (schedule,) = found["improve/weekly"]["schedules"]
    assert schedule == {"slug": "nightly", "cron": "30 4 * * 1", "timezone": "Europe/Berlin", "active": True}
    assert [pool.name for pool in made.pools] == ["cluster", "cluster-gpu"]
    assert {pool.type for pool in made.pools} == {kind}
    assert yaml.safe_load(made.yaml()) == made.file


@pytest.mark.parametrize("kind", KINDS)
def test_no_option_of_prefect_can_lose_a_long_training(kind: Kind) -> None:
    """A slot that is never given back cancels all later runs (CANCEL_NEW); a lost lease ends a limited run."""
    found = deployments(planned(kind))
    assert found["improve/nightly"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert "concurrency_limit" not in found["train-step/gpu"]
    for one in found.values():
        assert "PREFECT_FLOWS_HEARTBEAT_FREQUENCY" in one["work_pool"]["job_variables"]["env"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_flows_take_the_parameters(kind: Kind) -> None:
    from prefect.flows import load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    for name, one in deployments(planned(kind)).items():
        flow: Any = load_flow_from_entrypoint(one["entrypoint"])
        assert flow.name == name.partition("/")[0]
        schema = parameter_schema(flow)
        assert set(one.get("parameters", {})) <= set(schema.properties)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(UsageError, match="--workspace is missing"):
        plan(file_for("process"), Recipe())
    with pytest.raises(UsageError, match="--image is missing"):
        plan(file_for("docker"), Recipe())
    with pytest.raises(UsageError, match="runs no containers"):
        planned("process", image="gristmill:1")
    assert plan(file_for("kubernetes"), Recipe(), image="x").file["deployments"][0]["parameters"]["workspace"]


def test_a_recipe_that_prefect_would_read_as_a_template_is_refused() -> None:
    recipe = build({"policy": {"kind": "serve", "server_args": ["{{ prefect.blocks.secret.key }}"]}})
    with pytest.raises(RecipeError, match=r"policy\.server_args"):
        planned("process", recipe)


def test_no_schedule() -> None:
    (schedule,) = deployments(planned("process", cron="none"))["improve/nightly"]["schedules"]
    assert schedule["active"] is False


def job(variables: dict[str, Any]) -> dict[str, Any]:
    """The Job that Prefect's worker makes of the template."""
    from prefect.utilities.templating import apply_values

    template = json.loads((HERE / "kubernetes" / "job-template.json").read_bytes())
    fields = template["variables"]["properties"]
    unknown = set(variables) - set(fields)
    assert not unknown, "Prefect would ignore these"
    values = {name: field["default"] for name, field in fields.items() if field.get("default") is not None}
    # What the worker itself adds.
    values |= {
        "name": "run",
        "command": ["prefect", "flow-run", "execute"],
        "labels": {},
        "annotations": {},
    } | variables
    values["env"] = [{"name": name, "value": value} for name, value in variables.get("env", {}).items()]
    made: dict[str, Any] = apply_values(template["job_configuration"]["job_manifest"], values)
    return made


def valid(document: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(document, "1.31", strict=True)


def contained(pod: dict[str, Any]) -> None:
    """As a normal user, with nothing to gain."""
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_jobs_are_kubernetes() -> None:
    found = deployments(planned("kubernetes"))
    for name, gpus in {"improve/nightly": None, "train-step/gpu": 1}.items():
        made = job(found[name]["work_pool"]["job_variables"])
        valid(made)
        pod = made["spec"]["template"]["spec"]
        contained(pod)
        (container,) = pod["containers"]
        assert container["resources"]["limits"].get("nvidia.com/gpu") == gpus
        assert container["image"] == "gristmill:1"
        assert {"name": "workspace", "mountPath": "/workspace"} in container["volumeMounts"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "gristmill-workspace"
        assert made["metadata"]["namespace"] == "gristmill"


def test_the_template_of_docker_knows_the_variables() -> None:
    fields = json.loads((HERE / "docker" / "job-template.json").read_bytes())["variables"]["properties"]
    for one in deployments(planned("docker")).values():
        assert set(one["work_pool"]["job_variables"]) <= set(fields)


def test_manifests_are_kubernetes() -> None:
    folder = HERE / "kubernetes"
    listed = documents(folder / "kustomization.yaml")[0]["resources"]
    alone = {"watch.yaml", "ray-job.yaml"}  # for whoever wants it
    assert {path.name for path in folder.glob("*.yaml")} == {*listed, "kustomization.yaml", *alone}
    kinds = set()
    for document in [one for name in (*listed, "watch.yaml") for one in documents(folder / name)]:
        valid(document)
        kinds.add(document["kind"])
        assert "namespace" not in document["metadata"], "kustomize sets it"
        if "template" in document.get("spec", {}):
            contained(document["spec"]["template"]["spec"])
    assert "Secret" not in kinds, "secrets are made by whoever deploys"
    assert {"Role", "RoleBinding", "PersistentVolumeClaim", "NetworkPolicy", "StatefulSet", "Deployment"} <= kinds


def test_whoever_watches_may_reach_the_server_and_asks_what_there_is() -> None:
    from typer.main import get_command

    from gristmill.cli import app

    (watch,) = documents(HERE / "kubernetes" / "watch.yaml")
    pod = watch["spec"]["template"]
    policies = {one["metadata"]["name"]: one["spec"] for one in documents(HERE / "kubernetes" / "network.yaml")}
    (allowed,) = policies["prefect-server"]["ingress"][0]["from"][0]["podSelector"]["matchExpressions"]
    assert pod["metadata"]["labels"][allowed["key"]] in allowed["values"]
    for words in (
        pod["spec"]["containers"][0]["args"],
        compose(PREFECT_PASSWORD="a", POSTGRES_PASSWORD="b")["services"]["watch"]["command"],
    ):
        assert words[0] == "gristmill"
        command = get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        asked = command.make_context(words[1], words[2:]).params
        assert str(asked["workspace"]) == "/workspace" and asked["place"]


def test_the_ray_job_has_valid_pods() -> None:
    (ray,) = documents(HERE / "kubernetes" / "ray-job.yaml")
    cluster = ray["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        spec = group["template"]["spec"]
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ray"}, "spec": spec})
        assert spec["securityContext"]["runAsNonRoot"] is True


def compose(**environment: str) -> dict[str, Any]:
    """The file as Compose reads it: variables filled in, merges applied."""

    def fill(match: re.Match[str]) -> str:
        name, operator, text = match[1], match[2], match[3]
        if name in environment:
            return environment[name]
        if operator == ":?":
            raise KeyError(f"{name}: {text}")
        return text or ""

    text = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", fill, (HERE / "compose.yaml").read_text())
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def test_compose_is_compose() -> None:
    from compose_spec import PyCompose

    read = compose(PREFECT_PASSWORD="a", POSTGRES_PASSWORD="b")
    text = yaml.safe_dump(read)
    assert set(PyCompose.from_yaml(text).services) >= {"postgres", "server", "worker", "worker-gpu"}
    with pytest.raises(ValueError, match="healthchek"):
        PyCompose.from_yaml(text.replace("healthcheck:", "healthchek:", 1))


def test_compose_asks_for_passwords_and_keeps_leases_on_disk() -> None:
    for missing in ("PREFECT_PASSWORD", "POSTGRES_PASSWORD"):
        given = {"PREFECT_PASSWORD": "a", "POSTGRES_PASSWORD": "b"}
        del given[missing]
        with pytest.raises(KeyError, match=missing):
            compose(**given)
    services = compose(PREFECT_PASSWORD="a", POSTGRES_PASSWORD="b")["services"]
    server = services["server"]
    assert server["environment"]["PREFECT_SERVER_API_AUTH_STRING"] == "gristmill:a"
    assert server["environment"]["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"].endswith("lease_storage.filesystem")
    assert all(port.startswith("127.0.0.1:") for port in server["ports"])
    assert "ports" not in services["postgres"]
    for name in ("server", "worker", "worker-gpu", "watch", "deploy"):
        assert services[name]["cap_drop"] == ["ALL"]


def test_the_image_is_not_roots_and_copies_what_there_is() -> None:
    lines = (HERE / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1] if word[0] not in "-/"]
    assert copied and all((ROOT / word).exists() for word in copied)
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) <= allowed


def test_no_pickle_crosses_a_boundary() -> None:
    """What is read from a workspace, a bucket or an API is JSON, Parquet or safetensors."""
    wrong = []
    for package in ("gristmill", "tasks", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if {name.partition(".")[0] for name in names} & {"pickle", "cloudpickle", "dill", "shelve", "marshal"}:
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} imports one")
                if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle", "trust_remote_code"):
                    safe = node.arg == "weights_only"
                    if not isinstance(node.value, ast.Constant) or node.value.value is not safe:
                        wrong.append(f"{path.relative_to(ROOT)}:{node.value.lineno} sets {node.arg}")
    assert wrong == []


def test_results_of_every_step_are_json() -> None:
    from prefect import Task

    from tasks import caching, collect, curate, evaluate, format, ingest, promote, read, report, review, train, validate

    steps = [
        value
        for module in (collect, curate, evaluate, format, ingest, promote, read, report, review, train, validate)
        for value in vars(module).values()
        if isinstance(value, Task)
    ]
    assert len(steps) > 10
    assert {type(one.result_serializer) for one in steps} == {caching.RefSerializer}


def test_schedules_start_runs_and_paused_ones_take_them_back(prefect_server: str) -> None:
    """With SQLAlchemy 2.1 Prefect's scheduler fails on every schedule, and only its log says so."""
    import sqlalchemy
    from prefect.client.orchestration import get_client

    from flows.deploy import _pause

    if "UV" not in os.environ and not sqlalchemy.__version__.startswith("2.0."):
        pytest.skip(f"not run by uv, and SQLAlchemy {sqlalchemy.__version__} is installed")
    with httpx.Client(base_url=prefect_server, timeout=30) as client:
        flow = client.post("/flows/", json={"name": "nothing"}).raise_for_status().json()["id"]
        schedule = {"schedule": {"cron": "* * * * *", "timezone": "UTC"}, "active": True, "slug": "often"}
        asked = {"name": "often", "flow_id": flow, "schedules": [schedule]}
        made = client.post("/deployments/", json=asked).raise_for_status().json()["id"]

        def runs() -> int:
            asked = {"deployments": {"id": {"any_": [made]}}}
            return len(client.post("/flow_runs/filter", json=asked).raise_for_status().json())

        client.post(f"/deployments/{made}/schedule", json={}).raise_for_status()
        assert runs() > 1
        # As `prefect deploy` does it: the runs stand, and would start.
        client.post("/deployments/", json={**asked, "schedules": [{**schedule, "active": False}]}).raise_for_status()
        one = {"entrypoint": "anywhere.nothing", "name": "often", "schedules": [{"slug": "often", "active": False}]}
        with get_client(sync_client=True) as prefect:
            _pause(prefect, Plan((), {"deployments": [one]}))
        assert runs() == 0
        client.delete(f"/deployments/{made}").raise_for_status()


def test_a_training_elsewhere_outlives_the_sweep_of_a_loop_that_starts_again(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "workspace")
    made = place.work("train") / "model"
    made.mkdir()
    (made / "weights").write_bytes(b"w")
    with place.store.draft("checkpoint") as draft:
        with Workspace(place.root).locked():
            pass
        draft.adopt(made)
        ref = draft.commit(stage="train")
    place.store.verify(ref)
