"""What the answers to suites, styles, samples and cut reasoning say, in numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from pipeline.contamination import Overlap, cleaned
from pipeline.diversity import Samples, collapse, sampled, spread
from pipeline.examine import ON_POLICY, SFT
from pipeline.forced import SHARES, SWAPPED, WHOLE, name_of
from pipeline.imitation import Answered, by_length, likeness
from pipeline.ladder import BASE, against
from pipeline.records import Verdict
from quant.stats import wilson
from serve.messages import Completion, Record

FRESH, STYLES, FORCED, SAMPLES = "fresh", "styles", "forced", "samples"
# What is asked in these is no suite of problems of its own.
OTHER = (STYLES, FORCED, SAMPLES)
TEACHER = "teacher"
# Whose training can narrow what they find: each beside the one before.
STUDENTS = (BASE, SFT, ON_POLICY)


class Asked(Record):
    """One judged answer of one rung to one question of a suite, in a style or after a cut."""

    rung: str
    suite: str
    style: str
    item: str
    family: str
    sample: int = 0
    completion: Completion
    verdict: Verdict


def summary(rows: Sequence[Asked], overlaps: Sequence[Overlap] = ()) -> dict[str, Any]:
    """Everything the tables show, for other programs: `transfer.json`.

    Suites: accuracy by rung, in whole and by family, and the share of the teacher's that the rung
    has. Styles and cuts: on the items that were asked in them, beside the same items as they were
    trained. Contamination: accuracy with and without the items that `overlaps` names.
    """
    rungs = list(dict.fromkeys(r.rung for r in rows))
    suites = list(dict.fromkeys(r.suite for r in rows if r.suite not in OTHER))
    found: dict[str, Any] = {
        "suites": {s: _by_rung([r for r in rows if r.suite == s], rungs) for s in suites},
        "contamination": {s: _contamination(s, rows, rungs, overlaps) for s in suites},
        "rungs": {},
    }
    fresh = {rung: _answered([r for r in rows if r.rung == rung]) for rung in rungs}
    for rung in rungs:
        own = [r for r in rows if r.rung == rung]
        right = {item: answer.right for item, answer in fresh[rung].items()}
        found["rungs"][rung] = {
            **_styles(own, right),
            "forced": _forced(own, right),
            "lengths": by_length(fresh[rung]),
            "likeness": likeness(fresh[rung], fresh.get(TEACHER, {})),
            "samples": spread(_samples(own)),
        }
    found["collapse"] = _collapses(rows, [s for s in STUDENTS if s in rungs])
    return found


def _answered(own: Sequence[Asked]) -> dict[str, Answered]:
    return {
        r.item: Answered(r.completion, r.verdict.passed)
        for r in own
        if r.suite == FRESH and r.verdict.passed is not None
    }


def _samples(own: Sequence[Asked]) -> Samples:
    return sampled([(r.item, r.sample, r.verdict) for r in own if r.suite == SAMPLES])


def _collapses(rows: Sequence[Asked], students: Sequence[str]) -> dict[str, Any]:
    drawn = {name: _samples([r for r in rows if r.rung == name]) for name in students}
    moves = {
        f"{after} after {before}": collapse(drawn[before], drawn[after])
        for before, after in itertools.pairwise(students)
    }
    return {name: found for name, found in moves.items() if found is not None}


def _contamination(
    suite: str, rows: Sequence[Asked], rungs: Sequence[str], overlaps: Sequence[Overlap]
) -> dict[str, Any]:
    kinds: dict[str, set[str]] = {}
    for overlap in overlaps:
        if overlap.suite == suite:
            kinds.setdefault(f"{overlap.kind} of a {overlap.where}", set()).add(overlap.item)
    flagged = set().union(*kinds.values())
    own = [r for r in rows if r.suite == suite]
    return {
        "items": {kind: len(items) for kind, items in sorted(kinds.items())},
        "rungs": {
            rung: cleaned(_right(r for r in own if r.rung == rung), flagged) for rung in rungs
        },
    }


def _right(rows: Iterable[Asked]) -> dict[str, bool]:
    return {r.item: r.verdict.passed for r in rows if r.verdict.passed is not None}


def right_by_suite(rows: Sequence[Asked]) -> dict[str, dict[str, bool]]:
    """Suite -> item -> right or wrong, of answers that could be judged."""
    suites = dict.fromkeys(r.suite for r in rows)
    return {suite: _right(r for r in rows if r.suite == suite) for suite in suites}


def _share(right: dict[str, bool]) -> dict[str, Any] | None:
    if not right:
        return None
    return {
        "items": len(right),
        "accuracy": sum(right.values()) / len(right),
        "interval": list(wilson(sum(right.values()), len(right))),
    }


def _by_rung(rows: Sequence[Asked], rungs: Sequence[str]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for rung in rungs:
        own = [r for r in rows if r.rung == rung]
        families = sorted({r.family for r in own})
        table[rung] = {
            "whole": _share(_right(own)),
            "families": {f: _share(_right(r for r in own if r.family == f)) for f in families},
        }
    teacher = table.get(TEACHER, {"whole": None, "families": {}})
    for cell in table.values():
        cell["of_teacher"] = _recovered(cell["whole"], teacher["whole"])
        cell["families_of_teacher"] = {
            f: _recovered(share, teacher["families"].get(f))
            for f, share in cell["families"].items()
        }
    return table


def _recovered(own: dict[str, Any] | None, ceiling: dict[str, Any] | None) -> float | None:
    """The share of the teacher's accuracy; None where it has none."""
    if not own or not ceiling or ceiling["accuracy"] == 0:
        return None
    return float(own["accuracy"] / ceiling["accuracy"])


def _styles(own: Sequence[Asked], fresh: dict[str, bool]) -> dict[str, Any]:
    """Each style against the same items as trained; mean, worst and spread over the styles, of the
    items that all styles have."""
    names = list(dict.fromkeys(r.style for r in own if r.suite == STYLES))
    table: dict[str, Any] = {}
    found = {
        name: _right(r for r in own if r.suite == STYLES and r.style == name) for name in names
    }
    for name, right in found.items():
        usual = {item: fresh[item] for item in right if item in fresh}
        table[name] = {"share": _share(right), "as_trained": _share(usual)}
        table[name]["difference"] = against(usual, right)
    asked = [set(right) for right in found.values() if right]
    shared = set.intersection(*asked) & set(fresh) if asked else set[str]()
    if not shared:
        return {"styles": table, "over_styles": None}
    shares = [mean(right[i] for i in shared) for right in found.values() if right]
    over = {
        "items": len(shared),
        "as_trained": mean(fresh[i] for i in shared),
        "mean": mean(shares),
        "worst": min(shares),
        "spread": max(shares) - min(shares),
    }
    return {"styles": table, "over_styles": over}


def _forced(own: Sequence[Asked], fresh: dict[str, bool]) -> dict[str, Any]:
    """Accuracy after each cut, and with the whole reasoning, on the items that had one."""
    names = [name_of(share) for share in SHARES] + [SWAPPED]
    cuts = {name: _right(r for r in own if r.suite == FORCED and r.style == name) for name in names}
    items = set.intersection(*(set(right) for right in cuts.values())) & set(fresh)
    if not items:
        return {}
    cuts[WHOLE] = fresh
    same = {name: {i: right[i] for i in sorted(items)} for name, right in cuts.items()}
    return {name: _share(right) for name, right in same.items()} | {
        "depends": against(same[SWAPPED], same[WHOLE])
    }
