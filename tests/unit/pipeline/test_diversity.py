"""pass@k, majority and collapse on samples whose answers are known."""

import pytest

from pipeline.diversity import collapse, collapse_sentence, sampled, spread
from pipeline.records import Verdict


def verdict(answer, right="7"):
    return Verdict(passed=answer == right, reason="wrong", extracted=answer, verifier="v")


def samples(*by_item):
    return sampled(
        [
            (f"i{n}", place, verdict(answer))
            for n, answers in enumerate(by_item)
            for place, answer in enumerate(answers)
        ]
    )


def test_every_power_of_two_and_the_majority():
    found = spread(samples("7777", "7123", "1122", "8877"))
    assert found == {
        "items": 4,
        "k": 4,
        "pass_at": {"1": 0.4375, "2": pytest.approx((1 + 0.5 + 0 + 5 / 6) / 4), "4": 0.75},
        # Of equally common answers the first drawn counts: 7 of "7123", 8 of "8877".
        "majority": 0.5,
        "distinct": 2.25,
    }


def test_answers_that_differ_in_form_alone_are_one_answer():
    said = ["s = 16", "16", " 16", "17", "17"]
    found = spread(sampled([("i", n, verdict(x, right="16")) for n, x in enumerate(said)]))
    assert (found["distinct"], found["majority"]) == (2, 1.0)


def test_an_item_with_an_unscored_sample_is_left_out():
    odd = Verdict(passed=None, reason="verifier_timeout", extracted="7", verifier="v")
    assert spread(sampled([("i", 0, verdict("7")), ("i", 1, odd)])) is None


def test_no_answer_at_all_has_no_majority():
    assert spread(samples([None, None]))["majority"] == 0.0


def test_a_fall_of_pass_at_k_while_pass_at_1_rises_is_a_collapse():
    before = samples(*["7123"] * 20)
    after = samples(*["7777"] * 12, *["1111"] * 8)
    moved = collapse(before, after)
    assert (moved["pass_at_1"], moved["pass_at_k"]) == (pytest.approx(0.35), pytest.approx(-0.4))
    assert (moved["collapsed"], moved["certain"]) == (True, True)
    assert collapse_sentence("SFT after base", moved) == (
        "SFT after base: pass@1 +35.0 points, pass@4 -40.0 [-61.3, -17.4] on 20 items: "
        "diversity collapse"
    )


def test_one_item_less_is_within_chance():
    before = samples(*["7123"] * 4)
    after = samples(*["7777"] * 3, "1111")
    moved = collapse(before, after)
    assert (moved["collapsed"], moved["certain"]) == (True, False)
    assert collapse_sentence("b", moved).endswith("diversity collapse, within chance")


def test_four_items_lost_of_sixteen_are_within_chance():
    """McNemar says 0.125; the bootstrap of four flips says less than 0.025."""
    before = samples(*["7123"] * 16)
    moved = collapse(before, samples(*["7777"] * 12, *["1111"] * 4))
    assert moved["pass_at_k"] == pytest.approx(-0.25)
    assert (moved["collapsed"], moved["certain"]) == (True, False)
    assert moved["interval"][1] == pytest.approx(0.0, abs=0.03)


def test_a_rise_within_chance_makes_no_collapse_certain():
    before = samples(*["7123"] * 12, *["1111"] * 8)
    after = samples(*["1111"] * 11, *["7777"] * 4, *["1111"] * 5)
    moved = collapse(before, after)
    assert moved["pass_at_1"] == pytest.approx(0.05)
    assert (moved["collapsed"], moved["certain"]) == (True, False)


def test_better_at_both_is_none():
    moved = collapse(samples("7111", "1111"), samples("7777", "7111"))
    assert moved["collapsed"] is False
    assert collapse_sentence("b", moved).endswith(": no diversity collapse seen")
    assert collapse(samples(), samples("7")) is None
