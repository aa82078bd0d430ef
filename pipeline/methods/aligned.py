"""Method `aligned`: at every byte where both tokenizations have a boundary, the teacher's
distribution, put into the student's words, becomes the student's target.

Other tokens get their span's advantage, as in method `span`: those inside a longer span, and those
of more bytes than the teacher's token there, which has no word for them. A wrong attempt counts up
to its first mistake, and what should stand there instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.byte_spans import Span
from pipeline.lesson import Advantage, Lesson, Target
from pipeline.methods.graded import Graded, Tongues, first_mistake
from pipeline.methods.span import span_advantages
from pipeline.on_policy_options import OnPolicyOptions


def lessons(
    graded: Sequence[Graded],
    options: OnPolicyOptions,
    tongues: Tongues,
    own_nats: Mapping[str, Sequence[float]],
) -> list[Lesson]:
    """One lesson an attempt; attempts without a place to learn from give none. `own_nats` of those
    that need none (`needs_own_nats`) are not read."""
    made = (lesson_of(g, options, tongues, own_nats.get(g.attempt.key)) for g in graded)
    return [lesson for lesson in made if lesson.places]


def lesson_of(
    graded: Graded,
    options: OnPolicyOptions,
    tongues: Tongues,
    own_nats: Sequence[float] | None = None,
) -> Lesson:
    """Targets up to the first mistake, that place included."""
    assert tongues.vocabulary is not None
    last = _last(graded, options)
    first = len(graded.prompt)
    targets = []
    for span in graded.spans[: last + 1]:
        if graded.has_word(span):
            place = first + span.first.student
            targets.append(_target(place, graded, span.first.teacher, tongues, options))
    if graded.ends and last == len(graded.spans):
        # What follows the last token: the teacher's end of turn is the student's.
        place = first + len(graded.answer)
        rows = len(graded.grade.top_ids)
        targets.append(_target(place, graded, rows - 1, tongues, options))
    advantages: list[Advantage] = []
    if own_nats is not None:
        found = span_advantages(graded, _without_targets(graded, last), own_nats, options)
        targeted = {target.at for target in targets}
        advantages = [a for a in found if a.at not in targeted]
    ids = (*graded.prompt, *graded.answer)
    if graded.ends:
        ids = (*ids, tongues.student_end)
    furthest = max((*(t.at for t in targets), *(a.at for a in advantages)), default=0)
    key = graded.attempt.key
    return Lesson(ids[: furthest + 1], tuple(targets), tuple(advantages), key)


def needs_own_nats(graded: Graded, options: OnPolicyOptions) -> bool:
    """False where every place of the lesson is the teacher's distribution."""
    return bool(_without_targets(graded, _last(graded, options)))


def _last(graded: Graded, options: OnPolicyOptions) -> int:
    """Index of the last span that is learnt from; the number of spans where all are."""
    mistake = first_mistake(graded, options) if options.learn_from == "wrong" else None
    return len(graded.spans) if mistake is None else mistake


def _without_targets(graded: Graded, last: int) -> list[Span]:
    """Spans of tokens that no distribution speaks of.

    What is wrong with a mistaken span its first token's target says already, if it has one.
    """
    kept = [span for span in graded.spans[:last] if _is_uneven(span)]
    return kept + [span for span in graded.spans[last : last + 1] if not graded.has_word(span)]


def _is_uneven(span: Span) -> bool:
    """True when the span is more than one token on either side."""
    return (
        span.after.student - span.first.student > 1 or span.after.teacher - span.first.teacher > 1
    )


def _target(
    at: int, graded: Graded, row: int, tongues: Tongues, options: OnPolicyOptions
) -> Target:
    """The teacher's likeliest tokens in row `row`, as tokens of the student."""
    assert tongues.vocabulary is not None
    shares: dict[int, float] = {}
    entropy_nats = 0.0
    listed = list(zip(graded.grade.top_ids[row], graded.grade.top_logprobs_nats[row], strict=True))
    rest = 1.0
    for token, nats in listed[: options.top_tokens]:
        rest -= math.exp(nats)
        entropy_nats -= math.exp(nats) * nats
        student = tongues.vocabulary.first_of.get(token)
        if student is not None:
            shares[student] = shares.get(student, 0.0) + math.exp(nats)
    if rest > 0:  # of what is not listed, at least as much as if it were one token
        entropy_nats -= rest * math.log(rest)
    total = max(1.0, sum(shares.values()))  # rounding may carry a sum past one
    limit = options.forward_above_nats
    beta = 0.0 if limit is not None and entropy_nats > limit else options.divergence_beta
    return Target(at, tuple(shares), tuple(share / total for share in shares.values()), beta)
