"""Arrow arrays from Python values and numpy arrays, and back, for the rollout table and what selects from it.

Made from buffers rather than by `pyarrow.array`, which imports pandas where that is installed: a second of
start time for every process, and nothing here needs it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa


def build(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """An array of strings, integers, floats, booleans, or of lists or maps of them; None is null.

    A map's keys are sorted.
    """
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(_offsets(values), build(_flat(values), kind.value_type))
    if pa.types.is_map(kind):
        pairs = [pair for value in values for pair in sorted(value.items())]
        keys = build([key for key, _ in pairs], kind.key_type)
        return pa.MapArray.from_arrays(_offsets(values), keys, build([v for _, v in pairs], kind.item_type), kind)
    valid = None
    if None in values:
        present = np.fromiter((value is not None for value in values), np.bool_, len(values))
        valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    if pa.types.is_string(kind):
        texts: Sequence[Any] = values if valid is None else ["" if value is None else value for value in values]
        text = "".join(texts)
        if not text.isascii():
            texts = [value.encode() for value in texts]
        ends = np.fromiter(itertools.accumulate(map(len, texts), initial=0), np.int32, len(texts) + 1)
        return pa.Array.from_buffers(kind, len(texts), [valid, pa.py_buffer(ends), pa.py_buffer(text.encode())])
    filled = values if valid is None else [0 if value is None else value for value in values]
    if pa.types.is_boolean(kind):
        bits: np.ndarray[Any, Any] = np.packbits(np.fromiter(filled, np.bool_, len(values)), bitorder="little")
        return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(bits)])
    data = np.fromiter(filled, kind.to_pandas_dtype(), len(values))
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(data)])


def binary(buffer: bytearray, offsets: Sequence[int]) -> pa.Array:
    """Values that lie one after another in a buffer, which is not copied."""
    import numpy as np
    import pyarrow as pa

    ends = pa.py_buffer(np.array(offsets, np.int32))
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, [None, ends, pa.py_buffer(buffer)])


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray[Any, Any]:
    """A column of numbers without nulls. `to_numpy` would import pandas, which takes a second."""
    import numpy as np
    import pyarrow as pa

    return np.from_dlpack(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


def integers(values: np.ndarray[Any, Any], kind: pa.DataType | None = None) -> pa.Array:
    """Integers as Arrow has them, of 64 bits if nothing else is said; as `numbers`, without pandas."""
    import pyarrow as pa

    kind = kind or pa.int64()
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values.astype(kind.to_pandas_dtype()))])


def _flat(values: Sequence[Sequence[Any]]) -> list[Any]:
    return [item for value in values for item in value]


def _offsets(values: Sequence[Sequence[Any] | Mapping[Any, Any]]) -> pa.Array:
    import pyarrow as pa

    return build(list(itertools.accumulate(map(len, values), initial=0)), pa.int32())
