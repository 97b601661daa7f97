"""Evidence that stands in the rows themselves: shape, tools, scripts, near-duplicates, the chat template.

Reads, through `read_raw`, at most `limit` of the rows that training would see, every k-th of them, and one row of each
distinct prompt for `training_prompts`. Rows are streamed; what is kept of each is small.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill import chat
from gristmill.checks.contamination import Prompt, prompt_text
from gristmill.checks.evidence import Content
from gristmill.checks.words import ngrams, split_words
from gristmill.columns import integers, numbers
from gristmill.identity import digest
from gristmill.rollout import Unreadable, parse
from gristmill.table import read_raw

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

Render = Callable[[list[dict[str, Any]], list[dict[str, Any]], bool], str]
"""Messages, tools and whether to add the generation prompt → text, as the trainer's tokenizer renders them."""

_RENDERED = 64  # rows put through the chat template, at most, evenly spread
_SHOWN = 3  # rows named per problem
_LONG_WORDS = 20  # shorter answers repeat one another by nature
_SHINGLE = 5
_SIMILAR = 0.8  # Jaccard similarity of shingles from which on two answers nearly repeat
_BANDS, _ROWS = 16, 4  # 64 hashes: two answers at 0.8 share a band with probability 0.9998
_LETTERS = 40  # fewer letters say nothing about the script
_SCRIPTS = {
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Cyrillic": re.compile("[\u0400-\u04ff]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff]"),
    "Devanagari": re.compile("[\u0900-\u097f]"),
    "Thai": re.compile("[\u0e00-\u0e7f]"),
    "Kana": re.compile("[\u3040-\u30ff]"),
    "Han": re.compile("[\u3400-\u9fff]"),
    "Hangul": re.compile("[\uac00-\ud7af]"),
}


def template_of(tokenizer: str) -> Render:
    """The chat template of a tokenizer: a folder's, or an embedded model's.

    Raises:
        UsageError: there is none, or transformers is not installed.
    """
    from gristmill.dataset.tokens import counting

    counts = counting(tokenizer)

    def render(messages: list[dict[str, Any]], tools: list[dict[str, Any]], prompt: bool) -> str:
        return counts.render(messages, tools, add_generation_prompt=prompt)

    return render


class _Place(NamedTuple):
    file: Path
    row: int
    where: str
    environment: str


