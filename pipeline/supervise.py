"""Turns a trace into a training example: reasoning in `<think>…</think>`, then the answer."""

from __future__ import annotations

from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Trace
from pipeline.tasks.extract import ANNOUNCED, BOX
from serve.reasoning import join_reasoning, split_reasoning


def full_example(trace: Trace, student: StudentOptions) -> Example:
    """The whole reasoning, then the answer the verdict was given on."""
    return Example(
        key=trace.key,
        family=trace.problem.family,
        prompt=tuple(m.model_dump() for m in student_messages(student, trace.problem.question)),
        completion=join_reasoning(
            reasoning_of(trace.completion.text), trace.verdict.extracted or ""
        ),
    )


def reasoning_of(text: str) -> str:
    """What the model wrote before it announced its answer.

    A text that already has a closed `<think>` block keeps that block; otherwise the last line, when
    it only announces the answer, is taken off.
    """
    split = split_reasoning(text)
    if split.reasoning:
        return split.reasoning
    lines = split.answer.splitlines()
    if lines and (ANNOUNCED.search(lines[-1]) or BOX in lines[-1]):
        lines = lines[:-1]
    return "\n".join(lines).strip()
