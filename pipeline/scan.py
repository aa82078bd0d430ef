"""Curation's first pass: every trace by itself, a part of the file at a time.

Of each part two files are left in a scratch folder: `index` has a line a trace, in order, and
`rivals` the traces that may still be kept, sorted into buckets by their problem, so that the second
pass finds all traces of a problem in one bucket. `leaks` is a third where evaluation is looked for.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from pipeline.leaks import leaks_of
from pipeline.quality import DROPS, Drop, own_reason
from pipeline.recipe import CurateOptions
from pipeline.records import Trace
from pipeline.store import parse_record, record_line
from pipeline.supervise import reasoning_of
from serve.errors import DataError

KEPT = 0
# Beside the reason in a trace's code: its line is not as a store writes it.
REWRITE = 0x80


class Row(NamedTuple):
    """A line of `index`."""

    key: str
    family: str
    problem: str
    tokens: int


class Job(NamedTuple):
    """What is the same for every part. `evaluation`: files of items to find pieces of."""

    source: Path
    scratch: Path
    config: CurateOptions
    evaluation: tuple[Path, ...]
    buckets: int


class Part(NamedTuple):
    """Some lines of the job's source, by their bytes."""

    job: Job
    number: int
    start: int
    end: int

    @property
    def index_path(self) -> Path:
        return self.job.scratch / f"index-{self.number:06d}.jsonl"

    @property
    def rivals_path(self) -> Path:
        return self.job.scratch / f"rivals-{self.number:06d}"

    @property
    def leaks_path(self) -> Path:
        return self.job.scratch / f"leaks-{self.number:06d}.jsonl"


class Scanned(NamedTuple):
    """`codes` has a byte a trace: KEPT or the reason's code, and perhaps REWRITE.

    Bucket b is `rivals` from `offsets[b]` to `offsets[b + 1]`; `ordered`: keys rise from `first` to
    `last`.
    """

    codes: bytes
    offsets: tuple[int, ...]
    ordered: bool
    first: str
    last: str


def code_of(reason: Drop | None) -> int:
    return KEPT if reason is None else DROPS.index(reason) + 1


def cuts_of(path: Path, part_bytes: int) -> list[tuple[int, int]]:
    """Start and end of parts of about so many bytes, each ending with a line."""
    cuts = [0]
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while cuts[-1] + part_bytes < size:
                file.seek(cuts[-1] + part_bytes - 1)
                file.readline()
                cuts.append(file.tell())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    if cuts[-1] < size:
        cuts.append(size)
    return list(pairwise(cuts))


def scan(part: Part) -> Scanned:
    """Raises DataError naming file and line of what is no trace."""
    codes = bytearray()
    buckets: list[list[bytes]] = [[] for _ in range(part.job.buckets)]
    leaks = leaks_of(part.job.evaluation) if part.job.evaluation else None
    leaked: list[str] = []
    ordered, first, last = True, "", ""
    with part.index_path.open("w", encoding="utf-8") as index:
        for number, line in enumerate(lines_of(part)):
            trace = _trace(part, line, number)
            reasoning = reasoning_of(trace.completion.text)
            reason = own_reason(trace, reasoning, part.job.config)
            canonical = record_line(trace).encode("utf-8") == line
            codes.append(code_of(reason) | (0 if canonical else REWRITE))
            tokens = trace.completion.completion_tokens
            row = Row(trace.key, trace.problem.family, trace.problem.key, tokens)
            index.write(json.dumps(row, ensure_ascii=False) + "\n")
            ordered = ordered and (number == 0 or last < trace.key)
            first, last = (first if number else trace.key), trace.key
            if reason is None:
                buckets[bucket_of(row.problem, part.job.buckets)].append(
                    _rival(row, number, reasoning)
                )
                leaked += leaks.found(number, row.problem, trace) if leaks else ()
    if leaks:
        part.leaks_path.write_text("".join(leaked), encoding="utf-8")
    return Scanned(bytes(codes), _written(part.rivals_path, buckets), ordered, first, last)


def bucket_of(problem: str, buckets: int) -> int:
    return int(problem[:8], 16) % buckets


def _rival(row: Row, number: int, reasoning: str) -> bytes:
    """A line that says what follows, and the reasoning as it stands."""
    text = reasoning.encode("utf-8")
    head = json.dumps([row.problem, row.tokens, row.key, number, len(text)])
    return head.encode("ascii") + b"\n" + text


def lines_of(part: Part) -> Iterator[bytes]:
    """The part's lines as they stand."""
    with part.job.source.open("rb") as file:
        file.seek(part.start)
        while file.tell() < part.end:
            yield file.readline()


def _trace(part: Part, line: bytes, number: int) -> Trace:
    try:
        return Trace.model_validate_json(line)
    except ValidationError:
        before = part._replace(start=0, end=part.start)  # no part knows its first line's number
        place = f"{part.job.source.name} line {sum(1 for _ in lines_of(before)) + number + 1}"
        return parse_record(line, Trace, place)


def _written(path: Path, buckets: list[list[bytes]]) -> tuple[int, ...]:
    """Where each bucket begins, and where the last one ends."""
    offsets = [0]
    with path.open("wb") as file:
        for rows in buckets:
            file.writelines(rows)
            offsets.append(file.tell())
    return tuple(offsets)
