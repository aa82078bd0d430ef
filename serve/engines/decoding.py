"""A block of prompts in a transformers model, one token a step; rows that ended leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from serve.engines.sampling import pick_tokens
from serve.engines.stepping import left_padded
from serve.messages import Sampling


class Block:
    """Prompts padded on the left, with the cache of what was read."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> None:
        self._model = model
        self._ids_BT, self._mask_BT = map(self._row, left_padded(prompts, pad))
        self._cache = DynamicCache(config=model.config)

    def _row(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self._model.device)

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        logits_BV = self._logits()
        if all(s.temperature == 0.0 for s in samplings):
            ids: list[int] = logits_BV.argmax(dim=-1).tolist()
            return ids
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
