"""How far the student's distribution is from a wanted one, over listed tokens and one bucket.

Both sides are put on the same few buckets: the listed tokens, and one for all the others. Without
that bucket the gradient of a reverse KL over the teacher's likeliest tokens is biased
(arXiv 2605.11182).
"""

from __future__ import annotations

import torch

from pipeline.lesson import SMALLEST_SHARE


def bucketed(
    logprobs_PK: torch.Tensor, shares_PK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities (P, K + 1) of the student and of the target; the last bucket is the rest.

    `logprobs_PK`: the student's of the listed tokens. A token of share 0 is not listed.
    """
    listed_PK = shares_PK > 0
    held_P1 = (logprobs_PK.exp() * listed_PK).sum(1, keepdim=True)
    rest_P1 = (1 - held_P1).clamp(min=SMALLEST_SHARE).log()
    wanted_P1 = (1 - shares_PK.sum(1, keepdim=True)).clamp(min=SMALLEST_SHARE).log()
    floor = torch.full_like(shares_PK, SMALLEST_SHARE)
    student = torch.where(listed_PK, logprobs_PK, floor.log())
    target = torch.where(listed_PK, shares_PK, floor).log()
    return torch.cat([student, rest_P1], 1), torch.cat([target, wanted_P1], 1)


def divergence(
    student_PK: torch.Tensor, target_PK: torch.Tensor, betas_P: torch.Tensor
) -> torch.Tensor:
    """(P,) nats: beta 0 KL(target || student), 1 KL(student || target), between them the
    generalized Jensen-Shannon divergence (GKD, arXiv 2306.13649, eq. 1).

    Log probabilities over the same K buckets on both sides.
    """
    beta_P1 = betas_P[:, None].clamp(SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    middle_PK = torch.logaddexp(student_PK + (1 - beta_P1).log(), target_PK + beta_P1.log())
    between_P = betas_P * _kl(target_PK, middle_PK) + (1 - betas_P) * _kl(student_PK, middle_PK)
    forward_P, reverse_P = _kl(target_PK, student_PK), _kl(student_PK, target_PK)
    ends_P = torch.where(betas_P == 0, forward_P, reverse_P)
    return torch.where((betas_P == 0) | (betas_P == 1), ends_P, between_P)


def _kl(first_PK: torch.Tensor, second_PK: torch.Tensor) -> torch.Tensor:
    return (first_PK.exp() * (first_PK - second_PK)).sum(1)


def surrogate(
    nats_A: torch.Tensor, old_nats_A: torch.Tensor, advantages_A: torch.Tensor, limit: float
) -> torch.Tensor:
    """(A,) the clipped policy loss (PPO, arXiv 1707.06347, eq. 7), to be made small."""
    ratios_A = (nats_A - old_nats_A).exp()
    clipped_A = ratios_A.clamp(1 - limit, 1 + limit)
    return -torch.minimum(ratios_A * advantages_A, clipped_A * advantages_A)
