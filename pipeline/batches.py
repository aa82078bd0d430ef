"""Which requests are answered together, the same ones however often a run is resumed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from os.path import commonprefix

from serve.engines.base import Engine
from serve.engines.prefixes import by_lead
from serve.messages import Message, Request

Openings = Mapping[tuple[Message, ...], str]


def openings_of(conversations: Iterable[Sequence[Message]]) -> Openings:
    """By leading messages: the whole words that all last messages after them begin with."""
    questions: defaultdict[tuple[Message, ...], list[str]] = defaultdict(list)
    for *lead, last in conversations:
        questions[tuple(lead)].append(last.content)
    shared = {lead: commonprefix(texts) for lead, texts in questions.items()}  # noqa: RUF071
    return {lead: text[: text.rfind(" ") + 1] for lead, text in shared.items()}


def with_openings(requests: Sequence[Request], openings: Openings | None = None) -> list[Request]:
    """Each request with its opening, which an engine reads once together with what leads to it.

    Unsaid, they are those of `requests`: everything a stage asks, answered or not, so that a
    resumed run cuts alike.
    """
    if openings is None:
        openings = openings_of(r.messages for r in requests)
    return [r.model_copy(update={"opening": openings[r.messages[:-1]]}) for r in requests]


def batches_of(
    engine: Engine, requests: Sequence[Request], missing: Collection[str]
) -> Iterator[Sequence[Request]]:
    """Everything at once where answers do not depend on their neighbours; else whole fixed blocks.

    A block is cut from all requests, so that a resumed run answers in the company the first one
    had.
    """
    if engine.batch_invariant:
        yield [r for r in requests if r.key in missing]
        return
    ordered = sorted(requests, key=lambda r: r.key)
    for start in range(0, len(ordered), engine.block):
        block = ordered[start : start + engine.block]
        if any(r.key in missing for r in block):
            yield block


def shares_of(
    requests: Sequence[Request], missing: Collection[str], size: int
) -> Iterator[tuple[Sequence[Request], list[str]]]:
    """Shares of at most `size` requests with something missing, and which of each are missing.

    Cut from all requests. Those with the same leading turns are dealt out evenly, because their
    answers are alike in length: cut in a row, one share would hold all the long ones, and its actor
    would be at work long after the others.
    """
    ordered = sorted(requests, key=lambda r: (by_lead(r.messages), r.key))
    count = math.ceil(len(ordered) / size)
    for number in range(count):
        share = ordered[number::count]
        wanted = [r.key for r in share if r.key in missing]
        if wanted:
            yield share, wanted
