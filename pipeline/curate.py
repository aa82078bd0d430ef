"""Stage 03: which traces are worth learning from, and why the others are not.

Reads `traces.jsonl`, and `references.jsonl` where few are selected; writes `kept.jsonl` and
`dropped.jsonl` (key and reason), and counts per family. Every trace ends in exactly one of the two
files.
"""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.recipe import CurateOptions
from pipeline.records import Trace, content_key
from pipeline.run import Context
from pipeline.selection import difficult, diverse, solved_problems
from pipeline.store import read_records, write_records
from pipeline.supervise import reasoning_of
from serve.errors import DataError
from serve.messages import Record

STAGE_VERSION = 1
LIBRARIES: tuple[str, ...] = ()

Drop = Literal[
    "wrong",
    "no_answer",
    "truncated",
    "not_scored",
    "too_short",
    "too_long",
    "no_reasoning",
    "foreign_script",
    "repeats_itself",
    "duplicate",
    "near_duplicate",
    "over_quota",
    "easy",
    "not_drawn",
]

# A trace that says the same line this often is a loop, not an argument.
REPEATED_LINE_LIMIT = 4
SHINGLE_CHARACTERS = 5


class Dropped(Record):
    key: str
    family: str
    reason: Drop


def run(
    config: CurateOptions, inputs: Mapping[str, Path], out: Path, context: Context
) -> dict[str, Any]:
    """Split traces into kept and dropped. Returns kept and dropped by reason, per family."""
    by_problem: defaultdict[str, list[Trace]] = defaultdict(list)
    for trace in read_records(inputs["02-traces"] / "traces.jsonl", Trace):
        by_problem[trace.problem.key].append(trace)
    kept, dropped = _filtered(by_problem, config)
    if config.select == "s1":
        solved = solved_problems(inputs["03-references"])
        kept, more = _selected(kept, solved, config, context.seed)
        dropped += more
    write_records(out / "kept.jsonl", sorted(kept, key=lambda t: t.key))
    write_records(out / "dropped.jsonl", sorted(dropped, key=lambda d: d.key))
    return {
        "kept": dict(sorted(Counter(t.problem.family for t in kept).items())),
        "dropped": _by_reason(dropped),
    }


def _filtered(
    by_problem: Mapping[str, list[Trace]], config: CurateOptions
) -> tuple[list[Trace], list[Dropped]]:
    kept: list[Trace] = []
    dropped: list[Dropped] = []
    for _, traces in sorted(by_problem.items()):
        chosen: list[Trace] = []
        for trace in sorted(traces, key=lambda t: (t.completion.completion_tokens, t.key)):
            reason = drop_reason(trace, chosen, config)
            if reason is None:
                chosen.append(trace)
            else:
                dropped.append(Dropped(key=trace.key, family=trace.problem.family, reason=reason))
        kept += chosen
    return kept, dropped


def _selected(
    kept: Sequence[Trace], solved: Collection[str], config: CurateOptions, seed: int
) -> tuple[list[Trace], list[Dropped]]:
    hard = difficult(kept, solved)
    if not hard:
        raise DataError(f"every problem of {len(kept)} kept traces is solved by a reference")
    chosen = diverse(hard, config.select_traces, int(content_key(seed, "03-curated")[:15], 16))
    keys = {trace.key for trace in chosen}
    reasons: dict[bool, Drop] = {True: "easy", False: "not_drawn"}
    return chosen, [
        Dropped(key=t.key, family=t.problem.family, reason=reasons[t.problem.key in solved])
        for t in kept
        if t.key not in keys
    ]


def drop_reason(trace: Trace, chosen: Sequence[Trace], config: CurateOptions) -> Drop | None:
    """Why `trace` is dropped, given those already chosen for its problem; None keeps it."""
    if config.keep == "everything":
        return None
    verdict, completion = trace.verdict, trace.completion
    if verdict.reason == "truncated":
        return "truncated"
    if verdict.reason == "no_answer":
        return "no_answer"
    if config.keep == "correct" and not verdict.passed:
        return "not_scored" if verdict.passed is None else "wrong"
    if completion.completion_tokens < config.min_tokens:
        return "too_short"
    if completion.completion_tokens > config.max_tokens:
        return "too_long"
    reasoning = reasoning_of(completion.text)
    if not reasoning:
        return "no_reasoning"
    if foreign_letters(completion.text, config.scripts):
        return "foreign_script"
    lines = Counter(line.strip() for line in reasoning.splitlines() if line.strip())
    if max(lines.values()) >= REPEATED_LINE_LIMIT:
        return "repeats_itself"
    return _against_chosen(reasoning, chosen, config)


def _against_chosen(reasoning: str, chosen: Sequence[Trace], config: CurateOptions) -> Drop | None:
    if len(chosen) >= config.per_problem:
        return "over_quota"
    others = [reasoning_of(t.completion.text) for t in chosen]
    if reasoning in others:
        return "duplicate"
    if any(similarity(reasoning, other) >= config.near_duplicate for other in others):
        return "near_duplicate"
    return None


def similarity(first: str, second: str) -> float:
    """Jaccard similarity of character shingles after folding case and white space (Broder 1997)."""
    a, b = (_shingles(" ".join(text.casefold().split())) for text in (first, second))
    return len(a & b) / len(a | b)


def _shingles(text: str) -> set[str]:
    return {text[i : i + SHINGLE_CHARACTERS] for i in range(max(1, len(text) - 4))}


def foreign_letters(text: str, scripts: Sequence[str]) -> str:
    """Letters of no writing system in `scripts`; Greek is mathematics, not a language."""
    allowed = (*scripts, "GREEK", "DOUBLE-STRUCK", "MATHEMATICAL", "SCRIPT", "SUPERSCRIPT")
    return "".join(
        c for c in text if c.isalpha() and not unicodedata.name(c, "").startswith(allowed)
    )


def _by_reason(dropped: Sequence[Dropped]) -> dict[str, dict[str, int]]:
    table: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in dropped:
        table[item.family][item.reason] += 1
    return {family: dict(sorted(counts.items())) for family, counts in sorted(table.items())}
