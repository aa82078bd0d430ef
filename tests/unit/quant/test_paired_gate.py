"""The verdict: what passes, what fails, and what too few items cannot say."""

import numpy as np
import pytest

from quant.gate import on_regression_cases, paired_verdict
from quant.select import Candidate, choose
from quant.stats import alpha_per_look, cautious_interval


def items(same: int, gained: int, lost: int, family: str = "f") -> tuple[dict, dict, dict]:
    """`same` items right on both sides, then the flips."""
    student, artifact = {}, {}
    for index in range(same + gained + lost):
        key = f"{family}-{index}"
        student[key] = index < same or index >= same + gained
        artifact[key] = index < same + gained
    return student, artifact, dict.fromkeys(student, family)


def merged(*groups):
    return tuple({k: v for group in groups for k, v in group[part].items()} for part in range(3))


@pytest.mark.parametrize(
    ("counts", "outcome", "why"),
    [
        ((900, 0, 0), "pass", "+0.0 points [-0.3, 0.3]: within 3 points"),
        (
            (60, 0, 0),
            "inconclusive",
            "+0.0 points [-4.3, 4.3]: the drop may exceed 3 points; "
            "60 items show drops from 4.1 points",
        ),
        ((860, 18, 22), "pass", "-0.4 points [-1.6, 0.7]: within 3 points"),
        ((800, 5, 95), "fail", "-10.0 points [-11.9, -8.3]: a drop beyond 3 points"),
        (
            (40, 2, 3),
            "inconclusive",
            "-2.2 points [-12.0, 7.1]: the drop may exceed 3 points; "
            "45 items show drops from 12.1 points",
        ),
    ],
)
def test_outcomes(counts, outcome, why):
    verdict = paired_verdict("a", *items(*counts), margin=0.03)
    assert (verdict.outcome, verdict.why) == (outcome, why)
    assert (verdict.gained, verdict.lost, verdict.items) == (counts[1], counts[2], sum(counts))


def test_a_family_that_fell_fails_though_the_whole_is_within_the_margin():
    groups = [items(400, 20, 5, "strong"), items(80, 0, 20, "weak")]
    verdict = paired_verdict("a", *merged(*groups), margin=0.03)
    assert verdict.difference == pytest.approx(-5 / 525)
    assert verdict.outcome == "fail"
    assert verdict.why.endswith("; weak fell for certain, by estimate beyond 3 points")
    weak, strong = verdict.families["weak"], verdict.families["strong"]
    assert (weak.lost, weak.difference) == (20, -0.2)
    assert weak.p_holm == 2 * weak.p_value
    assert strong.p_holm == strong.p_value  # the second step of two


def test_a_family_s_bad_luck_is_not_a_fall():
    groups = [items(200, 10, 2, "a"), items(200, 1, 7, "b"), items(200, 5, 6, "c")]
    verdict = paired_verdict("a", *merged(*groups), margin=0.03)
    assert verdict.families["b"].p_value == pytest.approx(0.0703, abs=1e-4)
    assert verdict.outcome == "pass"


def test_what_was_not_scored_on_either_side_is_on_neither():
    student, artifact, families = items(300, 0, 0)
    student["f-0"], artifact["f-1"] = None, None
    verdict = paired_verdict("a", student, artifact, families, margin=0.03)
    assert (verdict.items, verdict.unscored, verdict.outcome) == (298, 2, "pass")
    del artifact["f-2"], artifact["f-3"]
    verdict = paired_verdict("a", student, artifact, families, margin=0.03)
    assert verdict.outcome == "inconclusive"
    assert verdict.why == "4 of 300 items could not be scored on both sides"
    assert verdict.difference is None


def test_a_student_that_can_lose_nothing_proves_nothing():
    wrong = {f"w-{n}": False for n in range(18)}
    families = dict.fromkeys(wrong, "f")
    verdict = paired_verdict("a", wrong, wrong, families, margin=0.03)
    assert verdict.outcome == "inconclusive"
    assert verdict.why == "the student is right on none of 18 items: there is nothing to lose"
    some = merged(items(2, 0, 0), (wrong, wrong, families))
    verdict = paired_verdict("a", *some, margin=0.4)
    assert verdict.why == (
        "+0.0 points [-11.9, 11.9]: within 40 points, and no larger drop could show: "
        "the student has 10.0 %"
    )


