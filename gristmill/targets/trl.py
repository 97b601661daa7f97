"""TRL (and what is built on it): Parquet with JSON columns, or JSONL; launched by `trl sft --config` or `train.py`.

    sft            prompt, completion, tools, meta          or, with token ids: input_ids, labels, meta
    dpo, reward    prompt, chosen, rejected, tools, margin, meta      (DPO ignores the margin)
    kto            prompt, completion, tools, label, meta

Message columns hold Arrow's JSON type, which `datasets` (4.7 and later) reads as `List(Json())`: every message keeps
its exact keys, and the TRL CLI, which cannot pass features, needs no code. `datasets` infers a JSONL's types from its
first 10 MB and may then fail on a later tool call, so the JSONL export has only a `train.py`, which names the types.

Loss: `assistant_only_loss` where a completion has several messages, which needs a chat template with generation
markers; a completion of one message carries loss whole. Preference trainers mask nothing within a side, so that a
side is one assistant message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import orjson

from gristmill.example import Example, Labelled, Method, Preference, RlTask, Sft, Tokens
from gristmill.targets.files import line, render, texts, write_columns, write_lines
from gristmill.targets.limits import require_single, require_text
from gristmill.targets.protocol import Export, Row

if TYPE_CHECKING:
    import pyarrow as pa

_TRAINERS: dict[Method, str] = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward"}
_OVER_LENGTH: dict[Method, str] = {
    "sft": "what is longer loses its end",
    "dpo": "a row whose prompt is longer is dropped",
    "kto": "a row whose prompt is longer is dropped",
    "reward": "a longer pair is dropped",
}


def columns(example: Example) -> dict[str, Any]:
    """The row as plain values; targets that hand rows on to TRL write the same.

    Raises:
        Unrepresentable: images; a tool result or a second turn inside a side of a preference.
    """
    match example:
        case Sft(prompt, completion, tools, meta):
            require_text(prompt, completion)
            return {"prompt": prompt, "completion": completion, "tools": tools, "meta": meta}
        case Tokens(input_ids, labels, meta):
            return {"input_ids": input_ids, "labels": labels, "meta": meta}
        case Preference(prompt, chosen, rejected, tools, margin, meta):
            require_text(prompt, chosen, rejected)
            require_single(chosen, rejected)
            return {
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "tools": tools,
                "margin": margin,
                "meta": meta,
            }
        case Labelled(prompt, completion, tools, label, meta):
            require_text(prompt, completion)
            require_single(completion)
            return {"prompt": prompt, "completion": completion, "tools": tools, "label": label, "meta": meta}
        case RlTask():
            raise TypeError("trl has no rl export: its online trainers take prompts; use the target gym")


@dataclass(frozen=True, slots=True)
class Trl:
    """Rows for TRL's trainers, in one of two files."""

    name: str
    suffix: Literal["jsonl", "parquet"]
    methods: frozenset[Method] = frozenset(("sft", "dpo", "kto", "reward"))
    single_message: bool = True

    def row(self, example: Example) -> Row:
        row = columns(example)
        return line(row) if self.suffix == "jsonl" else json_columns(row)

    def write(self, rows: Sequence[Row], path: Path) -> None:
        if self.suffix == "jsonl":
            write_lines(rows, path)
        else:
            write_columns(rows, path, types())

    def finish(self, export: Export) -> None:
        looked, method = look(export), export.method
        # KTO estimates its KL term by rotating completions within a device's batch: one row is too few.
        device_batch = 2 if method == "kto" else 1
        ending = "-*.parquet" if self.suffix == "parquet" else ".jsonl"
        values: dict[str, Any] = {
            "trainer": _TRAINERS[method],
            "files": {split: split + ending for split in ("train", "validation") if getattr(export, split)},
            "features": _features(method, looked.token_ids) if self.suffix == "jsonl" else None,
            "looked": looked,
            "weights": looked.weights,
            "device_batch": device_batch,
            "accumulation": -(-export.launch.batch_size // device_batch),
            "over_length": _OVER_LENGTH[method],
        }
        render("trl.py.j2", export, "train.py", **values)
        if self.suffix == "parquet":
            render("trl.yaml.j2", export, f"{method}.yaml", **values)


def json_columns(row: dict[str, Any]) -> dict[str, Any]:
    """The row with messages, tools and meta as JSON bytes, ready for `write_columns`."""
    made: dict[str, Any] = {}
    for name, value in row.items():
        if name == "meta":
            made[name] = orjson.dumps(value)
        elif name in ("input_ids", "labels") or not isinstance(value, list):
            made[name] = value
        else:
            made[name] = texts(value)
    return made


def types() -> dict[str, pa.DataType]:
    """Arrow types of all columns."""
    import pyarrow as pa

    messages, ids = pa.list_(pa.json_()), pa.list_(pa.int32())
    return {
        **dict.fromkeys(("prompt", "completion", "chosen", "rejected", "tools"), messages),
        **dict.fromkeys(("input_ids", "labels"), ids),
        "margin": pa.float64(),
        "label": pa.bool_(),
        "meta": pa.json_(),
    }


@dataclass(frozen=True, slots=True)
class Looked:
    """What the launch depends on, as found in the training files."""

    token_ids: bool
    several_turns: bool
    """Some completion has more than one message."""
    desirable: int
    undesirable: int

    @property
    def weights(self) -> tuple[float, float]:
        """KTO's (desirable, undesirable): the rarer label weighs more, so that both sides count alike.

        Ethayarajh et al. 2024, equation 9 and below: the ratio of the weighted counts should be in [1, 4/3].
        """
        if not self.desirable or not self.undesirable:
            return 1.0, 1.0
        ratio = self.undesirable / self.desirable
        return (round(ratio, 2), 1.0) if ratio > 1 else (1.0, round(1 / ratio, 2))


def look(export: Export) -> Looked:
    """One cheap pass over the training files."""
    token_ids, several = False, False
    labels: Counter[bool | None] = Counter()
    for name in export.train:
        path = export.folder / name
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                token_ids |= "input_ids" in file.schema_arrow.names
                several |= _more_messages_than_rows(file.metadata)
                if export.method == "kto":
                    labels.update(file.read(["label"])["label"].to_pylist())
        else:
            for row in _lines(path):
                token_ids |= bool(bytes(row.input_ids))
                several |= len(row.completion) > 1
                labels[row.label] += 1
    return Looked(token_ids, several and export.method == "sft", labels[True], labels[False])


class _Line(msgspec.Struct):
    completion: list[msgspec.Raw] = []
    input_ids: msgspec.Raw = msgspec.Raw()
    label: bool | None = None


def _lines(path: Path) -> Iterator[_Line]:
    decode = msgspec.json.Decoder(_Line).decode
    with path.open("rb") as file:
        yield from map(decode, file)


def _more_messages_than_rows(metadata: Any) -> bool:
    """From the metadata alone: a column of lists has as many values as there are messages in it."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    return any(
        chunk.num_values > group.num_rows
        for group in groups
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.startswith("completion.")
    )


def _features(method: Method, token_ids: bool) -> str:
    if token_ids:
        return 'input_ids=List(Value("int32")), labels=List(Value("int32")), meta=Json()'
    sides = ("completion",) if method in ("sft", "kto") else ("chosen", "rejected")
    columns = dict.fromkeys(("prompt", *sides, "tools"), "List(Json())")
    if method == "kto":
        columns["label"] = 'Value("bool")'
    elif method != "sft":
        columns["margin"] = 'Value("float64")'
    return ", ".join(f"{name}={kind}" for name, kind in {**columns, "meta": "Json()"}.items())


PARQUET = Trl("trl", "parquet")
JSONL = Trl("trl-jsonl", "jsonl")
