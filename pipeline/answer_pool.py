"""The teacher's answers that several runs share: what one has paid for, no other asks again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.ledger import ASKING
from pipeline.run import SCRATCH
from pipeline.store import write_file


@contextmanager
def pooled(pool: Path, root: Path) -> Iterator[None]:
    """The teacher's answers that earlier recipes paid for, and this one's for those to come."""
    logs = {pool / f"{name}.jsonl": root / name / SCRATCH / "answers.jsonl" for name in ASKING}
    for common, own in logs.items():
        grown(common, own)
    try:
        yield
    finally:
        for common, own in logs.items():
            grown(own, common)


def grown(source: Path, target: Path) -> None:
    """`target` with the lines of `source` that it lacks."""
    if not source.exists():
        return
    there = _whole_lines(target) if target.exists() else []
    known = set(there)
    more = [line for line in _whole_lines(source) if line not in known]
    if more:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_file(target, b"".join([*there, *more]))


def _whole_lines(path: Path) -> list[bytes]:
    """Without a last one that a kill cut."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
