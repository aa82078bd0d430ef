"""Lines in order, however many: sorted runs on disk, then merged (Knuth, volume 3, section 5.4)."""

from __future__ import annotations

import heapq
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO

RUN_BYTES = 64 * 2**20
# Of a process, 1,024 may be open on most systems.
OPEN_FILES = 256

Key = list[Any]


def sorted_lines(
    lines: Iterable[bytes],
    key_of: Callable[[bytes], Key],
    scratch: Path,
    run_bytes: int = RUN_BYTES,
) -> Iterator[bytes]:
    """`lines` by their keys, equal ones as they came; `scratch` is left empty.

    A key is a list of what JSON keeps. Holds `run_bytes` of lines and, merging, a line a run.
    """
    runs: list[Path] = []
    held: list[tuple[Key, bytes]] = []
    size = 0
    scratch.mkdir(parents=True, exist_ok=True)
    for line in lines:
        held.append((key_of(line), line))
        size += len(line)
        if size >= run_bytes:
            runs.append(_run(held, scratch / f"run-{len(runs):06d}"))
            held, size = [], 0
    held.sort(key=lambda pair: pair[0])
    with ExitStack() as files:
        streams = [_pairs(files.enter_context(run.open("rb"))) for run in runs]
        for _, line in heapq.merge(*streams, held, key=lambda pair: pair[0]):
            yield line
    for run in runs:
        run.unlink()


def _run(held: list[tuple[Key, bytes]], path: Path) -> Path:
    held.sort(key=lambda pair: pair[0])
    with path.open("wb") as file:
        for key, line in held:
            file.write(json.dumps(key).encode("ascii") + b"\n" + line)
    return path


def _pairs(file: BinaryIO) -> Iterator[tuple[Key, bytes]]:
    while head := file.readline():
        yield json.loads(head), file.readline()


def merged(
    paths: Sequence[Path], key_of: Callable[[bytes], Key], scratch: Path, at_once: int = OPEN_FILES
) -> Iterator[bytes]:
    """The lines of files that are sorted themselves, in order, equal ones as their files come.

    At most `at_once` are open: more are merged into files of `scratch` before.
    """
    rounds = 0
    while len(paths) > at_once:
        joined = []
        for start in range(0, len(paths), at_once):
            joined.append(scratch / f"merged-{rounds}-{start:06d}")
            with joined[-1].open("wb") as file:
                file.writelines(_merged(paths[start : start + at_once], key_of))
        paths, rounds = joined, rounds + 1
    yield from _merged(paths, key_of)


def _merged(paths: Sequence[Path], key_of: Callable[[bytes], Key]) -> Iterator[bytes]:
    with ExitStack() as files:
        yield from heapq.merge(*(files.enter_context(p.open("rb")) for p in paths), key=key_of)
