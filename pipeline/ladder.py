"""The ladder: one row a rung, every number beside its interval, paired on the same items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from pipeline.records import Verdict
from quant.stats import paired, pass_at_k, wilson
from serve.messages import Completion, Record
from serve.reasoning import split_reasoning

BASE = "base student"
# A text whose tail is one short piece over and over never reached an answer by reasoning.
LOOP_TAIL_CHARACTERS = 120
LOOP_PERIOD_CHARACTERS = 40


class Judged(Record):
    """One judged answer of one rung; sample 0 is the greedy one."""

    rung: str
    item: str
    family: str
    sample: int
    completion: Completion
    verdict: Verdict


def ladder_rows(
    judged: Sequence[Judged], rungs: Sequence[tuple[str, int | None]], k: int
) -> list[dict[str, Any]]:
    """Rows in the order of `rungs`. Unscored answers are counted apart and in no share."""
    by_rung: defaultdict[str, list[Judged]] = defaultdict(list)
    for answer in judged:
        by_rung[answer.rung].append(answer)
    base = greedy(by_rung.get(BASE, []))
    return [_row(name, size, by_rung[name], base, k) for name, size in rungs]


def greedy(answers: Sequence[Judged]) -> dict[str, bool]:
    """Item -> right or wrong, of greedy answers that could be judged."""
    return {
        a.item: a.verdict.passed for a in answers if a.sample == 0 and a.verdict.passed is not None
    }


def _row(
    name: str, size: int | None, answers: Sequence[Judged], base: dict[str, bool], k: int
) -> dict[str, Any]:
    singles = [a for a in answers if a.sample == 0]
    scored = [a for a in singles if a.verdict.passed is not None]
    right = sum(bool(a.verdict.passed) for a in scored)
    return {
        "name": name,
        "size_bytes": size,
        "items": len(scored),
        "unscored": len(singles) - len(scored),
        "accuracy": right / len(scored) if scored else None,
        "interval": list(wilson(right, len(scored))),
        "families": _families(scored),
        "against_base": None if name == BASE else against(base, greedy(answers)),
        "pass_at": _pass_at(answers, k),
        "format_failures": sum(a.verdict.reason == "no_answer" for a in singles),
        "truncated": sum(a.completion.finish == "length" for a in singles),
        "unclosed_reasoning": sum(not split_reasoning(a.completion.text).closed for a in singles),
        "loops": sum(is_loop(a.completion.text) for a in singles),
        "mean_tokens": mean(a.completion.completion_tokens for a in singles) if singles else 0.0,
    }


def _families(scored: Sequence[Judged]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for family in sorted({a.family for a in scored}):
        members = [a for a in scored if a.family == family]
        right = sum(bool(a.verdict.passed) for a in members)
        table[family] = {
            "items": len(members),
            "accuracy": right / len(members),
            "interval": list(wilson(right, len(members))),
            "mean_tokens": mean(a.completion.completion_tokens for a in members),
        }
    return table


def against(
    base: Mapping[str, bool], rung: Mapping[str, bool], confidence: float = 0.95
) -> dict[str, Any] | None:
    """The paired difference of two rungs on the items both have; None without any."""
    both = sorted(base.keys() & rung.keys())
    if not both:
        return None
    result = paired([base[i] for i in both], [rung[i] for i in both], confidence)
    return {**result._asdict(), "interval": list(result.interval)}


def _pass_at(answers: Sequence[Judged], k: int) -> dict[str, float] | None:
    """Unbiased pass@1 and pass@k over the items that have k scored samples."""
    by_item: defaultdict[str, list[bool]] = defaultdict(list)
    for a in answers:
        if a.sample > 0 and a.verdict.passed is not None:
            by_item[a.item].append(a.verdict.passed)
    full = [passed for passed in by_item.values() if len(passed) >= k]
    if not full:
        return None
    return {
        str(n): mean(pass_at_k(len(passed), sum(passed), n) for passed in full)
        for n in sorted({1, k})
    } | {"items": float(len(full))}


def is_loop(text: str) -> bool:
    """True when the text ends in one piece of at most 40 characters, over and over."""
    tail = text.rstrip()[-LOOP_TAIL_CHARACTERS:]
    if len(tail) < LOOP_TAIL_CHARACTERS:
        return False
    return any(
        tail == (tail[:period] * (len(tail) // period + 1))[: len(tail)]
        for period in range(1, LOOP_PERIOD_CHARACTERS + 1)
    )
