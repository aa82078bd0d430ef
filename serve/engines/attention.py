"""Attention for CPUs on plain matrix products, without copying keys for every query head.

transformers' own functions repeat each key and value head for its group of query heads (a third of
a decoding step), and the backward of torch's fused attention takes half a training step on a CPU.
Registered under `GROUPED`; any model that takes attention functions by name can use it.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

GROUPED = "retort_grouped"


def attends_to_everything(model: Any) -> bool:
    """Whether every layer looks at all earlier tokens, and at nothing else: no windows, no states.

    Architectures that are too old to say do not count among these.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    everything = kinds == {"full_attention"} if kinds else window is None
    return bool(model._supports_attention_backend) and everything


def attends_plainly(model: Any) -> bool:
    """Whether attention is a softmax of scores and nothing else: no caps on scores (Gemma 2), no
    sinks beside the keys (gpt-oss). What is registered here knows of neither."""
    config = model.config.get_text_config(decoder=True)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return not capped and not any(name.endswith("sinks") for name, _ in model.named_parameters())


class _Softmax(torch.autograd.Function):  # type: ignore[misc]
    """Softmax over the last axis in float32, kept for the way back in the dtype of the scores.

    Weights of every layer in float32 beside their copies in bfloat16 were a gigabyte of a step.
    """

    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor) -> torch.Tensor:
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (weights,) = ctx.saved_tensors
        result: torch.Tensor = torch.ops.aten._softmax_backward_data(
            gradient, weights, -1, weights.dtype
        )
        return result


def grouped_attention(
    module: torch.nn.Module,
    query_BHQD: torch.Tensor,
    key_BGKD: torch.Tensor,
    value_BGKD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q k^T * scaling + mask) v, H query heads over G key heads (GQA, arXiv 2305.13245).

    `attention_mask` (B or 1, 1, Q, K) is added to the scores. Returns (B, Q, H, D).
    """
    assert options.get("softcap") is None, "see attends_plainly"
    assert options.get("s_aux") is None, "see attends_plainly"
    batch, heads, queries, width = query_BHQD.shape
    groups, keys = key_BGKD.shape[1:3]
    query_BGRD = (query_BHQD * scaling).reshape(batch, groups, heads // groups * queries, width)
    scores_BHQK = torch.matmul(query_BGRD, key_BGKD.transpose(2, 3)).view(
        batch, heads, queries, keys
    )
    if attention_mask is not None:
        scores_BHQK = scores_BHQK + attention_mask
    weights_BHQK: torch.Tensor = _Softmax.apply(scores_BHQK)
    weights_BHQK = torch.nn.functional.dropout(weights_BHQK, p=dropout, training=module.training)
    out_BGRD = torch.matmul(weights_BHQK.view(batch, groups, -1, keys), value_BGKD)
    return out_BGRD.view(batch, heads, queries, width).transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, eager_mask)
