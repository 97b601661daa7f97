"""Data and config files of an export: lines of JSON, Parquet with exact JSON columns, YAML scalars.

Guarantees: equal rows give equal bytes (one writer version); nothing is null-filled, because whatever varies from
row to row is JSON text in one column; a file that cannot be written whole raises.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import orjson

from gristmill.items import Unrepresentable
from gristmill.reasons import DropReason
from gristmill.targets.protocol import Export, Row

if TYPE_CHECKING:
    import pyarrow as pa

# A Parquet row group: small enough to stream, and far below the 2 GiB that one Arrow string array holds.
_GROUP_ROWS = 1024
_GROUP_BYTES = 128 << 20


def line(row: dict[str, Any]) -> bytes:
    """A row as a line of JSON, keys in the row's own order.

    Raises:
        Unrepresentable: it holds what no file can (half a surrogate pair, an integer over 64 bits).
    """
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError as error:
        raise Unrepresentable(DropReason.MALFORMED_ITEM, f"the row cannot be written: {error}") from None


def texts(values: Iterable[Any]) -> list[bytes]:
    """Each value as JSON: an element of a list column."""
    return [orjson.dumps(value) for value in values]


def write_lines(rows: Sequence[Row], path: Path) -> None:
    """One JSONL file."""
    with path.open("wb") as file:
        file.writelines(cast(Sequence[bytes], rows))


def write_columns(rows: Sequence[Row], path: Path, types: dict[str, pa.DataType]) -> None:
    """One Parquet file; the rows' keys, which all rows share, say which of `types` it has.

    JSON types (`pa.json_()`, or a list of it) take JSON bytes. No rows make a file without columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(cast(dict[str, Any], rows[0])) if rows else []
    schema = pa.schema([(name, types[name]) for name in columns])
    # Tools are the same in many rows; of other columns a dictionary would only cost time.
    repeated = [name for name in ("tools", "tools.list.element") if "tools" in columns]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeated) as file:
        for group in _groups(cast(Sequence[dict[str, Any]], rows)):
            arrays = [_array([row[field.name] for row in group], field.type) for field in schema]
            file.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=_GROUP_ROWS)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """An Arrow array; JSON is built as text, then given its type, since Arrow does not convert to it."""
    import pyarrow as pa

    if isinstance(kind, pa.JsonType):
        return pa.ExtensionArray.from_storage(kind, pa.array(values, pa.string()))
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.JsonType):
        offsets = [0]
        flat: list[Any] = []
        for value in values:
            flat += value
            offsets.append(len(flat))
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _array(flat, kind.value_type), type=kind)
    return pa.array(values, kind)


def _groups(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        group.append(row)
        size += sum(_size(value) for value in row.values())
        if len(group) == _GROUP_ROWS or size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _size(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(map(_size, value))
    return 8


def render(template: str, export: Export, path: str, /, **values: Any) -> None:
    """Write a launch file of the export from a template in `launch/`; what the template names must be given."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gristmill.targets", "launch"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # configs and programs, not pages
    )
    environment.filters |= {"yaml": yaml_text, "json": json_text, "quote": shlex.quote}
    method, launch = export.method, export.launch
    known = {"method": method, "launch": launch, "rate": launch.rate(method)}
    splits = {"train": export.train, "validation": export.validation}
    text = environment.get_template(template).render(**known, **splits, **values)
    (export.folder / path).write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """A value as JSON, which for text, lists and mappings is a Python literal too."""
    return json.dumps(value, ensure_ascii=False)


def yaml_text(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, float) and "e" in repr(value) and "." not in repr(value):
        return repr(value).replace("e", ".0e")  # YAML 1.1 reads 1e-05, which has no point, as text
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else json_text(value)


# Text that means itself in YAML without quotes.
_PLAIN = re.compile(r"[A-Za-z][\w./-]*[/.][\w./-]*")
