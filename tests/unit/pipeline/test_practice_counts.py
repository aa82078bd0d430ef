"""What a block of practice takes, by method and options."""

import pytest

from pipeline.on_policy_options import OnPolicyOptions
from pipeline.practice_counts import BlockCounts, block_counts
from pipeline.recipe_files import find_recipe, load_recipe


def test_the_default_recipe():
    options = load_recipe(find_recipe("default")).on_policy
    # 64 mistakes, 51 of 64 continuations, 64 right ones; twice, 8 at a time. 142 to 146 updates
    # of three blocks were seen, where two thirds were wrong.
    assert block_counts(options, "aligned") == BlockCounts(128, 64, 64, 64 + 51.2 + 64, 45)


@pytest.mark.parametrize(
    ("method", "said", "counts"),
    [
        # Neither passes nor which attempts are wrong are of any use to it.
        ("exact", {"passes": 3, "learn_from": "wrong"}, (112, 176, 0, 176, 22)),
        ("aligned", {"learn_from": "all", "replay": 0, "passes": 1}, (112, 112, 0, 112, 14)),
        ("recover", {"replay": 0, "passes": 1}, (112, 56, 56, 0.8 * 56 + 56, 13)),
        ("span", {"right_as_examples": False, "passes": 1}, (112, 56, 0, 56 + 64, 15)),
    ],
)
def test_a_block_of_112_attempts(method, said, counts):
    found = block_counts(OnPolicyOptions(method=method, **said), method)
    assert found == pytest.approx(counts)
