"""One rollout row: how a line of NeMo Gym's `rollouts.jsonl` is read.

`parse` gives the whole row as a dict; it takes everything that Python's json writes (NaN, lone surrogates,
huge integers) besides strict JSON, and fails only with `Unreadable`. `Reader.read` gives a `Reading`: what
selection needs to know (identity, scores, shape, flags, reason to drop) and nothing of the payload.

A line is first decoded by msgspec into partial structs, which skips the payload at full speed. A line that
does not fit them is parsed whole and forced into the same structs: both ways end in one function.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
import orjson
from xxhash import xxh3_128_digest

from gristmill.chat import canonical_prompt
from gristmill.identity import fingerprint
from gristmill.reasons import DropReason

_BOM = b"\xef\xbb\xbf"
_LABEL_CHARS = 80  # longer strings are text, not labels
_LEARNED_MAX = 512  # top-level names that one reader remembers
_INT64 = 1 << 63
_MEMO_MAX = 2048  # prompts that one reader remembers: repeats of a task carry byte-equal prompts

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


class Reading(NamedTuple):
    """What one line says, apart from its payload."""

    drop_reason: DropReason | None
    agent: str | None = None
    task_index: int | None = None
    rollout_index: int | None = None
    prompt_key: str | None = None
    """Digest of instructions, input and tools; null when they are empty: the task then stands elsewhere."""
    prompt_chars: int = 0
    """Characters of text in instructions and input."""
    groupable: bool = False
    """A task index, and an agent's name or a prompt, so that the row's task is known within its run."""
    reward: float | None = None
    """Null unless a finite number."""
    model: str | None = None
    turns: int = 0
    """Assistant messages as in a chat: text and calls up to the next tool result or user message are one."""
    tool_calls: int = 0
    tools_called: tuple[str, ...] = ()
    """The name of each call, in order; a hosted tool's item type stands for its name."""
    output_items: int = 0
    answer_key: str | None = None
    """Digest of what the policy wrote: text and calls of every turn; no reasoning, no outer white space."""
    answer_chars: int = 0
    """Characters of the same: text and call arguments."""
    output_tokens: int | None = None
    incomplete: str | None = None
    """Why the answer is cut: `max_output_tokens`, `content_filter`, …"""
    masked: bool = False
    metrics: Mapping[str, float] = {}
    """Top-level numbers and booleans (as 0 and 1), and `reward_components.<name>`; finite ones only."""
    labels: Mapping[str, str] = {}
    """Top-level strings of at most 80 characters."""


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


class _Part(msgspec.Struct, gc=False):
    text: str | None = None
    refusal: str | None = None


class _Item(msgspec.Struct, gc=False):
    type: str | None = None
    role: str | None = None
    content: list[_Part] | str | None = None
    name: str | None = None
    arguments: str | None = None


class _Usage(msgspec.Struct, gc=False):
    output_tokens: int | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Response(msgspec.Struct, gc=False):
    output: list[_Item | list[_Item]] | None = None
    model: str | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Params(msgspec.Struct, gc=False):
    instructions: msgspec.Raw = msgspec.Raw(b"null")
    input: msgspec.Raw = msgspec.Raw(b"null")
    tools: msgspec.Raw = msgspec.Raw(b"null")


class _Agent(msgspec.Struct, gc=False):
    name: str | None = None


class _InstanceConfig(msgspec.Struct, gc=False):
    mask_sample: bool | None = None


