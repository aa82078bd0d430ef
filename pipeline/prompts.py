"""The prompts of both sides: the teacher's with worked examples, the student's without."""

from __future__ import annotations

from pipeline.recipe import StudentOptions, TeacherOptions
from serve.messages import Message


def teacher_messages(
    teacher: TeacherOptions, question: str, family: str | None = None
) -> tuple[Message, ...]:
    """System prompt, each worked example as a finished turn, then the question.

    A problem of a family that has examples of its own sees those and the ones without a family;
    any other question sees all of them.
    """
    examples = teacher.examples
    if any(example.family == family for example in examples if example.family):
        examples = tuple(e for e in examples if e.family in (None, family))
    turns = [Message(role="system", content=teacher.system)]
    for example in examples:
        turns.append(Message(role="user", content=example.question))
        turns.append(
            Message(
                role="assistant", content=f"{example.reasoning.strip()}\nAnswer: {example.answer}"
            )
        )
    return (*turns, Message(role="user", content=question))


def student_messages(student: StudentOptions, question: str) -> tuple[Message, ...]:
    """System prompt and the question: the same turns in training, evaluation and chat."""
    return (
        Message(role="system", content=student.system),
        Message(role="user", content=question),
    )
