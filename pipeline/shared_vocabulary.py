"""Which tokens of the teacher are tokens of the student: those that stand for the same bytes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple


class SharedVocabulary(NamedTuple):
    """`student_of`: teacher id -> student id of the same bytes; all ends of a turn are one."""

    student_of: dict[int, int]
    student_tokens: int
    teacher_tokens: int

    @property
    def shared(self) -> int:
        return len(set(self.student_of.values()))


def shared_vocabulary(
    student: Sequence[bytes | None],
    teacher: Sequence[bytes | None],
    student_end: int,
    teacher_ends: Collection[int],
) -> SharedVocabulary:
    """`student[i]`, `teacher[i]`: the bytes of token i, None for a token that is no text."""
    by_bytes: dict[bytes, int] = {}
    for index, piece in enumerate(student):
        if piece:
            by_bytes.setdefault(piece, index)
    mapped = {
        index: by_bytes[piece] for index, piece in enumerate(teacher) if piece and piece in by_bytes
    }
    mapped |= dict.fromkeys(teacher_ends, student_end)
    return SharedVocabulary(
        mapped, sum(piece is not None for piece in student), sum(p is not None for p in teacher)
    )
