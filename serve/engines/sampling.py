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


def pick_token(logits_V: npt.NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token id drawn at `position` (0 = first generated token) of one completion."""
    if sampling.temperature == 0.0:
        return int(np.argmax(logits_V))
    best = float(logits_V.max())
    ids_K = np.flatnonzero(logits_V > best - TAIL_NATS * sampling.temperature)
    scores_K = (logits_V[ids_K].astype(np.float64) - best) / sampling.temperature
    order_K = np.argsort(-scores_K, kind="stable")
    probabilities_K = np.exp(scores_K[order_K])
    cumulative_K = np.cumsum(probabilities_K) / probabilities_K.sum()
    kept = int(np.searchsorted(cumulative_K, sampling.top_p)) + 1
    cumulative_K = cumulative_K[:kept]
    draw = uniform(sampling.seed, position) * cumulative_K[-1]
    rank = min(int(np.searchsorted(cumulative_K, draw, side="right")), len(cumulative_K) - 1)
    return int(ids_K[order_K[rank]])


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
