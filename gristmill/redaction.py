"""What leaves this machine says nothing of it: paths become file names, passwords in URLs go."""

from __future__ import annotations

import re
from typing import Any

_PATH = re.compile(r"(?<![\w.:/])(?:~|[A-Za-z]:)?/(?:[^\s/'\",;]+/)*([^\s/'\",;]+)")
_PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")


def public(value: Any) -> Any:
    """Without paths of this machine and passwords in URLs."""
    if isinstance(value, dict):
        return {name: public(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [public(one) for one in value]
    return public_text(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    return _PATH.sub(r"\1", _PASSWORD.sub("", text))
