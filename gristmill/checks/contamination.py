"""Contamination: does training show what evaluation asks?

Compares prompts: instructions and input of a training row with those of every evaluation task, in time linear in
their words. Two ways to leak:

- exact: the same words, in the whole prompt or in its last user message;
- overlap: a training prompt repeats at least a share (`threshold`) of the evaluation task's *own* words, in runs of
  at least n words.

Own words make the difference between a copy and a shared template. An n-gram that stands in three distinct
evaluation prompts, or in more than ten training prompts (fewer where there are few), is the environment's wording and
tells nothing; words that only such n-grams hold are not the task's own. Of a task with few own words (under 2n: the
slots of a template) all must be repeated, since `What is 17 + 25?` and `What is 17 + 3?` are different tasks. A task
that one training prompt holds from the first word to the last leaks, however many training prompts do. A prompt that
several different evaluation tasks share identifies none of them and is left out.

Sources: n from the evaluation set's lengths, and ignoring frequent n-grams: Brown et al. 2020 (GPT-3,
arXiv:2005.14165, appendix C; n between 8 and 13, the fifth percentile of lengths); the share of 0.7: Chowdhery et al.
2022 (PaLM, arXiv:2204.02311, section 8); counting words that lie in matched n-grams: Touvron et al. 2023 (Llama 2,
arXiv:2307.09288, appendix A.6).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill.checks.evidence import Contamination, Leak
from gristmill.checks.words import Words, ngrams, read_words, split_words
from gristmill.identity import digest

if TYPE_CHECKING:
    import numpy as np

_SHORTEST, _LONGEST = 8, 13
_FEW_TASKS = 3  # an n-gram of so many evaluation prompts is a template's
_MANY_PROMPTS = 10  # so is one of more training prompts than this
_SPAN_CHARS = 200
_STAMPS = ("responses_create_params", "agent_ref", "response", "reward")
_QUESTION_WORDS = 3  # a shorter user message (`go on`) identifies nothing


class Prompt(NamedTuple):
    """A distinct training prompt."""

    text: str
    question: str
    where: str
    """`file:line` of the first row that has it."""
    rollouts: int


class _Task(NamedTuple):
    id: str
    words: Words
    grams: np.ndarray


def prompt_text(row: Mapping[str, Any]) -> tuple[str, str]:
    """Text of a Gym row's instructions and input, and of the last user message; both may be empty."""
    params = row.get("responses_create_params")
    if not isinstance(params, dict):
        return "", ""
    items = params.get("input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    texts = [params["instructions"]] if isinstance(params.get("instructions"), str) else []
    question = ""
    for item in items if isinstance(items, list) else []:
        if isinstance(item, dict):
            said = " ".join(_texts(item))
            texts.append(said)
            if item.get("role") == "user":
                question = said
    metadata = params.get("metadata")
    if not any(texts) and isinstance(metadata, dict) and isinstance(metadata.get("problem_statement"), str):
        texts.append(metadata["problem_statement"])  # SWE-type agents keep the task there
    return "\n".join(texts), question


def _texts(value: Any) -> Iterable[str]:
    for name in ("content", "text", "arguments", "output"):
        inner = value.get(name)
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, list):
            for part in inner:
                if isinstance(part, dict):
                    yield from _texts(part)


def task_id(text: str) -> str:
    """What `checks.allowed_overlaps` names an evaluation task by: 16 hex digits of its prompt's words."""
    return _id(split_words(text))


def _id(words: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(words).encode("utf-8", "replace")).hexdigest()[:16]


