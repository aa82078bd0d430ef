"""Length and likeness: what the form of an answer says, and does not say, about its being right.

"The False Promise of Imitating Proprietary LLMs" (arXiv 2305.15717): imitation takes over a
teacher's style long before what it knows. So likeness to the teacher stands beside accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from pipeline.quality import similarity
from pipeline.supervise import reasoning_of
from quant.stats import wilson
from serve.messages import Completion

BUCKETS = 4


class Answered(NamedTuple):
    completion: Completion
    right: bool


def by_length(answers: Mapping[str, Answered]) -> list[dict[str, Any]]:
    """Accuracy in quarters of the answers by completion tokens, shortest first.

    Answers of one length stay in the quarter where that length begins, so that quarters can be
    uneven, or missing.
    """
    ordered = sorted(answers.values(), key=lambda a: a.completion.completion_tokens)
    quarters: dict[int, list[Answered]] = {}
    quarter, length = 0, -1
    for index, answer in enumerate(ordered):
        if answer.completion.completion_tokens != length:
            length = answer.completion.completion_tokens
            quarter = index * BUCKETS // len(ordered)
        quarters.setdefault(quarter, []).append(answer)
    return [
        {
            "from_tokens": bucket[0].completion.completion_tokens,
            "to_tokens": bucket[-1].completion.completion_tokens,
            "items": len(bucket),
            "accuracy": mean(a.right for a in bucket),
            "interval": list(wilson(sum(a.right for a in bucket), len(bucket))),
        }
        for bucket in quarters.values()
    ]


def likeness(own: Mapping[str, Answered], teacher: Mapping[str, Answered]) -> dict[str, Any] | None:
    """Similarity of the reasoning to the teacher's on the same items (Jaccard of 5-character
    shingles), over all answers, the right ones and the wrong ones; None where there is none."""
    alike = {
        item: similarity(*(reasoning_of(side[item].completion.text) for side in (own, teacher)))
        for item in sorted(own.keys() & teacher.keys())
    }
    if not alike:
        return None
    return {
        "items": len(alike),
        "accuracy": mean(own[i].right for i in alike),
        "all": mean(alike.values()),
        "right": _mean([s for i, s in alike.items() if own[i].right]),
        "wrong": _mean([s for i, s in alike.items() if not own[i].right]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
