"""Identity: sha256 over canonical JSON; for single rows, a fast fingerprint of their bytes.

Canonical JSON has sorted keys, no insignificant white space, UTF-8, and neither NaN nor infinity. Python's
`hash()` is salted per process and never used. Two values have one digest exactly if they are equal as JSON.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import orjson
import xxhash

_OPTIONS = orjson.OPT_SORT_KEYS


def canonical(value: Any) -> bytes:
    """The canonical JSON of `value` (dict, list, str, int, float, bool, None, nested).

    Raises:
        TypeError: a value that JSON cannot hold.
        ValueError: NaN or infinity, which orjson would write as null and so confuse with a missing value.
    """
    _refuse_non_finite(value)
    return orjson.dumps(value, option=_OPTIONS)


def digest(value: Any) -> str:
    """Hex sha256 (64 characters) of `canonical(value)`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def file_digest(path: Path) -> str:
    """Hex sha256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_non_finite(value: Any) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical JSON")
    elif isinstance(value, dict):
        for item in value.values():
            _refuse_non_finite(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_non_finite(item)


def fingerprint(data: bytes | bytearray | memoryview) -> str:
    """32 hex digits that tell one row from another: XXH3, 128 bits.

    For rows, of which there are millions: sha256 takes longer than decoding them. Not made against forgers; what
    is published (artifacts, exports) is told by `digest`.
    """
    return xxhash.xxh3_128_hexdigest(data)
