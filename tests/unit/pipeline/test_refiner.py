"""Attempts: what a power loss left of them is what is graded, and each has room to be written."""

from pathlib import Path

import pytest
import torch

from pipeline import refiner
from pipeline import sampler as students
from pipeline.attempts import Attempt
from pipeline.lesson import told
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.progress import Progress
from pipeline.recipe import StudentOptions, TeacherOptions
from pipeline.records import Problem, Verdict
from pipeline.refiner import Refiner
from pipeline.run import Context
from pipeline.store import read_records, write_records
from serve.errors import DataError
from serve.messages import Completion
from tests.unit.pipeline.tiny import checkpoint

PROBLEMS = [Problem(question=f"{n} + 1 =", answer="2", family="sums") for n in range(3)]


class Sampler:
    checkpoint, model = Path("none"), torch.nn.Linear(1, 1)

    def answering(self):
        return None


def attempts(text):
    return [
        Attempt(
            key=problem.key,
            block=0,
            problem=problem,
            completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=1),
            verdict=Verdict(passed=False, reason="wrong", extracted=text, verifier="v"),
        )
        for problem in PROBLEMS
    ]


def test_attempts_that_are_known_are_not_taken_for_others(tmp_path, monkeypatch):
    log = tmp_path / "attempts.jsonl"
    write_records(log, attempts("before")[:1])
    monkeypatch.setattr(refiner, "sample_attempts", lambda *_: attempts("again"))
    one = Refiner(
        Sampler(),
        None,
        None,
        TeacherOptions(model="path:t", system="s"),
        StudentOptions(model="path:s", system="s"),
        OnPolicyOptions(block_attempts=3).resolved("aligned"),
        [],
        [],
        tmp_path,
        Context(seed=1, progress=Progress()),
    )
    found = one._attempts(PROBLEMS, 0)
    assert [a.completion.text for a in found] == ["before", "again", "again"]
    assert list(read_records(log, Attempt)) == found


def test_lessons_of_an_attempt_are_learnt_together(tmp_path, monkeypatch):
    learnt = []
    monkeypatch.setattr(refiner, "batch_of", lambda part, pad: learnt.append(part))
    student = Sampler()
    student.pad = 0
    options = OnPolicyOptions(batch_lessons=4, passes=2, replay=2).resolved("aligned")
    replay = [told((90, 90), 1), told((91, 91), 1)]
    said = StudentOptions(model="path:s", system="s")
    teacher = TeacherOptions(model="path:t", system="s")
    context = Context(seed=1, progress=Progress())
    one = Refiner(student, None, None, teacher, said, options, replay, [], tmp_path, context)
    monkeypatch.setattr(one, "_update", lambda _: 0.0)
    lessons = [told((n, n), 1, f"attempt {n % 8}") for n in range(16)]
    one._learn(lessons, 0)
    for number in range(2):
        ordered = [lesson for part in learnt[5 * number : 5 * number + 5] for lesson in part]
        assert sorted(lesson.ids for lesson in ordered) == sorted(
            lesson.ids for lesson in (*lessons, *replay)
        )
        at = {lesson.ids[0]: place for place, lesson in enumerate(ordered)}
        assert all(at[n + 8] == at[n] + 1 for n in range(8))


def test_an_attempt_has_room_after_the_longest_prompt(tmp_path):
    folder = checkpoint(tmp_path / "student", 0, max_position_embeddings=2048)
    student = StudentOptions(model=f"path:{folder}", system="s")
    short, long = "1 + 1 =", "1 + " * 300
    sampler = students.Sampler(folder, student, 128, questions=[short, long])
    prompt = len(sampler.prompt_ids(long))
    assert prompt > 1024
    assert sampler.engine.context_tokens == prompt + 128
    assert students.Sampler(folder, student, 128, questions=[short]).engine.context_tokens == 1024
    with pytest.raises(DataError, match=rf"a prompt of {prompt} tokens and an attempt of 1024 do"):
        students.Sampler(folder, student, 1024, questions=[short, long])
