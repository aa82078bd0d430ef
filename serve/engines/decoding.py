"""A block of prompts in a transformers model, one token a step; rows that ended leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from serve.engines.sampling import TAIL_NATS, pick_tokens, uniform
from serve.engines.stepping import left_padded
from serve.messages import Sampling


class Block:
    """Prompts padded on the left, with the cache of what was read.

    `cache` holds the first `read` ids of every prompt, if they all begin alike.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        pad: int,
        cache: Any = None,
        read: int = 0,
    ) -> None:
        self._model = model
        rests = [prompt[read:] for prompt in prompts]
        self._ids_BT, own_BT = map(self._row, left_padded(rests, pad))
        self._mask_BT = functional.pad(own_BT, (read, 0), value=1)
        self._cache = DynamicCache(config=model.config) if cache is None else cache

    def _row(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self._model.device)

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        logits_BV = self._logits()
        if all(s.temperature == 0.0 for s in samplings):
            ids: list[int] = logits_BV.argmax(dim=-1).tolist()
            return ids
        if logits_BV.is_cuda:
            drawn: list[int] = pick_tokens_there(logits_BV, samplings, position).tolist()
            return drawn
        return pick_tokens(logits_BV.float().cpu().numpy(), samplings, position)

    @torch.inference_mode()
    def _logits(self) -> torch.Tensor:
        """Logits (B, V) of each row's next token."""
        positions_BT = (self._mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        logits_BTV: torch.Tensor = self._model(
            input_ids=self._ids_BT,
            attention_mask=self._mask_BT,
            position_ids=positions_BT[:, -self._ids_BT.shape[1] :],
            past_key_values=self._cache,
            logits_to_keep=1,
        ).logits
        return logits_BTV[:, -1]

    def append(self, tokens: Sequence[int]) -> None:
        self._ids_BT = self._row(tokens)[:, None]
        self._mask_BT = functional.pad(self._mask_BT, (0, 1), value=1)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> bool:
        kept_K = self._row(rows)
        self._cache.reorder_cache(kept_K)  # every kind of layer has it, and takes fewer rows
        self._ids_BT, self._mask_BT = self._ids_BT[kept_K], self._mask_BT[kept_K]
        return True


@torch.inference_mode()
def pick_tokens_there(
    logits_BV: torch.Tensor, samplings: Sequence[Sampling], position: int
) -> torch.Tensor:
    """`pick_tokens` (B,) where the logits are: for a GPU, which sorts faster than it hands over."""

    def column(values: Sequence[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits_BV.device)[:, None]

    temperature_B1 = column([sampling.temperature or 1.0 for sampling in samplings])
    best_B1 = logits_BV.max(dim=1, keepdim=True).values.double()
    scores_BV = (logits_BV.double() - best_B1) / temperature_B1
    scores_BV, ids_BV = scores_BV.sort(dim=1, descending=True, stable=True)
    weights_BV = scores_BV.exp().where(scores_BV > -TAIL_NATS, 0.0)
    cumulative_BV = weights_BV.cumsum(dim=1)
    cumulative_BV = cumulative_BV / cumulative_BV[:, -1:]
    last_B1 = torch.searchsorted(cumulative_BV, column([s.top_p for s in samplings]))
    # A nucleus of the whole mass ends at its last token, not at the tail's first.
    last_B1 = last_B1.clamp(max=(weights_BV > 0).sum(dim=1, keepdim=True) - 1)
    kept_B1 = cumulative_BV.gather(1, last_B1)
    draws_B1 = column([uniform(s.seed, position) for s in samplings]) * kept_B1
    rank_B1 = torch.searchsorted(cumulative_BV, draws_B1, right=True).minimum(last_B1)
    greedy_B1 = column([float(s.temperature == 0.0) for s in samplings]) > 0
    return ids_BV.gather(1, rank_B1.masked_fill(greedy_B1, 0))[:, 0]
