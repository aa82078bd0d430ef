"""Attempts that both tokenizers cannot spell are counted, and refused where there are no others."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from pipeline import teaching as module
from pipeline.attempts import Attempt
from pipeline.methods import aligned
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import TeacherOptions
from pipeline.records import Problem, Verdict
from pipeline.run import Context
from pipeline.teaching import Teaching
from serve.errors import DataError
from serve.messages import Completion, Grade

PIECES = [b"1", b"2", None]


class Side:
    """A student and a teacher of two characters; the teacher grades nothing but "1"."""

    end, pad, model = 2, 0, None
    engine = property(lambda self: self)

    def vocabulary(self):
        return PIECES

    def end_ids(self):
        return (2,)

    def encode(self, texts):
        return [[PIECES.index(t.encode())] for t in texts]

    def prompt_ids(self, question):
        return [0]

    def groups(self, attempts):
        return [[a] for a in attempts]

    def grades(self, group):
        return {a.key: self.grade(a) for a in group}

    def grade(self, attempt):
        if attempt.completion.text != "1":
            return Grade.of_nothing(read_tokens=1)
        return Grade(
            scores={"ids": (0,), "byte_offsets": (0,), "logprobs_nats": (-3.0,)},
            top_ids=((1, 0), (2,)),
            top_logprobs_nats=((-0.1, -3.0), (-0.1,)),
            end_nats=-0.1,
            read_tokens=1,
            text_bytes=1,
        )


def attempt(text):
    return Attempt(
        key=text,
        block=0,
        problem=Problem(question="q", answer="2", family="f"),
        completion=Completion(
            text=text,
            ids=tuple(int(c) - 1 for c in text),
            finish="stop",
            prompt_tokens=1,
            completion_tokens=len(text),
        ),
        verdict=Verdict(passed=False, reason="wrong", extracted=None, verifier="none"),
    )


def lessons_of(*texts):
    side = Side()
    teacher = TeacherOptions(engine="http", model="m", base_url="http://localhost/v1", system="s")
    context = Context(1, Progress(), logging.getLogger("retort"))
    teaching = Teaching(side, side, None, teacher, context, lambda *_, **__: nullcontext())
    options = OnPolicyOptions(method="aligned", beta=0.0)
    return teaching, teaching.lessons([attempt(t) for t in texts], options)


def test_those_that_are_not_spelt_are_counted(caplog):
    teaching, lessons = lessons_of("1", "12", "11")
    assert [lesson.ids for lesson in lessons] == [(0, 0)]
    assert teaching.unspelt == 2
    assert caplog.messages == ["2 of 3 attempts cannot be aligned"]


def test_the_students_own_log_probabilities_are_asked_of_those_alone_that_need_them(monkeypatch):
    teaching, _ = lessons_of("1")
    graded = [SimpleNamespace(attempt=SimpleNamespace(key=key)) for key in "abcd"]
    monkeypatch.setattr(aligned, "needs_own_nats", lambda g, _: g.attempt.key in "bd")
    monkeypatch.setattr(teaching, "_as_graded", lambda g: SimpleNamespace(places=1, of=g))
    monkeypatch.setattr(module, "batch_of", lambda lessons, pad: lessons)
    asked = []

    def token_logprobs(model, lessons):
        asked.extend(lesson.of.attempt.key for lesson in lessons)
        return torch.full((len(lessons),), -0.5)

    monkeypatch.setattr(module, "token_logprobs", token_logprobs)
    found = teaching._own_nats(graded, OnPolicyOptions(method="aligned"))
    assert (found, asked) == ({"b": [-0.5], "d": [-0.5]}, ["b", "d"])
    found = teaching._own_nats(graded, OnPolicyOptions(method="span"))
    assert [*found] == [*"abcd"]


def test_nothing_but_those_is_refused():
    others = ["12", "11", "21", "22", "112", "121", "122", "111"]
    with pytest.raises(DataError) as raised:
        lessons_of(*others)
    assert str(raised.value).startswith("no text of 8 attempts is spelt byte for byte")


def test_a_few_wrong_ones_of_a_good_student_end_nothing():
    teaching, lessons = lessons_of("12", "11")
    assert (lessons, teaching.unspelt) == ([], 2)
