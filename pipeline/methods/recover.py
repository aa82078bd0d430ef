"""Method `recover`: the teacher goes on from the student's own words before its first mistake, and
what proves right is learnt from there on: how to come back, not only what should not be said.

Needs a teacher that generates. One that cannot grade goes on from the middle of the reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pipeline.attempts import Attempt, seed_of
from pipeline.lesson import Lesson, told
from pipeline.methods.graded import Graded, Tongues, first_mistake
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.supervise import reasoning_of
from pipeline.tasks.judge import Judge
from serve.messages import Completion, Message, Request, Sampling
from serve.reasoning import OPEN_TAG, join_reasoning


class Prefix(NamedTuple):
    """What the student keeps: its first `tokens` answer tokens, `begun` in the teacher's form."""

    attempt: Attempt
    prompt: tuple[int, ...]
    tokens: int
    begun: str


def prefix_of(graded: Graded, teacher_text: str, options: OnPolicyOptions) -> Prefix | None:
    """Up to the first mistake; None where the teacher saw none."""
    mistake = first_mistake(graded, options)
    if mistake is None or not graded.spans:
        return None
    span = graded.spans[min(mistake, len(graded.spans) - 1)]
    cut = span.first if mistake < len(graded.spans) else span.after
    starts = (*graded.grade.scores.byte_offsets, len(teacher_text.encode()))
    begun = teacher_text.encode()[: starts[cut.teacher]].decode("utf-8", "ignore")
    return Prefix(graded.attempt, graded.prompt, cut.student, begun)


def middle_prefix(attempt: Attempt, prompt: Sequence[int], teacher_text: str) -> Prefix | None:
    """Half of the reasoning's lines, for a teacher that cannot say where the mistake is; after its
    opening tag, where the teacher writes tags."""
    lines = reasoning_of(attempt.completion.text).splitlines(keepends=True)
    begun = "".join(lines[: len(lines) // 2])
    if begun and teacher_text.startswith(OPEN_TAG):
        begun = f"{OPEN_TAG}\n{begun}"
    at = attempt.completion.text.find(begun)
    if not begun or at < 0 or not teacher_text.startswith(begun):
        return None
    return Prefix(attempt, tuple(prompt), -1, begun)


def requests_of(
    prefixes: Sequence[Prefix],
    messages_of: Callable[[Attempt], tuple[Message, ...]],
    options: OnPolicyOptions,
    max_tokens: int,
    seed: int,
) -> list[Request]:
    """What the teacher is asked; each request has its attempt's key."""
    return [
        Request(
            key=p.attempt.key,
            messages=messages_of(p.attempt),
            sampling=Sampling(
                temperature=options.continuation_temperature,
                max_tokens=max_tokens,
                seed=seed_of(seed, "continuation", p.attempt.key),
            ),
            begun=p.begun,
        )
        for p in prefixes
    ]


def recovered(
    prefix: Prefix, continuation: Completion, judge: Judge, tokenizer: Any, tongues: Tongues
) -> Lesson | None:
    """The continuation in the student's form, if it leads to the right answer from there."""
    whole = continuation.model_copy(update={"text": prefix.begun + continuation.text})
    verdict = judge.verdict(prefix.attempt.problem, whole)
    if not verdict.passed:
        return None
    target = join_reasoning(reasoning_of(whole.text), verdict.extracted or "")
    kept = list(prefix.attempt.completion.ids[: prefix.tokens]) if prefix.tokens >= 0 else []
    spoken = tokenizer.decode(kept, skip_special_tokens=True)
    if prefix.tokens < 0:
        at = target.find(prefix.begun)
        spoken = target[: at + len(prefix.begun)] if at >= 0 else ""
        kept = tokenizer(spoken, add_special_tokens=False)["input_ids"]
    if not target.startswith(spoken):
        return None  # the student's form differs before the mistake already
    rest: list[int] = tokenizer(target[len(spoken) :], add_special_tokens=False)["input_ids"]
    before = (*prefix.prompt, *kept)
    return told((*before, *rest, tongues.student_end), len(before), prefix.attempt.key)