_KNOWN: tuple[tuple[str, Any, Any], ...] = (
    ("response", _Response | None, None),
    ("responses_create_params", _Params | None, None),
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


class _Row(NamedTuple):
    """What both ways of decoding a line hand to `Reader._summary`."""

    response: _Response | None
    output_ok: bool
    params: _Params | None
    reward: Any
    agent: str | None
    mask: bool
    components: Mapping[str, Any] | None
    task_index: int | None
    rollout_index: int | None
    failed: bool
    extra: list[tuple[str, Any]]


class Reader:
    """Reads lines one after another, and gets faster as it learns a file's own fields and prompts.

    What it returns for a line does not depend on the lines before.
    """

    def __init__(self) -> None:
        self._learned: dict[str, bool] = {}  # top-level name → held numbers and short strings only
        self._prompts: dict[tuple[bytes, bytes, bytes], _Prompt] = {}
        self._compile()

    def read(self, line: bytes) -> Reading:
        """Read one line (without its newline). Never raises on any bytes."""
        try:
            row = self._decode(line)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            try:
                row = self._force(parse(line))
            except Unreadable as problem:
                return Reading(problem.reason)
        return self._summary(row)

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

    def _decode(self, line: bytes) -> _Row:
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
        return _Row(
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

    def _force(self, row: dict[str, Any]) -> _Row:
        """A parsed row in the same shape: what has another type than it should counts as absent."""
        self._learn(row)
        response, agent, instance = row.get("response"), row.get("agent_ref"), row.get("instance_config")
        params = row.get("responses_create_params")
        components = row.get("reward_components")
        name = agent.get("name") if isinstance(agent, dict) else agent
        return _Row(
            _forced_response(response) if isinstance(response, dict) else None,
            not isinstance(response, dict) or _is_output(response.get("output")),
            _forced_params(params) if isinstance(params, dict) else None,
            row.get("reward", msgspec.UNSET),
            _text(name),
            row.get("mask_sample") is True or (isinstance(instance, dict) and instance.get("mask_sample") is True),
            {_clean(k): v for k, v in components.items()} if isinstance(components, dict) else None,
            _whole(row.get("_ng_task_index")),
            _whole(row.get("_ng_rollout_index")),
            any(row.get(field) for field in FAILURE_FIELDS),
            [(_clean(k), v) for k, v in row.items() if k not in _KNOWN_NAMES],
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

    def _summary(self, row: _Row) -> Reading:
        metrics, labels = _scores(row)
        reward, reward_reason = _reward(row.reward)
        prompt = self._prompt(row.params)
        task_index = row.task_index if row.task_index is None or -_INT64 <= row.task_index < _INT64 else None
        rollout_index = row.rollout_index
        if rollout_index is not None and not -_INT64 <= rollout_index < _INT64:
            rollout_index = None
        told = _NO_ANSWER
        model = incomplete = tokens = None
        items: list[_Item] = []
        malformed = error = False
        if (response := row.response) is not None:
            model = response.model
            error = bytes(response.error) != b"null"
            if response.usage is not None and (count := response.usage.output_tokens) is not None:
                tokens = count if 0 <= count < _INT64 else None
            if response.incomplete_details is not None:
                incomplete = response.incomplete_details.reason or "unknown"
            items, malformed = _items(response.output or [])
            told = _answer(items)
        reason = None
        if row.failed:
            reason = DropReason.FAILURE
        elif response is None:
            reason = DropReason.NO_RESPONSE
        elif reward_reason is not None:
            reason = reward_reason
        elif row.mask:
            reason = DropReason.MASKED
        elif error:
            reason = DropReason.RESPONSE_ERROR
        elif malformed or not row.output_ok:
            reason = DropReason.MALFORMED_OUTPUT
        elif not items:
            reason = DropReason.EMPTY_OUTPUT
        return Reading(
            reason,
            row.agent,
            task_index,
            rollout_index,
            prompt.key,
            prompt.chars,
            task_index is not None and (row.agent is not None or prompt.key is not None),
            reward,
            model,
            told.turns,
            told.calls,
            told.names,
            len(items),
            told.key,
            told.chars,
            tokens,
            incomplete,
            row.mask,
            metrics,
            labels,
        )

    def _prompt(self, params: _Params | None) -> _Prompt:
        if params is None:
            return _NO_PROMPT
        # their fingerprints, because to hash and compare kilobytes of text for each row is what costs
        source = xxh3_128_digest(params.input), xxh3_128_digest(params.tools), xxh3_128_digest(params.instructions)
        known = self._prompts.get(source)
        if known is None:
            known = _prompt(bytes(params.instructions), bytes(params.input), bytes(params.tools))
            if len(self._prompts) >= _MEMO_MAX:
                self._prompts.clear()
            self._prompts[source] = known
        return known


# ---- the parts of a summary


class _Prompt(NamedTuple):
    key: str | None
    chars: int


class _Answer(NamedTuple):
    turns: int = 0
    calls: int = 0
    names: tuple[str, ...] = ()
    key: str | None = None
    chars: int = 0


_NO_PROMPT = _Prompt(None, 0)
_NO_ANSWER = _Answer()


def _without_defaults(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {k: v for k, v in item.items() if v is not None and not (k == "type" and v == "message")}


def _prompt(instructions: bytes, items: bytes, tools: bytes) -> _Prompt:
    values = [_value(part) for part in (instructions, items, tools)]
    if not values[0] and not values[1]:
        return _NO_PROMPT
    chars = _chars(values[0]) + _chars(values[1])
    text = canonical_prompt({"responses_create_params": _plain_params(*values)})
    return _Prompt(fingerprint(text), chars)


def _plain_params(instructions: Any, items: Any, tools: Any) -> dict[str, Any]:
    """A prompt in the one form that rows of all versions of NeMo Gym share, so that it is equal across runs.

    Null fields are left out, and `type: "message"`, which is the default; a string is one user message.
    """
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    if isinstance(items, list):
        items = [_without_defaults(item) for item in items]
    if isinstance(tools, list):
        tools = [_without_defaults(tool) for tool in tools]
    return {"instructions": instructions, "input": items, "tools": tools}


def _chars(value: Any) -> int:
    """Characters of text in a prompt: strings under `content`, `text`, `arguments` and `output`."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, list):
        return sum(_chars(item) for item in value if isinstance(item, dict | str))
    if isinstance(value, dict):
        return sum(_chars(value.get(name)) for name in ("content", "text", "arguments", "output"))
    return 0


def _value(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return json.loads(raw, parse_int=_integer)


def _reward(value: Any) -> tuple[float | None, DropReason | None]:
    if value is msgspec.UNSET:
        return None, DropReason.NO_REWARD
    if value is None:
        return None, DropReason.REWARD_NULL
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None, DropReason.REWARD_NOT_A_NUMBER
    number = _number(value)
    return number, DropReason.REWARD_NOT_FINITE if number is None else None


def _number(value: int | float) -> float | None:
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _scores(row: _Row) -> tuple[dict[str, float], dict[str, str]]:
    metrics: dict[str, float] = {}
    labels: dict[str, str] = {}
    for name, value in row.extra:
        if isinstance(value, str):
            if len(value) <= _LABEL_CHARS:
                labels[name] = value
        elif isinstance(value, int | float) and not name.startswith("_ng_"):
            number = _number(value)
            if number is not None:
                metrics[name] = number
    if row.components:
        for name, value in row.components.items():
            if isinstance(value, int | float) and (number := _number(value)) is not None:
                metrics[f"reward_components.{name}"] = number
    return metrics, labels


def _items(output: list[_Item | list[_Item]]) -> tuple[list[_Item], bool]:
    """The items of an output, and whether it is malformed. Of transitions (lists) the last is the whole."""
    kinds = set(map(type, output))
    if list not in kinds:
        return output, False  # type: ignore[return-value]  # no list is among them
    last = output[-1]
    return (last, False) if len(kinds) == 1 and isinstance(last, list) else ([], True)


def _answer(items: list[_Item]) -> _Answer:
    """Turns, calls and the key of what the policy wrote."""
    turns = 0
    speaking = False
    names: list[str] = []
    written: list[Any] = []  # one list a turn
    turn: list[Any] = []
    chars = 0
    for item in items:
        kind = item.type
        if kind == "function_call_output":
            speaking = False
            continue
        said: Any = None
        if kind == "message" or kind is None:
            if item.role != "assistant":
                speaking = False
                continue
            said = _said(item.content)
            chars += len(said)
        elif kind == "function_call" or kind.endswith("_call"):
            name, arguments = item.name or kind, item.arguments or ""
            said = [name, arguments]
            names.append(name)
            chars += len(arguments)
        elif kind != "reasoning":
            speaking = False
            continue
        if not speaking:
            speaking = True
            turns += 1
            turn = []
            written.append(turn)
        if said is not None:
            turn.append(said)
    if not turns:
        return _NO_ANSWER
    if turns == 1 and len(turn) == 1 and type(turn[0]) is str:
        key = fingerprint(turn[0].encode())  # the usual case: one plain message
    else:
        key = fingerprint(orjson.dumps(written))
    return _Answer(turns, len(names), tuple(names), key, chars)


def _said(content: list[_Part] | str | None) -> str:
    if content is None:
        return ""
    if type(content) is str:
        return content.strip()
    if len(content) == 1:
        part: Any = content[0]
        return (part.text or part.refusal or "").strip()
    return "".join([part.text or part.refusal or "" for part in content]).strip()  # type: ignore[union-attr]  # a list


def _small(value: msgspec.Raw) -> Any:
    """A number, boolean or string that is not long; None of anything else."""
    raw = bytes(value)
    # a character takes at most twelve bytes, as a pair of escapes
    if raw[0] in b"[{" or len(raw) > 12 * _LABEL_CHARS + 2:
        return None
    return _value(raw)


# ---- forcing a row of other types into the structs


def _forced_response(response: dict[str, Any]) -> _Response:
    output, usage, cut = (response.get(name) for name in ("output", "usage", "incomplete_details"))
    return _Response(
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
            _Part(_text(part.get("text")), _text(part.get("refusal"))) for part in content if isinstance(part, dict)
        ]
    elif not isinstance(content, str):
        content = None
    kind, role, name, arguments = (_text(item.get(field)) for field in ("type", "role", "name", "arguments"))
    return _Item(kind, role, content, name, arguments)


def _forced_params(params: dict[str, Any]) -> _Params:
    return _Params(*(msgspec.Raw(json.dumps(params.get(n)).encode()) for n in ("instructions", "input", "tools")))


def _whole(value: Any) -> int | None:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    return _clean(value) if isinstance(value, str) else None


def _clean(text: str) -> str:
    """Lone surrogates, which no file can hold, become question marks."""
    return text.encode("utf-8", "replace").decode()
