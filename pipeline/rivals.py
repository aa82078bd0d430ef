"""Curation's second pass: the traces of a problem beside each other, a bucket of problems a time.

A bucket's lines are read once for their order; a reasoning is read again only where its problem has
another trace and still has room, so that memory does not grow with the length of texts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from pipeline.quality import Chosen, Drop
from pipeline.recipe import CurateOptions


class Segment(NamedTuple):
    """A bucket's piece of one part's `rivals`."""

    path: Path
    part: int
    start: int
    end: int


class Bucket(NamedTuple):
    """`leaked`: (part, number) of traces that are dropped already."""

    segments: tuple[Segment, ...]
    config: CurateOptions
    leaked: Collection[tuple[int, int]]


class Refused(NamedTuple):
    part: int
    number: int
    reason: Drop


class _Rival(NamedTuple):
    """In the order in which they are tried: the shortest first."""

    problem: str
    tokens: int
    key: str
    part: int
    number: int
    path: Path
    offset: int
    size_bytes: int

    def reasoning(self) -> str:
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            return file.read(self.size_bytes).decode("utf-8")


def refused(bucket: Bucket) -> list[Refused]:
    """The traces of the bucket that add nothing to those chosen before them."""
    found = []
    rivals = sorted(
        rival
        for segment in bucket.segments
        for rival in _rivals(segment)
        if (rival.part, rival.number) not in bucket.leaked
    )
    for _, group in groupby(rivals, key=lambda r: r.problem):
        same_problem = list(group)
        chosen = Chosen(bucket.config)
        reason: Drop | None
        for rival in same_problem if len(same_problem) > 1 else ():
            reason = "over_quota" if chosen.full else chosen.refusal(rival.reasoning())
            if reason is not None:
                found.append(Refused(rival.part, rival.number, reason))
    return found


def _rivals(segment: Segment) -> Iterator[_Rival]:
    with segment.path.open("rb") as file:
        file.seek(segment.start)
        while file.tell() < segment.end:
            problem, tokens, key, number, size_bytes = json.loads(file.readline())
            place = (segment.path, file.tell(), size_bytes)
            yield _Rival(problem, tokens, key, segment.part, number, *place)
            file.seek(size_bytes, 1)
