"""How commands print: what is for people, what is for programs, and what libraries may say."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_ANY_WIDTH = 100_000  # columns of what is no terminal


def console() -> Console:
    """Standard output; lines are broken, and what has columns is cut to fit, for people only."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=_ANY_WIDTH if piped else None)


def print_json(value: Any) -> None:
    import orjson

    print(orjson.dumps(value).decode())


def quiet_libraries() -> None:
    """No telemetry, no hub, no wall of warnings; whoever sets these variables keeps what they set."""
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # its terminal log; what goes to the API stays
    }.items():
        os.environ.setdefault(name, value)
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")
