"""What a study may claim, on students whose right answers are known."""

import pytest

from pipeline.cells import Trained
from pipeline.granularity_table import (
    Taught,
    Untaught,
    as_json,
    judge,
    parts_of,
    plot,
    sentences,
    table,
)

ITEMS = 400


def rights(count, shift=0):
    """`count` right answers of 400, the first ones or those after `shift`."""
    return {f"i{n:03d}": shift <= n < shift + count for n in range(ITEMS)}


def taught(view, right, tokens, arm="traces", examples=40, traces=40):
    student = Trained(
        fingerprint=view,
        examples=examples,
        epochs=3,
        supervised_tokens=tokens,
        trained_tokens=2 * tokens,
        updates=9,
        took_s=60.0,
        mean_answer_tokens=50.0,
        right=right,
        tokens_per_trace=tokens / (3 * traces),
        suites={"harder": {"a": True, "b": False}, "related": {}},
    )
    return Taught(view, arm, 40, student, "")


BASE = rights(20)
UNTAUGHT = Untaught(BASE, {"general": {"a": True, "b": True}, "related": {}})


def test_the_smallest_that_stays_within_the_margin_is_named():
    part = [
        taught("full", rights(200), 6000),
        taught("steps", rights(198), 3000),
        taught("answer", rights(100), 600),
    ]
    said = judge(part, BASE, 5.0)
    assert said.best == "full"
    assert said.within == ["full", "steps"]
    assert said.smallest == "steps"
    assert said.learned
    assert said.differences["answer"][0] == pytest.approx(-0.25)
    assert sentences(part, UNTAUGHT, 5.0) == (
        "- 40 traces, equal traces: the smallest supervision that still transfers is steps: within"
        " 5 points of the best, full; +14.83 points a 1,000 supervised tokens.\n"
    )


def test_the_best_of_many_has_to_be_better_than_chance_finds_among_so_many():
    """16 gained and 6 lost: the interval of one is above zero, p is 0.052, of eight views 0.4."""
    right = rights(20) | dict.fromkeys([f"i{n:03d}" for n in range(6)], False)
    right |= dict.fromkeys([f"i{n:03d}" for n in range(100, 116)], True)
    part = [taught("short", right, 600), *(taught(f"v{n}", rights(20), 6000) for n in range(7))]
    said = judge(part, BASE, 5.0)
    assert (said.best, said.learned) == ("short", False)
    assert "no claim" in sentences(part, UNTAUGHT, 5.0)
    # 15 gained and 1 lost are 0.0005.
    more = rights(20) | {"i000": False}
    more |= dict.fromkeys([f"i{n:03d}" for n in range(100, 115)], True)
    assert judge([taught("short", more, 600), *part[1:]], BASE, 5.0).learned


def test_the_best_that_is_the_smallest_as_well_is_named():
    part = [taught("full", rights(150), 6000), taught("answer", rights(200), 600)]
    said = judge(part, BASE, 5.0)
    assert (said.best, said.smallest) == ("answer", "answer")
    assert sentences(part, UNTAUGHT, 5.0) == (
        "- 40 traces, equal traces: the smallest supervision that still transfers is answer, which"
        " is also the best; +75.00 points a 1,000 supervised tokens.\n"
    )


def test_a_difference_the_items_cannot_rule_out_is_not_within_the_margin():
    """The same two points less, on other items: the interval reaches past the margin."""
    part = [taught("full", rights(200), 6000), taught("steps", rights(192, shift=100), 3000)]
    said = judge(part, BASE, 5.0)
    assert said.differences["steps"][0] == pytest.approx(-0.02)
    assert said.within == ["full"]
    assert sentences(part, UNTAUGHT, 5.0) == (
        "- 40 traces, equal traces: full is best, +7.50 points a 1,000 supervised tokens; no"
        " smaller view is shown both to stay within 5 points of it and to be better than the base"
        " student (intervals on 400 items reach 6.8 points below a difference, or more).\n"
    )


def test_what_learns_a_trace_twice_is_no_smaller_for_its_short_examples():
    """Of `full+answer` an example is short on average, and a trace costs more than of `full`."""
    part = [
        taught("full", rights(200), 7200),
        taught("full+answer", rights(201), 7800, "traces", 80),
    ]
    said = judge(part, BASE, 5.0)
    assert (said.best, said.smallest) == ("full+answer", "full")


def test_a_view_that_is_not_better_than_the_base_student_does_not_transfer():
    part = [taught("full", rights(40), 6000), taught("answer", rights(22), 600)]
    said = judge(part, BASE, 10.0)
    assert (said.within, said.smallest, said.learned) == (["full", "answer"], "full", True)


def test_no_claim_where_nothing_was_learned():
    part = [taught("full", rights(24), 6000), taught("answer", rights(22), 600)]
    assert sentences(part, UNTAUGHT, 5.0) == (
        "- 40 traces, equal traces: no claim. The best, full, is not shown to be better than the"
        " base student on 400 items.\n"
    )


def test_a_view_that_cannot_be_made_says_why():
    found = [taught("full", rights(200), 6000), Taught("errors", "traces", 40, None, "no attempt")]
    shown = table(found, UNTAUGHT, 5.0)
    assert shown.splitlines()[0] == (
        "400 fresh items; base student 5.0 % (general 100). Intervals: 95 % each; suites: %."
    )
    row = "| full | 40 x 3 | 6,000 | 9 | 50.0 [45, 55] | best | +7.50 | harder 50 | 50 | 1.0 |"
    assert row in shown
    assert "| errors | no attempt |  |" in shown
    assert judge(found[1:], BASE, 5.0) is None
    stored = as_json(found, UNTAUGHT, 5.0)["parts"][0]["students"]
    assert [s["reason"] for s in stored] == ["", "no attempt"]


def test_arms_and_sizes_are_judged_apart():
    found = [
        taught("full", rights(200), 6000),
        taught("full", rights(200), 6000, arm="tokens"),
        taught("answer", rights(150), 6000, arm="tokens", examples=400, traces=400),
    ]
    assert [(arm, size, len(part)) for arm, size, part in parts_of(found)] == [
        ("traces", 40, 1),
        ("tokens", 40, 2),
    ]
    assert plot(found, UNTAUGHT).startswith("<svg")
