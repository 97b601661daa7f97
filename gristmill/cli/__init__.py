"""The command line. Exit codes: 0 done, 1 failed, 2 wrong use, 3 a gate said no.

The outermost layer: it alone may import flows, and does so late, so that `gristmill --help` is quick. Results go to
standard output (with `--json` as one object, on the last line), everything else to standard error. One module a panel
of the help; they register with `app` when they are imported.
"""

from __future__ import annotations

import sys

# They register their commands, in the order of the help.
# isort: off
from gristmill.cli import loop, data, evidence, lineage, care  # noqa: F401
# isort: on

from gristmill.cli.app import app
from gristmill.cli.output import quiet_libraries, showing
from gristmill.errors import GristmillError, full_disk, unreadable

__all__ = ["app", "main"]


def main() -> None:
    """Entry point: deliberate errors become one sentence and an exit code."""
    quiet_libraries()
    try:
        with showing():
            app()
    except Exception as error:
        told = error if isinstance(error, GristmillError) else full_disk(error) or unreadable(error)
        if told is None:
            raise
        for line in (f"error: {told}", *getattr(error, "__notes__", ())):
            print(line, file=sys.stderr)
        sys.exit(told.exit_code)
