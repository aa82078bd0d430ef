"""Log probabilities of given tokens from the logits that foretold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from serve.engines.base import LogitsTV
from serve.messages import TokenScores


def scores_of(ids: Sequence[int], ends: Sequence[int], logits_TV: LogitsTV) -> TokenScores:
    """`logits_TV`: those before each of the T `ids`; `ends`: bytes of the text up to each one."""
    wide_TV = logits_TV.astype(np.float64)
    best_T1 = wide_TV.max(axis=1, keepdims=True)
    normalizer_T = best_T1[:, 0] + np.log(np.exp(wide_TV - best_T1).sum(axis=1))
    logprobs_T = wide_TV[np.arange(len(ids)), list(ids)] - normalizer_T
    return TokenScores(
        ids=tuple(ids),
        byte_offsets=(0, *ends[:-1]) if ids else (),
        logprobs_nats=tuple(float(x) for x in logprobs_T),
    )
