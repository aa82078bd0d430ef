"""A checkpoint ready to be trained on the device that is there, and the trained one written."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import get_peft_model
from transformers import AutoModelForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from pipeline.forecast_memory import KEPT_SHARE, computes_again
from pipeline.lean_norm import use_lean_norms
from pipeline.model_shapes import model_at
from pipeline.packing import PACKED, packs
from serve.errors import DataError, UsageError
from serve.hardware import has_cuda, has_fast_bfloat16


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


def untouched(checkpoint: Path) -> Any:
    """In float32, as transformers makes it: what several processes share, and packed rows need."""
    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        local_files_only=True,
        attn_implementation=_fastest_attention(),
    )


def quantized(checkpoint: Path) -> Any:
    """Frozen weights of four bits for adapters (QLoRA, arXiv 2305.14314: NF4, quantized twice).

    Raises UsageError without bitsandbytes.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UsageError(
            "sft.method qlora needs bitsandbytes, which is not installed",
            hint='pip install bitsandbytes, or sft.method = "lora"',
        )
    return AutoModelForCausalLM.from_pretrained(
        checkpoint,
        dtype=torch.bfloat16 if has_fast_bfloat16() else torch.float32,
        local_files_only=True,
        attn_implementation=_fastest_attention(),
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if has_fast_bfloat16() else torch.float32,
        ),
    )


def layers_again(
    said: bool | None, checkpoint: Path, tokens: int, share: float = KEPT_SHARE
) -> bool:
    """True when layers should be computed again on the way back: as `said`, else where keeping
    those of `tokens` read at a time would fill more than a share of the GPU."""
    if said is not None:
        return said
    gpu_bytes = torch.cuda.get_device_properties(0).total_memory if has_cuda() else None
    return computes_again(model_at(f"path:{checkpoint}").shape, tokens, gpu_bytes, share)


def trained_model(
    trainer: Any, base: Path, fit: Callable[[Any], object] = lambda model: None
) -> Any | None:
    """What was trained as one plain model, adapters merged, for the first process; None for others.

    All processes call this: shares of a spread model are gathered, into the model at `base` that
    `fit` has changed as the trained one was. Adapters go into the base's own weights, which qlora
    trained beside a copy of four bits.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    adapters = getattr(model, "peft_config", None)
    if trainer.accelerator.distributed_type == DistributedType.NO and not adapters:
        return model
    weights = _gathered(trainer)
    if not trainer.accelerator.is_main_process:
        return None
    unset_hf_deepspeed_config()  # or transformers would share this model out as well
    plain = untouched(base)
    fit(plain)
    # The trainer has made their end tokens the tokenizer's.
    plain.config, plain.generation_config = model.config, model.generation_config
    if not adapters:
        plain.load_state_dict(weights)
        return plain
    plain = get_peft_model(plain, adapters["default"])
    weights = {name: value for name, value in weights.items() if ".lora_" in name}
    known = {name for name in plain.state_dict() if ".lora_" in name}
    if weights.keys() != known:
        raise DataError(f"{len(known)} adapters were trained, {len(weights)} gathered")
    plain.load_state_dict(weights, strict=False)
    return plain.merge_and_unload()


def _gathered(trainer: Any) -> dict[str, torch.Tensor]:
    """The whole state of a spread model, on the CPU; DeepSpeed gives it to the first process."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped) or {}
    return {
        name: (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().cpu()
        for name, value in state.items()
    }


def _fastest_attention() -> str:
    flash = has_cuda() and find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"
