"""What only the text of a rollout tells: how many tokens it has, and which rollouts say nearly the same.

Reads the lines of the given rows and no others, in parallel and in shards that follow from the rows alone. A row
that has no chat form is neither too long nor alike to any: formatting drops it, with its reason.

Two rollouts are as alike as the sets of five-word runs that they hold (Jaccard similarity, as in Lee et al. 2022,
"Deduplicating Training Data Makes Language Models Better", estimated by MinHash with 128 permutations: standard
error at most 0.045, and 0.035 at 0.8). The runs are of what the task asks (user messages) and what the policy wrote
(text and calls): system prompts, tool schemas and tool results repeat from task to task and would make all alike.
Case, punctuation, white space and Unicode's compatibility forms (NFKC) do not count.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from gristmill import chat, plain, progress
from gristmill.rollout import Unreadable
from gristmill.table import read_raw
from gristmill.workers import map_ordered

if TYPE_CHECKING:
    import numpy as np
    import rensa

_SHARD = 2048  # rows of a job
_PERMUTATIONS = 128
_SEED = 1  # of the permutations: a constant, so that the same texts are alike in every run
_RUN = 5
_MISSED = 0.01  # of pairs exactly at the threshold
# a word, or one character of a script that is written without spaces
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


class Job(NamedTuple):
    """A shard: rows of one part, ascending."""

    part: str
    rows: list[int]
    tokenizer: str | None
    sketches: bool


class Read(NamedTuple):
    """Of each row of a job: its tokens, its sketch; None where it has no chat form or was not asked for."""

    tokens: list[int | None]
    sketches: list[rensa.RMinHash | None]


def read(
    places: Sequence[tuple[Path, np.ndarray[Any, Any]]], *, tokenizer: str | None, sketches: bool
) -> Iterator[Read]:
    """Read rows, given as positions in parts, shard by shard in their order.

    Raises:
        UsageError: the tokenizer cannot be loaded.
    """
    if tokenizer is not None:
        from gristmill.dataset.tokens import counting

        counting(tokenizer)  # here first: one sentence, and an embedded model is unpacked once
    total = sum(len(rows) for _, rows in places)
    jobs = [
        Job(str(part), rows[start : start + _SHARD].tolist(), tokenizer, sketches)
        for part, rows in places
        for start in range(0, len(rows), _SHARD)
    ]
    done = 0
    for job, found in zip(jobs, map_ordered("gristmill.payload:read_shard", jobs), strict=True):
        done += len(job.rows)
        progress.advance(done, total, "texts")
        yield found


def read_shard(job: Job) -> Read:
    """One shard; runs in any process."""
    import rensa

    tokens: list[int | None] = []
    runs: list[list[str] | None] = []
    for line in read_raw(Path(job.part), job.rows):
        try:
            conversation = plain.convert(line)
        except (chat.Unrepresentable, Unreadable):
            tokens.append(None)
            runs.append(None)
            continue
        tokens.append(_tokens(conversation, job.tokenizer) if job.tokenizer else None)
        runs.append(_runs(conversation) if job.sketches else None)
    said = iter(rensa.RMinHash.from_token_sets([one for one in runs if one], _PERMUTATIONS, _SEED))
    return Read(tokens, [next(said) if one else None for one in runs])


def twins(sketches: Sequence[rensa.RMinHash | None], tasks: Sequence[str], threshold: float) -> list[int | None]:
    """Of each rollout, in the order of preference, the first of another task before it that is at least so alike.

    Answers to one task share its text and are not compared. A twin has no twin itself, so it is kept, and no two
    kept ones of different tasks are alike (as far as the sketches tell).
    """
    import rensa

    index = rensa.RMinHashLSH(threshold, _PERMUTATIONS, _bands(threshold))
    found: list[int | None] = []
    for number, sketch in enumerate(sketches):
        twin = None
        if sketch is not None:
            others = (other for other in index.query(sketch) if tasks[other] != tasks[number])
            twin = min((other for other in others if sketch.jaccard(sketches[other]) >= threshold), default=None)
            if twin is None:
                index.insert(number, sketch)
        found.append(twin)
    return found


def _bands(threshold: float) -> int:
    """The fewest bands (and so the fewest vain comparisons) that miss under `_MISSED` of pairs at the threshold."""
    for bands in (1, 2, 4, 8, 16, 32, 64):
        if (1 - threshold ** (_PERMUTATIONS // bands)) ** bands < _MISSED:
            return bands
    return _PERMUTATIONS


def _tokens(conversation: chat.Conversation, tokenizer: str) -> int | None:
    from gristmill.dataset.tokens import counting

    try:
        return counting(tokenizer).count(conversation.messages, conversation.tools)
    except chat.Unrepresentable:
        return None


def _runs(conversation: chat.Conversation) -> list[str] | None:
    """Five-word runs of the whole; None if it has no word."""
    said: list[str] = []
    for message in conversation.messages:
        if message["role"] not in ("user", "assistant"):
            continue
        content = message["content"]
        said.append(content if isinstance(content, str) else " ".join(part.get("text") or "" for part in content))
        for call in message.get("tool_calls") or ():
            arguments = orjson.dumps(call["function"]["arguments"], option=orjson.OPT_SORT_KEYS).decode()
            said.append(f"{call['function']['name']} {arguments}")
    words = _WORD.findall(unicodedata.normalize("NFKC", "\n".join(said)).casefold())
    if len(words) <= _RUN:
        return [" ".join(words)] if words else None
    return list(map(" ".join, zip(*(words[at:] for at in range(_RUN)), strict=False)))
