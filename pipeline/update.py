"""One update of the student from a batch of lessons, and the guard that skips broken ones.

The logits of a batch exist some rows at a time, in buffers that stay; loss and gradients of the
head come out of one pass, as in `pipeline/head_loss.py`.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch

from pipeline.divergence_loss import bucketed, divergence, surrogate
from pipeline.head_loss import Workspace
from pipeline.lesson import Batch
from pipeline.packing import packed_hidden_states
from serve.errors import TrainingDiverged
from serve.hardware import has_fast_bfloat16

HEAD_ROWS = 256
GRADIENT_LIMIT = 1.0
# A gradient this far from what it was so far is an accident, not a lesson.
SIGMAS, SIGMAS_AFTER_UPDATES = 50.0, 8
MOST_SKIPPED_IN_A_ROW = 3


class Update(NamedTuple):
    """`taken`: False when the guard skipped it."""

    loss_nats: float
    gradient_norm: float
    taken: bool


class Guard:
    """Skips updates that are not finite or far out of line. Raises TrainingDiverged at the third
    in a row."""

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, 0.0, 0.0
        self.skipped, self._in_a_row = 0, 0

    def allows(self, loss_nats: float, norm: float) -> bool:
        sound = math.isfinite(loss_nats) and math.isfinite(norm) and not self._far_out(norm)
        if sound:
            self._in_a_row = 0
            self.count += 1
            before, self.mean = self.mean, self.mean + (norm - self.mean) / self.count
            self.squares += (norm - before) * (norm - self.mean)
            return True
        self.skipped += 1
        self._in_a_row += 1
        logging.getLogger("retort").warning(
            "update skipped: loss %g nats, gradient norm %g (so far %g)", loss_nats, norm, self.mean
        )
        if self._in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise TrainingDiverged(
                f"{self._in_a_row} updates in a row skipped: loss {loss_nats:g} nats, "
                f"gradient norm {norm:g}, so far {self.mean:g}",
                hint="lower on_policy.learning_rate",
            )
        return False

    def _far_out(self, norm: float) -> bool:
        if self.count < SIGMAS_AFTER_UPDATES:
            return False
        sigma = math.sqrt(self.squares / (self.count - 1))
        return norm > self.mean + SIGMAS * max(sigma, 1e-3 * self.mean)

    def state(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self.squares} | {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
        }

    def restore(self, state: dict[str, float]) -> None:
        self.count, self.skipped = int(state["count"]), int(state["skipped"])
        self.mean, self.squares = state["mean"], state["squares"]
        self._in_a_row = int(state["in_a_row"])


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    guard: Guard,
    ratio_limit: float,
    workspace: Workspace,
) -> Update:
    """Move `model` one step. The loss is the mean over the places of the batch, in nats."""
    optimizer.zero_grad(set_to_none=False)
    loss_nats = backward(model, batch, ratio_limit, workspace)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_LIMIT))
    taken = guard.allows(loss_nats, norm)
    if taken:
        optimizer.step()
    return Update(loss_nats, norm, taken)


def backward(model: Any, batch: Batch, ratio_limit: float, workspace: Workspace) -> float:
    """Add the gradients of the mean loss of a batch to `model`; returns that loss in nats."""
    hidden_RD, rows = _hidden_of(model, batch)
    leaf_RD = hidden_RD.detach()
    weight_VD = model.get_output_embeddings().weight
    if weight_VD.grad is None:
        weight_VD.grad = torch.zeros_like(weight_VD)
    vocabulary, dtype = len(weight_VD), leaf_RD.dtype
    cast_VD = workspace.take("weight", vocabulary, weight_VD, dtype).copy_(weight_VD.detach())
    part_VD = workspace.take("part", vocabulary, weight_VD, dtype)
    product_RV = workspace.take("product", HEAD_ROWS, weight_VD.t(), dtype)
    logits_RV = workspace.take("logits", HEAD_ROWS, weight_VD.t(), torch.float32)
    hidden_gradient_RD = torch.empty_like(leaf_RD)
    total = 0.0
    for part in rows.parts():
        hidden = leaf_RD[part.rows]
        product, logits = product_RV[: len(hidden)], logits_RV[: len(hidden)]
        logits.copy_(torch.mm(hidden, cast_VD.t(), out=product))
        total += _into_gradient(logits, batch, part, ratio_limit)
        product.copy_(logits)
        torch.mm(product, cast_VD, out=hidden_gradient_RD[part.rows])
        weight_VD.grad += torch.mm(product.t(), hidden, out=part_VD)
    hidden_RD.backward(hidden_gradient_RD)
    return total


def _into_gradient(logits_RV: torch.Tensor, batch: Batch, part: Part, ratio_limit: float) -> float:
    """The part's share of the mean loss (nats); `logits_RV` becomes its gradient by the logits.

    A loss reads few log probabilities. With g its gradient by those, the one by the logits of a row
    is g where a token is read, less softmax times the sum of the row's g.
    """
    device = logits_RV.device
    targets, advantages = part.targets.cpu(), part.advantages.cpu()
    ids_PK = batch.target_ids_PK[targets].to(device)
    ids_A = batch.advantage_ids_A[advantages].to(device)
    logits_RV -= logits_RV.amax(dim=1, keepdim=True)
    picked_PK = logits_RV[part.target_row[:, None], ids_PK]
    picked_A = logits_RV[part.advantage_row, ids_A]
    sums_R1 = logits_RV.exp_().sum(dim=1, keepdim=True)
    logits_RV /= sums_R1
    normalizer_R = sums_R1[:, 0].log()
    nats_PK = (picked_PK - normalizer_R[part.target_row, None]).requires_grad_()
    nats_A = (picked_A - normalizer_R[part.advantage_row]).requires_grad_()
    student, wanted = bucketed(nats_PK, batch.target_shares_PK[targets].to(device))
    old_A, advantages_A = batch.old_nats_A[advantages], batch.advantages_A[advantages]
    loss = divergence(student, wanted, batch.betas_P[targets].to(device)).sum()
    loss = loss + surrogate(nats_A, old_A.to(device), advantages_A.to(device), ratio_limit).sum()
    loss = loss / (len(batch.target_rows_P) + len(batch.advantage_rows_A))
    gradient_PK, gradient_A = torch.autograd.grad(loss, (nats_PK, nats_A))
    sums_R = torch.zeros_like(normalizer_R)
    sums_R.index_add_(0, part.target_row, gradient_PK.sum(1))
    sums_R.index_add_(0, part.advantage_row, gradient_A)
    logits_RV *= -sums_R[:, None]
    rows_PK = part.target_row[:, None].expand_as(ids_PK)
    logits_RV.index_put_((rows_PK, ids_PK), gradient_PK, accumulate=True)
    logits_RV.index_put_((part.advantage_row, ids_A), gradient_A, accumulate=True)
    return float(loss.detach())


class Part(NamedTuple):
    """Rows `rows` of the batch's R, and which targets and advantages read which of them."""

    rows: slice
    targets: torch.Tensor
    target_row: torch.Tensor
    advantages: torch.Tensor
    advantage_row: torch.Tensor


