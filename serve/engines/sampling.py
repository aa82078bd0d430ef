"""Draws one token from logits: temperature, then nucleus, with a random number of its own per
position.

The random number depends on (seed, position) alone, so the order of requests and the batch they
travel in change nothing. Nucleus sampling: Holtzman et al. 2020, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from serve.messages import Sampling

# Tokens this many nats below the best are left out: exp(-20) of 150,000 tokens is 0.03 % of the
# mass.
TAIL_NATS = 20.0
# Sorted are tokens within so many nats of the best, more only where the draw needs them: mostly a
# few dozen do. To sort 50,000 took a quarter of a small model's step, for each row of a batch.
HEADS_NATS = (4.0, 10.0, TAIL_NATS)


def pick_token(logits_V: npt.NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token id drawn at `position` (0 = first generated token) of one completion."""
    if sampling.temperature == 0.0:
        return int(np.argmax(logits_V))
    best = float(logits_V.max())
    # At least the best itself, however cold: 20 times 1e-9 is nothing beside a float32.
    ids_M = np.flatnonzero(logits_V >= best - TAIL_NATS * sampling.temperature)
    scores_M = (logits_V[ids_M].astype(np.float64) - best) / sampling.temperature
    weights_M = np.exp(scores_M)
    mass = weights_M.sum()
    number = uniform(sampling.seed, position)
    for nats in HEADS_NATS:
        near_K = np.flatnonzero(scores_M > -nats)
        near_K = near_K[np.argsort(-scores_M[near_K], kind="stable")]
        cumulative_K = np.cumsum(weights_M[near_K]) / mass
        rank = _rank(cumulative_K, sampling.top_p, number)
        if rank < len(near_K):
            break
    return int(ids_M[near_K[min(rank, len(near_K) - 1)]])


def _rank(cumulative_K: npt.NDArray[np.float64], top_p: float, number: float) -> int:
    """The place that `number` falls on; beyond the last one where the nucleus may go on there."""
    if top_p >= 1.0:
        return int(np.searchsorted(cumulative_K, number, side="right"))
    last = int(np.searchsorted(cumulative_K, top_p))
    if last == len(cumulative_K):
        return last
    draw = number * cumulative_K[last]
    return min(int(np.searchsorted(cumulative_K, draw, side="right")), last)


def pick_tokens(
    logits_BV: Iterable[npt.NDArray[np.float32]], samplings: Sequence[Sampling], position: int
) -> list[int]:
    """One token id a row, by that row's own sampling."""
    return [
        pick_token(row_V, sampling, position)
        for row_V, sampling in zip(logits_BV, samplings, strict=True)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on its two arguments alone (Philox counter generator)."""
    bits = np.random.Philox(key=seed, counter=position).random_raw()
    return float(int(bits) >> 11) * 2.0**-53