def read_content(
    tables: Sequence[Sequence[Path]],
    selection: Path,
    *,
    limit: int,
    usable: bool = False,
    render: Render | None = None,
) -> Content:
    """Read rows and say what they show.

    Args:
        limit: rows to read at most.
        usable: read all usable rows rather than the chosen ones (for methods that learn from poor answers too).
        render: the trainer's chat template; None renders nothing.
    """
    places = list(_places(tables, selection, usable=usable))
    step = max(1, -(-len(places) // limit))
    chosen = places[::step]
    seen = _Seen(render)
    every = max(1, -(-len(chosen) // _RENDERED))
    for number, (place, raw) in enumerate(_lines(chosen)):
        seen.row(place, raw, rendered=number % every == 0)
    return seen.result(len(chosen), len(places))


def training_prompts(
    tables: Sequence[Sequence[Path]], selection: Path, *, usable: bool = False
) -> tuple[Iterator[Prompt], Callable[[str], str]]:
    """Each distinct prompt of the rows that training would see, and a function that reads one again by its place."""
    first: dict[str, tuple[_Place, int]] = {}
    keys: dict[Path, list[str | None]] = {}
    for place in _places(tables, selection, usable=usable):
        if place.file not in keys:
            keys[place.file] = _table(place.file, "prompt_key")["prompt_key"].to_pylist()
        key = keys[place.file][place.row]
        if key is not None:  # no prompt: the task stands elsewhere
            known = first.get(key)
            first[key] = (known[0], known[1] + 1) if known else (place, 1)
    ordered = sorted(first.values(), key=lambda one: (str(one[0].file), one[0].row))
    places = {place.where: place for place, _ in ordered}
    counts = {(place.file, place.row): count for place, count in ordered}

    def prompts() -> Iterator[Prompt]:
        for place, raw in _lines([place for place, _ in ordered]):
            text, question = prompt_text(parse(raw))
            yield Prompt(text, question, place.where, counts[place.file, place.row])

    def again(where: str) -> str:
        place = places[where]
        return prompt_text(parse(next(read_raw(place.file, [place.row]))))[0]

    return prompts(), again


def _places(tables: Sequence[Sequence[Path]], selection: Path, *, usable: bool) -> Iterator[_Place]:
    """Where the rows stand, in the selection's order."""
    import pyarrow.compute as pc

    rows = _table(selection, "at_table", "at_file", "at_row", "reason")
    if not usable:
        rows = rows.filter(pc.is_null(rows["reason"]))
    at_table, at_file, at_row = (numbers(rows[name]) for name in ("at_table", "at_file", "at_row"))
    for number, files in enumerate(tables):
        for order, path in enumerate(files):
            mine = at_row[(at_table == number) & (at_file == order)]
            if len(mine):
                named = _table(path, "source", "line", "agent").take(integers(mine)).to_pylist()
                for row, name in zip(mine.tolist(), named, strict=True):
                    # the files of several turns have one name
                    turn = f"turn {number + 1} " if len(tables) > 1 else ""
                    where = f"{turn}{name['source']}:{name['line']}"
                    yield _Place(path, row, where, name["agent"] or name["source"])


def _table(path: Path, *columns: str) -> pa.Table:
    # not `pq.read_table`, which imports pandas: two seconds
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.read(columns=list(columns))


def _lines(places: Sequence[_Place]) -> Iterator[tuple[_Place, bytes]]:
    by_file: dict[Path, list[_Place]] = {}
    for place in places:
        by_file.setdefault(place.file, []).append(place)
    for path, mine in by_file.items():
        mine.sort(key=lambda place: place.row)
        yield from zip(mine, read_raw(path, [place.row for place in mine]), strict=True)


class _Seen:
    """Counts over the rows so far."""

    def __init__(self, render: Render | None) -> None:
        self.render = render
        self.problems: Counter[str] = Counter()
        self.undeclared: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.where: dict[str, list[str]] = {}
        self.drift: dict[str, tuple[int, int]] = {}
        self.tools = _Tools()
        self.near = _Near()

    def at(self, what: str, place: _Place, detail: str = "") -> None:
        shown = self.where.setdefault(what, [])
        if len(shown) < _SHOWN:
            shown.append(f"{place.where} {detail}".strip())

    def row(self, place: _Place, raw: bytes, *, rendered: bool) -> None:
        try:
            conversation = chat.convert(parse(raw))
            chat.require_trainable(conversation)
        except (chat.Unrepresentable, Unreadable) as problem:
            self.problems[str(problem.reason)] += 1
            self.at("problem", place, getattr(problem, "detail", ""))
            return
        split = conversation.prompt_length
        prompt, answer = conversation.messages[:split], conversation.messages[split:]
        said = sum(message["role"] == "assistant" for message in answer)
        self.counts["multi_turn" if said > 1 else "single_turn"] += 1
        self.counts["no_user"] += all(message["role"] != "user" for message in prompt)
        self.counts["literal_think"] += "literal_think" in conversation.lost
        self._tools_of(conversation, place)
        text = "\n".join(_text(m) for m in answer if m["role"] == "assistant")
        self._drift(place, "\n".join(_text(m) for m in prompt), text)
        if self.near.repeats(text):
            self.at("near", place)
        if self.render is not None and rendered:
            self._rendered(conversation, place, self.render)

    def _tools_of(self, conversation: chat.Conversation, place: _Place) -> None:
        declared = {tool["function"]["name"]: self.tools.declare(tool["function"]) for tool in conversation.tools}
        unknown = set()
        for message in conversation.messages[conversation.prompt_length :]:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                if function["name"] not in declared:
                    unknown.add(function["name"])
                elif (problem := self.tools.check(declared[function["name"]], function["arguments"])) is not None:
                    self.at("call", place, f"{function['name']}: {problem}")
        self.undeclared.update(unknown)
        self.counts["undeclared"] += bool(unknown)

    def _drift(self, place: _Place, prompt: str, answer: str) -> None:
        if len(answer) < _LETTERS:
            return
        drifted = None if answer.isascii() and prompt.isascii() else _foreign(prompt, answer)
        rows, of = self.drift.get(place.environment, (0, 0))
        self.drift[place.environment] = (rows + (drifted is not None), of + 1)
        if drifted:
            self.at("drift", place, drifted)

    def _rendered(self, conversation: chat.Conversation, place: _Place, render: Render) -> None:
        self.counts["rendered"] += 1
        split = conversation.prompt_length
        try:
            whole = render(conversation.messages, conversation.tools, False)
            prompt = render(conversation.messages[:split], conversation.tools, True)
        except Exception as error:  # whatever a template raises: it is what the trainer would raise
            self.counts["render_errors"] += 1
            self.at("render", place, f"{type(error).__name__}: {error}"[:200])
            return
        for message in conversation.messages[split:]:
            if message["role"] != "assistant":
                continue
            wanted = [_text(message).strip(), *(c["function"]["name"] for c in message.get("tool_calls", ()))]
            if missing := next((text for text in wanted if text not in whole), None):
                self.counts["render_lost"] += 1
                self.at("render", place, f"leaves out {missing[:80]!r}")
                break
        if not whole.startswith(prompt):
            self.counts["render_not_prefix"] += 1

    def result(self, rows: int, of: int) -> Content:
        counts = self.counts

        def where(what: str) -> tuple[str, ...]:
            return tuple(self.where.get(what, ()))

        return Content(
            rows=rows,
            of=of,
            problems=dict(sorted(self.problems.items())),
            problem_where=where("problem"),
            undeclared=dict(sorted(self.undeclared.items(), key=lambda item: (-item[1], item[0]))),
            undeclared_rows=counts["undeclared"],
            tools=len(self.tools.validators),
            bad_tools=dict(sorted(self.tools.bad.items())),
            calls=self.tools.calls,
            bad_calls=self.tools.bad_calls,
            bad_call_where=where("call"),
            single_turn=counts["single_turn"],
            multi_turn=counts["multi_turn"],
            no_user=counts["no_user"],
            literal_think=counts["literal_think"],
            drift=dict(sorted(self.drift.items())),
            drift_where=where("drift"),
            long_answers=self.near.compared,
            near_duplicates=self.near.found,
            near_where=where("near"),
            rendered=None if self.render is None else counts["rendered"],
            render_errors=counts["render_errors"],
            render_lost=counts["render_lost"],
            render_not_prefix=counts["render_not_prefix"],
            render_where=where("render"),
        )


def _text(message: Mapping[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _foreign(prompt: str, answer: str) -> str | None:
    """The script of at least a fifth of an answer's letters of which the prompt has none."""
    counts = {name: len(pattern.findall(answer)) for name, pattern in _SCRIPTS.items()}
    letters = sum(counts.values())
    if letters < _LETTERS:
        return None
    for name, count in counts.items():
        if count >= letters / 5 and not _SCRIPTS[name].search(prompt):
            # Japanese mixes scripts
            if name == "Han" and _SCRIPTS["Kana"].search(prompt):
                continue
            return name
    return None


class _Tools:
    """Declared tools, each compiled once; no reference in a schema is ever fetched."""

    def __init__(self) -> None:
        self.validators: dict[str, Any] = {}
        self.bad: dict[str, str] = {}
        self.calls = 0
        self.bad_calls = 0

    def declare(self, function: Mapping[str, Any]) -> str:
        """The key of a declaration."""
        try:
            key = digest(function)
        except (TypeError, ValueError):
            key = digest(repr(function))
        if key not in self.validators:
            self.validators[key] = self._compile(function)
        return key

    def _compile(self, function: Mapping[str, Any]) -> Any:
        import jsonschema
        from referencing import Registry

        name, schema = str(function["name"]), function.get("parameters")
        if schema is None:
            return None  # takes no arguments, or says nothing of them
        try:
            kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
            kind.check_schema(schema)
        except jsonschema.SchemaError as error:
            at = "/".join(str(part) for part in error.absolute_path)
            self.bad[name] = f"{at or 'parameters'}: {error.message}"[:200]
            return None
        except Exception as error:  # a schema that is no object, or an unknown dialect
            self.bad[name] = f"{type(error).__name__}: {error}"[:200]
            return None
        if schema.get("type", "object") != "object":
            self.bad[name] = f"type is {schema['type']!r}, expected 'object'"
            return None
        registry: Any = Registry()  # empty: references outside the schema are errors, not downloads
        return kind(schema, registry=registry)

    def check(self, key: str, arguments: Any) -> str | None:
        """What is wrong with a call's arguments."""
        validator = self.validators[key]
        if validator is None:
            return None
        self.calls += 1
        try:
            problem = next(validator.iter_errors(arguments), None)
        except Exception as error:  # a reference that cannot be resolved, a hostile pattern
            self.calls -= 1
            self.validators[key] = None
            return f"{type(error).__name__}: {error}"[:120]
        if problem is None:
            return None
        self.bad_calls += 1
        return str(problem.message)[:120]


class _Near:
    """Answers that nearly repeat an earlier one: MinHash bands find candidates, their shingles decide.

    Broder 1997, "On the resemblance and containment of documents"; each answer is compared with the first that fell
    into a bucket, so the work is linear.
    """

    def __init__(self) -> None:
        import numpy as np

        generator = np.random.default_rng(0)
        self.factors = generator.integers(1, 1 << 63, _BANDS * _ROWS, np.uint64) | np.uint64(1)
        self.shifts = generator.integers(0, 1 << 63, _BANDS * _ROWS, np.uint64)
        self.buckets: dict[tuple[int, bytes], int] = {}
        self.kept: list[np.ndarray] = []
        self.compared = 0
        self.found = 0

    def repeats(self, text: str) -> bool:
        import numpy as np

        words = split_words(text)
        if len(words) < _LONG_WORDS:
            return False
        self.compared += 1
        shingles = np.unique(ngrams(words, _SHINGLE))
        # the high half of a product depends on all bits
        hashed = (shingles[None, :2048] * self.factors[:, None] + self.shifts[:, None]) >> np.uint64(16)
        least = hashed.min(axis=1).reshape(_BANDS, _ROWS)
        keys = [(band, least[band].tobytes()) for band in range(_BANDS)]
        for number in sorted({self.buckets[key] for key in keys if key in self.buckets}):
            other = self.kept[number]
            both = len(np.intersect1d(shingles, other, assume_unique=True))
            if both >= _SIMILAR * (len(shingles) + len(other) - both):
                self.found += 1
                return True
        for key in keys:
            self.buckets.setdefault(key, len(self.kept))
        self.kept.append(shingles)
        return False
