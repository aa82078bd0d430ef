"""What the teacher is asked in practice: questions are cut alike in every block."""

import pytest

from pipeline.attempts import Attempt
from pipeline.grading import Grading
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import TeacherOptions
from pipeline.records import Problem, Verdict
from serve.messages import Completion, Grade, Request

TEACHER = TeacherOptions(engine="http", model="m", base_url="http://localhost/v1", system="s")
QUESTIONS = ["What is 11 + 2?", "What is 11 + 3?", "What is 47 + 2?"]
PRACTICE = [Problem(question=q, answer="1", family="sums") for q in QUESTIONS]
SAID = Completion(text="1", finish="stop", prompt_tokens=1, completion_tokens=1)


class Recorder:
    """Keeps what reaches an engine."""

    batch_invariant = True

    def __init__(self):
        self.openings = []

    def grade(self, requests, top):
        self.openings.append([r.opening for r in requests])
        return [Grade.of_nothing(read_tokens=1) for _ in requests]

    def generate(self, requests):
        self.openings.append([r.opening for r in requests])
        return [(r.key, SAID) for r in requests]

    def close(self):
        pass


@pytest.fixture
def grading(tmp_path):
    with Grading(TEACHER, OnPolicyOptions(method="aligned"), PRACTICE, tmp_path) as found:
        found._engine = Recorder()
        yield found


def attempt(problem):
    verdict = Verdict(passed=False, reason="wrong", extracted=None, verifier="none")
    return Attempt(key=problem.key, block=0, problem=problem, completion=SAID, verdict=verdict)


def test_a_block_s_own_questions_do_not_change_where_they_are_cut(grading):
    alike, other = [attempt(p) for p in PRACTICE[:2]], [attempt(PRACTICE[2])]
    grading.grades(alike)
    grading.grades(other)
    grading.continuations([Request(key="c", messages=grading.messages_of(alike[0]), begun="1")])
    assert grading.engine.openings == [["What is ", "What is "], ["What is "], ["What is "]]


def test_what_a_killed_practice_was_told_is_read_from_its_logs(grading, tmp_path):
    attempts = [attempt(p) for p in PRACTICE]
    told = grading.grades(attempts)
    asked = [Request(key="c", messages=grading.messages_of(attempts[0]), begun="1")]
    said = grading.continuations(asked)
    assert grading.tokens == 3 + 1
    with Grading(TEACHER, OnPolicyOptions(method="aligned"), PRACTICE, tmp_path) as again:
        assert again.tokens == 4
        assert again.grades(attempts) == told
        assert again.continuations(asked) == said
        assert again._engine is None
        assert again.tokens == 4
