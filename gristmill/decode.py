"""One line of a rollouts file, decoded: the fields that matter, and nothing of the payload.

`parse` gives a whole row as a dict; it takes everything that Python's json writes (NaN, lone surrogates, huge
integers) besides strict JSON, and fails only with `Unreadable`. A `Decoder` gives a `Row` of partial structs: msgspec
skips the payload at full speed. A line that does not fit the structs is parsed whole and forced into the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import orjson

from gristmill.reasons import DropReason

_BOM = b"\xef\xbb\xbf"
LABEL_CHARS = 80  # longer strings are text, not labels
_LEARNED_MAX = 512  # top-level names that one decoder remembers

# A field of these, when set, marks an infrastructure failure, whatever reward was stamped: NeMo Gym's routing
# sentinels, the exception of an environment (toolsandbox), a judge that did not answer.
FAILURE_FIELDS = (
    "_ng_failure_class",
    "_ng_failure_judge_error",
    "_ng_omitted_rollout",
    "exception_type",
    "judge_error",
    "judge_generation_error",
)


class Unreadable(ValueError):
    """A line that is no row; `reason` is NOT_JSON or NOT_AN_OBJECT."""

    def __init__(self, reason: DropReason) -> None:
        super().__init__(reason)
        self.reason = reason


def parse(line: bytes) -> dict[str, Any]:
    """The whole row.

    Raises:
        Unreadable: not JSON, even as Python's json writes it, or not an object.
    """
    if line.startswith(_BOM):
        line = line[len(_BOM) :]
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        try:
            row = json.loads(line.decode(), parse_int=_integer)
        except (ValueError, RecursionError):
            raise Unreadable(DropReason.NOT_JSON) from None
    if not isinstance(row, dict):
        raise Unreadable(DropReason.NOT_AN_OBJECT)
    return row


def _integer(digits: str) -> int | float:
    # Python refuses to convert very long integers; as a number they are just large
    return int(digits) if len(digits) < 400 else float(digits)


# ---- the partial structs

_Scalar = int | float | bool | str | None


class Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class Item(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    content: list[Part] | str | None = None
    name: str | None = None
    arguments: str | None = None


class _Usage(msgspec.Struct, gc=False):
    output_tokens: int | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class Response(msgspec.Struct, gc=False):
    output: list[Item | list[Item]] | None = None
    model: str | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class Params(msgspec.Struct, gc=False):
    instructions: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Agent(msgspec.Struct, gc=False):
    name: str | None = None


class _InstanceConfig(msgspec.Struct, gc=False):
    mask_sample: bool | None = None


_KNOWN: tuple[tuple[str, Any, Any], ...] = (
    ("response", Response | None, None),
    ("responses_create_params", Params | None, None),
    ("reward", _Scalar | msgspec.UnsetType, msgspec.UNSET),
    ("agent_ref", _Agent | None, None),
    ("mask_sample", bool | None, None),
    ("instance_config", _InstanceConfig | None, None),
    ("reward_components", dict[str, _Scalar] | None, None),
    ("_ng_task_index", int | None, None),
    ("_ng_rollout_index", int | None, None),
    *((name, _Scalar, None) for name in FAILURE_FIELDS),
)
_FIXED = len(_KNOWN) - len(FAILURE_FIELDS)
_NO_FAILURE = (None,) * len(FAILURE_FIELDS)
_KNOWN_NAMES = frozenset(name for name, _, _ in _KNOWN)


class Row(NamedTuple):
    """What both ways of decoding a line hand to a `Reader`."""

    response: Response | None
    output_ok: bool
    params: Params | None
    reward: Any
    agent: str | None
    mask: bool
    components: Mapping[str, Any] | None
    task_index: int | None
    rollout_index: int | None
    failed: bool
    extra: list[tuple[str, Any]]


class Decoder:
    """Decodes lines one after another, and gets faster as it learns a file's own fields.

    What it returns for a line does not depend on the lines before.
    """

    def __init__(self) -> None:
        self._learned: dict[str, bool] = {}  # top-level name → held numbers and short strings only
        self._compile()

    def decode(self, line: bytes) -> Row:
        """One line, with or without its newline.

        Raises:
            Unreadable: it is no row.
        """
        try:
            return self._decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            return self._force(parse(line))

    def _compile(self) -> None:
        """Build the row's struct from the known fields and the learned ones; any other is then an error."""
        fields: list[tuple[str, Any, Any]] = [(f"k{i}", t, d) for i, (_, t, d) in enumerate(_KNOWN)]
        rename = {f"k{i}": name for i, (name, _, _) in enumerate(_KNOWN)}
        for i, (name, wanted) in enumerate(self._learned.items()):
            fields.append((f"x{i}", _Scalar if wanted else msgspec.Raw, None))
            rename[f"x{i}"] = name
        row = msgspec.defstruct("_LearnedRow", fields, rename=rename, forbid_unknown_fields=True, gc=False)
        self._decoder = msgspec.json.Decoder(row)
        self._names = tuple(self._learned)

    def _decode(self, line: bytes) -> Row:
        # msgspec does not look at the encoding of what it skips
        if not line.isascii():
            line.decode()
        fields = msgspec.structs.astuple(self._decoder.decode(line))
        response, params, reward, agent, mask, instance, components, task, rollout = fields[:_FIXED]
        extra = [
            (name, _small(value) if type(value) is msgspec.Raw else value)
            for name, value in zip(self._names, fields[len(_KNOWN) :], strict=True)
            if value is not None
        ]
        return Row(
            response,
            True,
            params,
            reward,
            None if agent is None else agent.name,
            mask is True or (instance is not None and instance.mask_sample is True),
            components,
            task,
            rollout,
            fields[_FIXED : len(_KNOWN)] != _NO_FAILURE and any(fields[_FIXED : len(_KNOWN)]),
            extra,
        )

    def _force(self, row: dict[str, Any]) -> Row:
        """A parsed row in the same shape: what has another type than it should counts as absent."""
        self._learn(row)
        response, agent, instance = row.get("response"), row.get("agent_ref"), row.get("instance_config")
        params = row.get("responses_create_params")
        components = row.get("reward_components")
        name = agent.get("name") if isinstance(agent, dict) else agent
        return Row(
            _forced_response(response) if isinstance(response, dict) else None,
            not isinstance(response, dict) or _is_output(response.get("output")),
            _forced_params(params) if isinstance(params, dict) else None,
            row.get("reward", msgspec.UNSET),
            _text(name),
            row.get("mask_sample") is True or (isinstance(instance, dict) and instance.get("mask_sample") is True),
            {clean(k): v for k, v in components.items()} if isinstance(components, dict) else None,
            _whole(row.get("_ng_task_index")),
            _whole(row.get("_ng_rollout_index")),
            any(row.get(field) for field in FAILURE_FIELDS),
            [(clean(k), v) for k, v in row.items() if k not in _KNOWN_NAMES],
        )

    def _learn(self, row: dict[str, Any]) -> None:
        before = len(self._learned), sum(self._learned.values())
        for name, value in row.items():
            if name in _KNOWN_NAMES or (name not in self._learned and len(self._learned) >= _LEARNED_MAX):
                continue
            # a struct's field names may hold neither quotes nor control characters
            if name.isprintable() and '"' not in name and "\\" not in name:
                small = not isinstance(value, dict | list | str) or (isinstance(value, str) and len(value) < 200)
                self._learned[name] = self._learned.get(name, True) and small
        if before != (len(self._learned), sum(self._learned.values())):
            self._compile()


