"""The selection: which rollouts were chosen, and of each other one why not.

`selection.parquet` has one row per usable rollout, in the order of the input:

    at_table, at_file, at_row   where its row lies: which table, which part, which row
    rollout_id, task_key, reward
    reason                      why it was not chosen (gristmill/reasons.py); null: it was chosen
    rule                        the rule that dropped it, as the recipe words it
    twin                        of a duplicate, the rollout that was chosen in its place

`rules.json` beside it says what exactly was asked: the recipe's section, every rule with a preset's conditions
written out, how many decisions of a review and their digest, and the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gristmill import columns
from gristmill.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SELECTION = "selection.parquet"
RULES = "rules.json"


@cache
def schema() -> pa.Schema:
    """Columns of a selection, in order."""
    import pyarrow as pa

    return pa.schema(
        [
            ("at_table", pa.int32()),
            ("at_file", pa.int32()),
            ("at_row", pa.int64()),
            ("rollout_id", pa.string()),
            ("task_key", pa.string()),
            ("reward", pa.float64()),
            ("reason", pa.string()),
            ("rule", pa.string()),
            ("twin", pa.string()),
        ]
    )


def named(which: np.ndarray[Any, Any], names: Sequence[str]) -> pa.Array:
    """A column of names, one for each number; null where that is negative."""
    import numpy as np
    import pyarrow as pa

    # only names that occur: equal columns have equal dictionaries, and so equal bytes in a file
    occurs = np.bincount(which[which >= 0], minlength=len(names)) > 0
    numbers = np.append(np.cumsum(occurs) - 1, 0)[which].astype(np.int32)
    valid = pa.py_buffer(np.packbits(which >= 0, bitorder="little"))
    indices = pa.Array.from_buffers(pa.int32(), len(which), [valid, pa.py_buffer(numbers)])
    return pa.DictionaryArray.from_arrays(indices, columns.build(list(compress(names, occurs)), pa.string()))


def write(selection: pa.Table, path: Path) -> None:
    """Write a selection; equal rows give equal bytes."""
    import pyarrow.parquet as pq

    repeated = [name for name in selection.column_names if name not in ("rollout_id", "at_row", "twin")]
    # the file says what its columns are, not which of them were encoded in memory
    pq.write_table(
        selection, path, compression="zstd", use_dictionary=repeated, write_statistics=False, store_schema=False
    )


def read(path: Path) -> pa.Table:
    """Read a `selection.parquet`, or the one in a folder.

    Raises:
        UsageError: there is none, or the file is something else.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = path / SELECTION if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path} holds no selection (no {SELECTION}); name a selection's folder, file or digest")
    try:
        return pq.read_table(file, columns=schema().names)
    except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError) as error:
        raise UsageError(f"{file} is no selection: {str(error).splitlines()[0]}") from None
