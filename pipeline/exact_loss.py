"""Divergence over a whole vocabulary straight from hidden states, some rows at a time.

Loss and the student's gradients come out of one pass in buffers that every part uses again, as in
`pipeline/head_loss.py`. The same values as TRL's chunked divergence, which projects everything
anew on the way back and, where there is no Triton, every position of the padded batch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from pipeline.head_loss import Workspace

# Logits of this many rows exist at a time, the student's and the teacher's: 256 rows of 49,152
# float32 numbers are 50 MB.
HEAD_ROWS = 256


class Side(NamedTuple):
    """One model's part of the loss: its head's weight and its hidden states, E wide."""

    weight_VE: torch.Tensor
    hidden_SE: torch.Tensor


def summed_divergence(
    student: Side, teacher: Side, beta: float, workspace: Workspace
) -> torch.Tensor:
    """Summed divergence (nats) over S rows, differentiable in the student's tensors.

    `beta`: 0 KL(teacher || student), 1 KL(student || teacher), between them the generalized
    Jensen-Shannon divergence (arXiv 2306.13649, eq. 1). Products run in the dtype of the hidden
    states, everything else in float32.
    """
    loss: torch.Tensor = _SummedDivergence.apply(
        student.weight_VE, student.hidden_SE, teacher, beta, workspace
    )
    return loss


class _SummedDivergence(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        weight_VD: torch.Tensor,
        hidden_SD: torch.Tensor,
        teacher: Side,
        beta: float,
        workspace: Workspace,
    ) -> torch.Tensor:
        dtype, vocabulary = hidden_SD.dtype, len(weight_VD)
        weight = workspace.take("weight", vocabulary, weight_VD, dtype).copy_(weight_VD)
        cast = teacher.weight_VE.to(teacher.hidden_SE.dtype)
        gradient_RV = workspace.take("gradient", HEAD_ROWS, weight_VD.t(), dtype)
        trained = ctx.needs_input_grad[0]
        weight_gradient_VD = torch.zeros_like(weight_VD) if trained else None
        hidden_gradient_SD = torch.empty_like(hidden_SD)
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden_SD), HEAD_ROWS):
            hidden = hidden_SD[start : start + HEAD_ROWS]
            student_RV = _logprobs("student", weight, hidden, workspace)
            teacher_RV = _logprobs(
                "teacher", cast, teacher.hidden_SE[start : start + HEAD_ROWS], workspace
            )
            total += _into_gradient(student_RV, teacher_RV, beta, workspace)
            gradient = gradient_RV[: len(hidden)].copy_(student_RV)
            torch.mm(gradient, weight, out=hidden_gradient_SD[start : start + HEAD_ROWS])
            if weight_gradient_VD is not None:
                part_VD = workspace.take("part", vocabulary, weight_VD, dtype)
                weight_gradient_VD += torch.mm(gradient.t(), hidden, out=part_VD)
        ctx.gradients = (weight_gradient_VD, hidden_gradient_SD)
        return total

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, None, None, None]:
        weight_gradient_VD, hidden_gradient_SD = ctx.gradients
        ctx.gradients = None
        if weight_gradient_VD is not None:
            weight_gradient_VD *= gradient
        return weight_gradient_VD, hidden_gradient_SD.mul_(gradient), None, None, None


def _logprobs(
    name: str, weight_VE: torch.Tensor, hidden_RE: torch.Tensor, workspace: Workspace
) -> torch.Tensor:
    """Log probabilities (R, V) of the next token, in the buffer of that name."""
    like, rows = weight_VE.t(), len(hidden_RE)
    logits_RV = workspace.take(f"{name} logits", HEAD_ROWS, like, torch.float32)[:rows]
    product_RV = workspace.take("product", HEAD_ROWS, like, hidden_RE.dtype)[:rows]
    logits_RV.copy_(torch.mm(hidden_RE, weight_VE.t(), out=product_RV))
    logprobs_RV = workspace.take(f"{name} logprobs", HEAD_ROWS, like, torch.float32)[:rows]
    torch.log_softmax(logits_RV, 1, out=logprobs_RV)
    return logprobs_RV


def _into_gradient(
    student_RV: torch.Tensor, teacher_RV: torch.Tensor, beta: float, workspace: Workspace
) -> torch.Tensor:
    """Summed divergence (nats) of log probabilities; `student_RV` becomes its gradient by the
    student's logits, `teacher_RV` is used up."""
    spare_RV = workspace.take("student logits", HEAD_ROWS, student_RV, torch.float32)
    spare_RV = spare_RV[: len(student_RV)]
    if beta == 0.0:
        torch.exp(teacher_RV, out=spare_RV)
        total = teacher_RV.sub_(student_RV).mul_(spare_RV).sum()
        student_RV.exp_().sub_(spare_RV)
        return total
    if beta == 1.0:
        gap_RV = torch.sub(student_RV, teacher_RV, out=teacher_RV)
        return _reverse_into_gradient(student_RV, gap_RV, spare_RV).sum()
    # log m, m = (1 - beta) student + beta teacher; logs, as both shares can be too small to add.
    student_RV += math.log1p(-beta)
    teacher_RV += math.log(beta)
    torch.logaddexp(student_RV, teacher_RV, out=spare_RV)
    middle_RV = workspace.take("teacher logits", HEAD_ROWS, student_RV, torch.float32)
    middle_RV = middle_RV[: len(student_RV)].copy_(spare_RV)
    teacher_gap_RV = torch.sub(teacher_RV, middle_RV, out=spare_RV).sub_(math.log(beta))
    total = teacher_RV.exp_().mul_(teacher_gap_RV).sum()  # exp gives beta times the share
    student_gap_RV = torch.sub(student_RV, middle_RV, out=middle_RV).sub_(math.log1p(-beta))
    return total + _reverse_into_gradient(student_RV, student_gap_RV, spare_RV).sum()


def _reverse_into_gradient(
    student_RV: torch.Tensor, gap_RV: torch.Tensor, spare_RV: torch.Tensor
) -> torch.Tensor:
    """(R,) sum of share x gap, share = exp(`student_RV`); that becomes share x (gap - mean gap).

    Shares may sum to less than one (1 - beta of the student's): the mean is over what they are.
    """
    student_RV.exp_()
    divergence_R1 = torch.mul(student_RV, gap_RV, out=spare_RV).sum(1, keepdim=True)
    student_RV.mul_(gap_RV.sub_(divergence_R1 / student_RV.sum(1, keepdim=True)))
    return divergence_R1[:, 0]
