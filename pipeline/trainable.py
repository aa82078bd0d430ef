"""A checkpoint in float32, ready to be trained on the device that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from pipeline.lean_norm import use_lean_norms
from pipeline.packing import PACKED, packs
from serve.hardware import has_cuda


def trainable(checkpoint: Path) -> Any:
    """In float32, still on the CPU, with the attention that suits the device.

    On a CPU the backward of fused attention takes half a step; ours needs no padding besides.
    """
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation=None if has_cuda() else "eager",
    )
    if not has_cuda():
        use_lean_norms(model)
        if packs(model):
            model.set_attn_implementation(PACKED)
    return model
