"""How much of an unfinished answer may be told when stop strings could still cut it."""

import random

import pytest

from serve.engines.stopping import cut_at_stop, settled_text, stop_index


@pytest.mark.parametrize(
    ("text", "stop", "settled"),
    [
        ("Calcul", ["Calculating"], ""),
        ("I Calcul", ["Calculating"], "I "),
        ("Calcium", ["Calculating"], "Calcium"),
        ("a\n", ["\n\n"], "a"),
        ("a\nb", ["\n\n"], "a\nb"),
        ("xx abab", ["ababc", "b!"], "xx "),
        ("half \ufffd", [], "half "),
    ],
)
def test_only_a_begun_stop_string_is_held_back(text, stop, settled):
    assert settled_text(text, stop) == settled


@pytest.mark.parametrize("seed", range(30))
def test_what_was_told_is_never_taken_back(seed):
    draw = random.Random(seed)
    stop = ["".join(draw.choices("ab", k=draw.randint(1, 6))) for _ in range(draw.randint(0, 3))]
    whole, text, told = "".join(draw.choices("abc", k=60)), "", ""
    for letter in whole:
        text += letter
        if stop_index(text, stop) >= 0:
            break
        assert settled_text(text, stop).startswith(told)
        told = settled_text(text, stop)
    assert cut_at_stop(text, stop).startswith(told)
    if stop_index(text, stop) < 0:
        assert len(told) >= len(text) - max((len(s) - 1 for s in stop), default=0)
