"""Spans are exact: their log probabilities sum to the sequence's, on both sides, for any text."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.attempts import Attempt
from pipeline.byte_spans import Cut, Run, Span, span_sums, spans, teacher_form, whole_text
from pipeline.lesson import Advantage
from pipeline.methods import span as span_method
from pipeline.methods.graded import Tongues, align, first_mistake
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.records import Problem, Verdict
from serve.messages import Completion, Grade, TokenScores

TEXTS = st.text(
    alphabet=st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from("0123456789 \n\t<>/think|im_end+-*=ÄßЖ漢🙂"),
    ),
    max_size=60,
)


def cut_at(raw, places):
    """Token starts, and the end: tokens may split a character, and may be empty."""
    return [0, *sorted(p % (len(raw) + 1) for p in places), len(raw)]


PLACES = st.lists(st.integers(0, 10_000), max_size=30)


@settings(max_examples=300)
@given(TEXTS, PLACES, PLACES, st.randoms(use_true_random=False))
def test_spans_of_any_two_tokenizations_sum_to_the_sequence(text, mine, theirs, draw):
    raw = text.encode()
    student, teacher = cut_at(raw, mine), cut_at(raw, theirs)
    found = spans(student, teacher, whole_text(text)[1])
    for starts, side in ((student, 0), (teacher, 1)):
        nats = [draw.uniform(-9, 0) for _ in starts[1:]]
        sums = span_sums(nats, [(s.first[side], s.after[side]) for s in found])
        if raw:
            # Empty tokens before the first and after the last byte belong to no span's bytes.
            first, after = found[0].first[side], found[-1].after[side]
            assert starts[first] == 0
            assert starts[after] == len(raw)
            assert sum(sums) == pytest.approx(sum(nats[first:after]), abs=1e-9)
    for one in found:
        here = raw[student[one.first.student] : student[one.after.student]]
        there = raw[teacher[one.first.teacher] : teacher[one.after.teacher]]
        assert here == there != b""


@settings(max_examples=200)
@given(TEXTS, TEXTS)
def test_runs_say_which_byte_of_the_tagged_text_is_which_of_the_plain_one(reasoning, answer):
    text = f"<think>\n{reasoning}\n</think>\n{answer}"
    plain, runs = teacher_form(text)
    raw, short = text.encode(), plain.encode()
    assert sum(run.length for run in runs) == len(short)
    for run in runs:
        there = short[run.teacher : run.teacher + run.length]
        assert raw[run.student : run.student + run.length] == there
    if "</think>" not in reasoning:
        assert plain == f"{reasoning}\n{answer}"


def test_tags_are_taken_out_and_spans_never_cross_them():
    text = "<think>\n1 + 1 = 2\n</think>\nAnswer: 2"
    plain, runs = teacher_form(text)
    assert plain == "1 + 1 = 2\nAnswer: 2"
    assert runs == [Run(8, 0, 10), Run(27, 10, 9)]
    student = [*range(8), 8, 9, 18, 27, 36]
    teacher = [0, 1, 10, 19]
    assert spans(student, teacher, runs) == [
        Span(Cut(8, 0), Cut(9, 1)),
        Span(Cut(9, 1), Cut(10, 2)),
        Span(Cut(11, 2), Cut(12, 3)),
    ]


def test_a_text_without_tags_or_with_an_open_one():
    assert teacher_form("Answer: 2") == ("Answer: 2", [Run(0, 0, 9)])
    assert teacher_form("<think>\n1 + 1") == ("1 + 1", [Run(8, 0, 5)])
    assert teacher_form("") == ("", [])


def graded_of(pieces, teacher_nats, end_nats=-0.1, finish="stop", passed=False):
    """Equal tokenizers: both sides write `pieces`."""
    text = "".join(pieces)
    attempt = Attempt(
        key="k",
        block=0,
        problem=Problem(question="q", answer="1", family="f"),
        completion=Completion(
            text=text,
            ids=tuple(range(len(pieces))),
            finish=finish,
            prompt_tokens=1,
            completion_tokens=len(pieces),
        ),
        verdict=Verdict(passed=passed, reason="wrong", extracted=None, verifier="none"),
    )
    starts = [sum(len(p.encode()) for p in pieces[:i]) for i in range(len(pieces))]
    grade = Grade(
        scores=TokenScores(
            ids=attempt.completion.ids, byte_offsets=tuple(starts), logprobs_nats=teacher_nats
        ),
        top_ids=((),) * (len(pieces) + 1),
        top_logprobs_nats=((),) * (len(pieces) + 1),
        end_nats=end_nats,
        read_tokens=1,
        text_bytes=len(text.encode()),
    )
    tongues = Tongues([p.encode() for p in pieces], 99, None)
    return align(attempt, (7, 8), grade, whole_text(text)[1], tongues), tongues


def test_with_equal_tokenizers_span_is_the_reverse_kl_of_each_sampled_token():
    pieces = ("4", " +", " 5", " =", " 9", "\n", "Ж", "漢")
    teacher_nats = (-0.1, -0.2, -3.0, -0.4, -0.5, -6.0, -0.7, -0.8)
    own = (-0.3, -0.1, -0.5, -0.6, -0.2, -0.3, -0.9, -0.4, -1.5)
    graded, tongues = graded_of(pieces, teacher_nats)
    options = OnPolicyOptions(method="span", learn_from="all")
    (lesson,) = span_method.lessons([graded], options, tongues, {"k": own})
    expected = [
        Advantage(2 + i, pytest.approx(max(-5.0, t - o)), o)
        for i, (t, o) in enumerate(zip((*teacher_nats, -0.1), own, strict=True))
    ]
    assert list(lesson.advantages) == expected
    assert lesson.ids == (7, 8, *range(8), 99)


def test_the_first_mistake_is_where_the_teacher_gives_a_tenth_or_less():
    options = OnPolicyOptions(method="span")
    low = math.log(0.1) - 1e-6
    graded, tongues = graded_of(("1", "2", "3"), (-0.1, low, low))
    assert first_mistake(graded, options) == 1
    (lesson,) = span_method.lessons([graded], options, tongues, {"k": (-1.0,) * 4})
    assert [a.at for a in lesson.advantages] == [2, 3]
    assert lesson.ids == (7, 8, 0, 1)
    assert first_mistake(graded_of(("1", "2"), (-0.1, -0.1), low)[0], options) == 2
    assert first_mistake(graded_of(("1", "2"), (-0.1, -0.1), low, "length")[0], options) is None
