"""Why a trace is not worth learning from: what it says by itself, and what was chosen before it.

Pure functions of one trace, and of the traces of one problem in order; `pipeline/curate.py` brings
them together.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pipeline.recipe import CurateOptions
from pipeline.records import Trace
from serve.messages import Record

Drop = Literal[
    "wrong",
    "no_answer",
    "truncated",
    "not_scored",
    "too_short",
    "too_long",
    "no_reasoning",
    "foreign_script",
    "repeats_itself",
    "contaminated",
    "duplicate",
    "near_duplicate",
    "over_quota",
    "easy",
    "not_drawn",
]
DROPS: tuple[Drop, ...] = get_args(Drop)

# A trace that says the same line this often is a loop, not an argument.
REPEATED_LINE_LIMIT = 4
SHINGLE_CHARACTERS = 5
CHARACTER_BITS = 12
# Greek is mathematics, not a language.
MATHEMATICS = ("GREEK", "DOUBLE-STRUCK", "MATHEMATICAL", "SCRIPT", "SUPERSCRIPT")


class Dropped(Record):
    key: str
    family: str
    reason: Drop


def own_reason(trace: Trace, reasoning: str, config: CurateOptions) -> Drop | None:
    """Why `trace` is dropped whatever else there is; `reasoning` is its own."""
    if config.keep == "everything":
        return None
    verdict, completion = trace.verdict, trace.completion
    if verdict.reason == "truncated":
        return "truncated"
    if verdict.reason == "no_answer":
        return "no_answer"
    if config.keep == "correct" and not verdict.passed:
        return "not_scored" if verdict.passed is None else "wrong"
    if completion.completion_tokens < config.min_tokens:
        return "too_short"
    if completion.completion_tokens > config.max_tokens:
        return "too_long"
    if not reasoning:
        return "no_reasoning"
    if foreign_letters(completion.text, config.scripts):
        return "foreign_script"
    lines = Counter(line.strip() for line in reasoning.splitlines() if line.strip())
    if max(lines.values()) >= REPEATED_LINE_LIMIT:
        return "repeats_itself"
    return None


class Chosen:
    """What was kept of one problem so far; `full` when it may have no more."""

    def __init__(self, config: CurateOptions) -> None:
        self._config = config
        self._kept: dict[str, _Shingles] = {}

    @property
    def full(self) -> bool:
        return len(self._kept) >= self._config.per_problem

    def refusal(self, reasoning: str) -> Drop | None:
        """Why this reasoning adds nothing. None: it does, and is one of the chosen now."""
        if reasoning in self._kept:
            return "duplicate"
        own = _Shingles(reasoning)
        if any(_alike(own, other, self._config.near_duplicate) for other in self._kept.values()):
            return "near_duplicate"
        self._kept[reasoning] = own
        return None


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of character shingles after folding case and white space (Broder 1997)."""
    return _jaccard(_Shingles(first), _Shingles(second))


def _alike(a: _Shingles, b: _Shingles, threshold: float) -> bool:
    """Whether the similarity reaches `threshold`, which sets of unequal size cannot."""
    if min(a.count, b.count) / max(a.count, b.count) < threshold:
        return False
    return _jaccard(a, b) >= threshold


def _jaccard(a: _Shingles, b: _Shingles) -> float:
    shared = a.shared(b)
    return shared / (a.count + b.count - shared)


class _Shingles:
    """The set of five characters in a row that a text has.

    As sorted numbers of 60 bits where every character fits 12 of them, which takes a third of the
    time of a set of strings.
    """

    def __init__(self, text: str) -> None:
        self._text = " ".join(text.casefold().split())
        self._packed = _packed(self._text)
        self.count = len(self._strings if self._packed is None else self._packed)

    @cached_property
    def _strings(self) -> set[str]:
        count = max(1, len(self._text) - SHINGLE_CHARACTERS + 1)
        return {self._text[i : i + SHINGLE_CHARACTERS] for i in range(count)}

    def shared(self, other: _Shingles) -> int:
        if self._packed is None or other._packed is None:
            return len(self._strings & other._strings)
        places = np.searchsorted(self._packed, other._packed)
        places[places == len(self._packed)] = 0
        return int(np.count_nonzero(self._packed[places] == other._packed))


def _packed(text: str) -> NDArray[np.uint64] | None:
    """None where a character needs more bits, or the text is shorter than one shingle."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    count = len(codes) - SHINGLE_CHARACTERS + 1
    if count < 1 or codes.max() >= 1 << CHARACTER_BITS:
        return None
    packed = codes[:count].copy()
    for place in range(1, SHINGLE_CHARACTERS):
        packed <<= np.uint64(CHARACTER_BITS)
        packed |= codes[place : place + count]
    packed.sort()
    return packed[np.concatenate(([True], packed[1:] != packed[:-1]))]


def foreign_letters(text: str, scripts: Sequence[str]) -> str:
    """Letters of no writing system in `scripts`."""
    allowed = (*scripts, *MATHEMATICS)
    foreign = {c for c in set(text) if _is_foreign(c, allowed)}
    return "".join(c for c in text if c in foreign) if foreign else ""


@lru_cache(maxsize=65_536)
def _is_foreign(character: str, allowed: tuple[str, ...]) -> bool:
    return character.isalpha() and not unicodedata.name(character, "").startswith(allowed)
