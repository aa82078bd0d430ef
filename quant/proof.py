"""What one artifact is, beside the unquantized student: contents, parity, divergence, speed.

The student's side is computed once (`reference_of`) and kept on disk; each artifact then runs in a
process of its own, and one that crashes or hangs fails by name.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

from quant.divergence import Divergence, HeldOut, Tally, log_softmax
from quant.inspect import Inspection, inspect
from quant.parity import HARD_TEXTS, Parity, parity
from serve.engines.base import Engine, LogitsTV
from serve.engines.child import ChildEngine
from serve.errors import DataError, EngineError
from serve.messages import Message, Record, Request, Sampling

SPEED_TOKENS, TIMED_CONVERSATIONS = 64, 3
# KL of the F16 file in nats above which it does not compute what the checkpoint computes.
FULL_PRECISION_NATS = 0.002
# Beyond this a file is broken, not coarse.
BROKEN_NATS = 1.0


class Speed(Record):
    """One conversation alone; memory is the whole process at its largest."""

    first_token_s: float
    tokens_per_s: float
    peak_memory_bytes: int | None


class Proof(Record):
    """`fault` is None for an artifact that may be judged; otherwise the step that refused it."""

    fault: str | None
    inspection: Inspection | None = None
    parity: Parity | None = None
    divergence: dict[str, Divergence] | None = None
    speed: Speed | None = None


class Reference(NamedTuple):
    """The student's side. `log_probabilities` (T, V) is a file on disk, read as needed."""

    asked: list[tuple[Message, ...]]
    ids: list[list[int]]
    ends: tuple[int, ...]
    spoken: frozenset[int]
    held_out: list[HeldOut]
    log_probabilities: LogitsTV


def reference_of(
    student: Engine,
    asked: Sequence[tuple[Message, ...]],
    held_out: Sequence[HeldOut],
    scratch: Path,
) -> Reference:
    """Run the unquantized student once over everything the artifacts are compared on."""
    rows = sum(len(trace.ids) - trace.first for trace in held_out)
    store: LogitsTV | None = None
    at = 0
    for trace in held_out:
        part_TV = log_softmax(_answer_logits(student, trace))
        if store is None:
            scratch.mkdir(parents=True, exist_ok=True)
            shape = (rows, part_TV.shape[1])
            store = np.lib.format.open_memmap(
                scratch / "reference.npy", mode="w+", dtype=np.float32, shape=shape
            )
        store[at : at + len(part_TV)] = part_TV
        at += len(part_TV)
    if store is None:
        raise DataError("no held-out trace to measure divergence along")
    return Reference(
        asked=list(asked),
        ids=[student.prompt_ids(messages) for messages in asked],
        ends=student.end_ids(),
        spoken=frozenset(
            token for trace in held_out for token in trace.ids[trace.first : trace.last]
        ),
        held_out=list(held_out),
        log_probabilities=store,
    )


def prove(
    path: Path, open_engine: Callable[[], ChildEngine], reference: Reference, exact: bool
) -> Proof:
    """Every step until one refuses. `exact`: the file holds the student's own values."""
    try:
        inspection = inspect(path)
    except DataError as error:
        return Proof(fault=f"inspect: {error}")
    try:
        with closing(open_engine()) as engine:
            same = parity(reference.asked, reference.ids, reference.ends, reference.spoken, engine)
            if same.fault:
                return Proof(fault=f"parity: {same.fault}", inspection=inspection, parity=same)
            divergence = _divergence(engine, reference)
            speed = _speed(engine, reference.asked)
    except EngineError as error:
        return Proof(fault=f"run: {error}", inspection=inspection)
    fault, nats = None, divergence["all"].mean_nats
    if not nats <= BROKEN_NATS:  # nor is "not a number" near
        fault = f"divergence: {nats:.2f} nats from the student, limit {BROKEN_NATS}"
    elif exact and nats > FULL_PRECISION_NATS:
        fault = (
            f"parity: an unquantized file is {nats:.4f} nats from the "
            f"student, limit {FULL_PRECISION_NATS}"
        )
    return Proof(
        fault=fault, inspection=inspection, parity=same, divergence=divergence, speed=speed
    )


def _answer_logits(engine: Engine, trace: HeldOut) -> LogitsTV:
    """Logits (T, V) at the positions that predict the tokens from `first` on."""
    return engine.logits(trace.ids)[trace.first - 1 : -1]


def _divergence(engine: Engine, reference: Reference) -> dict[str, Divergence]:
    tally, at = Tally(), 0
    kinds: dict[str, list[bool]] = {}
    for trace in reference.held_out:
        logits_TV = _answer_logits(engine, trace)
        tally.add(reference.log_probabilities[at : at + len(logits_TV)], logits_TV)
        at += len(logits_TV)
        for name, flags in trace.kinds.items():
            kinds.setdefault(name, []).extend(flags)
    return tally.by_kind(kinds)


def _speed(engine: ChildEngine, asked: Sequence[tuple[Message, ...]]) -> Speed:
    """Medians over three conversations, after one that warms up."""
    firsts, rates = [], []
    own = asked[len(HARD_TEXTS) :][: 1 + TIMED_CONVERSATIONS]
    for messages in own:
        total, first_s, tokens = _timed(engine, messages)
        firsts.append(first_s)
        rates.append((tokens - 1) / (total - first_s) if tokens > 1 else 0.0)
    return Speed(
        first_token_s=statistics.median(firsts[1:]),
        tokens_per_s=statistics.median(rates[1:]),
        peak_memory_bytes=engine.peak_memory_bytes(),
    )


def _timed(engine: Engine, messages: tuple[Message, ...]) -> tuple[float, float, int]:
    """Seconds in all, seconds to the first piece, tokens."""
    started_s, first_s, tokens = time.monotonic(), 0.0, 0
    request = Request(key="", messages=messages, sampling=Sampling(max_tokens=SPEED_TOKENS))
    for chunk in engine.stream(request):
        first_s = first_s or time.monotonic() - started_s
        tokens += chunk.tokens
    return time.monotonic() - started_s, first_s, tokens