def _small(value: msgspec.Raw) -> Any:
    """A number, boolean or string that is not long; None of anything else."""
    raw = bytes(value)
    # a character takes at most twelve bytes, as a pair of escapes
    if raw[0] in b"[{" or len(raw) > 12 * LABEL_CHARS + 2:
        return None
    return value_of(raw)


def value_of(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw, parse_int=_integer)


# ---- forcing a row of other types into the structs


def _forced_response(response: dict[str, Any]) -> Response:
    output, usage, cut = (response.get(name) for name in ("output", "usage", "incomplete_details"))
    return Response(
        [_forced_item(item) for item in output] if isinstance(output, list) and _is_output(output) else None,
        _text(response.get("model")),
        _Usage(_whole(usage.get("output_tokens"))) if isinstance(usage, dict) else None,
        _Incomplete(_text(cut.get("reason"))) if isinstance(cut, dict) else None,
        msgspec.Raw(b"null" if response.get("error") is None else b"true"),
    )


def _is_output(output: Any) -> bool:
    """Items, or transitions of items; nothing at all is empty and not malformed."""
    if output is None:
        return True
    if not isinstance(output, list):
        return False
    inner = [item for entry in output for item in (entry if isinstance(entry, list) else [entry])]
    return all(isinstance(item, dict) for item in inner)


def _forced_item(item: Any) -> Any:
    if isinstance(item, list):
        return [_forced_item(inner) for inner in item]
    content = item.get("content")
    if isinstance(content, list):
        content = [
            Part(_text(part.get("text")), _text(part.get("refusal"))) for part in content if isinstance(part, dict)
        ]
    else:
        content = _text(content)
    kind, role, name, arguments = (_text(item.get(field)) for field in ("type", "role", "name", "arguments"))
    return Item(kind, role, content, name, arguments)


def _forced_params(params: dict[str, Any]) -> Params:
    return Params(*(msgspec.Raw(json.dumps(params.get(n)).encode()) for n in ("instructions", "input", "tools")))


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return clean(value) if isinstance(value, str) else None


def clean(text: str) -> str:
    """Lone surrogates, which no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode()
