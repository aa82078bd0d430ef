"""Which lines of a trace decide its answer, found by measurement.

Line after line is left out and a model is asked how likely the right answer still is: a line whose
absence costs less than a threshold stays out, and the next one is tried on what is left. So of two
lines that say the same one stays. The last line is tried like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.records import Trace, content_key
from pipeline.run import Context
from pipeline.store import AppendLog, read_records
from pipeline.supervise import reasoning_of
from serve.engines.base import Engine
from serve.messages import Record, Request
from serve.reasoning import join_reasoning

TRACES_TOGETHER = 32


class Steps(Record):
    """The lines of one trace and what leaving each one out cost the right answer, in nats.

    `cost_nats[i]` is measured without the lines before i that were left out.
    """

    key: str
    lines: tuple[str, ...]
    cost_nats: tuple[float, ...]
    kept: tuple[bool, ...]

    @property
    def reasoning(self) -> str:
        return "\n".join(line for line, kept in zip(self.lines, self.kept, strict=True) if kept)


class Measure(NamedTuple):
    """Who is asked, and how much a line must matter to stay."""

    open_engine: Callable[[], Engine]
    identity: str
    student: StudentOptions
    threshold_nats: float


def measured_steps(
    traces: Sequence[Trace], measure: Measure, log_path: Path, context: Context
) -> dict[str, Steps]:
    """The steps of every trace by its key. Those measured already are not asked again."""
    how = content_key(measure.identity, measure.student.system, measure.threshold_nats)
    # By what was written: servers write other words to the same request.
    keys = {
        t.key: content_key(how, t.key, reasoning_of(t.completion.text), t.verdict.extracted)
        for t in traces
    }
    with AppendLog(log_path) as store:
        found = {steps.key: steps for steps in read_records(log_path, Steps)}
        missing = [t for t in traces if keys[t.key] not in found]
        if missing:
            with (
                closing(measure.open_engine()) as engine,
                context.progress.bar("decision points", len(missing)) as bar,
            ):
                for start in range(0, len(missing), TRACES_TOGETHER):
                    part = missing[start : start + TRACES_TOGETHER]
                    rows = _measured(part, measure, engine, keys)
                    store.append(rows)
                    found |= {row.key: row for row in rows}
                    bar.advance(len(rows))
    return {trace.key: found[keys[trace.key]] for trace in traces}


def _measured(
    traces: Sequence[Trace], measure: Measure, engine: Engine, keys: Mapping[str, str]
) -> list[Steps]:
    """One round a line: what the answers of all traces are worth without it."""
    lines = [
        [line for line in reasoning_of(t.completion.text).splitlines() if line.strip()]
        for t in traces
    ]
    kept = [[True] * len(own) for own in lines]
    cost: list[list[float]] = [[] for _ in lines]

    def nats_of(places: Sequence[int]) -> list[float]:
        texts = [_text(lines[i], kept[i]) for i in places]
        return _answer_nats([traces[i] for i in places], texts, measure, engine)

    now = nats_of(range(len(traces)))
    for place in range(max(map(len, lines))):
        tried = [i for i, own in enumerate(lines) if place < len(own)]
        for i in tried:
            kept[i][place] = False
        for i, nats in zip(tried, nats_of(tried), strict=True):
            cost[i].append(round(now[i] - nats, 4))
            kept[i][place] = now[i] - nats > measure.threshold_nats
            now[i] = now[i] if kept[i][place] else nats
    return [
        Steps(key=keys[t.key], lines=tuple(own), cost_nats=tuple(c), kept=tuple(k))
        for t, own, c, k in zip(traces, lines, cost, kept, strict=True)
    ]


def _text(lines: Sequence[str], kept: Sequence[bool]) -> str:
    return "\n".join(line for line, stays in zip(lines, kept, strict=True) if stays)


def _answer_nats(
    traces: Sequence[Trace], reasonings: Sequence[str], measure: Measure, engine: Engine
) -> list[float]:
    """Log probability of each trace's answer after its question and the reasoning given."""
    requests, starts = [], []
    for trace, reasoning in zip(traces, reasonings, strict=True):
        answer = trace.verdict.extracted or ""
        begun = join_reasoning(reasoning, answer)
        starts.append(len(begun.encode("utf-8")) - len(answer.encode("utf-8")))
        messages = student_messages(measure.student, trace.problem.question)
        requests.append(Request(key=trace.key, messages=messages, begun=begun))
    return [
        sum(
            nats
            for nats, offset, end in zip(
                grade.scores.logprobs_nats,
                grade.scores.byte_offsets,
                (*grade.scores.byte_offsets[1:], grade.text_bytes),
                strict=True,
            )
            # A token that reaches into the answer spells a part of it (" 4" before "2").
            if end > start
        )
        for grade, start in zip(engine.grade(requests, 1), starts, strict=True)
    ]
