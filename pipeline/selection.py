"""Few traces out of many: difficult ones, from every domain, long ones rather than short ones.

s1 (arXiv 2501.19393, section 2.2 and Algorithm 1): of the traces that pass the quality filters,
those whose problem no reference model solves; a domain is drawn uniformly, then a trace of it with
a probability that halves with every rank, the longest first; until there are enough.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from pipeline.records import Trace
from pipeline.store import read_records
from serve.messages import Record


class Solved(Record):
    """A problem and the references that answered it rightly."""

    problem: str
    by: tuple[str, ...]


def solved_problems(folder: Path) -> set[str]:
    """Keys of the problems that a reference solved."""
    return {row.problem for row in read_records(folder / "references.jsonl", Solved) if row.by}


def difficult(kept: Sequence[Trace], solved: Collection[str]) -> list[Trace]:
    """Traces of problems whose key is not in `solved`."""
    return [trace for trace in kept if trace.problem.key not in solved]


def diverse(traces: Sequence[Trace], count: int, seed: int) -> list[Trace]:
    """`count` of the traces, or all; families are the domains. Sorted by key.

    The seed alone decides, not the order of `traces`.
    """
    by_family: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in sorted(traces, key=lambda t: (-t.completion.completion_tokens, t.key)):
        by_family[trace.problem.family].append(trace)
    draw = np.random.default_rng(seed)
    chosen: list[Trace] = []
    while by_family and len(chosen) < count:
        families = sorted(by_family)
        family = families[draw.integers(len(families))]
        ranked = by_family[family]
        weights = 0.5 ** np.arange(len(ranked))
        chosen.append(ranked.pop(draw.choice(len(ranked), p=weights / weights.sum())))
        if not ranked:
            del by_family[family]
    return sorted(chosen, key=lambda t: t.key)
