"""What the teacher is asked in practice: questions are cut alike in every block."""

import pytest

from pipeline import grading as grading_module
from pipeline.attempts import Attempt
from pipeline.grading import Grading
from pipeline.on_policy_options import OnPolicyOptions
from pipeline.recipe import TeacherOptions
from pipeline.records import Problem, Verdict
from serve.errors import CannotDo
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
    asked = Request(key="c", messages=grading.messages_of(alike[0]), begun="1")
    grading.continuations([asked], other)
    assert grading.engine.openings == [["What is ", "What is "], ["What is "], ["What is "]]


@pytest.mark.parametrize(
    ("said", "below"),
    [
        ({"method": "aligned", "mistake_below": 0.2}, 0.2),
        ({"method": "recover", "learn_from": "all"}, 0.1),
        ({"method": "span", "learn_from": "all"}, None),
    ],
)
def test_grading_may_stop_where_nothing_after_the_first_mistake_is_learnt(tmp_path, said, below):
    with Grading(TEACHER, OnPolicyOptions(**said), PRACTICE, tmp_path) as found:
        assert found._request(attempt(PRACTICE[0])).stop_below == below


class Reader(Recorder):
    """Says what it is asked for, and goes on from what it read."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def grade(self, requests, top):
        self.calls.append(["read", *(r.key for r in requests)])
        return super().grade(requests, top)

    def generate(self, requests):
        self.calls.append(["go on", *(r.key for r in requests)])
        return super().generate(requests)


def test_llama_cpp_reads_a_group_again_where_only_the_grades_outlived_a_kill(tmp_path):
    teacher = TEACHER.model_copy(update={"engine": "llama.cpp"})
    options = OnPolicyOptions(method="aligned", continuations=True)
    group = [attempt(p) for p in PRACTICE]
    keys = [a.key for a in group]

    def opened():
        found = Grading(teacher, options, PRACTICE, tmp_path)
        found._engine = Reader()
        return found

    def begun(grading, attempts):
        return [Request(key=a.key, messages=grading.messages_of(a), begun="1") for a in attempts]

    with opened() as first:
        grades = first.grades(group)
        first.continuations(begun(first, group[:1]), group)
        assert first.engine.calls == [["read", *keys], ["go on", keys[0]]]
    with opened() as again:
        assert again.grades(group) == grades
        assert again.engine.calls == []
        again.continuations(begun(again, group), group)
        assert again.engine.calls == [["read", *keys], ["go on", *keys[1:]]]
        assert again.tokens == 3 + 3
        again.continuations(begun(again, group), group)
        assert len(again.engine.calls) == 2


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


class Mute(Recorder):
    """Generates and cannot grade."""

    asked = 0

    def grade(self, requests, top):
        self.asked += 1
        raise CannotDo("no grades here")


def test_a_server_that_cannot_grade_is_asked_once(grading):
    grading._engine = mute = Mute()
    for problem in PRACTICE:
        with pytest.raises(CannotDo, match="no grades here"):
            grading.grades([attempt(problem)])
    assert mute.asked == 1


def test_one_that_graded_before_is_asked_again(grading):
    grading.grades([attempt(PRACTICE[0])])
    grading._engine = mute = Mute()
    for problem in PRACTICE[1:]:
        with pytest.raises(CannotDo):
            grading.grades([attempt(problem)])
    assert mute.asked == 2


def test_vllm_is_opened_for_what_practice_can_need(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(grading_module, "open_teacher", lambda t, prefixes: opened.append(t))
    teacher = TEACHER.model_copy(update={"engine": "vllm", "context_tokens": 18_432})
    options = OnPolicyOptions(method="aligned", max_tokens=1024)
    with Grading(teacher, options, PRACTICE, tmp_path) as found:
        found.engine  # noqa: B018
        found._engine = None
    # The student's 2,048, half as many again, the system turn and the longest question.
    assert opened[0].context_tokens == 3072 + len("s") + len(QUESTIONS[0])
