"""One update of the student from a batch of lessons, and the guard that skips broken ones.

The logits of a batch exist some rows at a time; loss and gradients of the head come out of one
pass, as in `pipeline/head_loss.py`.
"""

from __future__ import annotations

import logging
import math
from typing import Any, NamedTuple

import torch

from pipeline.divergence_loss import bucketed, divergence, surrogate
from pipeline.lesson import Batch
from pipeline.packing import kept_places, packed_hidden_states
from serve.errors import TrainingDiverged
from serve.hardware import has_cuda, has_fast_bfloat16

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
                hint="lower on_policy.learning_rate; the last good state is kept",
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
    model: Any, optimizer: torch.optim.Optimizer, batch: Batch, guard: Guard, ratio_limit: float
) -> Update:
    """Move `model` one step. The loss is the mean over the places of the batch, in nats."""
    optimizer.zero_grad(set_to_none=False)
    loss_nats = backward(model, batch, ratio_limit)
    norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_LIMIT))
    taken = guard.allows(loss_nats, norm)
    if taken:
        optimizer.step()
    return Update(loss_nats, norm, taken)


def backward(model: Any, batch: Batch, ratio_limit: float) -> float:
    """Add the gradients of the mean loss of a batch to `model`; returns that loss in nats."""
    hidden_RD, rows = _hidden_of(model, batch)
    leaf_RD = hidden_RD.detach()
    weight_VD = model.get_output_embeddings().weight
    cast_VD = weight_VD.detach().to(leaf_RD.dtype)
    hidden_gradient_RD = torch.zeros_like(leaf_RD)
    weight_gradient_VD = torch.zeros_like(weight_VD)
    count = len(batch.target_rows_P) + len(batch.advantage_rows_A)
    total = 0.0
    for part in rows.parts():
        hidden = leaf_RD[part.rows]
        logits_V = torch.mm(hidden, cast_VD.t()).float().requires_grad_()
        loss = _loss(logits_V, batch, part, ratio_limit) / count
        (gradient_V,) = torch.autograd.grad(loss, logits_V)
        total += float(loss.detach())
        cast = gradient_V.to(leaf_RD.dtype)
        hidden_gradient_RD[part.rows] = torch.mm(cast, cast_VD)
        weight_gradient_VD += torch.mm(cast.t(), hidden)
    hidden_RD.backward(hidden_gradient_RD)
    if weight_VD.grad is None:
        weight_VD.grad = weight_gradient_VD
    else:
        weight_VD.grad += weight_gradient_VD
    return total


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
    kept_BT = batch.real_BT if has_cuda() else kept_places(batch.real_BT)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden_ND = packed_hidden_states(model, batch.ids_BT.to(device), kept_BT.to(device), dtype)
    packed_of = kept_BT.flatten().cumsum(0) - 1
    both = torch.cat([batch.target_rows_P, batch.advantage_rows_A])
    wanted_R, place = torch.unique(both, return_inverse=True)
    hidden_RD = hidden_ND[packed_of[wanted_R].to(device)].to(dtype)
    targets = len(batch.target_rows_P)
    return hidden_RD, Rows(place[:targets].to(device), place[targets:].to(device), len(wanted_R))


def _loss(logits_RV: torch.Tensor, batch: Batch, part: Part, ratio_limit: float) -> torch.Tensor:
    """Summed loss (nats) of what reads these rows."""
    device = logits_RV.device
    normalizer_R1 = logits_RV.logsumexp(1, keepdim=True)
    total = logits_RV.new_zeros(())
    if len(part.targets):
        chosen = part.targets.cpu()
        ids_PK = batch.target_ids_PK[chosen].to(device)
        row_P1 = part.target_row[:, None]
        listed_PK = logits_RV[row_P1, ids_PK] - normalizer_R1[part.target_row]
        student, target = bucketed(listed_PK, batch.target_shares_PK[chosen].to(device))
        total = total + divergence(student, target, batch.betas_P[chosen].to(device)).sum()
    if len(part.advantages):
        chosen = part.advantages.cpu()
        row_A, ids_A = part.advantage_row, batch.advantage_ids_A[chosen].to(device)
        nats_A = logits_RV[row_A, ids_A] - normalizer_R1[row_A, 0]
        old_A, advantages_A = batch.old_nats_A[chosen], batch.advantages_A[chosen]
        total = (
            total + surrogate(nats_A, old_A.to(device), advantages_A.to(device), ratio_limit).sum()
        )
    return total


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
