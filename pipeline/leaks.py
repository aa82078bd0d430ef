"""Which traces hold a piece of an evaluation item, found while they stream by.

The tokens, lengths and templates of `pipeline/contamination.py`, looked at from the other side:
there the items of a finished run are flagged, here what would be learned is left out. Held in
memory are the n-grams of the items, not those of the traces. An n-gram of more than
`TEMPLATE_PROBLEMS` training problems, in prompts or traces, is a template and no leak; nor is a run
with few tokens of the item's own, outside of 3-grams that as many items hold, unless it is all of
the item.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from pipeline.contamination import (
    LENGTHS,
    SHINGLE_TOKENS,
    TELLING_TOKENS,
    TEMPLATE_PROBLEMS,
    Overlap,
    Tokens,
    ngrams,
    telling,
    templates_of,
    tokens_of,
)
from pipeline.records import Problem, Trace
from pipeline.store import read_records

# Traces that share so many tokens with an item are left out; shorter overlaps are reported.
LEAK_TOKENS = max(LENGTHS)
SUITE = "evaluation"

Where = Literal["prompt", "trace"]


class _Run(NamedTuple):
    length: int
    item: str
    matched: str
    grams: tuple[int, ...]


class Found(NamedTuple):
    """A run of tokens that a trace (the `number`th of its part) and an item share.

    `grams` are the numbers of the item's n-grams of `length` in it.
    """

    number: int
    problem: str
    trace: str
    where: Where
    length: int
    item: str
    matched: str
    grams: tuple[int, ...]


class Leaks:
    """The evaluation items by their n-grams. Of an n-gram in several items the first counts."""

    def __init__(self, items: Iterable[Problem]) -> None:
        known = {item.key: item for item in items}
        self.items = [(key, tokens_of(item.question)) for key, item in sorted(known.items())]
        self._grams: dict[int, dict[Tokens, tuple[int, int, int]]] = {n: {} for n in LENGTHS}
        templates = templates_of(self.items, SHINGLE_TOKENS)
        self._own = [telling(tokens, templates) for _, tokens in self.items]
        for number, (_, tokens) in enumerate(self.items):
            for length, grams in self._grams.items():
                for start, gram in enumerate(ngrams(tokens, length)):
                    grams.setdefault(gram, (number, start, len(grams)))

    @property
    def items_too_short(self) -> int:
        """Items of too few tokens to be found by."""
        return sum(len(tokens) < LEAK_TOKENS for _, tokens in self.items)

    def _tells(self, item: int, begin: int, end: int) -> bool:
        """Whether the item's tokens from `begin` to `end` are more than its template: hold enough
        of its own, or are all of it."""
        own = self._own[item]
        wanted = max(1, min(TELLING_TOKENS, sum(own)))
        return sum(own[begin:end]) >= wanted or (begin, end) == (0, len(own))

    def found(self, number: int, problem: str, trace: Trace) -> list[str]:
        """Shared runs of the trace, each as a line that `read_found` reads."""
        places: tuple[tuple[Where, str], ...] = (
            ("prompt", trace.problem.question),
            ("trace", trace.completion.text),
        )
        found = [
            Found(number, problem, trace.key, where, run.length, run.item, run.matched, run.grams)
            for where, text in places
            for run in self._runs(tokens_of(text))
        ]
        return [json.dumps(row) + "\n" for row in found]

    def _runs(self, tokens: Tokens) -> Iterator[_Run]:
        shortest = min(LENGTHS)
        if self._grams[shortest].keys().isdisjoint(ngrams(tokens, shortest)):
            return  # nearly every text; and no longer n-gram is shared without a shorter one
        for length, grams in self._grams.items():
            ends: dict[tuple[int, int], int] = {}
            for start, gram in enumerate(ngrams(tokens, length)):
                if gram not in grams:
                    continue
                item, place, _ = grams[gram]
                if ends.get((item, start - place), 0) >= start + length:
                    continue
                key, other = self.items[item]
                begin, end = _extended(tokens, start, other, place)
                ends[item, start - place] = end
                if not self._tells(item, begin - start + place, end - start + place):
                    continue
                shared = tokens[begin:end]
                inside = tuple(grams[gram][2] for gram in ngrams(shared, length))
                yield _Run(length, key, " ".join(shared), inside)


def _extended(tokens: Tokens, start: int, other: Tokens, place: int) -> tuple[int, int]:
    """The longest equal run around `tokens[start]` and `other[place]`, in `tokens`."""
    back = 0
    while back < min(start, place) and tokens[start - back - 1] == other[place - back - 1]:
        back += 1
    ahead = 0
    room = min(len(tokens) - start, len(other) - place)
    while ahead < room and tokens[start + ahead] == other[place + ahead]:
        ahead += 1
    return start - back, start + ahead


@lru_cache(maxsize=1)
def leaks_of(paths: tuple[Path, ...]) -> Leaks:
    """Of the evaluation problems in these files."""
    return Leaks(problem for path in paths for problem in read_records(path, Problem))


def read_found(path: Path) -> Iterator[Found]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            found = Found(*json.loads(line))
            yield found._replace(grams=tuple(found.grams))


class Templates:
    """The n-grams that many training problems hold."""

    def __init__(self, paths: Iterable[Path]) -> None:
        spread: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
        for path in paths:
            for found in read_found(path):
                for gram in found.grams:
                    holders = spread[found.length, gram]
                    if len(holders) <= TEMPLATE_PROBLEMS:
                        holders.add(found.problem)
        self._known = {gram for gram, held in spread.items() if len(held) > TEMPLATE_PROBLEMS}

    def only(self, found: Found) -> bool:
        """Whether nothing of what is shared is more than a template."""
        return all((found.length, gram) in self._known for gram in found.grams)


def overlaps_of(path: Path, templates: Templates) -> Iterator[tuple[int, str, list[Overlap]]]:
    """(number, problem, overlaps) of the part's traces that share more than templates.

    Of each kind the longest with the prompt and the longest with the trace.
    """
    rows: dict[int, dict[tuple[Where, int], Found]] = {}
    for found in read_found(path):
        if not templates.only(found):
            best = rows.setdefault(found.number, {})
            known = best.get((found.where, found.length))
            if known is None or len(found.matched.split()) > len(known.matched.split()):
                best[found.where, found.length] = found
    for number, best in sorted(rows.items()):
        overlaps = [
            Overlap.model_validate(
                {
                    "suite": SUITE,
                    "item": found.item,
                    "kind": f"{found.length}-gram",
                    "where": found.where,
                    "source": found.trace,
                    "matched": found.matched,
                }
            )
            for _, found in sorted(best.items())
        ]
        yield number, next(iter(best.values())).problem, overlaps
