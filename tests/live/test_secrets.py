"""Planted secrets: whatever takes one gets one, a loop runs with them, and nothing that it leaves holds any."""

from __future__ import annotations

import gzip
from pathlib import Path

import httpx
import pytest

from gristmill.recipe import Recipe
from tests.test_loop import improve, recipe

pytestmark = pytest.mark.live

SECRETS = {
    "TEAM_WEBHOOK_URL": "http://127.0.0.1:1/planted-webhook-path",
    "TEAM_WEBHOOK_SECRET": "planted-webhook-secret",
    "HF_TOKEN": "hf_plantedtoken",
    "ENDPOINT_KEY": "planted-endpoint-key",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-key",
    "PREFECT_API_AUTH_STRING": "gristmill:planted-password",
}


def test_secrets_reach_nothing_that_lasts(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    sinks = {"webhook": {"url_env": "TEAM_WEBHOOK_URL", "secret_env": "TEAM_WEBHOOK_SECRET"}, "patience": 5}
    values = recipe(name="secrets").resolved()
    what = Recipe.model_validate(
        {**values, "sinks": sinks, "policy": {**values["policy"], "api_key_env": "ENDPOINT_KEY"}}
    )
    improve(what, tmp_path / "workspace")

    left = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any("sinks/webhook" in name for name in left), "the webhook was not even tried"
    left |= {f"{name} (unpacked)": gzip.decompress(data) for name, data in left.items() if name.endswith(".gz")}
    out = capfd.readouterr()
    left |= {"standard output": out.out.encode(), "standard error": out.err.encode()}
    with httpx.Client(base_url=prefect_server, timeout=60) as client:
        for kind in ("flow_runs", "task_runs", "logs", "artifacts", "events", "variables"):
            answer = client.post(f"/{kind}/filter", json={})
            left[f"Prefect's {kind}"] = answer.raise_for_status().content
    assert b"secrets" in left["Prefect's flow_runs"]
    words = [value.rpartition("/")[2].rpartition(":")[2].encode() for value in SECRETS.values()]
    assert [(name, word) for name, data in left.items() for word in words if word in data] == []
