"""Which evaluation items look like something the student was trained on, and how much that matters.

Words, numbers and signs are tokens, in lower case. Three overlaps with training prompts and with
traces: 8-grams, 13-grams (GPT-3, arXiv 2005.14165, appendix C) and near-duplicates (Jaccard
similarity of 3-grams, Broder 1997; with a trace his containment). An n-gram that many training
problems hold, in their prompts or traces, is a template of their family and says nothing; as in
GPT-3, those of more than ten are not counted, nor those with fewer than four tokens outside of
3-grams that more than ten hold: a template and the first number after it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pipeline.records import Problem
from quant.stats import wilson
from serve.messages import Record

TEMPLATE_PROBLEMS = 10
SHINGLE_TOKENS = 3
TELLING_TOKENS = 4
NEAR_DUPLICATE = 0.5
# As many as `77 + 17 - 65 + 73` has: two calculations that are not the same share fewer.
SHARED_SHINGLES = 5
LENGTHS = (8, 13)

Kind = Literal["8-gram", "13-gram", "near_duplicate"]
Tokens = tuple[str, ...]


class Trained(NamedTuple):
    """One text a student learned from: a problem's question, or a trace's completion.

    `problem` is the key of the problem it belongs to: the traces of one are no template.
    """

    where: Literal["prompt", "trace"]
    key: str
    text: str
    problem: str


class Overlap(Record):
    """One overlap of an item: the longest shared run of tokens, or the share of shared 3-grams."""

    suite: str
    item: str
    kind: Kind
    where: Literal["prompt", "trace"]
    source: str
    matched: str
    similarity: float | None = None


class _Index:
    """Training texts by the n-grams that are not among `templates`."""

    def __init__(self, texts: Sequence[Tokens], length: int, templates: set[Tokens]) -> None:
        self.length, self.templates = length, templates
        self.texts: defaultdict[Tokens, list[int]] = defaultdict(list)
        self.counts: list[int] = []
        for index, tokens in enumerate(texts):
            rare = set(ngrams(tokens, length)) - templates
            self.counts.append(len(rare))
            for gram in rare:
                self.texts[gram].append(index)

    def shared(self, tokens: Tokens, tells: Sequence[bool]) -> tuple[Counter[int], int]:
        """Training text -> n-grams it shares with `tokens`; and how many count, with enough tokens
        that tell."""
        grams = {
            gram
            for start, gram in enumerate(ngrams(tokens, self.length))
            if gram not in self.templates
            and sum(tells[start : start + self.length]) >= min(TELLING_TOKENS, self.length)
        }
        return Counter(i for gram in grams for i in self.texts.get(gram, ())), len(grams)


def overlaps(suites: Mapping[str, Sequence[Problem]], trained: Sequence[Trained]) -> list[Overlap]:
    """At most one overlap an item of each kind, with a prompt and with a trace: the largest."""
    found: list[Overlap] = []
    read = [(text, tokens_of(text.text)) for text in sorted(trained, key=lambda t: t.key)]
    # Of prompts and traces together: traces hold no question but a leaked one, whose template
    # would be rare among them.
    by_problem = [(text.problem, tokens) for text, tokens in read]
    templates = {n: templates_of(by_problem, n) for n in (SHINGLE_TOKENS, *LENGTHS)}
    for where in ("prompt", "trace"):
        texts = [text for text, _ in read if text.where == where]
        tokens = [tokens for text, tokens in read if text.where == where]
        runs = {length: _Index(tokens, length, templates[length]) for length in LENGTHS}
        shingles = _Index(tokens, SHINGLE_TOKENS, templates[SHINGLE_TOKENS])
        for suite, problems in suites.items():
            for problem in problems:
                found += _of_item(suite, problem, texts, runs, shingles)
    return found


def templates_of(read: Iterable[tuple[str, Tokens]], length: int) -> set[Tokens]:
    """The n-grams that more than `TEMPLATE_PROBLEMS` problems hold; `read`: a problem's key and
    tokens, as often as it has texts."""
    holders: defaultdict[Tokens, set[str]] = defaultdict(set)
    for problem, tokens in read:
        for gram in ngrams(tokens, length):
            if len(holders[gram]) <= TEMPLATE_PROBLEMS:
                holders[gram].add(problem)
    return {gram for gram, problems in holders.items() if len(problems) > TEMPLATE_PROBLEMS}


def telling(tokens: Tokens, templates: set[Tokens]) -> list[bool]:
    """For each of `tokens` whether it is outside of all `templates`, which are 3-grams."""
    found = [True] * len(tokens)
    for start, gram in enumerate(ngrams(tokens, SHINGLE_TOKENS)):
        if gram in templates:
            found[start : start + SHINGLE_TOKENS] = [False] * SHINGLE_TOKENS
    return found


def _of_item(
    suite: str,
    problem: Problem,
    texts: Sequence[Trained],
    runs: Mapping[int, _Index],
    shingles: _Index,
) -> Iterator[Overlap]:
    tokens = tokens_of(problem.question)
    tells = telling(tokens, shingles.templates)
    base = {"suite": suite, "item": problem.key}
    for length, index in runs.items():
        shared, _ = index.shared(tokens, tells)
        if shared:
            text = texts[_most(shared)]
            matched = " ".join(_longest_run(tokens, tokens_of(text.text)))
            kind = f"{length}-gram"
            yield Overlap.model_validate(
                {**base, "kind": kind, "where": text.where, "source": text.key, "matched": matched}
            )
    shared, own = shingles.shared(tokens, [True] * len(tokens))
    if not shared:
        return
    alike = {i: _likeness(n, own, shingles.counts[i], texts[i]) for i, n in shared.items()}
    best = max(sorted(alike), key=alike.__getitem__)
    if alike[best] >= NEAR_DUPLICATE:
        text = texts[best]
        yield Overlap(
            **base,
            kind="near_duplicate",
            where=text.where,
            source=text.key,
            matched=text.text[:200],
            similarity=round(alike[best], 3),
        )


def _likeness(shared: int, own: int, theirs: int, text: Trained) -> float:
    """Jaccard of two questions; a trace is longer, so there it is how much of the question it has,
    once that is more than a calculation that two problems may share."""
    if text.where == "trace" and shared >= SHARED_SHINGLES:
        return shared / own
    return shared / (own + theirs - shared)


def _most(shared: Counter[int]) -> int:
    return max(sorted(shared), key=shared.__getitem__)


def _longest_run(first: Tokens, second: Tokens) -> Tokens:
    """The longest sequence of tokens that stands in both."""
    best, ends = (0, 0), [0] * (len(second) + 1)
    for i, token in enumerate(first):
        above = ends
        ends = [0] * (len(second) + 1)
        for j, other in enumerate(second):
            if token == other:
                ends[j + 1] = above[j] + 1
                best = max(best, (ends[j + 1], -i))
    length, start = best[0], -best[1] - best[0] + 1
    return first[start : start + length]


def tokens_of(text: str) -> Tokens:
    return tuple(re.findall(r"\w+|[^\w\s]", text.casefold()))


def ngrams(tokens: Tokens, length: int) -> Iterator[Tokens]:
    return zip(*(tokens[start:] for start in range(length)), strict=False)


def cleaned(right: Mapping[str, bool], flagged: Collection[str]) -> dict[str, Any]:
    """Accuracy over all items, over the flagged ones and over the others; None without any."""
    parts = {
        "all": list(right.values()),
        "flagged": [passed for item, passed in right.items() if item in flagged],
        "clean": [passed for item, passed in right.items() if item not in flagged],
    }
    return {
        name: {
            "items": len(values),
            "accuracy": sum(values) / len(values),
            "interval": list(wilson(sum(values), len(values))),
        }
        if values
        else None
        for name, values in parts.items()
    }
