"""Keys and values of what many prompts begin with, read once and copied for every row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache


class SharedPrefix:
    """The newest prefix a torch model has read; `model` may be trained between calls."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._of: tuple[tuple[int, ...], int] | None = None
        self._cache: Any = None

    def copies(self, ids: Sequence[int], rows: int) -> Any:
        """A cache that `rows` rows go on from, each after `ids`; empty for no ids."""
        # An optimizer's step and `copy_` count a weight's version up: what was read is stale then.
        version = self._model.get_input_embeddings().weight._version
        if self._of != (tuple(ids), version):
            self._cache = DynamicCache(config=self._model.config)
            if ids:
                row = torch.tensor([list(ids)], device=self._model.device)
                self._model(row, past_key_values=self._cache, logits_to_keep=1)
            self._of = (tuple(ids), version)
        cache = copy.deepcopy(self._cache)
        if ids:
            cache.batch_repeat_interleave(rows)
        return cache
