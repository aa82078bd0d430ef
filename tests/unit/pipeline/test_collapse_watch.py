"""What a look shows, and what the rule says of a row of looks."""

import pytest

from pipeline.attempts import Attempt
from pipeline.collapse_watch import advice, best_look, look_at, shifted_beta
from pipeline.records import Problem, Verdict
from serve.messages import Completion


def answer(item, passed, text="Answer: 1", finish="stop", extracted="1"):
    return Attempt(
        key="k",
        block=-1,
        problem=Problem(question=item, answer="1", family="f"),
        completion=Completion(
            text=text, finish=finish, prompt_tokens=1, completion_tokens=len(text)
        ),
        verdict=Verdict(passed=passed, reason="wrong", extracted=extracted, verifier="none"),
    )


def test_a_look_counts_what_is_there():
    loop = "ab" * 80
    look = look_at(
        [
            answer("first", True),
            answer("first", False, extracted="2"),
            answer("second", False, loop, "length", None),
            answer("second", False, loop, "length", None),
        ],
        0.25,
    )
    assert look == {
        "problems": 2.0,
        "k": 2.0,
        "entropy_nats": 0.25,
        "distinct_answers": 1.5,
        "pass_at_1": 0.25,
        "pass_at_k": 0.5,
        "gap": 0.25,
        "mean_tokens": 84.5,
        "clipped_share": 0.5,
        "end_share": 0.5,
        "loop_share": 0.5,
    }


def looks(*pairs):
    return [{"entropy_nats": e, "pass_at_k": k, "pass_at_1": k / 2} for e, k in pairs]


@pytest.mark.parametrize(
    ("seen", "beta", "shifted", "expected"),
    [
        (looks((1.0, 0.5)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.5, 0.6)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.9, 0.3)), 1.0, False, "go on"),
        (looks((1.0, 0.5), (0.8, 0.4)), 1.0, False, "shift"),
        (looks((1.0, 0.5), (0.8, 0.4)), 1.0, True, "stop"),
        (looks((1.0, 0.5), (0.8, 0.4)), 0.0, False, "stop"),
        (looks((1.0, 0.5), (0.9, 0.7), (0.7, 0.6)), 0.0, False, "stop"),
    ],
)
def test_the_rule(seen, beta, shifted, expected):
    assert advice(seen, beta, shifted) == expected


def test_halfway_to_forward_and_the_best_look():
    assert [shifted_beta(b) for b in (1.0, 0.5, 0.2, 0.1)] == [0.5, 0.25, 0.1, 0.0]
    assert best_look(looks((1.0, 0.4), (0.9, 0.6), (0.8, 0.6), (0.7, 0.2))) == 2
