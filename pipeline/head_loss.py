"""Cross-entropy straight from hidden states: the logits of a batch never exist all at once.

Loss and gradients of the output head come out of one pass over parts of the rows, in buffers that
every part uses again (the idea of Liger's fused linear cross-entropy, arXiv 2410.10989, whose
kernels are for GPUs). On a CPU, fresh buffers of this size cost as much as what they compute.
"""

from __future__ import annotations

from typing import Any

import torch

# Logits of this many rows exist at a time: 512 x 49,152 float32 numbers are 100 MB.
HEAD_ROWS = 512
# Fields of a model's configuration that change its logits after the head.
RESCALED = (
    "final_logit_softcapping",
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
    "output_multiplier",
)


def has_plain_head(causal: Any) -> bool:
    """True when the model's logits are its hidden states times the head's weight, and no more."""
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    rescaled = any(getattr(config, name, None) not in (None, 1, 1.0) for name in RESCALED)
    return type(head) is torch.nn.Linear and head.bias is None and not rescaled


class Workspace:
    """Buffers that outlive a step."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, name: str, rows: int, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialized (rows, columns of `like`) tensor; the same memory for the same name."""
        shape = (rows, like.shape[1])
        held = self._buffers.get(name)
        if held is None or held.shape != shape or held.dtype != dtype:
            held = torch.empty(shape, dtype=dtype, device=like.device)
            self._buffers[name] = held
        return held


def summed_loss(
    weight_VD: torch.Tensor, hidden_SD: torch.Tensor, labels_S: torch.Tensor, workspace: Workspace
) -> torch.Tensor:
    """Summed negative log-likelihood (nats) of `labels_S`, differentiable in both tensors.

    Products run in the dtype of `hidden_SD`, everything else in float32.
    """
    loss: torch.Tensor = _SummedLoss.apply(weight_VD, hidden_SD, labels_S, workspace)
    return loss


class _SummedLoss(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(
        ctx: Any,
        weight_VD: torch.Tensor,
        hidden_SD: torch.Tensor,
        labels_S: torch.Tensor,
        workspace: Workspace,
    ) -> torch.Tensor:
        rows, dtype, vocabulary = HEAD_ROWS, hidden_SD.dtype, len(weight_VD)
        weight = workspace.take("weight", vocabulary, weight_VD, dtype).copy_(weight_VD)
        product_RV = workspace.take("product", rows, weight_VD.t(), dtype)
        logits_RV = workspace.take("logits", rows, weight_VD.t(), torch.float32)
        trained = ctx.needs_input_grad[0]
        weight_gradient_VD = torch.zeros_like(weight_VD) if trained else None
        hidden_gradient_SD = torch.empty_like(hidden_SD)
        total = hidden_SD.new_zeros((), dtype=torch.float32)
        for start in range(0, len(labels_S), rows):
            hidden = hidden_SD[start : start + rows]
            labels = labels_S[start : start + rows, None]
            product, logits = product_RV[: len(hidden)], logits_RV[: len(hidden)]
            logits.copy_(torch.mm(hidden, weight.t(), out=product))
            logits -= logits.amax(dim=1, keepdim=True)
            picked = logits.gather(1, labels)
            sums = logits.exp_().sum(dim=1, keepdim=True)
            total += (sums.log() - picked).sum()
            logits /= sums
            logits.scatter_add_(1, labels, torch.full_like(picked, -1.0))
            product.copy_(logits)  # d loss / d logits = softmax - one at the label
            torch.mm(product, weight, out=hidden_gradient_SD[start : start + rows])
            if weight_gradient_VD is not None:
                part_VD = workspace.take("part", vocabulary, weight_VD, dtype)
                weight_gradient_VD += torch.mm(product.t(), hidden, out=part_VD)
        ctx.gradients = (weight_gradient_VD, hidden_gradient_SD)
        return total

    @staticmethod
    def backward(
        ctx: Any, gradient: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor, None, None]:
        weight_gradient_VD, hidden_gradient_SD = ctx.gradients
        ctx.gradients = None
        if weight_gradient_VD is not None:
            weight_gradient_VD *= gradient
        return weight_gradient_VD, hidden_gradient_SD.mul_(gradient), None, None
