"""The statistics every comparison uses. Pure functions on numbers, no records, no files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Z_95 = NormalDist().inv_cdf(0.975)
Z_POWER = 0.8416212335729143
RESAMPLES = 20_000
WALKS = 1_000_000


class Interval(NamedTuple):
    low: float
    high: float


def wilson(successes: int, trials: int, z: float = Z_95) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927; Brown, Cai, DasGupta 2001, eq. 4)."""
    if trials == 0:
        return Interval(0.0, 1.0)
    share = successes / trials
    scale = 1.0 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))


class Paired(NamedTuple):
    """Two systems on the same items. `difference` is second minus first, in shares."""

    items: int
    gained: int
    lost: int
    difference: float
    interval: Interval
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool], confidence: float = 0.95) -> Paired:
    """Difference of two paired proportions with an interval and exact McNemar.

    Interval: Agresti and Min 2005, which adds a half to each of the four cells.
    Raises ValueError when the sequences differ in length or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"paired samples of {len(first)} and {len(second)} items")
    items = len(first)
    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    n, up, down = items + 2, gained + 0.5, lost + 0.5
    centre = (up - down) / n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    half = z * math.sqrt(max(0.0, up + down - (up - down) ** 2 / n)) / n
    return Paired(
        items=items,
        gained=gained,
        lost=lost,
        difference=(gained - lost) / items,
        interval=Interval(max(-1.0, centre - half), min(1.0, centre + half)),
        p_value=mcnemar_exact(gained, lost),
    )


def mcnemar_exact(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test: a fair coin over the discordant pairs (McNemar 1947)."""
    discordant = gained + lost
    if discordant == 0:
        return 1.0
    tail = sum(math.comb(discordant, k) for k in range(min(gained, lost) + 1))
    return float(min(1.0, 2 * tail / 2**discordant))


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that one of k draws is right (Chen et al. 2021, eq. 1).

    Raises ValueError when there are fewer than k samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise ValueError(f"pass@{k} of {correct} correct in {samples} samples")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def bootstrap_interval(
    gained: int, lost: int, items: int, confidence: float, seed: int = 0
) -> Interval:
    """Percentile interval of the paired difference in shares (Efron and Tibshirani 1993, ch. 13).

    Drawing items with replacement is drawing (gained, lost, same) from a multinomial. Both sides
    hold at `confidence` each: the lower bound alone is a one-sided test at 1 - `confidence`.
    """
    if items <= 0:
        raise ValueError(f"bootstrap over {items} items")
    shares = [gained / items, lost / items, (items - gained - lost) / items]
    draws = np.random.default_rng(seed).multinomial(items, shares, size=RESAMPLES)
    differences = (draws[:, 0] - draws[:, 1]) / items
    low, high = np.quantile(differences, [1 - confidence, confidence])
    return Interval(float(low), float(high))


def score_interval(gained: int, lost: int, items: int, confidence: float) -> Interval:
    """Score interval of the paired difference in shares (Tango 1998, Stat. Med. 17:891-908).

    Both sides hold at `confidence` each. Raises ValueError without items.
    """
    if items <= 0:
        raise ValueError(f"score interval over {items} items")
    z = NormalDist().inv_cdf(confidence)
    return Interval(
        _lowest_difference(gained, lost, items, z), -_lowest_difference(lost, gained, items, z)
    )


def _lowest_difference(gained: int, lost: int, items: int, z: float) -> float:
    """The difference that lies `z` standard errors, as they would be there, below what was seen."""
    low, high = -1.0, (gained - lost) / items
    for _ in range(60):
        middle = (low + high) / 2
        # The likeliest share of losses were `middle` the difference: root of a quadratic.
        linear = (2 * items - gained + lost) * middle - gained - lost
        constant = -lost * middle * (1 - middle)
        root = math.sqrt(max(0.0, linear * linear - 8 * items * constant))
        variance = items * (2 * (root - linear) / (4 * items) + middle * (1 - middle))
        far = gained - lost - items * middle >= z * math.sqrt(max(0.0, variance))
        low, high = (middle, high) if far else (low, middle)
    return high


def cautious_interval(
    gained: int, lost: int, items: int, confidence: float, seed: int = 0
) -> Interval:
    """The wider, on each side, of bootstrap and score interval: the bootstrap of few flips knows
    too little of what could have flipped, and of none it is a point."""
    drawn = bootstrap_interval(gained, lost, items, confidence, seed)
    score = score_interval(gained, lost, items, confidence)
    return Interval(min(drawn.low, score.low), max(drawn.high, score.high))


def mean_interval(values: Sequence[float], confidence: float, seed: int = 0) -> Interval:
    """Percentile bootstrap interval of a mean, two-sided at `confidence` (ibid.).

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("bootstrap over 0 values")
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    means = np.asarray(values)[drawn].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def alpha_per_look(items: Sequence[int], alpha: float) -> float:
    """The one-sided level of each of several looks at one growing sample, `alpha` over all of them.

    `items`: how many there are at each look. A constant boundary (Pocock 1977) for looks at just
    these sizes: the running means of a million random walks cross it with probability `alpha`.
    """
    if len(items) == 1:
        return alpha
    rng = np.random.default_rng(0)
    walk, highest = np.zeros(WALKS), np.full(WALKS, -np.inf)
    for size, step in zip(items, np.diff(items, prepend=0), strict=True):
        walk += rng.standard_normal(WALKS) * math.sqrt(step)
        np.maximum(highest, walk / math.sqrt(size), out=highest)
    boundary = float(np.quantile(highest, 1 - alpha))
    return math.erfc(boundary / math.sqrt(2)) / 2


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p of several tests, any of which may be believed (Holm 1979)."""
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def smallest_detectable_drop(items: int, discordant_share: float, alpha: float = 0.05) -> float:
    """The drop (in shares) that a one-sided test at `alpha` on so many pairs finds four times in
    five.

    Normal approximation of McNemar's test (Connor 1987): d with
    sqrt(n) d = z sqrt(s) + 0.842 sqrt(s - d^2), s the share of pairs that differ, z that of alpha.
    """
    if items <= 0:
        return 1.0
    share = max(discordant_share, 1.0 / items)
    z_alpha = NormalDist().inv_cdf(1 - alpha)
    low, high = 0.0, math.sqrt(share)
    for _ in range(60):
        drop = (low + high) / 2
        needed = z_alpha * math.sqrt(share) + Z_POWER * math.sqrt(max(0.0, share - drop * drop))
        low, high = (low, drop) if math.sqrt(items) * drop >= needed else (drop, high)
    return high
