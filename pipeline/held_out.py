"""Traces the student never trained on, as token ids: what divergence is measured along.

The teacher's right answers to the evaluation problems, in the student's own prompt and form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.ladder import Judged
from pipeline.recipe import StudentOptions
from pipeline.records import Problem
from pipeline.supervise import example_of
from quant.divergence import HeldOut
from serve.reasoning import FORMS, Tags


def held_out_traces(
    answers: Sequence[Judged],
    problems: Mapping[str, Problem],
    student: StudentOptions,
    tokenizer: Any,
    tokens: int,
) -> list[HeldOut]:
    """In the order of their items' keys, until `tokens` answer tokens are there."""
    right = sorted((a for a in answers if a.verdict.passed), key=lambda a: a.item)
    tags = FORMS[student.tags]
    traces: list[HeldOut] = []
    for answer in right:
        example = example_of(
            answer.item,
            problems[answer.item],
            answer.completion.text,
            answer.verdict.extracted or "",
            student,
        )
        turns = [*example.prompt, {"role": "assistant", "content": example.completion}]
        traces.append(_tokenized(turns, tokenizer, tags))
        if sum(len(t.ids) - t.first for t in traces) >= tokens:
            break
    return traces


def _tokenized(turns: Sequence[Mapping[str, str]], tokenizer: Any, tags: Tags) -> HeldOut:
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    opening = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    first = next(i for i, (start, _) in enumerate(spans) if start >= len(opening))
    closes = text.index(tags.closes, len(opening))
    ends = len(opening) + len(str(turns[-1]["content"]))
    last = next(i for i, (start, _) in enumerate(spans) if start >= ends)
    spans = spans[first:]
    return HeldOut(
        ids=encoded["input_ids"],
        first=first,
        last=last,
        kinds={
            "reasoning": [start < closes for start, _ in spans],
            "answer": [start >= closes for start, _ in spans],
            "number": [any(c.isdigit() for c in text[start:end]) for start, end in spans],
        },
    )
