"""Two tokenizations of one text, cut at the bytes where both have a boundary.

The teacher does not write the student's tags, so its text is the student's without them: runs of
bytes that both texts share say which byte is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from serve.reasoning import CLOSE_TAG, OPEN_TAG


class Run(NamedTuple):
    """`length` bytes that begin at byte `student` of one text and byte `teacher` of the other."""

    student: int
    teacher: int
    length: int


class Cut(NamedTuple):
    """Both texts have a token boundary here: before student token and teacher token so and so."""

    student: int
    teacher: int


class Span(NamedTuple):
    """The tokens between two neighbouring cuts of one run: equal bytes on both sides."""

    first: Cut
    after: Cut


def teacher_form(text: str) -> tuple[str, list[Run]]:
    """The text without its tags and the line feeds behind them, and the runs it is made of."""
    pieces: list[tuple[int, str]] = []
    body, at = text, 0
    if body.startswith(OPEN_TAG):
        at = _after_tag(body, len(OPEN_TAG))
    closes = body.find(CLOSE_TAG, at)
    if closes < 0:
        pieces.append((at, body[at:]))
    else:
        pieces.append((at, body[at:closes]))
        pieces.append((after := _after_tag(body, closes + len(CLOSE_TAG)), body[after:]))
    runs, total = [], 0
    for start, piece in pieces:
        length = len(piece.encode())
        runs.append(Run(len(body[:start].encode()), total, length))
        total += length
    return "".join(piece for _, piece in pieces), [run for run in runs if run.length]


def _after_tag(text: str, at: int) -> int:
    return at + text[at:].startswith("\n")


def whole_text(text: str) -> tuple[str, list[Run]]:
    """For a teacher that writes the tags itself: one run."""
    return text, [Run(0, 0, len(text.encode()))]


def spans(
    student_starts: Sequence[int], teacher_starts: Sequence[int], runs: Sequence[Run]
) -> list[Span]:
    """All spans, in order. `*_starts`: the byte where each token begins, and the end of the text.

    Tokens of no bytes share a start with the next one; they belong to the span that begins there.
    """
    teacher_at: dict[int, int] = {}
    for index, start in enumerate(teacher_starts):
        teacher_at.setdefault(start, index)
    student_at: dict[int, int] = {}
    for index, start in enumerate(student_starts):
        student_at.setdefault(start, index)
    found = []
    for run in runs:
        cuts = [
            Cut(student_at[byte], teacher_at[byte - run.student + run.teacher])
            for byte in sorted(student_at)
            if run.student <= byte <= run.student + run.length
            and byte - run.student + run.teacher in teacher_at
        ]
        found += [Span(first, after) for first, after in pairwise(cuts)]
    return found


def span_sums(logprobs_nats: Sequence[float], indices: Sequence[tuple[int, int]]) -> list[float]:
    """Log probability (nats) of each span of tokens `first` to `after` - 1."""
    return [sum(logprobs_nats[first:after]) for first, after in indices]
