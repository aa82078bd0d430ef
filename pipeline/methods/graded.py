"""An attempt as student and teacher tokenize it, with what the teacher thinks of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from pipeline.attempts import Attempt
from pipeline.byte_spans import Run, Span, spans, teacher_form, whole_text
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import TeacherOptions
from pipeline.shared_vocabulary import SharedVocabulary
from serve.messages import Completion, Grade


@dataclass(frozen=True)
class Tongues:
    """What is known of both sides for a whole run. `pieces[i]`: bytes of the student's token i."""

    pieces: Sequence[bytes | None]
    student_end: int
    vocabulary: SharedVocabulary | None


class Graded(NamedTuple):
    """`prompt`: the student's ids before the answer; `spans` in the order of the text.

    `ends` says that the attempt ended by itself, so that its end was graded too. `*_starts` are the
    bytes where tokens begin, and the end of the text. `spelt` is False where a side's tokens do not
    spell the text byte for byte: there are no spans then. Where grading stopped, spans end there.
    """

    attempt: Attempt
    prompt: tuple[int, ...]
    grade: Grade
    spans: list[Span]
    ends: bool
    student_starts: tuple[int, ...]
    teacher_starts: tuple[int, ...]
    spelt: bool

    @property
    def answer(self) -> tuple[int, ...]:
        return self.attempt.completion.ids

    @property
    def graded_tokens(self) -> int:
        """The student's, from the first on."""
        if self.grade.stopped_at is None:
            return len(self.answer)
        return self.spans[-1].after.student if self.spans else 0

    def has_word(self, span: Span) -> bool:
        """False when the student's token there is longer than the teacher's, a part of it."""
        mine, theirs = span.first
        student = self.student_starts[mine + 1] - self.student_starts[mine]
        return student <= self.teacher_starts[theirs + 1] - self.teacher_starts[theirs]

    def span_nats(self, span: Span) -> float:
        """The teacher's log probability of one span."""
        return sum(self.grade.scores.logprobs_nats[span.first.teacher : span.after.teacher])


def text_for_teacher(text: str, teacher: TeacherOptions) -> tuple[str, list[Run]]:
    """The attempt as the teacher would write it: with tags if its worked examples have them, or if
    it thinks in them unasked. Without them Qwen3 would want an opening tag at the first place, and
    teach the student to open a second one. A teacher whose template opens the tag itself (R1's
    distillations) is graded without."""
    return whole_text(text) if teacher.writes_tags else teacher_form(text)


def align(
    attempt: Attempt, prompt: Sequence[int], grade: Grade, runs: Sequence[Run], tongues: Tongues
) -> Graded:
    """Cut both tokenizations where both have a boundary.

    A text that the tokens of a side do not spell (one composes accents, another puts a space
    before every text) has no cuts.
    """
    known = len(tongues.pieces)  # a head may have rows beyond the vocabulary
    pieces = [(tongues.pieces[i] or b"") if i < known else b"" for i in attempt.completion.ids]
    student_starts = list(accumulate((len(p) for p in pieces), initial=0))
    length = max((run.teacher + run.length for run in runs), default=0)
    read = length if grade.stopped_at is None else grade.stopped_at
    teacher_starts = [*grade.scores.byte_offsets, read]
    spelt = b"".join(pieces) == attempt.completion.text.encode() and grade.text_bytes == length
    found = spans(student_starts, teacher_starts, runs) if spelt else []
    return Graded(
        attempt,
        tuple(prompt),
        grade,
        found,
        spelt and grade.stopped_at is None and ends_by_itself(attempt.completion),
        tuple(student_starts),
        tuple(teacher_starts),
        spelt,
    )


def ends_by_itself(completion: Completion) -> bool:
    return completion.finish == "stop"


def first_mistake(graded: Graded, options: OnPolicyOptions) -> int | None:
    """Index of the first span the teacher gives less than `mistake_below`; the number of spans
    where that is the end of the turn; None where there is none."""
    limit_nats = math.log(options.mistake_below)
    for index, span in enumerate(graded.spans):
        if graded.span_nats(span) < limit_nats:
            return index
    if graded.ends and graded.grade.end_nats < limit_nats:
        return len(graded.spans)
    return None
