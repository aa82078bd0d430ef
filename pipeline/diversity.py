"""Many samples of the same problems: pass@k, majority, distinct answers, and their collapse.

Training can raise pass@1 by giving up what was only sometimes found: pass@k of a large k falls
("Does Reinforcement Learning Really Incentivize Reasoning Capacity", arXiv 2504.13837).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from statistics import mean
from typing import Any

from pipeline.records import Verdict
from pipeline.tasks.extract import answer_key
from quant.stats import Interval, cautious_interval, mcnemar_exact, mean_interval, pass_at_k

# Item -> the verdicts of its samples, in the order they were drawn.
Samples = dict[str, list[Verdict]]


def sampled(drawn: Sequence[tuple[str, int, Verdict]]) -> Samples:
    """(item, sample, verdict) grouped by item; items with an unscored sample are left out."""
    found: defaultdict[str, list[Verdict]] = defaultdict(list)
    for item, _, verdict in sorted(drawn, key=lambda d: (d[0], d[1])):
        found[item].append(verdict)
    return {i: vs for i, vs in found.items() if all(v.passed is not None for v in vs)}


def spread(samples: Samples) -> dict[str, Any] | None:
    """pass@k for every power of two up to all samples, majority@k, distinct answers an item."""
    if not samples:
        return None
    k = min(len(verdicts) for verdicts in samples.values())
    sizes = [2**n for n in range(k.bit_length()) if 2**n <= k]
    return {
        "items": len(samples),
        "k": k,
        "pass_at": {
            str(n): mean(pass_at_k(len(v), _right(v), n) for v in samples.values()) for n in sizes
        },
        "majority": mean(_majority(v) for v in samples.values()),
        "distinct": mean(
            len({answer_key(x.extracted) for x in v if x.extracted}) for v in samples.values()
        ),
    }


def _right(verdicts: Sequence[Verdict]) -> int:
    return sum(bool(v.passed) for v in verdicts)


def _majority(verdicts: Sequence[Verdict]) -> bool:
    """Whether the commonest answer is right; of equally common ones, the first drawn."""
    said = [(answer_key(v.extracted), v.passed) for v in verdicts if v.extracted]
    if not said:
        return False
    commonest = Counter(key for key, _ in said).most_common(1)[0][0]
    return any(passed for key, passed in said if key == commonest)


def collapse(before: Samples, after: Samples) -> dict[str, Any] | None:
    """How pass@1 and pass@k moved from one student to the next, paired by item.

    `collapsed`: pass@1 rose and pass@k fell; `certain`: neither is chance, at 5 %.
    """
    both = sorted(before.keys() & after.keys())
    if not both:
        return None
    k = min(len(side[item]) for side in (before, after) for item in both)
    moved: dict[int, list[float]] = {}
    for n in sorted({1, k}):
        moved[n] = [
            pass_at_k(len(after[i]), _right(after[i]), n)
            - pass_at_k(len(before[i]), _right(before[i]), n)
            for i in both
        ]
    rose, fell = mean(moved[1]), mean(moved[k])
    interval = _moved_interval(moved[k])
    collapsed = rose > 0 > fell
    return {
        "items": len(both),
        "k": k,
        "pass_at_1": rose,
        "pass_at_k": fell,
        "interval": list(interval),
        "collapsed": collapsed,
        "certain": collapsed and _is_no_chance(moved[1]) and _is_no_chance(moved[k]),
    }


def _flips(moved: Sequence[float]) -> tuple[int, int] | None:
    """Items gained and lost where an item is found or not: pass@k of all samples."""
    return (moved.count(1.0), moved.count(-1.0)) if set(moved) <= {-1.0, 0.0, 1.0} else None


def _moved_interval(moved: Sequence[float]) -> Interval:
    """95 %. Of few flips the bootstrap is too sure."""
    flips = _flips(moved)
    if flips is None:
        return mean_interval(moved, 0.95)
    return cautious_interval(*flips, len(moved), 0.975)


def _is_no_chance(moved: Sequence[float]) -> bool:
    flips = _flips(moved)
    if flips is not None:
        return mcnemar_exact(*flips) < 0.05
    low, high = mean_interval(moved, 0.95)
    return low > 0 or high < 0


def collapse_sentence(name: str, found: dict[str, Any]) -> str:
    """One line for people."""
    low, high = found["interval"]
    moved = (
        f"{name}: pass@1 {100 * found['pass_at_1']:+.1f} points, pass@{found['k']} "
        f"{100 * found['pass_at_k']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] on "
        f"{found['items']} items"
    )
    if not found["collapsed"]:
        return f"{moved}: no diversity collapse seen"
    return f"{moved}: diversity collapse{'' if found['certain'] else ', within chance'}"
