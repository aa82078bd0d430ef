from itertools import combinations
from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats

from quant.stats import (
    alpha_per_look,
    bootstrap_interval,
    cautious_interval,
    holm,
    mcnemar_exact,
    mean_interval,
    paired,
    pass_at_k,
    score_interval,
    smallest_detectable_drop,
    wilson,
)


@pytest.mark.parametrize(
    ("looks", "boundary"), [(1, 1.645), (2, 1.875), (3, 1.992), (4, 2.067), (5, 2.122)]
)
def test_boundaries_are_those_of_pocock_s_table(looks, boundary):
    """Jennison and Turnbull 1999, table 2.1, two-sided 10 %."""
    level = alpha_per_look([300 * (n + 1) for n in range(looks)], 0.05)
    assert NormalDist().inv_cdf(1 - level) == pytest.approx(boundary, abs=0.005)


def test_one_look_has_all_of_the_error():
    assert alpha_per_look([300], 0.05) == 0.05


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


@pytest.mark.parametrize(("gained", "lost"), [(0, 3), (1, 9), (7, 7), (12, 30), (140, 100)])
def test_mcnemar_is_scipys_binomial_test(gained, lost):
    expected = scipy.stats.binomtest(gained, gained + lost).pvalue
    assert mcnemar_exact(gained, lost) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("correct", range(7))
@pytest.mark.parametrize("k", range(1, 7))
def test_pass_at_k_is_the_share_of_all_draws_that_hold_a_right_one(correct, k):
    samples = [True] * correct + [False] * (6 - correct)
    draws = [any(draw) for draw in combinations(samples, k)]
    assert pass_at_k(6, correct, k) == pytest.approx(sum(draws) / len(draws))


# Coverage by simulation: 95 % intervals hold the truth in about 95 of 100 samples. A proportion's
# moves with where the counts fall, so for one share it may be a little less.
@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.9])
def test_wilson_holds_the_true_share(share):
    drawn = np.random.default_rng(2).binomial(150, share, size=4000)
    held = [wilson(int(n), 150).low <= share <= wilson(int(n), 150).high for n in drawn]
    assert 0.93 <= np.mean(held) <= 0.98


@pytest.mark.parametrize(("gained", "lost"), [(0.1, 0.1), (0.2, 0.05), (0.03, 0.08)])
def test_the_paired_interval_holds_the_true_difference(gained, lost):
    draws = np.random.default_rng(3).multinomial(150, [gained, lost, 1 - gained - lost], size=1500)
    held = []
    for up, down, _ in draws:
        same = [True] * (150 - up - down)
        found = paired(
            [*same, *[False] * up, *[True] * down], [*same, *[True] * up, *[False] * down]
        )
        held.append(found.interval.low <= gained - lost <= found.interval.high)
    assert 0.93 <= np.mean(held) <= 0.98


def test_the_bootstrap_of_a_mean_holds_the_true_mean(monkeypatch):
    monkeypatch.setattr("quant.stats.RESAMPLES", 1000)
    draws = np.random.default_rng(4).beta(2, 3, size=(600, 40))
    held = [mean_interval(list(row), 0.95, seed=n) for n, row in enumerate(draws)]
    assert 0.92 <= np.mean([low <= 0.4 <= high for low, high in held]) <= 0.97


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


def test_a_paired_interval_grows_with_its_confidence():
    first, second = [True] * 50 + [False] * 50, [True] * 45 + [False] * 40 + [True] * 15
    usual, wider = (paired(first, second, confidence).interval for confidence in (0.95, 0.99))
    # Of the normal distribution: 1.95996 and 2.57583 standard errors to each side.
    assert wider.high - wider.low == pytest.approx((usual.high - usual.low) * 2.575829 / 1.959964)
    assert paired(first, second).interval == usual


def test_paired_refuses_different_lengths():
    with pytest.raises(ValueError, match="1 and 2 items"):
        paired([True], [True, False])


def test_bootstrap_bounds_are_those_of_the_normal_approximation():
    low, high = bootstrap_interval(gained=30, lost=45, items=900, confidence=0.95)
    centre, error = -15 / 900, (75 / 900) ** 0.5 / 900**0.5
    assert low == pytest.approx(centre - 1.645 * error, abs=6e-4)
    assert high == pytest.approx(centre + 1.645 * error, abs=6e-4)


def test_bootstrap_without_flips_is_a_point():
    assert bootstrap_interval(0, 0, 50, 0.95) == (0.0, 0.0)
    with pytest.raises(ValueError, match="bootstrap over 0 items"):
        bootstrap_interval(0, 0, 0, 0.95)


def test_score_bounds_are_those_that_were_published():
    # Fagerland, Lydersen and Laake 2014 (Stat. Med. 33:2850-2875): 1 and 7 of 21 pairs changed.
    assert score_interval(1, 7, 21, 0.975) == pytest.approx((-0.517, -0.026), abs=5e-4)
    # Without flips the bound is z^2 / (n + z^2), by hand from the formula.
    low, high = score_interval(0, 0, 60, 0.95)
    assert (low, high) == pytest.approx((-0.04314, 0.04314), abs=5e-5)
    with pytest.raises(ValueError, match="score interval over 0 items"):
        score_interval(0, 0, 0, 0.95)


@pytest.mark.parametrize("items", [16, 30, 60, 76, 152])
@pytest.mark.parametrize("gained_share", [0.0, 0.02])
def test_a_drop_of_the_margin_passes_one_time_in_twenty_however_few_items(items, gained_share):
    shares = [gained_share, gained_share + 0.03, 0.97 - 2 * gained_share]
    draws = np.random.default_rng(1).multinomial(items, shares, size=4000)
    counts = {(int(gained), int(lost)): 0 for gained, lost, _ in draws}
    lows = {pair: cautious_interval(*pair, items, 0.95).low for pair in counts}
    passed = np.mean([lows[int(gained), int(lost)] > -0.03 for gained, lost, _ in draws])
    assert passed <= 0.06


def test_of_many_flips_both_intervals_say_the_same():
    drawn, score = (f(60, 90, 900, 0.95) for f in (bootstrap_interval, score_interval))
    assert drawn == pytest.approx(score, abs=1.5e-3)
    assert cautious_interval(60, 90, 900, 0.95) == (
        min(drawn.low, score.low),
        max(drawn.high, score.high),
    )


def test_holm_steps_down_and_never_decreases():
    # Holm 1979: 0.01 x 3, 0.02 x 2, 0.04 x 1, then the running maximum.
    assert holm({"a": 0.02, "b": 0.01, "c": 0.04}) == pytest.approx(
        {"b": 0.03, "a": 0.04, "c": 0.04}
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_the_detectable_drop_is_found_four_times_in_five():
    drop = smallest_detectable_drop(items=300, discordant_share=0.08)
    assert drop == pytest.approx(0.0404, abs=5e-4)
    generator = np.random.default_rng(1)
    shares = [(0.08 - drop) / 2, (0.08 + drop) / 2, 0.92]
    draws = generator.multinomial(300, shares, size=4000)
    differences = (draws[:, 0] - draws[:, 1]) / 300
    errors = np.sqrt((draws[:, 0] + draws[:, 1]) / 300 / 300)
    assert np.mean(differences < -1.645 * errors) == pytest.approx(0.8, abs=0.04)


def test_more_items_show_smaller_drops():
    drops = [smallest_detectable_drop(n, 0.1) for n in (50, 300, 1200)]
    assert drops == sorted(drops, reverse=True)
    assert smallest_detectable_drop(0, 0.1) == 1.0
    assert smallest_detectable_drop(300, 0.1, 0.023) > drops[1]
