"""Filler goes, operations stay."""

import pytest

from pipeline.plain_words import plain


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Okay, so let's see. 3 + 4 = 7", "3 + 4 = 7"),
        ("First, 12 = 3 * 4", "12 = 3 * 4"),
        ("Therefore, we can see that 5 > 4.", "5 > 4."),
        ("Hmm, that is a nice question. Then x = 9.", "x = 9."),
        ("So .5 + 1 = 1.5", ".5 + 1 = 1.5"),
        ("Then we have 3 left.", "We have 3 left."),
        ("47 + 38 = 85\nGreat, we are nearly there!\n85 - 9 = 76", "47 + 38 = 85\n85 - 9 = 76"),
        ("  a = 1", "  a = 1"),
        ("the right side is 4", "the right side is 4"),
        ("and 3 more", "and 3 more"),
    ],
)
def test_filler_is_taken_out(said, meant):
    assert plain(said) == meant


def test_reasoning_without_any_operation_stays_as_it_is():
    text = "well, cats purr\nso it is a cat"
    assert plain(text) == text
