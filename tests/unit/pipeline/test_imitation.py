"""Quarters by length, and likeness to a teacher of right and of wrong answers."""

import pytest

from pipeline.imitation import Answered, by_length, likeness
from serve.messages import Completion


def answered(text, right, tokens=1):
    said = Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=tokens)
    return Answered(said, right)


def test_quarters_by_length():
    answers = {f"i{n}": answered("", n < 4, tokens=10 + n) for n in range(8)}
    parts = by_length(answers)
    assert [(p["from_tokens"], p["to_tokens"], p["items"], p["accuracy"]) for p in parts] == [
        (10, 11, 2, 1.0),
        (12, 13, 2, 1.0),
        (14, 15, 2, 0.0),
        (16, 17, 2, 0.0),
    ]


def test_answers_of_one_length_stay_together():
    answers = {f"i{n}": answered("", True, tokens=5 if n < 5 else 9) for n in range(8)}
    assert [(p["from_tokens"], p["items"]) for p in by_length(answers)] == [(5, 5), (9, 3)]
    assert by_length({}) == []


def test_a_student_that_is_as_like_when_wrong_imitates():
    teacher = {n: answered(f"<think>\n{n} + 1 = 2\n</think>\nAnswer: 2", True) for n in "abc"}
    own = {
        "a": answered("<think>\na + 1 = 2\n</think>\nAnswer: 2", True),
        "b": answered("<think>\nb + 1 = 2\n</think>\nAnswer: 3", False),
        "c": answered("<think>\nqqqqqqqqqq\n</think>\nAnswer: 3", False),
    }
    assert likeness(own, teacher) == {
        "items": 3,
        "accuracy": pytest.approx(1 / 3),
        "all": pytest.approx(2 / 3),
        "right": 1.0,
        "wrong": 0.5,
    }
    assert likeness({}, teacher) is None


@pytest.mark.parametrize(("alike", "parts"), [(80, [80, 20]), (60, [60, 15, 25])])
def test_after_many_of_one_length_no_answer_is_a_part_of_its_own(alike, parts):
    answers = {f"i{n}": answered("", True, tokens=max(8, n)) for n in range(alike, 100)}
    answers |= {f"j{n}": answered("", True, tokens=8) for n in range(alike)}
    assert [part["items"] for part in by_length(answers)] == parts
