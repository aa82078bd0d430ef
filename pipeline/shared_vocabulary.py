"""What the teacher's tokens are in the student's words.

A teacher's token is put down as the first token the student would write for its bytes: where the
teacher says "*x" in one token and the student in two, the teacher's word for it is a word for "*".
Left out of account, all its weight would count against what the student is right to write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

Encode = Callable[[Sequence[str]], list[list[int]]]


class SharedVocabulary(NamedTuple):
    """`first_of`: teacher id -> the student's first token of its bytes; ends of a turn are one.

    `shared`: tokens of the student that stand for the same bytes as one of the teacher.
    """

    first_of: dict[int, int]
    shared: int
    student_tokens: int
    teacher_tokens: int


def shared_vocabulary(
    student: Sequence[bytes | None],
    teacher: Sequence[bytes | None],
    student_end: int,
    teacher_ends: Collection[int],
    encode: Encode,
) -> SharedVocabulary:
    """`student[i]`, `teacher[i]`: the bytes of token i, None for a token that is no text.

    `encode`: texts to the student's ids. Teacher tokens that hold a part of a character are put
    down as the student's token of the same bytes, if there is one.
    """
    by_bytes: dict[bytes, int] = {}
    for index, piece in enumerate(student):
        if piece:
            by_bytes.setdefault(piece, index)
    texts: dict[int, str] = {}
    first_of: dict[int, int] = {}
    for index, piece in enumerate(teacher):
        if not piece:
            continue
        try:
            texts[index] = piece.decode("utf-8")
        except UnicodeDecodeError:
            if piece in by_bytes:
                first_of[index] = by_bytes[piece]
    for index, ids in zip(texts, encode(list(texts.values())), strict=True):
        piece = texts[index].encode("utf-8")
        first = student[ids[0]] if ids else None
        if first and piece.startswith(first):
            first_of[index] = ids[0]
        elif piece in by_bytes:  # sentencepiece sets a blank before every text
            first_of[index] = by_bytes[piece]
    same = set(by_bytes) & {piece for piece in teacher if piece}
    return SharedVocabulary(
        first_of | dict.fromkeys(teacher_ends, student_end),
        len(same) + bool(teacher_ends),
        sum(piece is not None for piece in student),
        sum(piece is not None for piece in teacher),
    )
