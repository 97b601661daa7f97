"""The cache folder of this machine: what can be made again, and is slow to make."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """`GRISTMILL_CACHE`, else `XDG_CACHE_HOME`/gristmill, else ~/.cache/gristmill; it may not be there yet."""
    if own := os.environ.get("GRISTMILL_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gristmill"
