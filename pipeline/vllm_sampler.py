"""vLLM beside the training: it writes attempts with weights handed over anew for every block.

What vLLM draws depends on the company of a request: an attempt that a kill lost may be another one
when it is drawn again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pipeline.store import write_json
from pipeline.training_options import TrainingOptions
from serve.engines.base import Engine
from serve.engines.child import ChildEngine
from serve.engines.copies import Copies
from serve.engines.vllm_process import names_of_gpus, open_one, vllm_python


class VllmSampler:
    """Copies of vLLM, one a GPU of `training.sampler_gpus`, opened when first asked."""

    def __init__(
        self, handed: Path, slots: int, context_tokens: int, training: TrainingOptions
    ) -> None:
        """`handed`: a folder for weights on their way. Raises UsageError where vLLM is missing."""
        vllm_python()
        self._handed, self._training = handed, training
        self._slots, self._context_tokens = slots, context_tokens
        self._copies: list[ChildEngine] = []

    def answering(self, model: Any, tokenizer: Any) -> Engine:
        """What answers with the weights of `model`."""
        model.save_pretrained(self._handed)
        tokenizer.save_pretrained(self._handed)
        untie(model, self._handed)
        for copy in self._copies:
            copy.reload(self._handed)
        if not self._copies:
            self._open()
        return self._copies[0] if len(self._copies) == 1 else Copies(self._copies)

    def _open(self) -> None:
        seen: list[dict[str, str]] = [
            {"CUDA_VISIBLE_DEVICES": name} for name in names_of_gpus(self._training.sampler_gpus)
        ]
        share = self._training.sampler_memory_share
        self._copies = [
            open_one(self._handed, self._slots, self._context_tokens, memory_share=share, seen=gpus)
            for gpus in seen or [{}]
        ]
        for copy in self._copies:
            copy.ready()

    def close(self) -> None:
        for copy in self._copies:
            copy.close()


def untie(model: Any, folder: Path) -> None:
    """Give the saved model a head of its own where it is the embedding's.

    vLLM (0.31) reloads what a checkpoint names. A head that is tied is not named, and stays the one
    it was on processors, where vLLM packs it.
    """
    if not model.config.get_text_config(decoder=True).tie_word_embeddings:
        return
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    weights = {f"{name}.weight": head.weight.detach().cpu().clone()}
    save_file(weights, folder / "head.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, config | {"tie_word_embeddings": False})
