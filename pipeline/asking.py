"""Asks an engine only what is not yet answered, and keeps every answer the moment it is there.

Answers live in an append-only log keyed by everything that determines them, so a killed run pays
for nothing twice and a changed setting reuses what it did not change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from pipeline.batches import batches_of, with_openings
from pipeline.kept_answers import KeptAnswers
from pipeline.records import content_key
from pipeline.run import Context
from pipeline.scale_options import ScaleOptions
from serve.engines.base import Engine
from serve.messages import Completion, Message, Request, Sampling


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
    context_tokens: int = 0,
) -> dict[str, Completion]:
    """All answers by key; see `kept`, which holds none of them in memory."""
    answers = kept(open_engine, requests, log_path, label, context, context_tokens)
    return {r.key: answers[r.key] for r in requests}


def kept(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    log_path: Path,
    label: str,
    context: Context,
    context_tokens: int = 0,
) -> KeptAnswers:
    """The log, with all answers in it. An engine is opened only when something is missing; where
    the context says so, one in each of several actors. Only this process writes the log.

    `context_tokens`: of the engine, where that is a choice; answers that ended for want of them are
    asked again.
    """
    with closing(KeptAnswers(log_path)) as answers:
        missing = {
            r.key for r in requests if r.key not in answers or answers.wants_room(r, context_tokens)
        }
        context.log.info("%s: %d of %d to ask", label, len(missing), len(requests))
        if missing:
            with context.progress.bar(label, len(requests)) as bar:
                bar.known(len(requests) - len(missing))
                asked = with_openings(requests)
                for key, completion in _answered(open_engine, asked, missing, context.scale):
                    bar.advance(0 if key in answers else 1)
                    answers.add(key, completion)
    return answers


def _answered(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    missing: Collection[str],
    scale: ScaleOptions,
) -> Iterator[tuple[str, Completion]]:
    if scale.executor == "ray":
        from pipeline.actors import spread

        yield from spread(open_engine, requests, missing, scale)
        return
    with closing(open_engine()) as engine:
        for batch in batches_of(engine, requests, missing):
            yield from engine.generate(batch)