def test_one_look_of_several_asks_more_of_the_same_answers():
    once = paired_verdict("a", *items(860, 18, 22), margin=0.03)
    thrice = paired_verdict("a", *items(860, 18, 22), margin=0.03, alpha=0.023)
    assert thrice.low < once.low < once.high < thrice.high


def test_a_drop_is_certain_before_the_last_look_or_asked_about_again():
    counts = items(278, 6, 16)
    final = paired_verdict("a", *counts, margin=0.03, alpha=0.025)
    assert final.outcome == "fail"
    assert final.why.endswith(": a drop for certain, by estimate beyond 3 points")
    first = paired_verdict("a", *counts, margin=0.03, alpha=0.025, last=False)
    assert (first.outcome, first.high < 0) == ("inconclusive", True)
    certain = paired_verdict("a", *items(250, 2, 48), margin=0.03, alpha=0.025, last=False)
    assert (certain.outcome, certain.high < -0.03) == ("fail", True)


def test_three_looks_pass_a_drop_at_the_margin_no_oftener_than_one():
    """2,000 artifacts that really are 3 points worse, judged as they are answered."""
    sizes, rng = (300, 600, 900), np.random.default_rng(3)
    alpha = alpha_per_look(sizes, 0.05)
    passed = 0
    for _ in range(2000):
        steps = rng.multinomial(300, [0.02, 0.05, 0.93], size=3).cumsum(axis=0)
        passed += any(
            cautious_interval(int(gained), int(lost), size, 1 - alpha).low > -0.03
            for size, (gained, lost, _) in zip(sizes, steps, strict=True)
        )
    assert passed / 2000 == pytest.approx(0.05, abs=0.015)


def candidate(name: str, size: int, rate: float, kl: float, outcome: str = "pass") -> Candidate:
    return Candidate(
        name=name,
        file=f"{name}.gguf",
        size_bytes=size,
        tokens_per_s=rate,
        kl_nats=kl,
        outcome=outcome,
    )


LADDER = [
    candidate("F16", 270, 30.0, 0.0001),
    candidate("Q8", 145, 60.0, 0.002),
    candidate("Q5", 150, 40.0, 0.02),
    candidate("Q4", 105, 50.0, 0.05),
    candidate("Q2", 70, 70.0, 0.9, "fail"),
]


@pytest.mark.parametrize(
    ("rule", "name"), [("smallest", "Q4"), ("fastest", "Q8"), ("closest", "F16")]
)
def test_the_choice_is_among_those_that_pass(rule, name):
    choice = choose(LADDER, rule)
    assert (choice.name, choice.file) == (name, f"{name}.gguf")
    assert choice.why == f"the {rule} of 4 that pass"
    assert choice.pareto == ("F16", "Q8", "Q4", "Q2")  # Q5 is larger, slower and farther than Q8


def test_nothing_that_passed_is_no_choice():
    choice = choose([candidate("Q2", 70, 70.0, 0.9, "fail")], "smallest")
    assert (choice.name, choice.why) == (None, "nothing passed: Q2 fail")
    assert choose([], "smallest").why == "nothing passed: no artifact is sound"


def test_a_lost_regression_case_fails_whatever_the_drawn_items_say():
    items = {str(i): i < 290 for i in range(300)}
    passed = paired_verdict("Q8_0", items, items, dict.fromkeys(items, "f"), 0.03)
    cases = {"a" * 64: True, "b" * 64: True, "c" * 64: False}
    lost = on_regression_cases(passed, cases, {"a" * 64: True, "b" * 64: False, "c" * 64: False})
    assert (passed.outcome, lost.outcome) == ("pass", "fail")
    assert lost.why == f"lost 1 of 2 regression cases ({'b' * 12}); {passed.why}"
    kept = on_regression_cases(passed, cases, {"a" * 64: True, "b" * 64: True, "c" * 64: False})
    assert kept.outcome == "pass"
    assert kept.why == (
        "+0.0 points [-0.9, 0.9]: within 3 points; "
        "none lost of 2 regression cases that the student gets right"
    )
