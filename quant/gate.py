"""May this artifact be shipped? A paired verdict against the unquantized student.

Both answered the same fresh items. Pass: the drop is shown to be smaller than the margin. Fail: a
drop beyond the margin is shown, or at the last look a drop that by estimate is beyond it. Anything
else is inconclusive, and says which drop so many items could have shown at all. An answer that
could not be judged counts on neither side. Each file has an error of 5 % of its own, over all looks
at it: of several files that are all at the margin, one passes by chance more often than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from quant.stats import (
    cautious_interval,
    holm,
    mcnemar_exact,
    smallest_detectable_drop,
)
from serve.messages import Record

Outcome = Literal["pass", "fail", "inconclusive"]
# More unscored items than this, and there is no verdict.
UNSCORED_SHARE = 0.01
ALPHA = 0.05


class FamilyVerdict(Record):
    """One family's flips; `p_value` is exact McNemar's, `p_holm` adjusted over the families."""

    items: int
    difference: float
    gained: int
    lost: int
    p_value: float
    p_holm: float


class GateVerdict(Record):
    """Shares, not points: `difference` is artifact minus student, `low` and `high` its bounds."""

    artifact: str
    outcome: Outcome
    why: str
    margin: float
    items: int
    unscored: int
    student_accuracy: float | None = None
    accuracy: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    gained: int = 0
    lost: int = 0
    p_value: float | None = None
    detectable_drop: float | None = None
    families: dict[str, FamilyVerdict] = Field({})


Answers = Mapping[str, bool | None]


def paired_verdict(
    artifact: str,
    student: Answers,
    answers: Answers,
    families: Mapping[str, str],
    margin: float,
    alpha: float = ALPHA,
    last: bool = True,
) -> GateVerdict:
    """The verdict on `answers` (item -> right, wrong or None) beside the student's on those items.

    `families` names each item's family. `alpha` is the error this comparison may make
    (`alpha_per_look` where it is one of several), so that asking more items when the first were too
    few does not make passing by luck likelier. Before the `last` look only a drop that is beyond
    the margin for certain fails. A student that is right on nothing proves nothing.
    """
    both = [i for i in families if student.get(i) is not None and answers.get(i) is not None]
    right = sum(bool(student[i]) for i in both)
    counts = {"items": len(both), "unscored": len(families) - len(both)}
    nothing = _no_verdict(right, **counts)
    if nothing:
        return GateVerdict(
            artifact=artifact, outcome="inconclusive", why=nothing, margin=margin, **counts
        )
    gained, lost = _flips(both, student, answers)
    low, high = cautious_interval(gained, lost, len(both), 1 - alpha)
    by_family = _families(both, student, answers, families)
    difference = (gained - lost) / len(both)
    outcome, why = _outcome(difference, low, high, by_family, margin, alpha, last)
    detectable = smallest_detectable_drop(len(both), (gained + lost) / len(both), alpha)
    if outcome == "inconclusive":
        why += f"; {len(both)} items show drops from {100 * detectable:.1f} points"
    elif outcome == "pass" and right <= margin * len(both):
        why += f", and no larger drop could show: the student has {100 * right / len(both):.1f} %"
    return GateVerdict(
        artifact=artifact,
        outcome=outcome,
        why=why,
        margin=margin,
        **counts,
        student_accuracy=right / len(both),
        accuracy=sum(bool(answers[i]) for i in both) / len(both),
        difference=difference,
        low=low,
        high=high,
        gained=gained,
        lost=lost,
        p_value=mcnemar_exact(gained, lost),
        detectable_drop=detectable,
        families=by_family,
    )


def on_regression_cases(verdict: GateVerdict, student: Answers, answers: Answers) -> GateVerdict:
    """Fails an artifact that is wrong on a kept case which the unquantized student gets right."""
    lost = [case for case, right in student.items() if right and answers.get(case) is False]
    right = sum(bool(passed) for passed in student.values())
    if lost:
        why = f"lost {len(lost)} of {right} regression cases ({', '.join(c[:12] for c in lost)})"
        return verdict.model_copy(update={"outcome": "fail", "why": f"{why}; {verdict.why}"})
    kept = f"none lost of {right} regression cases that the student gets right"
    return verdict.model_copy(update={"why": f"{verdict.why}; {kept}"})


def _no_verdict(right: int, items: int, unscored: int) -> str | None:
    if items == 0 or unscored > UNSCORED_SHARE * (items + unscored):
        return f"{unscored} of {items + unscored} items could not be scored on both sides"
    if right == 0:
        return f"the student is right on none of {items} items: there is nothing to lose"
    return None


def _flips(items: list[str], student: Answers, answers: Answers) -> tuple[int, int]:
    gained = sum(bool(answers[i]) and not student[i] for i in items)
    lost = sum(bool(student[i]) and not answers[i] for i in items)
    return gained, lost


def _families(
    items: list[str], student: Answers, answers: Answers, families: Mapping[str, str]
) -> dict[str, FamilyVerdict]:
    members: dict[str, list[str]] = {}
    for item in items:
        members.setdefault(families[item], []).append(item)
    flips = {name: _flips(own, student, answers) for name, own in sorted(members.items())}
    p_values = {name: mcnemar_exact(*pair) for name, pair in flips.items()}
    adjusted = holm(p_values)
    return {
        name: FamilyVerdict(
            items=len(members[name]),
            difference=(gained - lost) / len(members[name]),
            gained=gained,
            lost=lost,
            p_value=p_values[name],
            p_holm=adjusted[name],
        )
        for name, (gained, lost) in flips.items()
    }


def _outcome(
    difference: float,
    low: float,
    high: float,
    families: Mapping[str, FamilyVerdict],
    margin: float,
    alpha: float,
    last: bool,
) -> tuple[Outcome, str]:
    worse = [
        name
        for name, family in families.items()
        if family.p_holm < alpha and family.difference < -margin
    ]
    shown = f"{100 * difference:+.1f} points [{100 * low:.1f}, {100 * high:.1f}]"
    by_estimate = f"by estimate beyond {100 * margin:g} points"
    if high < -margin:
        return "fail", f"{shown}: a drop beyond {100 * margin:g} points"
    if worse:
        return "fail", f"{shown}; {', '.join(worse)} fell for certain, {by_estimate}"
    if last and high < 0 and difference < -margin:
        return "fail", f"{shown}: a drop for certain, {by_estimate}"
    if low > -margin:
        return "pass", f"{shown}: within {100 * margin:g} points"
    return "inconclusive", f"{shown}: the drop may exceed {100 * margin:g} points"
