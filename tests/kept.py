"""Where tests keep what takes long to fetch or make: environments, servers."""

from __future__ import annotations

import os
from pathlib import Path


def kept(name: str = "") -> Path:
    """A folder below GRISTMILL_TEST_CACHE, else below ~/.cache/gristmill-tests; it may not be there yet."""
    return Path(os.environ.get("GRISTMILL_TEST_CACHE", Path.home() / ".cache" / "gristmill-tests")) / name