class Rows(NamedTuple):
    """Of each target and advantage, its row among the R hidden states."""

    target_row_P: torch.Tensor
    advantage_row_A: torch.Tensor
    states: int

    def parts(self) -> list[Part]:
        parts = []
        for start in range(0, self.states, HEAD_ROWS):
            stop = min(self.states, start + HEAD_ROWS)
            chosen = []
            for row in (self.target_row_P, self.advantage_row_A):
                inside = ((row >= start) & (row < stop)).nonzero()[:, 0]
                chosen += [inside, row[inside] - start]
            parts.append(Part(slice(start, stop), *chosen))
        return parts


def _hidden_of(model: Any, batch: Batch) -> tuple[torch.Tensor, Rows]:
    """Hidden states (R, D) that something is wanted of."""
    device = model.device
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    real_BT = batch.real_BT.to(device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden_ND = packed_hidden_states(model, batch.ids_BT.to(device), real_BT, dtype)
    packed_of = batch.real_BT.flatten().cumsum(0) - 1
    both = torch.cat([batch.target_rows_P, batch.advantage_rows_A])
    wanted_R, place = torch.unique(both, return_inverse=True)
    hidden_RD = hidden_ND[packed_of[wanted_R].to(device)].to(dtype)
    targets = len(batch.target_rows_P)
    return hidden_RD, Rows(place[:targets].to(device), place[targets:].to(device), len(wanted_R))


@torch.no_grad()
def token_logprobs(model: Any, batch: Batch) -> torch.Tensor:
    """(P,) log probabilities (nats) of the first listed token of every target."""
    hidden_RD, rows = _hidden_of(model, batch)
    weight_VD = model.get_output_embeddings().weight.to(hidden_RD.dtype)
    nats_P = torch.zeros(len(batch.target_rows_P))
    for part in rows.parts():
        logprobs_RV = torch.mm(hidden_RD[part.rows], weight_VD.t()).float().log_softmax(1)
        chosen = part.targets.cpu()
        ids_P = batch.target_ids_PK[chosen, 0].to(logprobs_RV.device)
        nats_P[chosen] = logprobs_RV[part.target_row, ids_P].cpu()
    return nats_P
