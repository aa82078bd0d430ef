"""What a block of practice will take, counted from its options: for both forecasts."""

from __future__ import annotations

import math
from typing import NamedTuple

from pipeline.on_policy_options import Method, OnPolicyOptions

# Of attempts that are wrong, of continuations that lead to the right answer (docs/notes.md).
WRONG, RECOVERED = 0.5, 0.8


class BlockCounts(NamedTuple):
    """`grades`: answers that the teacher reads; `continuations`: that it goes on from; `lessons`
    of one pass; `updates` of all passes."""

    attempts: int
    grades: float
    continuations: float
    lessons: float
    updates: int


def block_counts(options: OnPolicyOptions, method: Method) -> BlockCounts:
    """Of practice by `method`, which `auto` has become."""
    attempts, wrong = options.block_attempts, WRONG * options.block_attempts
    if method == "exact":  # the teacher reads all, traces too, and each is learnt from once
        read = attempts + options.replay
        updates = math.ceil(read / options.batch_lessons)
        return BlockCounts(attempts, read, 0.0, read, updates)
    everything = options.learn_from == "all" and method != "recover"
    grades = attempts if everything else wrong
    goes_on = wrong if options.continuations or method == "recover" else 0.0
    lessons = RECOVERED * goes_on + options.replay
    lessons += 0.0 if method == "recover" else grades
    if not everything and options.right_as_examples:
        lessons += attempts - wrong
    updates = math.ceil(lessons * options.passes / options.batch_lessons)
    return BlockCounts(attempts, grades, goes_on, lessons, updates)
