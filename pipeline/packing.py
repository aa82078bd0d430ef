"""A padded batch without its padding, and without what its rows repeat of each other: all layers
see one row of tokens, attention alone sees the rows.

The same sums as the padded batch (TRL's `padding_free`, which needs a flash-attention kernel, for
devices that have none). A quarter to a third of a shuffled batch of short traces is padding, and
a fifth of its tokens is the system turn that every prompt begins with.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from pipeline.layout import Layout, Part, layout_of
from serve.engines.attention import (
    attends_plainly,
    attends_to_everything,
    grouped_attention,
)

PACKED = "retort_packed"


def packs(model: Any) -> bool:
    """True when attention over all earlier tokens is the only thing that joins a row's tokens.

    Sliding windows, convolutions and recurrent layers would reach into the example before; weights
    of attention that are dropped at random would be others on the way back.
    """
    config = model.config.get_text_config()
    dropped = (getattr(config, name, 0.0) for name in ("attention_dropout", "attn_pdrop"))
    return attends_to_everything(model) and attends_plainly(model) and not any(dropped)


def causal_mask(width: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, T, T), added to scores. Padding on the right needs no mask of its own."""
    future_TT = torch.ones(width, width, dtype=torch.bool).triu(1)
    zeros_TT = torch.zeros(width, width, dtype=dtype)
    return zeros_TT.masked_fill(future_TT, torch.finfo(dtype).min)[None, None]


