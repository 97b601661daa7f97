"""The README says what is true: its commands exist, its links lead somewhere, CI runs its own test command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_two_commands() -> None:
    assert "pip install uv && uv run gristmill demo" in README
    assert "\nuv run pytest\n" in README
    assert re.search(r"^\$uv run pytest$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_every_command_that_is_shown_exists() -> None:
    # A namespace and a work pool are called gristmill, too.
    called = r"(?<!-n )(?<!pool )gristmill ([a-z]+)(?=[ \n`])"
    shown = {name for page in PAGES for name in re.findall(called, page.read_text())}
    known = subprocess.run([sys.executable, "-m", "gristmill", "--help"], capture_output=True, text=True, check=True)
    listed = set(re.findall(r"^│ ([a-z]+)  ", known.stdout, re.MULTILINE))
    assert {"demo", "improve", "inspect"} <= shown
    assert shown <= listed


def test_overrides_that_are_shown_are_valid() -> None:
    from gristmill.recipe import build

    overrides = re.findall(r"[a-z_]+(?:\.[a-z_]+)?=[a-z0-9.]+(?=[ \n`])", README)
    assert overrides
    for override in overrides:
        build({}, [override])


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
    named = re.findall(
        r"`((?:gristmill|flows|tasks|tests|benchmarks|recipes|deployments|docs)/[\w./-]*)`", page.read_text()
    )
    assert [name for name in named if not (ROOT / name).exists()] == []
