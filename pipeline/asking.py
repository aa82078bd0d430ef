"""Asks an engine only what is not yet answered, and keeps every answer the moment it is there.

Answers live in an append-only log keyed by everything that determines them, so a killed run pays
for nothing twice and a changed setting reuses what it did not change.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from os.path import commonprefix
from pathlib import Path

from pipeline.progress import Bar
from pipeline.records import content_key
from pipeline.run import Context
from pipeline.store import AppendLog, read_records
from serve.engines.base import Engine
from serve.messages import Completion, Message, Record, Request, Sampling


class Answer(Record):
    """One acknowledged answer. Without timing: a resumed run must hold the same bytes."""

    key: str
    completion: Completion


def request_for(
    identity: str, messages: tuple[Message, ...], sampling: Sampling, sample: int = 0
) -> Request:
    """A request whose key is the hash of what is asked, of whom, and how.

    `identity` says which model answers (name and sha256) and in which runtime.
    """
    turns = [(m.role, m.content) for m in messages]
    key = content_key(identity, turns, sampling.model_dump(mode="json"), sample)
    return Request(key=key, messages=messages, sampling=sampling)


def ask(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    log_path: Path,
    label: str,
    context: Context,
) -> dict[str, Completion]:
    """All answers by key. The engine is opened only when something is missing."""
    with AppendLog(log_path) as store:
        answers = {a.key: a.completion for a in read_records(log_path, Answer)}
        missing = [r for r in requests if r.key not in answers]
        context.log.info("%s: %d of %d to ask", label, len(missing), len(requests))
        if missing:
            with (
                closing(open_engine()) as engine,
                context.progress.bar(label, len(requests)) as bar,
            ):
                bar.advance(len(requests) - len(missing))
                for batch in batches_of(engine, with_openings(requests), {r.key for r in missing}):
                    _ask_batch(engine, batch, store, answers, bar)
    return {r.key: answers[r.key] for r in requests}


def with_openings(requests: Sequence[Request]) -> list[Request]:
    """Each request with the whole words that all last messages after its leading ones begin with.

    Taken over everything a stage asks, answered or not, so that a resumed run cuts alike.
    """
    questions: defaultdict[tuple[Message, ...], list[str]] = defaultdict(list)
    for request in requests:
        questions[request.messages[:-1]].append(request.messages[-1].content)
    shared = {lead: commonprefix(texts) for lead, texts in questions.items()}  # noqa: RUF071
    openings = {lead: text[: text.rfind(" ") + 1] for lead, text in shared.items()}
    return [r.model_copy(update={"opening": openings[r.messages[:-1]]}) for r in requests]


def batches_of(
    engine: Engine, requests: Sequence[Request], missing: set[str]
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


def _ask_batch(
    engine: Engine,
    batch: Sequence[Request],
    store: AppendLog,
    answers: dict[str, Completion],
    bar: Bar,
) -> None:
    for key, completion in engine.generate(batch):
        completion = completion.model_copy(update={"timing": None})
        store.append([Answer(key=key, completion=completion)])
        bar.advance(0 if key in answers else 1)
        answers[key] = completion
