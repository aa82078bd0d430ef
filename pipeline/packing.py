"""A padded batch without its padding: all layers see one row of real tokens, attention alone pads.

The same sums as the padded batch (TRL's `padding_free`, which needs a flash-attention kernel, for
devices that have none). A quarter to a third of a shuffled batch of short traces is padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from serve.engines.attention import grouped_attention

PACKED = "retort_packed"
TOKEN_MULTIPLE = 128


class Layout(NamedTuple):
    """Where the N tokens of a batch padded on the right stand among its B x T places.

    `places` (N,) of the tokens; `sources` (B x T,) the token at a place, any other at padding.
    """

    places: torch.Tensor
    sources: torch.Tensor
    batch: int
    width: int


def layout_of(kept_BT: torch.Tensor) -> Layout:
    """The layout of a batch whose kept places are `kept_BT`."""
    places_N = kept_BT.flatten().nonzero()[:, 0]
    sources_P = (kept_BT.flatten().cumsum(0) - 1).clamp(min=0)
    return Layout(places_N, sources_P, *kept_BT.shape)


def packs(model: Any) -> bool:
    """True when attention over all earlier tokens is the only thing that joins a row's tokens.

    Sliding windows, convolutions and recurrent layers would reach into the example before.
    """
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"]
    return bool(model._supports_attention_backend) and set(kinds) == {"full_attention"}


def causal_mask(width: int, dtype: torch.dtype) -> torch.Tensor:
    """(1, 1, T, T), added to scores. Padding on the right needs no mask of its own."""
    future_TT = torch.ones(width, width, dtype=torch.bool).triu(1)
    zeros_TT = torch.zeros(width, width, dtype=dtype)
    return zeros_TT.masked_fill(future_TT, torch.finfo(dtype).min)[None, None]


class _Spread(torch.autograd.Function):  # type: ignore[misc]
    """Rows (N, ...) to their places.

    What stands at padding is some other row: later than all that attend, and itself never read. So
    nothing needs to be cleared, and no gradient comes from there.
    """

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.save_for_backward(layout.places)
        return rows.index_select(0, layout.sources)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places_N,) = ctx.saved_tensors
        return gradient.index_select(0, places_N), None


class _Gather(torch.autograd.Function):  # type: ignore[misc]
    """The rows at `places_N`. Places differ, so the way back is a copy, not a sum."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_N)
        ctx.count = rows.shape[0]
        return rows.index_select(0, places_N)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (places_N,) = ctx.saved_tensors
        zeros = gradient.new_zeros(ctx.count, *gradient.shape[1:])
        return zeros.index_copy_(0, places_N, gradient), None


def packed_attention(
    module: torch.nn.Module,
    query_1HND: torch.Tensor,
    key_1GND: torch.Tensor,
    value_1GND: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each example of a packed row. Returns (1, N, H, D).

    `attention_mask` (1, 1, T, T) is that of one padded example. Without a layout the batch is an
    ordinary one.
    """
    if layout is None:
        return grouped_attention(
            module, query_1HND, key_1GND, value_1GND, attention_mask, scaling, **options
        )

    def inside(*heads: torch.Tensor) -> torch.Tensor:
        query, key, value = [
            _Spread.apply(rows_NXD, layout)
            .view(layout.batch, layout.width, *rows_NXD.shape[1:])
            .transpose(1, 2)
            for rows_NXD in heads
        ]
        out_BTHD, _ = grouped_attention(module, query, key, value, attention_mask, 1.0, **options)
        return _Gather.apply(out_BTHD.flatten(0, 1), layout.places)  # type: ignore[no-any-return]

    # Rotary embedding leaves queries and keys in float32 beside values in bfloat16.
    heads = [
        packed[0].transpose(0, 1).to(value_1GND.dtype)
        for packed in (query_1HND * scaling, key_1GND, value_1GND)
    ]
    # The weights of all layers were a third of what a step keeps; a tenth of it computes them anew.
    random = options.get("dropout", 0.0) > 0.0
    out_NHD = checkpoint(inside, *heads, use_reentrant=False, preserve_rng_state=random)
    return out_NHD[None], None


def kept_places(real_BT: torch.Tensor) -> torch.Tensor:
    """(B, T) bool: the real tokens, and padding up to a multiple of `TOKEN_MULTIPLE` tokens.

    Buffers of few sizes fit into each other's places; of many, the heap grows with every step.
    """
    missing = -int(real_BT.sum()) % TOKEN_MULTIPLE
    padding_BT = ~real_BT
    nearest_BT = padding_BT.flatten().cumsum(0).view_as(padding_BT) <= missing
    return real_BT | (padding_BT & nearest_BT)


def packed_hidden_states(
    causal: Any, ids_BT: torch.Tensor, kept_BT: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Last hidden states (N, D) of the kept tokens of a batch padded on the right, row by row.

    `causal` takes attention functions by name; one loaded otherwise sees the padded batch.
    """
    if causal.config._attn_implementation != PACKED:
        padded_BTD = causal.base_model(
            input_ids=ids_BT, attention_mask=kept_BT.long(), use_cache=False
        ).last_hidden_state
        return padded_BTD[kept_BT]  # type: ignore[no-any-return]
    batch, width = kept_BT.shape
    positions_BT = torch.arange(width).expand(batch, width)
    states_1ND = causal.base_model(
        input_ids=ids_BT[kept_BT][None],
        position_ids=positions_BT[kept_BT][None],
        attention_mask=causal_mask(width, dtype),
        use_cache=False,
        layout=layout_of(kept_BT),
    ).last_hidden_state
    return states_1ND[0]  # type: ignore[no-any-return]


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, eager_mask)
