import pytest

from pipeline.curate import drop_reason, foreign_letters, similarity
from pipeline.recipe import CurateOptions
from pipeline.records import Problem, Trace, Verdict
from serve.messages import Completion

PROBLEM = Problem(question="1 + 1 =", answer="2", family="sums")
OPTIONS = CurateOptions()


def trace(
    text: str, passed: bool | None = True, reason: str = "correct", tokens: int = 20
) -> Trace:
    return Trace(
        key="k",
        problem=PROBLEM,
        sample=0,
        model="m",
        prompt_sha256="p",
        completion=Completion(text=text, finish="stop", prompt_tokens=1, completion_tokens=tokens),
        verdict=Verdict(passed=passed, reason=reason, extracted="2", verifier="v"),
    )


GOOD = trace("1 + 1 = 2\nAnswer: 2")


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        (GOOD, None),
        (trace("1 + 1 = 3\nAnswer: 3", False, "wrong"), "wrong"),
        (trace("", False, "no_answer"), "no_answer"),
        (trace("1", False, "truncated"), "truncated"),
        (trace("1 + 1 = 2\nAnswer: 2", None, "verifier_timeout"), "not_scored"),
        (trace("1 + 1 = 2\nAnswer: 2", tokens=3), "too_short"),
        (trace("1 + 1 = 2\nAnswer: 2", tokens=100_001), "too_long"),
        (trace("Answer: 2"), "no_reasoning"),
        (trace("一加一等于二\nAnswer: 2"), "foreign_script"),
        (trace("so\nso\nso\nso\nAnswer: 2"), "repeats_itself"),
    ],
)
def test_every_drop_has_its_reason(candidate, reason):
    assert drop_reason(candidate, [], OPTIONS) == reason


def test_keeping_everything_keeps_wrong_ones_too():
    everything = CurateOptions(keep="everything")
    assert drop_reason(trace("x", False, "wrong"), [], everything) is None


def test_duplicates_of_the_same_problem_are_dropped():
    assert drop_reason(GOOD, [GOOD], OPTIONS) == "duplicate"
    near = trace("1 + 1 =  2\nAnswer: 2")
    assert drop_reason(near, [GOOD], OPTIONS) == "near_duplicate"
    other = trace("one and one make two, since two follows one\nAnswer: 2")
    assert drop_reason(other, [GOOD], OPTIONS) is None
    assert drop_reason(other, [GOOD] * 4, OPTIONS) == "over_quota"


def test_greek_is_mathematics():
    assert foreign_letters("π and ∑ and ℝ", ("LATIN",)) == ""
    assert foreign_letters("да", ("LATIN",)) == "да"


def test_similarity_is_one_for_equal_and_zero_for_disjoint():
    assert similarity("same words", "Same  words") == 1.0
    assert similarity("abcdefgh", "12345678") == 0.0
