"""Traces that never were, of realistic size, any of which can be made without the others.

Four samples a problem. What each one is, and so what curation must say of it, is drawn from the
seed; its text follows from that. Keys rise while the samples of a problem are scattered over the
whole file, as in a trace store.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.records import Problem, Reason, Trace, Verdict, content_key
from serve.messages import Completion

SAMPLES = 4
PER_PROBLEM = 3
MAX_TOKENS = 1_000
FAMILIES = ("algebra", "geometry", "counting", "number theory", "code")
# Of the samples; the rest is right, new and of good length.
SHARES = {
    "wrong": 0.10,
    "truncated": 0.02,
    "too_long": 0.04,
    "foreign_script": 0.02,
    "repeats_itself": 0.02,
    "duplicate": 0.08,
    "near_duplicate": 0.07,
    "contaminated": 0.01,
}
LEAKED_PROMPTS = 0.005
OWN_REASONS = ("wrong", "truncated", "too_long", "foreign_script", "repeats_itself")
SENTENCES = 20_000


class Sample(NamedTuple):
    """`same` is the sample whose reasoning this one's is, or nearly is: often its own."""

    kind: str
    tokens: int
    same: int


class Synthetic:
    """`count` traces; equal seeds make equal traces."""

    def __init__(self, count: int, seed: int = 1) -> None:
        self.count, self._seed = count, seed
        steps = range(count * 5 // 8, 2 * count)
        self._step = next(step for step in steps if math.gcd(step, count) == 1)
        # So many that no item leaks into more problems than a template may have.
        self.items = [
            f"{_sentence(draw)} and {_sentence(draw)} in total?"
            for draw in (random.Random(f"{seed} item {n}") for n in range(max(200, count // 100)))
        ]
        draw = random.Random(f"{seed} sentences")
        self._sentences = [_sentence(draw) for _ in range(SENTENCES)]

    def traces(self, ranks: range) -> Iterator[Trace]:
        """Those of these ranks in the order of keys."""
        for rank in ranks:
            yield self._trace(rank, *divmod(rank * self._step % self.count, SAMPLES))

    def evaluation(self) -> list[Problem]:
        return [Problem(question=item, answer="2", family=FAMILIES[0]) for item in self.items]

    def expected(self) -> Counter[str]:
        """What curation must count: `kept`, and the dropped by reason."""
        back = pow(self._step, -1, self.count)
        counts: Counter[str] = Counter()
        for problem in range(math.ceil(self.count / SAMPLES)):
            samples, leaked = self._problem(problem)
            numbers = [problem * SAMPLES + s for s in range(SAMPLES)]
            order = sorted(
                (samples[s].tokens, number * back % self.count, s)
                for s, number in enumerate(numbers)
                if number < self.count
            )
            counts.update(_fates([(s, samples[s]) for *_, s in order], leaked))
        return counts

    def _draw(self, problem: int, what: str) -> random.Random:
        return random.Random(f"{self._seed} {problem} {what}")

    def _problem(self, problem: int) -> tuple[list[Sample], bool]:
        """Its samples, and whether its question holds an evaluation item."""
        draw = self._draw(problem, "samples")
        made: list[Sample] = []
        for number in range(SAMPLES):
            kind = _kind(draw.random())
            good = [n for n, sample in enumerate(made) if sample.kind == "good"]
            if kind in ("duplicate", "near_duplicate") and not good:
                kind = "good"
            same = draw.choice(good) if kind in ("duplicate", "near_duplicate") else number
            tokens = draw.randrange(250, 450) + (MAX_TOKENS if kind == "too_long" else 0)
            made.append(Sample(kind, tokens, same))
        return made, draw.random() < LEAKED_PROMPTS

    def _trace(self, rank: int, number: int, sample_number: int) -> Trace:
        samples, leaked = self._problem(number)
        sample = samples[sample_number]
        leak = self.items[number % len(self.items)]
        prompt = leak if leaked else self._sentences[number % SENTENCES]
        draw = self._draw(number, f"text {sample.same}")
        lines = [draw.choice(self._sentences) for _ in range(draw.randrange(20, 34))]
        answer = str(number % 9_973)
        if sample.kind == "near_duplicate":
            lines[0] = f"Again {sample_number}: {lines[0]}"
        extra = {
            "foreign_script": ["здесь мы складываем"],
            "repeats_itself": lines[:1] * 3,
            "contaminated": [f"Recall: {leak}"],
        }
        reasons: dict[str, Reason] = {"wrong": "wrong", "truncated": "truncated"}
        reason = reasons.get(sample.kind, "correct")
        text = "\n".join([*lines, *extra.get(sample.kind, [])])
        return Trace(
            key=f"{rank:012x}{content_key(self._seed, number, sample_number)[12:]}",
            problem=Problem(
                question=f"Problem {number}. {prompt}", answer=answer, family=FAMILIES[number % 5]
            ),
            sample=sample_number,
            model="synthetic",
            prompt_sha256=content_key("prompt"),
            completion=Completion(
                text=f"<think>\n{text}\n</think>\nAnswer: {answer}",
                ids=tuple(memoryview(draw.randbytes(sample.tokens % MAX_TOKENS * 2)).cast("H")),
                finish="length" if reason == "truncated" else "stop",
                prompt_tokens=60,
                completion_tokens=sample.tokens,
            ),
            verdict=Verdict(
                passed=reason == "correct", reason=reason, extracted=answer, verifier="synthetic"
            ),
        )


def _kind(drawn: float) -> str:
    for kind, share in SHARES.items():
        drawn -= share
        if drawn < 0:
            return kind
    return "good"


def _sentence(draw: random.Random) -> str:
    """Twelve words of a made-up language with numbers in it, about 70 characters."""
    return " ".join(
        str(draw.randrange(1_000)) if draw.random() < 0.3 else _word(draw) for _ in range(12)
    )


def _word(draw: random.Random) -> str:
    return "".join(draw.choice("bdfgklmnprstv") + draw.choice("aeiou") for _ in range(3))


def _fates(order: list[tuple[int, Sample]], prompt_leaks: bool) -> Iterator[str]:
    """What becomes of a problem's samples, in the order in which they are tried."""
    chosen: list[tuple[int, int]] = []
    for number, sample in order:
        # Equal texts have equal pairs, texts that are nearly equal the same first half.
        text = (sample.same, number if sample.kind == "near_duplicate" else sample.same)
        if sample.kind in OWN_REASONS:
            yield sample.kind
        elif prompt_leaks or sample.kind == "contaminated":
            yield "contaminated"
        elif len(chosen) == PER_PROBLEM:
            yield "over_quota"
        elif text in chosen:
            yield "duplicate"
        elif sample.same in {same for same, _ in chosen}:
            yield "near_duplicate"
        else:
            chosen.append(text)
            yield "kept"
