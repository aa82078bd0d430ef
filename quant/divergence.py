"""How far an artifact's next-token distributions are from the unquantized student's.

Both score the same token ids, so what differs is the weights and the runtime, never the text. Kinds
of token are counted apart: a file may write prose like the student and numbers unlike it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serve.engines.base import LogitsTV
from serve.messages import Record

Flags = npt.NDArray[np.bool_]
ROWS_AT_A_TIME = 64


class HeldOut(NamedTuple):
    """`ids` of a whole conversation, its answer from `first` up to the end token at `last`.

    `kinds` flags the tokens from `first` on.
    """

    ids: list[int]
    first: int
    last: int
    kinds: dict[str, list[bool]]


class Divergence(Record):
    """Over `tokens` positions: KL(student || artifact) in nats; share whose best token is one."""

    tokens: int
    mean_nats: float
    p99_nats: float
    top1_share: float


def log_softmax(logits_TV: LogitsTV) -> LogitsTV:
    """Natural-log probabilities in float32."""
    import torch

    result: LogitsTV = torch.from_numpy(logits_TV).log_softmax(dim=1).numpy()
    return result


def kl_nats(reference_TV: LogitsTV, candidate_TV: LogitsTV) -> npt.NDArray[np.float64]:
    """KL(reference || candidate) at each of T positions, from log probabilities (T, V)."""
    import torch
    from torch.nn import functional

    gains_TV = functional.kl_div(
        torch.from_numpy(candidate_TV),
        torch.from_numpy(reference_TV),
        log_target=True,
        reduction="none",
    )
    sums_T: npt.NDArray[np.float64] = gains_TV.sum(dim=1, dtype=torch.float64).numpy()
    return np.maximum(sums_T, 0.0)


class Tally:
    """Collects positions part by part: whole logits of a data set would fill the memory."""

    def __init__(self) -> None:
        self._kl: list[npt.NDArray[np.float64]] = []
        self._same: list[Flags] = []

    def add(self, reference_TV: LogitsTV, candidate_TV: LogitsTV) -> None:
        """Log probabilities of the reference, logits of the candidate, same positions."""
        for start in range(0, len(reference_TV), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            reference, candidate = reference_TV[rows], log_softmax(candidate_TV[rows])
            self._kl.append(kl_nats(reference, candidate))
            self._same.append(reference.argmax(axis=1) == candidate.argmax(axis=1))

    def by_kind(self, kinds: Mapping[str, Sequence[bool]]) -> dict[str, Divergence]:
        """One row for all positions and one for each kind that has any."""
        kl_T, same_T = np.concatenate(self._kl), np.concatenate(self._same)
        masks = {"all": np.ones(len(kl_T), dtype=bool)}
        masks |= {name: np.asarray(flags, dtype=bool) for name, flags in kinds.items()}
        return {
            name: Divergence(
                tokens=int(mask.sum()),
                mean_nats=float(kl_T[mask].mean()),
                p99_nats=float(np.quantile(kl_T[mask], 0.99)),
                top1_share=float(same_T[mask].mean()),
            )
            for name, mask in masks.items()
            if mask.any()
        }
