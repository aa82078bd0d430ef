"""Grades row by row: whole ones, and those that may end early."""

import math

import numpy as np
import pytest

from serve.engines import scoring
from serve.engines.scoring import Grader

# Ten tokens of two bytes; the model gives each 0.5, but the third 0.05.
IDS, VOCABULARY, END = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1], 12, 11
CHANCES = [0.5, 0.5, 0.05, *[0.5] * 7]


def row(token: int, chance: float) -> np.ndarray:
    rest = (1 - chance) / (VOCABULARY - 1)
    return np.log([chance if i == token else rest for i in range(VOCABULARY)], dtype=np.float32)


def graded(stop_below: float | None, rows: int):
    grader = Grader(IDS, [2 * i + 2 for i in range(len(IDS))], [END], 2, stop_below)
    enough = []
    for token, chance in [*zip(IDS, CHANCES, strict=True), (END, 0.25)][:rows]:
        grader.add(row(token, chance))
        enough.append(grader.has_enough())
    return grader, enough


@pytest.fixture(autouse=True)
def four_tokens_after_the_unlikely_one(monkeypatch):
    monkeypatch.setattr(scoring, "AFTER_STOP", 4)


def test_a_whole_grade_has_every_token_and_the_end():
    grader, enough = graded(None, 11)
    grade = grader.grade(17)
    assert not any(enough)
    assert grade.scores.ids == tuple(IDS)
    assert grade.scores.byte_offsets == (0, 2, 4, 6, 8, 10, 12, 14, 16, 18)
    assert grade.scores.logprobs_nats == pytest.approx([math.log(c) for c in CHANCES], abs=1e-5)
    assert grade.end_nats == pytest.approx(math.log(0.25), abs=1e-5)
    assert (len(grade.top_ids), grade.read_tokens) == (11, 17)
    assert (grade.text_bytes, grade.stopped_at) == (20, None)


def test_grading_may_end_some_tokens_after_one_that_is_too_unlikely():
    _, enough = graded(0.1, 8)
    assert enough == [False] * 6 + [True] * 2
    assert not any(graded(0.01, 11)[1])


def test_a_grade_that_ended_early_says_where():
    grader, _ = graded(0.1, 7)
    grade = grader.grade(read_tokens=12)
    assert grade.scores.ids == (1, 2, 3, 4, 5, 6, 7)
    assert grade.scores.byte_offsets == (0, 2, 4, 6, 8, 10, 12)
    assert (len(grade.top_ids), grade.read_tokens) == (7, 12)
    assert (grade.text_bytes, grade.stopped_at, grade.end_nats) == (20, 14, 0.0)


def test_every_row_but_the_last_is_early_and_the_last_is_whole():
    assert graded(0.1, 10)[0].grade(17).stopped_at == 20
    assert graded(0.1, 11)[0].grade(17).stopped_at is None
