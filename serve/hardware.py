"""What this machine's processor can do. Reads /proc/cpuinfo and, when torch is there, CUDA."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path


@cache
def cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((x for x in text.splitlines() if x.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def has_fast_bfloat16() -> bool:
    """True on CUDA and on CPUs with AMX tiles; elsewhere bfloat16 is emulated and slow."""
    return has_cuda() or cpu_has_fast_bfloat16()


def cpu_has_fast_bfloat16() -> bool:
    return "amx_bf16" in cpu_flags()


@cache
def has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
