"""A file of traces with a decision about each: a byte a trace in memory, all else on disk."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.leaks import LEAK_TOKENS, Templates, leaks_of, overlaps_of
from pipeline.progress import Progress
from pipeline.quality import DROPS, Drop, Dropped
from pipeline.recipe import CurateOptions
from pipeline.records import Trace
from pipeline.rivals import Bucket, Segment, refused
from pipeline.scan import (
    KEPT,
    REWRITE,
    Job,
    Part,
    Row,
    Scanned,
    bucket_of,
    code_of,
    cuts_of,
    lines_of,
    scan,
)
from pipeline.selection import Candidate, diverse
from pipeline.sorted_runs import RUN_BYTES, Key, sorted_lines
from pipeline.store import record_line, replacing
from pipeline.workers import Workers
from serve.errors import DataError

# Each part remembers where each of its buckets begins.
MOST_BUCKETS = 256


class Plan(NamedTuple):
    """How the work is cut. Memory grows with every size, and with the workers."""

    workers: int
    part_bytes: int = 16 * 2**20
    bucket_bytes: int = 64 * 2**20
    run_bytes: int = RUN_BYTES


class Decisions:
    """At first what each trace says by itself; then traces are dropped for other reasons."""

    def __init__(
        self,
        source: Path,
        config: CurateOptions,
        evaluation: tuple[Path, ...],
        scratch: Path,
        crew: Workers,
        plan: Plan,
        progress: Progress,
    ) -> None:
        """Raises DataError naming file and line of what is no trace."""
        self._config, self._evaluation, self._crew = config, evaluation, crew
        self._scratch, self._plan, self._progress = scratch, plan, progress
        self._leaked: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
        if not self._scan(source):
            ordered = scratch / source.name
            _sort(source, ordered, scratch / "runs", plan.run_bytes)
            self._scan(ordered)
        self._codes = [bytearray(scanned.codes) for scanned in self._scanned]

    def _scan(self, source: Path) -> bool:
        """Whether the keys rise, so that what is kept can go out as it came in."""
        size = source.stat().st_size
        self._buckets = max(1, min(MOST_BUCKETS, -(-size // self._plan.bucket_bytes)))
        job = Job(source, self._scratch, self._config, self._evaluation, self._buckets)
        cuts = cuts_of(source, self._plan.part_bytes)
        self._parts = [Part(job, number, *cut) for number, cut in enumerate(cuts)]
        self._scanned: list[Scanned] = []
        with self._progress.bar("traces, MB", size // 10**6) as bar:
            for part, scanned in zip(self._parts, self._crew.map(scan, self._parts), strict=True):
                self._scanned.append(scanned)
                bar.advance((part.end - part.start) // 10**6)
        rising = all(one.last < other.first for one, other in pairwise(self._scanned))
        return rising and all(scanned.ordered for scanned in self._scanned)

    def drop_leaks(self, path: Path) -> dict[str, Any]:
        """Drop what holds a piece of the evaluation, and write every overlap found."""
        templates = Templates(part.leaks_path for part in self._parts)
        kinds: Counter[str] = Counter()
        with replacing(path) as file:
            for part in self._parts:
                for number, problem, overlaps in overlaps_of(part.leaks_path, templates):
                    found = {overlap.kind for overlap in overlaps}
                    kinds.update(found)
                    file.writelines(record_line(row).encode("utf-8") for row in overlaps)
                    if f"{LEAK_TOKENS}-gram" in found:
                        self._drop(part.number, number, "contaminated")
                        bucket = bucket_of(problem, self._buckets)
                        self._leaked[bucket].add((part.number, number))
        leaks = leaks_of(self._evaluation)
        return {
            "items": len(leaks.items),
            "items_too_short": leaks.items_too_short,
            "traces_that_share": dict(sorted(kinds.items())),
        }

    def drop_rivals(self) -> None:
        """Drop what adds nothing to the traces of its problem that were chosen before it."""
        buckets = (
            Bucket(
                tuple(
                    Segment(part.rivals_path, part.number, *scanned.offsets[number : number + 2])
                    for part, scanned in zip(self._parts, self._scanned, strict=True)
                ),
                self._config,
                frozenset(self._leaked[number]),
            )
            for number in range(self._buckets)
        )
        with self._progress.bar("near duplicates, buckets", self._buckets) as bar:
            for rows in self._crew.map(refused, buckets):
                for row in rows:
                    self._drop(*row)
                bar.advance()

    def drop_all_but_s1(self, solved: Collection[str], seed: int) -> None:
        """Keep difficult and diverse traces only. Raises DataError where none is difficult."""
        hard = (row for *_, row in self._kept() if row.problem not in solved)
        chosen = diverse(
            (Candidate(row.key, row.family, row.tokens) for row in hard),
            self._config.select_traces,
            seed,
        )
        if not chosen:
            kept = sum(1 for _ in self._kept())
            raise DataError(f"every problem of {kept} kept traces is solved by a reference")
        keys = {candidate.key for candidate in chosen}
        for part, number, row in self._kept():
            if row.key not in keys:
                self._drop(part, number, "easy" if row.problem in solved else "not_drawn")

    def _drop(self, part: int, number: int, reason: Drop) -> None:
        self._codes[part][number] |= code_of(reason)

    def _kept(self) -> Iterator[tuple[int, int, Row]]:
        for part, codes in zip(self._parts, self._codes, strict=True):
            for number, row in enumerate(_rows(part)):
                if codes[number] & ~REWRITE == KEPT:
                    yield part.number, number, row

    def write(self, kept: Path, dropped: Path) -> dict[str, dict[str, Any]]:
        """Both files, and how many of each family are in them, the dropped by reason."""
        families: Counter[str] = Counter()
        reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
        with replacing(kept) as keeps, replacing(dropped) as drops:
            for part, codes in zip(self._parts, self._codes, strict=True):
                for code, row, line in zip(codes, _rows(part), lines_of(part), strict=True):
                    if code & ~REWRITE == KEPT:
                        families[row.family] += 1
                        keeps.write(_as_stored(line) if code & REWRITE else line)
                        continue
                    reason = DROPS[(code & ~REWRITE) - 1]
                    reasons[row.family][reason] += 1
                    drop = Dropped(key=row.key, family=row.family, reason=reason)
                    drops.write(record_line(drop).encode("utf-8"))
        return {
            "kept": dict(sorted(families.items())),
            "dropped": {name: dict(sorted(c.items())) for name, c in sorted(reasons.items())},
        }


def _rows(part: Part) -> Iterator[Row]:
    with part.index_path.open(encoding="utf-8") as file:
        for line in file:
            yield Row(*json.loads(line))


def _as_stored(line: bytes) -> bytes:
    return record_line(Trace.model_validate_json(line)).encode("utf-8")


def _sort(source: Path, target: Path, scratch: Path, run_bytes: int) -> None:
    """Traces by key; those of one key as a problem's traces are tried."""

    def key_of(line: bytes) -> Key:
        trace = Trace.model_validate_json(line)
        return [trace.key, trace.problem.key, trace.completion.completion_tokens]

    with source.open("rb") as lines, target.open("wb") as file:
        whole = (line if line.endswith(b"\n") else line + b"\n" for line in lines)
        file.writelines(sorted_lines(whole, key_of, scratch, run_bytes))
