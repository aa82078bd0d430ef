"""What accelerate 1.15 leaves out where several processes train on processors instead of GPUs.

It knows FSDP and DeepSpeed for accelerators only and drops both without a word when told to use the
CPU. Its other parts run there as they are, over gloo; so it is told of no CPU, and given gloo.
"""

from __future__ import annotations

import os
from typing import Any

from pipeline.training_options import Strategy
from serve.hardware import has_cuda

SHARDED = ("fsdp2", "zero3")


def share_processors(strategy: Strategy) -> None:
    """Before accelerate makes its state: this process is one of several on processors.

    Does nothing on GPUs, and without a strategy.
    """
    if has_cuda() or strategy == "none":
        return
    # Else "cpu:1", which no checkpoint can be read onto.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if strategy == "ddp":
        return
    os.environ["ACCELERATE_USE_CPU"] = "false"
    if strategy == "zero3":
        os.environ["DS_ACCELERATOR"] = "cpu"
        from deepspeed.comm import torch as deepspeed_torch

        # A kernel it would first compile for minutes, without a word; gloo does the same.
        deepspeed_torch.build_shm_op = lambda: None
        return
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    def gloo(*_: Any, **__: Any) -> tuple[str, Any]:
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = gloo


def processor_settings(strategy: Strategy) -> dict[str, Any]:
    """What a trainer's config says of the device."""
    if has_cuda():
        return {"use_cpu": False}
    if strategy in SHARDED:
        return {"use_cpu": False, "ddp_backend": "gloo"}
    return {"use_cpu": True}


def one_gpu(config: Any) -> Any:
    """A trainer's config for one process, however many GPUs it sees: TRL refuses to split a batch
    over several."""
    config._n_gpu = min(config.n_gpu, 1)
    return config


def in_float32_only(strategy: Strategy) -> bool:
    """True where trainers, told of no CPU, refuse bfloat16 for want of a GPU."""
    return not has_cuda() and strategy in SHARDED