def find_leaks(
    training: Iterable[Prompt],
    evaluation: Sequence[Mapping[str, Any]],
    *,
    threshold: float,
    allowed: Mapping[str, str] | None = None,
    reread: Callable[[str], str] | None = None,
) -> Contamination:
    """Compare training prompts with evaluation tasks.

    Args:
        training: distinct prompts of the training rows; read once.
        evaluation: Gym dataset rows (or rollouts) of the evaluation.
        threshold: share of a task's own words.
        allowed: tasks whose overlap was reviewed: id → why it is fine.
        reread: the text of a training prompt again, by its `where`, to show the matched span.
    """
    import numpy as np

    allowed = allowed or {}
    tasks, questions = _tasks(evaluation)
    n = _length([len(task.words.words) for task in tasks])
    tasks = [task._replace(grams=ngrams(task.words.words, n)) for task in tasks]
    known, df = np.unique(
        np.concatenate([np.unique(task.grams) for task in tasks] or [np.empty(0, np.uint64)]), return_counts=True
    )
    by_words = {task.id: task for task in tasks}
    keys = _keys(tasks, known, df)
    is_key = np.zeros(len(known), bool)
    is_key[list(keys)] = True
    exact: dict[str, Leak] = {}
    whole: dict[str, int] = {}  # tasks that a training prompt holds from the first word to the last
    seen = np.zeros(len(known), np.int64)  # training prompts that hold the n-gram
    hits: list[np.ndarray] = []
    prompts: list[tuple[str, int]] = []
    for number, prompt in enumerate(training):
        words = split_words(prompt.text)
        same = by_words.get(_id(words))
        if same is None and prompt.question and questions:
            asked = words if prompt.question == prompt.text else split_words(prompt.question)
            same = questions.get(" ".join(asked))
        if same is not None and same.id not in exact:
            exact[same.id] = Leak(
                task=same.id,
                exact=True,
                share=1.0,
                evaluation=_short(same.words.text),
                training=_short(prompt.text),
                where=prompt.where,
                rollouts=prompt.rollouts,
            )
        at = _found(known, ngrams(words, n))
        seen[at] += 1
        hits.append(at)
        for key in at[is_key[at]].tolist():
            for name, grams in keys[key]:
                if name not in whole and np.isin(grams, at, assume_unique=True).all():
                    whole[name] = number
        prompts.append((prompt.where, prompt.rollouts))
    most = max(2, min(_MANY_PROMPTS, len(prompts) // 5))
    template = (df >= _FEW_TASKS) | (seen > most)
    holders: dict[int, list[int]] = defaultdict(list)
    for number, at in enumerate(hits):
        for gram in at[~template[at]]:
            holders[int(gram)].append(number)
    overlapping = []
    for task in tasks:
        if task.id in exact or not len(task.grams):
            continue
        if task.id in whole:
            last = len(task.words.words) - 1
            overlapping.append(_leak(task, 1.0, (0, last), n, *prompts[whole[task.id]], reread))
            continue
        leak = _overlap(task, n, known, template, holders, threshold, prompts, reread)
        if leak is not None:
            overlapping.append(leak)
    found = [*exact.values(), *overlapping]
    return Contamination(
        prompts=len(prompts),
        tasks=len(tasks),
        n=n,
        exact=tuple(sorted((leak for leak in exact.values() if leak.task not in allowed), key=lambda k: k.task)),
        overlapping=tuple(
            sorted((leak for leak in overlapping if leak.task not in allowed), key=lambda k: (-k.share, k.task))
        ),
        allowed=sum(leak.task in allowed for leak in found),
        unknown_allowed=tuple(sorted(allowed.keys() - by_words.keys())),
    )


def _tasks(rows: Sequence[Mapping[str, Any]]) -> tuple[list[_Task], dict[str, _Task]]:
    """Distinct evaluation tasks with a prompt of their own, and those that a last user message alone identifies."""
    fields: dict[str, set[str]] = defaultdict(set)
    tasks: dict[str, _Task] = {}
    asked: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        text, question = prompt_text(row)
        words = read_words(text)
        if not words.words:
            continue
        name = _id(words.words)
        own = {k: v for k, v in row.items() if k not in _STAMPS and not k.startswith("_ng_")}
        fields[name].add(digest(_plain(own)))
        tasks.setdefault(name, _Task(name, words, ngrams([], 1)))
        if len(said := split_words(question)) >= _QUESTION_WORDS:
            asked[" ".join(said)].add(name)
    single = {name: task for name, task in tasks.items() if len(fields[name]) == 1}
    questions = {
        said: single[next(iter(names))] for said, names in asked.items() if len(names) == 1 and names <= single.keys()
    }
    return list(single.values()), questions


def _plain(value: Any) -> str:
    return repr(sorted((str(k), repr(v)) for k, v in value.items()))


def _length(lengths: Sequence[int]) -> int:
    """n: the fifth percentile of the evaluation prompts' lengths, between 8 and 13."""
    if not lengths:
        return _LONGEST
    return min(_LONGEST, max(_SHORTEST, sorted(lengths)[len(lengths) // 20]))


def _overlap(
    task: _Task,
    n: int,
    known: np.ndarray,
    template: np.ndarray,
    holders: Mapping[int, Sequence[int]],
    threshold: float,
    prompts: Sequence[tuple[str, int]],
    reread: Callable[[str], str] | None,
) -> Leak | None:
    """The training prompt that repeats most of the task's own words, if that is enough."""
    import numpy as np

    at = np.searchsorted(known, task.grams)
    own = np.ones(len(task.words.words), bool)
    for position in np.flatnonzero(template[at]):
        own[position : position + n] = False
    count = int(own.sum())
    if not count:
        return None
    covered: dict[int, np.ndarray] = {}
    for position in np.flatnonzero(~template[at]):
        for number in holders.get(int(at[position]), ()):
            covered.setdefault(number, np.zeros(len(own), bool))[position : position + n] = True
    if not covered:
        return None
    shares = {number: int((mask & own).sum()) for number, mask in covered.items()}
    best = min(shares, key=lambda number: (-shares[number], number))
    share = shares[best] / count
    if share < (1.0 if count < 2 * n else threshold):
        return None
    return _leak(task, share, _longest_run(covered[best]), n, *prompts[best], reread)


def _leak(
    task: _Task,
    share: float,
    run: tuple[int, int],
    n: int,
    where: str,
    rollouts: int,
    reread: Callable[[str], str] | None,
) -> Leak:
    """An overlap, with the words from the first to the last of a run on both sides."""
    first, last = run
    span = task.words.span(first, last)
    same = _same_span(reread(where), task.words.words[first : first + n], last - first, n) if reread else None
    return Leak(
        task=task.id,
        exact=False,
        share=round(share, 6),
        evaluation=_short(span),
        training=_short(same or span),
        where=where,
        rollouts=rollouts,
    )


def _keys(tasks: Sequence[_Task], known: np.ndarray, df: np.ndarray) -> dict[int, list[tuple[str, np.ndarray]]]:
    """Each task by its rarest n-gram, with all of its n-grams: what holds the one may hold the task."""
    import numpy as np

    keys: dict[int, list[tuple[str, np.ndarray]]] = defaultdict(list)
    for task in tasks:
        if len(task.grams):
            grams = np.unique(np.searchsorted(known, task.grams))
            keys[int(grams[df[grams].argmin()])].append((task.id, grams))
    return keys


def _found(known: np.ndarray, grams: np.ndarray) -> np.ndarray:
    """Positions in `known` of the n-grams that are there, ascending."""
    import numpy as np

    if not len(known) or not len(grams):
        return np.empty(0, np.int64)
    at = np.searchsorted(known, grams)
    at[at == len(known)] = 0
    return np.unique(at[known[at] == grams])


def _longest_run(mask: np.ndarray) -> tuple[int, int]:
    best = (0, 0)
    start = None
    for position, inside in enumerate([*mask.tolist(), False]):
        if inside and start is None:
            start = position
        elif not inside and start is not None:
            if position - start > best[1] - best[0] + 1 or best == (0, 0):
                best = (start, position - 1)
            start = None
    return best


def _same_span(text: str, begin: list[str], length: int, n: int) -> str | None:
    """Where a training prompt begins with the same n words, and on for `length` words."""
    words = read_words(text)
    for first in range(len(words.words) - n + 1):
        if words.words[first : first + n] == begin:
            return words.span(first, min(first + length, len(words.words) - 1))
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SPAN_CHARS else f"{text[:_SPAN_CHARS]}…"
