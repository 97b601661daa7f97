"""Imports point one way: flows → tasks → gristmill; the library knows no Prefect; light commands stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "gristmill": {"prefect", "tasks", "flows"},
    "tasks": {"flows"},
    "flows": set(),
}
# The command line is the outermost layer: it may import flows, inside functions.
OUTERMOST = set((ROOT / "gristmill" / "cli").glob("*.py"))
# Modules that name a thing import nothing that does a job.
NAMES = {"identity", "artifact", "errors", "reasons", "statistics", "recipe"}
JOBS = {"curate", "collect", "dataset", "train", "evaluation", "store", "ingest"}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if path not in OUTERMOST
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


@pytest.mark.parametrize("name", sorted(NAMES))
def test_names_do_not_import_jobs(name: str) -> None:
    place = ROOT / "gristmill" / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    found = set().union(*map(imports, files))
    assert not {f"gristmill.{job}" for job in JOBS} & found


def test_every_module_opens_with_its_contract() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in sorted((ROOT / package).rglob("*.py"))
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, gristmill.cli; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"prefect", "torch", "transformers", "pyarrow", "duckdb", "numpy", "scipy"} & set(loaded)
