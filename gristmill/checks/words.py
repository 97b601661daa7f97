"""Words and n-grams as numbers: what near-duplicates and contamination are found with.

A text is a sequence of words: case-folded runs of letters and digits after NFKC, single ideographs and kana (which
stand without spaces), and the operators of formulas (so that `17 + 25` and `17 − 25` differ); other punctuation is
left out. An n-gram is a 64-bit number that depends on its words alone, so equal texts give equal numbers anywhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+|[-+*/^=<>%&|~@#$−×÷·√∑∫≤≥≠]")
_BASE = 0x9E3779B97F4A7C15  # odd, so that multiplying by it loses nothing modulo 2^64
_KNOWN_MAX = 1 << 20  # words remembered; forgetting them costs time only
_known: dict[str, int] = {}


class Words(NamedTuple):
    """The words of a text, and where each stands in the normalised text."""

    text: str
    words: list[str]
    starts: list[int]
    ends: list[int]

    def span(self, first: int, last: int) -> str:
        """The text from one word to another, both included."""
        return self.text[self.starts[first] : self.ends[last]]


def split_words(text: str) -> list[str]:
    """The words alone, several times as fast as `read_words`."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


def read_words(text: str) -> Words:
    """Split a text and remember where each word stands."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    words, starts, ends = [], [], []
    for found in _WORD.finditer(text):
        words.append(found.group().casefold())
        starts.append(found.start())
        ends.append(found.end())
    return Words(text, words, starts, ends)


def numbers(words: list[str]) -> np.ndarray:
    """A 64-bit number for each word."""
    import numpy as np

    if len(_known) > _KNOWN_MAX:
        _known.clear()
    values = []
    for word in words:
        value = _known.get(word)
        if value is None:
            value = int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest())
            _known[word] = value
        values.append(value)
    return np.array(values, np.uint64)


def ngrams(words: list[str], n: int) -> np.ndarray:
    """The number of each n-gram, in order; empty where there are fewer than `n` words."""
    import numpy as np

    if len(words) < n:
        return np.empty(0, np.uint64)
    each = numbers(words)
    total = np.zeros(len(each) - n + 1, np.uint64)
    for offset in range(n):
        total = total * np.uint64(_BASE) + each[offset : offset + len(total)]
    # one round of mixing, so that low bits depend on all words
    total ^= total >> np.uint64(29)
    return np.asarray(total * np.uint64(0xBF58476D1CE4E5B9))
