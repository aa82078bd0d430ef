"""Keys and values of what many prompts begin with, read once and copied for every row."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from serve.engines.prefixes import common_length

# A shorter beginning is not worth a reading of its own.
SHORTEST = 8


def beginning_of(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """What all of several prompts begin with, an id of each left over; nothing if that is short."""
    if len(prompts) < 2:
        return ()
    first = prompts[0][: min(map(len, prompts)) - 1]
    length = min(common_length(first, prompt) for prompt in prompts)
    return tuple(first[:length]) if length >= SHORTEST else ()


class SharedPrefix:
    """The newest `kept` prefixes a torch model has read; `model` may be trained between calls."""

    def __init__(self, model: Any, kept: int = 1) -> None:
        self._model, self._kept = model, kept
        # An optimizer's step and `copy_` count a weight's version up: what was read is stale then.
        self._version = -1
        self._caches: dict[tuple[int, ...], Any] = {}

    @torch.inference_mode()
    def copies(self, ids: Sequence[int], rows: int) -> Any:
        """A cache that `rows` rows go on from, each after `ids`; empty for no ids."""
        version = self._model.get_input_embeddings().weight._version
        if self._version != version:
            self._caches.clear()
            self._version = version
        read = self._caches.pop(tuple(ids), None) or self._read(ids)
        self._caches[tuple(ids)] = read
        while len(self._caches) > self._kept:
            del self._caches[next(iter(self._caches))]
        cache = copy.deepcopy(read)
        if ids:
            cache.batch_repeat_interleave(rows)
        return cache

    def _read(self, ids: Sequence[int]) -> Any:
        cache = DynamicCache(config=self._model.config)
        if ids:
            row = torch.tensor([list(ids)], device=self._model.device)
            self._model(row, past_key_values=cache, logits_to_keep=1)
        return cache
