"""Log probabilities of given tokens from the logits that foretold them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serve.engines.base import LogitsTV
from serve.messages import Grade, TokenScores

# A token further below the best than this weighs less than rounding: exp(-14) is one in a million.
LISTED_NATS = 14.0
# Tokens graded beyond one that is less likely than asked: a reader with other tokens cuts the text
# elsewhere, and the piece with the unlikely one has to be whole.
AFTER_STOP = 16


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


class Grader:
    """Collects the rows of one grade as they are decoded: logits exist one row at a time."""

    def __init__(
        self,
        ids: Sequence[int],
        ends: Sequence[int],
        end_ids: Sequence[int],
        top: int,
        stop_below: float | None = None,
    ) -> None:
        self._ids, self._ends, self._end_ids, self._top = list(ids), ends, list(end_ids), top
        self._stop_nats = -math.inf if stop_below is None else math.log(stop_below)
        self._logprobs: list[float] = []
        self._top_ids: list[tuple[int, ...]] = []
        self._top_logprobs: list[tuple[float, ...]] = []
        self._end_nats = 0.0

    def add(self, logits_V: npt.NDArray[np.float32]) -> None:
        """The logits before the next token; after the last one, those that follow the text."""
        best = float(logits_V.max())
        normalizer = best + float(np.log(np.exp(logits_V - best).sum(dtype=np.float64)))
        listed = np.flatnonzero(logits_V > best - LISTED_NATS)
        order = listed[np.argsort(-logits_V[listed], kind="stable")[: self._top]]
        self._top_ids.append(tuple(int(i) for i in order))
        self._top_logprobs.append(tuple(round(float(x) - normalizer, 5) for x in logits_V[order]))
        place = len(self._logprobs)
        if place < len(self._ids):
            self._logprobs.append(float(logits_V[self._ids[place]]) - normalizer)
        else:
            ends_E = logits_V[self._end_ids].astype(np.float64) - normalizer
            self._end_nats = float(np.logaddexp.reduce(ends_E))

    def has_enough(self) -> bool:
        """Whether a token was less likely than asked, and those after it are there too."""
        return any(nats < self._stop_nats for nats in self._logprobs[:-AFTER_STOP])

    def grade(self, read_tokens: int) -> Grade:
        count, starts = len(self._logprobs), (0, *self._ends)
        stopped = len(self._top_ids) <= len(self._ids)
        scores = TokenScores(
            ids=tuple(self._ids[:count]),
            byte_offsets=starts[:count],
            logprobs_nats=tuple(self._logprobs),
        )
        return Grade(
            scores=scores,
            top_ids=tuple(self._top_ids),
            top_logprobs_nats=tuple(self._top_logprobs),
            end_nats=self._end_nats,
            read_tokens=read_tokens,
            text_bytes=self._ends[-1] if self._ids else 0,
            stopped_at=starts[count] if stopped else None,
        )
