"""Traces of every kind that curation tells apart, drawn with a seed, and the plain way to curate.

`plainly` holds everything in memory and compares texts one with another, as curation did before it
streamed; it is what the stage's bytes are compared with.
"""

import random
from collections import defaultdict

from pipeline.quality import Dropped, own_reason, similarity
from pipeline.records import Problem, Trace, Verdict, content_key
from pipeline.selection import Solved
from pipeline.store import record_line
from pipeline.supervise import reasoning_of
from serve.messages import Completion

FAMILIES = ("sums", "gcd", "chains")
SENTENCE = "so two and three make five then we add seven again to get twelve of them"


def traces(count: int, seed: int = 1, problems: int = 0) -> list[Trace]:
    """In the order of their keys, as a trace store has them; about four to a problem."""
    draw = random.Random(seed)
    known = [_problem(draw, n) for n in range(problems or max(1, count // 4))]
    texts: defaultdict[str, list[str]] = defaultdict(list)
    made = []
    for number in range(count):
        problem = draw.choice(known)
        text = _text(draw, texts[problem.key])
        texts[problem.key].append(text)
        made.append(_trace(draw, problem, number, text))
    return sorted(made, key=lambda t: t.key)


def _problem(draw: random.Random, number: int) -> Problem:
    family = draw.choice(FAMILIES)
    entry = {"metadata": {"n": number, "share": draw.random()}} if number % 3 else {}
    question = f"Problem {number} of {family}: 1 + {draw.randrange(99)} ="
    return Problem(question=question, answer="2", family=family, scorer="contains", entry=entry)


def _text(draw: random.Random, earlier: list[str]) -> str:
    kind = draw.randrange(12)
    body = " ".join(draw.choice(SENTENCE.split()) for _ in range(draw.randrange(20, 60)))
    if kind == 0 and earlier:
        return draw.choice(earlier)
    if kind == 1 and earlier:
        return draw.choice(earlier).replace(" ", "  ", 1).upper()
    if kind == 2 and earlier:
        words = draw.choice(earlier).split(" ")
        words[draw.randrange(len(words))] = "perhaps"
        return " ".join(words)
    odd = {3: f"{body} да\nAnswer: 2", 4: "so\nso\nso\n so \nAnswer: 2", 5: "Answer: 2", 6: "ok"}
    return odd.get(kind, draw.choice([f"{body}\nAnswer: 2", f"<think>\n{body} π é\n</think>\n2"]))


def _trace(draw: random.Random, problem: Problem, number: int, text: str) -> Trace:
    reason = draw.choices(
        ["correct", "wrong", "no_answer", "truncated", "verifier_timeout"], [80, 8, 4, 4, 4]
    )[0]
    passed = {"correct": True, "verifier_timeout": None}.get(reason, False)
    return Trace(
        key=content_key("trace", number),
        problem=problem,
        sample=number,
        model="a teacher",
        prompt_sha256="p",
        completion=Completion(
            text=text,
            ids=tuple(draw.randrange(9999) for _ in range(draw.randrange(5))),
            finish="stop",
            prompt_tokens=7,
            completion_tokens=draw.choice([2, 9, 10, 11, 12, 13, 40, 200]),
        ),
        verdict=Verdict(passed=passed, reason=reason, extracted="2", verifier="v"),
    )


def solved_by_someone(made: list[Trace], seed: int = 1) -> list[Solved]:
    draw = random.Random(seed)
    keys = sorted({t.problem.key for t in made})
    return [Solved(problem=key, by=("teacher",) if draw.random() < 0.4 else ()) for key in keys]


def plainly(made, config) -> tuple[str, str]:
    """The text of `kept.jsonl` and of `dropped.jsonl`."""
    by_problem = defaultdict(list)
    for trace in made:
        by_problem[trace.problem.key].append(trace)
    kept, dropped = [], []
    for _, rivals in sorted(by_problem.items()):
        chosen = []
        for trace in sorted(rivals, key=lambda t: (t.completion.completion_tokens, t.key)):
            reason = _reason(trace, chosen, config)
            if reason is None:
                chosen.append(trace)
            else:
                dropped.append(Dropped(key=trace.key, family=trace.problem.family, reason=reason))
        kept += chosen
    return tuple(
        "".join(record_line(r) for r in sorted(rows, key=lambda r: r.key))
        for rows in (kept, dropped)
    )


def _reason(trace, chosen, config):
    reasoning = reasoning_of(trace.completion.text)
    reason = own_reason(trace, reasoning, config)
    if reason is not None or config.keep == "everything":
        return reason
    if len(chosen) >= config.per_problem:
        return "over_quota"
    others = [reasoning_of(t.completion.text) for t in chosen]
    if reasoning in others:
        return "duplicate"
    alike = any(similarity(reasoning, other) >= config.near_duplicate for other in others)
    return "near_duplicate" if alike else None
