"""What the page marks and shows of answers."""

import pytest

from apps.conversation import Said, first_difference
from apps.shown import differences, numbers, reasoning_and_answer
from serve.conversations import Reply

TEACHER = Said(answer="6 + 3 = 9\nAnswer: 9")


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [
        ("one two", "one two", None),
        ("one two", "one  two", None),
        ("one two", "one three", 4),
        ("one twelve", "one twenty", 4),
        ("one two", "one", 4),
        ("one", "one two", None),
        ("", "one", None),
        ("one", "", 0),
    ],
)
def test_the_first_word_that_differs_is_found(first, second, at):
    ours, theirs = (Said(answer=text, finish="stop") for text in (first, second))
    assert first_difference(ours, theirs) == at


@pytest.mark.parametrize(
    ("first", "second", "at"),
    [
        ("one two three", "one", None),
        ("one two three", "one tw", None),
        ("one two three", "", None),
        ("one two three", "one ten", 4),
        ("one two three", "one ten or", 4),
    ],
)
def test_what_an_answer_has_not_said_yet_is_no_difference(first, second, at):
    ours, growing = Said(answer=first, finish="stop"), Said(answer=second)
    assert first_difference(ours, growing) == at
    assert first_difference(growing, ours) == at


def test_a_column_that_cannot_answer_is_compared_with_none():
    failed = Said(problem="does not load")
    one, two = (Said(answer=text, finish="stop") for text in ("6 + 3 = 9", "6 + 3 = 8"))
    assert differences([failed, one, two]) == [None, 8, 8]
    assert differences([failed, one]) == [None, None]


def test_where_the_words_stand_makes_no_difference():
    """The teacher answers in one part, the student in two: the words are the same."""
    student = Said(reasoning="6 + 3 = 9", answer="Answer: 9")
    assert differences([TEACHER, student]) == [None, None]
    assert differences([TEACHER]) == [None]


def test_the_word_is_marked_in_the_part_where_it_stands():
    in_reasoning = Said(reasoning="6 + 3 = 8", answer="Answer: 8")
    in_answer = Said(reasoning="6 + 3 = 9", answer="Answer: <8>")
    marks = differences([TEACHER, in_reasoning, in_answer])
    assert marks == [8, 8, 18]
    assert reasoning_and_answer(in_reasoning, marks[1]) == (
        '<div class="said">6 + 3 = <mark>8</mark></div>',
        '<div class="said">Answer: 8</div>',
    )
    assert reasoning_and_answer(in_answer, marks[2]) == (
        '<div class="said">6 + 3 = 9</div>',
        '<div class="said">Answer: <mark>&lt;8&gt;</mark></div>',
    )


def test_why_an_answer_ended_is_said():
    cut = Said(answer="x", tokens=12, tokens_per_s=3.25, first_token_s=0.5, finish="length")
    assert numbers(cut, "✗ right: 9") == (
        '<div class="numbers">12 tokens · 3.2 tokens/s · first token after 0.50 s · '
        "cut at the longest answer ✗ right: 9</div>"
    )
    assert numbers(Said()) == '<div class="numbers">…</div>'
    assert numbers(Said(problem="does not load")) == ""


def test_the_rate_is_that_of_the_tokens_after_the_first_piece():
    said = Said().after(Reply(prompt_tokens=30), 0.1)
    assert (said.tokens_per_s, said.first_token_s) == (0.0, 0.0)
    said = said.after(Reply(tokens=5, reasoning="6"), 0.5)
    assert (said.tokens, said.tokens_per_s, said.first_token_s) == (5, 0.0, 0.5)
    said = said.after(Reply(tokens=10, reasoning=" + 3"), 1.0).after(Reply(finish="stop"), 1.5)
    assert (said.tokens, said.tokens_per_s, said.first_token_s) == (15, 10.0, 0.5)
