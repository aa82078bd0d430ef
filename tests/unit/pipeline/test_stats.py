import pytest

from pipeline.stats import mcnemar_exact, paired, pass_at_k, wilson


def test_wilson_matches_the_published_example():
    # Newcombe 1998, table I: 81 of 263.
    low, high = wilson(81, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_a_fair_coin_over_discordant_pairs():
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == 2 / 2**5
    assert mcnemar_exact(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)


def test_pass_at_k_is_the_unbiased_estimator():
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(4, 1, 4) == 1.0
    assert pass_at_k(4, 1, 1) == 0.25
    assert pass_at_k(10, 3, 2) == pytest.approx(1 - (7 * 6) / (10 * 9))


def test_pass_at_k_refuses_too_few_samples():
    with pytest.raises(ValueError, match="pass@5 of 1 correct in 4 samples"):
        pass_at_k(4, 1, 5)


def test_paired_counts_gains_and_losses_on_the_same_items():
    result = paired([True, False, False, False], [False, True, True, False])
    assert (result.items, result.gained, result.lost) == (4, 2, 1)
    assert result.difference == 0.25
    assert result.interval.low < 0.25 < result.interval.high


def test_paired_refuses_different_lengths():
    with pytest.raises(ValueError, match="1 and 2 items"):
        paired([True], [True, False])
