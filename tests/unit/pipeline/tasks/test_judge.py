import time

import pytest

from pipeline.records import Problem
from pipeline.tasks import judge as judge_module
from pipeline.tasks.gym import family_problems
from pipeline.tasks.judge import Judge
from serve.messages import Completion

EQUATION = next(
    family_problems("simple_equations", {"min_value": 1, "max_value": 20}, seed=3, size=1)
)
MATH = Problem(question="Half of one?", answer="1/2", family="own")

CHEATS = [
    "",
    " ",
    "0 or 1 or 2 or 3",
    "the correct answer",
    "\\boxed{}",
    "answer",
    "x",
    "None",
    "True",
    "nan",
    "inf",
    "*",
    "1/2 or 3/4",
    "1/2 is wrong",
    "{1/2, 1/3}",
    "[0, 1]",
    "any number",
    "__import__('os')",
    "1" * 4000,
    "1/0",
    "9**9**9**9",
    "\\frac{1}{",
    "𝟙",
]


@pytest.fixture(scope="module")
def judge():
    with Judge() as opened:
        yield opened


def completion(text: str, finish: str = "stop") -> Completion:
    return Completion(text=text, finish=finish, prompt_tokens=1, completion_tokens=1)


@pytest.mark.parametrize("problem", [EQUATION, MATH], ids=["gym", "math"])
@pytest.mark.parametrize("cheat", CHEATS)
def test_no_cheat_is_accepted(judge, problem, cheat):
    assert judge.verdict(problem, completion(f"Answer: {cheat}")).passed is not True


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (EQUATION, f"Answer: {EQUATION.answer}"),
        (EQUATION, f"so x = {EQUATION.answer}"),
        (MATH, "Final answer: 0.5"),
        (MATH, "\\boxed{\\frac{1}{2}}"),
        (MATH, "<think>halve it</think>\nAnswer: 1/2"),
    ],
)
def test_right_answers_pass_in_every_form(judge, problem, text):
    verdict = judge.verdict(problem, completion(text))
    assert (verdict.passed, verdict.reason) == (True, "correct")


def test_a_cut_answer_is_truncated_even_when_it_says_the_answer(judge):
    verdict = judge.verdict(MATH, completion("Answer: 1/2", "length"))
    assert (verdict.passed, verdict.reason) == (False, "truncated")


def test_the_verdict_names_its_verifier(judge):
    assert judge.verdict(MATH, completion("Answer: 1")).verifier == "math@0.9.0"
    assert judge.judge(EQUATION, "x").verifier == "gym:simple_equations@0.1.25"


def test_an_unknown_family_is_not_scored_rather_than_wrong(judge):
    verdict = judge.judge(MATH.model_copy(update={"scorer": "gym:nowhere"}), "1/2")
    assert (verdict.passed, verdict.reason) == (None, "verifier_error")


def test_a_verifier_that_hangs_is_killed_and_the_next_one_works(monkeypatch):
    with Judge(time_limit_s=20.0) as judge:
        assert judge.judge(MATH, "1/2").passed is True
        child = judge._child
        child.send_signal(19)  # SIGSTOP: the child is there and says nothing
        judge._time_limit_s = 0.5
        started_s = time.monotonic()
        verdict = judge.judge(MATH, "1/2")
        assert (verdict.passed, verdict.reason) == (None, "verifier_timeout")
        assert time.monotonic() - started_s < 2.0
        assert child.poll() is not None
        judge._time_limit_s = 20.0
        assert judge.judge(MATH, "1/2").passed is True


def test_the_limit_is_two_seconds():
    assert judge_module.TIME_LIMIT_S == 2.0


LETTER = ["C", "c", "(C)", "C.", "C) two", "C: two", "\\text{C}", "**C**", "C) A dog"]
OTHER = ["B", "(B) not C", "Cat", "A C", "two", "C or D", "BC", "", "cc"]
OTHER += ["C, D", "A, B, C, D", "C. D.", "C and D", "(C), (D)"]


@pytest.mark.parametrize(
    ("answer", "right"), [*((text, True) for text in LETTER), *((text, False) for text in OTHER)]
)
def test_a_choice_is_its_letter_alone_or_before_its_text(answer, right):
    problem = Problem(question="Which?", answer="C", family="own", scorer="choice")
    assert judge_module.is_right(problem, answer) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Paris.\n\nIt lies on the Seine.", True),
        ("<think>\nParis or Lyon?\n</think>\nIt is Lyon.\n\nA fine town.", False),
        ("First I thought of Paris.\nAnswer: Lyon", False),
        ("It is Lyon.", False),
    ],
)
def test_an_answer_that_is_to_contain_a_word_need_not_end_with_it(judge, text, right):
    problem = Problem(question="Capital?", answer="Paris", family="general", scorer="contains")
    said = Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=1)
    assert judge.verdict(problem, said).passed is right


def test_a_family_scores_as_exactly_as_its_options_say():
    options = {"max_num_decimal_places": 6, "precision": 12}
    (problem,) = family_problems("decimal_arithmetic", options, 1, 1)
    assert problem.entry["options"] == options
    assert judge_module.is_right(problem, problem.answer)
    shortened = f"{float(problem.answer):.3f}"
    assert float(shortened) != float(problem.answer)
    assert not judge_module.is_right(problem, shortened)
