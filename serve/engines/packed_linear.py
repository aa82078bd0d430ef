"""Linear layers of float32 that read half as many bytes: FBGEMM's packed float16 weights.

A token costs a pass over all weights, so few rows are bound by memory, and torch's float32 product
of few rows does not even reach that (docs/notes.md, "A third machine"). Sums stay in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Half of float16's smallest step: what rounding costs weights that bfloat16 holds exactly.
EXACT = 2.0**-25
LARGEST = 65504.0
# With more rows float32's own product is as fast.
MOST_ROWS = 128


class PackedLinear(nn.Linear):  # type: ignore[misc]
    """Answers from a packed copy of its weight, which is made again when the weight has changed."""

    _packed: Any
    _packed_of: tuple[int, int]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.numel() // input.shape[-1]
        if torch.is_grad_enabled() or rows > MOST_ROWS or input.dtype != torch.float32:
            return super().forward(input)
        version = 0 if self.weight.is_inference() else self.weight._version
        now = (self.weight.data_ptr(), version)
        if now != self._packed_of:
            bias = None if self.bias is None else self.bias.detach()
            weight = self.weight.detach().clamp(-LARGEST, LARGEST)
            self._packed = torch.ops.quantized.linear_prepack_fp16(weight, bias)
            self._packed_of = now
        result: torch.Tensor = torch.ops.quantized.linear_dynamic_fp16(input, self._packed)
        return result


def pack(model: nn.Module, exact: bool) -> None:
    """Let linear layers of float32 on a CPU answer from packed weights; others stay as they are.

    `exact`: only those that float16 holds as they are, as whatever was saved in bfloat16. Does
    nothing where torch was built without FBGEMM.
    """
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return
    for module in model.modules():
        if type(module) is not nn.Linear:
            continue
        weight = module.weight.detach()
        here = weight.dtype == torch.float32 and weight.device.type == "cpu"
        if here and (not exact or _is_exact(weight)):
            module.__class__ = PackedLinear
            module._packed_of = (0, -1)


def _is_exact(weight: torch.Tensor) -> bool:
    return bool((weight - weight.half().float()).abs().max() <= EXACT)