class _Scores:
    """Buffers for the attention weights of one part at a time: new ones cost what they hold."""

    def __init__(self, layout: Layout, heads: int) -> None:
        self._most = heads * max(part.rows * part.width**2 for part in layout.parts)
        self._held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Not initialized; the same memory for the same name."""
        if (name, dtype) not in self._held:
            self._held[name, dtype] = torch.empty(self._most, dtype=dtype)
        return self._held[name, dtype][: torch.Size(shape).numel()].view(shape)


class _Attention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q k^T + mask) v inside each row, H query heads over G key heads.

    Queries (N, H, D), keys and values (N, G, D) of the tokens; returns (N, H, D), zeros for tokens
    that stand nowhere. Weights are computed again on the way back: of all layers they would be a
    third of what a step keeps. What stands at padding is some token: later than all that attend,
    and itself never read.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask_TT: torch.Tensor,
        layout: Layout,
        scores: _Scores,
    ) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.mask_TT, ctx.layout, ctx.scores = mask_TT, layout, scores
        out = torch.zeros_like(query)
        for part in layout.parts:
            sides = [_placed(rows, part, key.shape[1]) for rows in (query, key, value)]
            weights = _weights(sides[0], sides[1], mask_TT, part, scores)
            placed = _by_place(torch.bmm(weights, sides[2]), part, key.shape[1])
            out.index_copy_(0, part.tokens, placed.index_select(0, part.places))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        mask_TT, layout, scores, groups = ctx.mask_TT, ctx.layout, ctx.scores, key.shape[1]
        gradients = [torch.zeros_like(rows) for rows in (query, key, value)]
        # In float32: a system turn stands in every row, and bfloat16 would round each sum.
        sums = key.new_zeros(2, len(layout.shared), *key.shape[1:], dtype=torch.float32)
        for part in layout.parts:
            q, k, v = (_placed(rows, part, groups) for rows in (query, key, value))
            weights = _weights(q, k, mask_TT, part, scores)
            upstream = gradient.new_zeros(part.rows * part.width, *gradient.shape[1:])
            upstream.index_copy_(0, part.places, gradient.index_select(0, part.tokens))
            out = _grouped(upstream, part, groups)
            by_weight = scores.take("by weight", tuple(weights.shape), weights.dtype)
            torch.bmm(out, v.transpose(1, 2), out=by_weight)
            by_score = torch.ops.aten._softmax_backward_data(by_weight, weights, -1, weights.dtype)
            found = (
                torch.bmm(by_score, k),
                torch.bmm(by_score.transpose(1, 2), q),
                torch.bmm(weights.transpose(1, 2), out),
            )
            placed = [_by_place(rows, part, groups) for rows in found]
            for into, rows in zip(gradients, placed, strict=True):
                into.index_copy_(0, part.tokens, rows.index_select(0, part.places))
            for into, rows in zip(sums, placed[1:], strict=True):
                into.index_add_(0, part.copied, rows.index_select(0, part.copies).float())
        for into, summed in zip(gradients[1:], sums, strict=True):
            into.index_copy_(0, layout.shared, summed.to(into.dtype))
        return (*gradients, None, None, None)


def _placed(rows: torch.Tensor, part: Part, groups: int) -> torch.Tensor:
    """Rows (N, heads, D) as (b x G, heads / G x t, D)."""
    return _grouped(rows.index_select(0, part.sources), part, groups)


def _grouped(placed: torch.Tensor, part: Part, groups: int) -> torch.Tensor:
    """What stands at b x t places (b x t, heads, D) as (b x G, heads / G x t, D)."""
    heads, width = placed.shape[1:]
    by_row = placed.view(part.rows, part.width, groups, heads // groups, width)
    return by_row.permute(0, 2, 3, 1, 4).reshape(part.rows * groups, -1, width)


def _by_place(grouped: torch.Tensor, part: Part, groups: int) -> torch.Tensor:
    """The way back from `_grouped`."""
    by_row = grouped.view(part.rows, groups, -1, part.width, grouped.shape[-1])
    return by_row.permute(0, 3, 1, 2, 4).reshape(part.rows * part.width, -1, grouped.shape[-1])


def _weights(
    query: torch.Tensor, key: torch.Tensor, mask_TT: torch.Tensor, part: Part, scores: _Scores
) -> torch.Tensor:
    """(b x G, heads / G x t, t) in the dtype of the queries; their softmax is taken in float32."""
    shape, dtype = (*query.shape[:2], key.shape[1]), query.dtype
    weights = torch.bmm(query, key.transpose(1, 2), out=scores.take("weights", shape, dtype))
    by_head = weights.view(-1, part.width, part.width)
    by_head += mask_TT[: part.width, : part.width]
    wide = torch.softmax(
        weights, -1, dtype=torch.float32, out=scores.take("wide", shape, torch.float32)
    )
    return wide if dtype == torch.float32 else weights.copy_(wide)


def packed_attention(
    module: torch.nn.Module,
    query_1HND: torch.Tensor,
    key_1GND: torch.Tensor,
    value_1GND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    scores: _Scores | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each row of a batch whose tokens are there once each. Returns (1, N, H, D).

    `attention_mask` (1, 1, T, T) is that of one padded row. Without a layout the batch is an
    ordinary one.
    """
    if layout is None:
        return grouped_attention(
            module, query_1HND, key_1GND, value_1GND, attention_mask, scaling, **options
        )
    assert attention_mask is not None
    # Rotary embedding leaves queries and keys in float32 beside values in bfloat16.
    heads = [
        packed[0].transpose(0, 1).to(value_1GND.dtype)
        for packed in (query_1HND * scaling, key_1GND, value_1GND)
    ]
    out_NHD = _Attention.apply(*heads, attention_mask[0, 0], layout, scores)
    return out_NHD[None], None


def packed_hidden_states(
    causal: Any, ids_BT: torch.Tensor, real_BT: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Last hidden states (R, D) of the real tokens of a batch padded on the right, row by row.

    `causal` takes attention functions by name; one loaded otherwise sees the padded batch.
    """
    if causal.config._attn_implementation != PACKED:
        padded_BTD = causal.base_model(
            input_ids=ids_BT, attention_mask=real_BT.long(), use_cache=False
        ).last_hidden_state
        return padded_BTD[real_BT]  # type: ignore[no-any-return]
    layout = layout_of(ids_BT, real_BT)
    states_1ND = causal.base_model(
        input_ids=layout.ids[None],
        position_ids=layout.positions[None],
        attention_mask=causal_mask(layout.width, dtype),
        use_cache=False,
        layout=layout,
        scores=_Scores(layout, causal.config.get_text_config().num_attention_heads),
    ).last_hidden_state
    return states_1ND[0].index_select(0, layout.real)  # type: ignore[no-any-return]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, eager_mask)
