"""Few traces out of many: difficult ones, from every domain, long ones rather than short ones.

s1 (arXiv 2501.19393, section 2.2 and Algorithm 1): of the traces that pass the quality filters,
those whose problem no reference model solves; a domain is drawn uniformly, then a trace of it with
a probability that halves with every rank, the longest first; until there are enough.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.store import read_records
from serve.messages import Record

# The weight of a rank this deep is zero in double precision, however many there are.
DEEPEST = 1_100


class Solved(Record):
    """A problem and the references that answered it rightly."""

    problem: str
    by: tuple[str, ...]


def solved_problems(folder: Path) -> set[str]:
    """Keys of the problems that a reference solved."""
    return {row.problem for row in read_records(folder / "references.jsonl", Solved) if row.by}


class Candidate(NamedTuple):
    """What the choice knows of a trace."""

    key: str
    family: str
    tokens: int


class _Ranked:
    """A family's traces, the longest first, as deep as a draw can reach."""

    def __init__(self, depth: int) -> None:
        self._depth, self.count, self._top = depth, 0, list[Candidate]()

    def add(self, candidate: Candidate) -> None:
        self.count += 1
        self._top.append(candidate)
        if len(self._top) > 2 * self._depth:
            self.sort()

    def sort(self) -> None:
        self._top = sorted(self._top, key=lambda c: (-c.tokens, c.key))[: self._depth]

    def pop(self, rank: int) -> Candidate:
        self.count -= 1
        return self._top.pop(rank)


def diverse(candidates: Iterable[Candidate], count: int, seed: int) -> list[Candidate]:
    """`count` of the candidates, or all; families are the domains. Sorted by key.

    The seed alone decides, not the order of `candidates`.
    """
    by_family: dict[str, _Ranked] = {}
    for candidate in candidates:
        by_family.setdefault(candidate.family, _Ranked(count + DEEPEST)).add(candidate)
    for ranked in by_family.values():
        ranked.sort()
    powers = 0.5 ** np.arange(max((r.count for r in by_family.values()), default=0))
    draw = np.random.default_rng(seed)
    chosen: list[Candidate] = []
    while by_family and len(chosen) < count:
        families = sorted(by_family)
        family = families[draw.integers(len(families))]
        ranked = by_family[family]
        weights = powers[: ranked.count]
        chosen.append(ranked.pop(draw.choice(ranked.count, p=weights / weights.sum())))
        if not ranked.count:
            del by_family[family]
    return sorted(chosen)
