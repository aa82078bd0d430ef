"""Method `span`: any two tokenizers; each span's advantage is the teacher's log probability of its
bytes less the student's, given to all its tokens (discount 0, clipped).

With equal tokenizers a span is a token, and this is the reverse KL of the sampled token (Thinking
Machines, On-Policy Distillation, 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pipeline.byte_spans import Span
from pipeline.lesson import Advantage, Lesson
from pipeline.methods.graded import Graded, Tongues, first_mistake
from pipeline.on_policy_options import OnPolicyOptions


def lessons(
    graded: Sequence[Graded],
    options: OnPolicyOptions,
    tongues: Tongues,
    own_nats: Mapping[str, Sequence[float]],
) -> list[Lesson]:
    """One lesson an attempt. `own_nats`: the student's of its answer's tokens, and of the end."""
    made = []
    for graded_one in graded:
        mistake = first_mistake(graded_one, options) if options.learn_from == "wrong" else None
        last = len(graded_one.spans) if mistake is None else mistake
        own = own_nats[graded_one.attempt.key]
        kept = graded_one.spans[: last + 1]
        advantages = span_advantages(graded_one, kept, own, options)
        ids = (*graded_one.prompt, *graded_one.answer)
        if graded_one.ends and last == len(graded_one.spans):
            place = len(ids)
            ids = (*ids, tongues.student_end)
            nats = clipped(graded_one.grade.end_nats - own[-1], options)
            advantages.append(Advantage(place, nats, own[-1]))
        if advantages:
            furthest = max(a.at for a in advantages)
            key = graded_one.attempt.key
            made.append(Lesson(ids[: furthest + 1], (), tuple(advantages), key))
    return made


def span_advantages(
    graded: Graded, kept: Sequence[Span], own_nats: Sequence[float], options: OnPolicyOptions
) -> list[Advantage]:
    """One for every student token of the spans `kept`."""
    found = []
    for span in kept:
        tokens = range(span.first.student, span.after.student)
        student_nats = sum(own_nats[t] for t in tokens)
        nats = clipped(graded.span_nats(span) - student_nats, options)
        found += [Advantage(len(graded.prompt) + t, nats, own_nats[t]) for t in tokens]
    return found


def clipped(nats: float, options: OnPolicyOptions) -> float:
    limit = options.advantage_limit_nats
    return max(-limit, min(limit, nats))
