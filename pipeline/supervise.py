"""Turns traces into training examples: reasoning in the student's tags, then the answer.

Which part of a trace is supervision is a choice, a view: `pipeline/views.py` has them.
"""

from __future__ import annotations

from typing import Any

from pipeline.prompts import student_messages
from pipeline.recipe import StudentOptions
from pipeline.records import Example, Problem, Trace
from pipeline.tasks.extract import ANNOUNCED, BOX
from serve.reasoning import FORMS, join_reasoning, split_reasoning


def full_example(trace: Trace, student: StudentOptions) -> Example:
    """The whole reasoning, then the answer the verdict was given on."""
    answer = trace.verdict.extracted or ""
    return example_of(
        trace.key, trace.problem, trace.completion.text, answer, student, trace=trace.key
    )


def example_of(
    key: str, problem: Problem, text: str, answer: str, student: StudentOptions, *, trace: str = ""
) -> Example:
    """`text` in the canonical form, as the answer to `problem` in the student's prompt; `trace`:
    the key of the one it comes from, if any."""
    return Example(
        key=key,
        family=problem.family,
        prompt=tuple(m.model_dump() for m in student_messages(student, problem.question)),
        completion=join_reasoning(reasoning_of(text), answer, FORMS[student.tags]),
        trace=trace,
    )


def rendered_ids(example: Example, tokenizer: Any) -> list[int]:
    """Token ids of an example as it is trained on: prompt, completion and turn marks."""
    turns = [*example.prompt, {"role": "assistant", "content": example.completion}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def rendered_answer(example: Example, tokenizer: Any) -> tuple[list[int], int]:
    """Those ids, and how many of them are prompt."""
    opening = tokenizer.apply_chat_template(
        list(example.prompt), tokenize=False, add_generation_prompt=True
    )
    first = len(tokenizer(opening, add_special_tokens=False)["input_ids"])
    return rendered_ids(example, tokenizer), first


def end_of_turn(tokenizer: Any) -> str | None:
    """The special token that the chat template ends an assistant's turn with; None where it is
    plain text. Base models of Qwen3 end a turn with another token than a text."""
    said = "retort"
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(said)[2].lstrip()
    special = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    found = [token for token in special | set(tokenizer.all_special_tokens) if token]
    return max((t for t in found if after.startswith(t)), key=len, default=None)


def supervised_tokens(example: Example, tokenizer: Any) -> int:
    """Tokens that carry loss: those of the completion, and the end of the turn."""
    return len(tokenizer(example.completion, add_special_tokens=False)["input_ids"]) + 1


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
