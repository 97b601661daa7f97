"""`python -m gristmill.trl JOB.json [ROWS_AT_ONCE]`: see `gristmill.trl.process`."""

import sys

from gristmill.trl.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
