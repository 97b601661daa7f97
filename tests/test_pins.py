"""The pins of pyproject.toml: complete, resolvable on the tested Pythons from PyPI alone, and what runs here."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = PROJECT["tool"]["uv"]["constraint-dependencies"]


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0].lower().replace("_", "-")


def test_every_direct_dependency_is_pinned() -> None:
    direct = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["train"]
    direct += PROJECT["dependency-groups"]["dev"]
    missing = {name_of(r) for r in direct} - {name_of(p) for p in PINS} - {"gristmill"}
    assert missing == set()


def test_the_pins_are_what_runs_here() -> None:
    """Fails when someone tests with other versions than a fresh machine will get."""
    if "UV" not in os.environ and "UV_RUN_RECURSION_DEPTH" not in os.environ:
        pytest.skip("not run by uv: other versions may be installed here on purpose")
    wrong = []
    for pin in PINS:
        requirement, _, marker = pin.partition(";")
        name, _, version = requirement.strip().partition("==")
        if marker:
            continue  # another Python's version
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # another platform's package
        if found != version:
            wrong.append(f"{name}: pinned {version}, found {found}")
    assert wrong == []


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_pins_resolve(python: str) -> None:
    if not shutil.which("uv"):
        pytest.skip("uv is not on PATH")
    resolved = subprocess.run(
        [
            "uv",
            "pip",
            "compile",
            "pyproject.toml",
            "--extra",
            "train",
            "--group",
            "dev",
            "--quiet",
            "--python-version",
            python,
            "--no-header",
            "--no-annotate",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert resolved.returncode == 0, resolved.stderr
    pinned = {name_of(p) for p in PINS}
    unpinned = {name_of(line) for line in resolved.stdout.splitlines() if "==" in line} - pinned - {"gristmill"}
    assert unpinned == set()


def test_no_file_names_a_registry() -> None:
    """uv.lock would: it must stay out of the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "uv.lock" not in tracked
    host = re.compile(rb"pypi\.(org|python)|files\.python" + rb"hosted")
    assert [name for name in tracked if (ROOT / name).is_file() and host.search((ROOT / name).read_bytes())] == []
