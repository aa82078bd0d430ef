"""What this machine's processor can do. Reads /proc/cpuinfo and, when torch is there, CUDA."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

# What torch's CPU kernels may use at most, as oneDNN reads it: of these none multiplies bfloat16.
NO_BFLOAT16 = (
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
)


@cache
def cpu_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((x for x in text.splitlines() if x.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def has_fast_bfloat16() -> bool:
    """True on CUDA and on CPUs that multiply it; elsewhere bfloat16 is emulated and slow."""
    return has_cuda() or cpu_has_fast_bfloat16()


def cpu_has_fast_bfloat16() -> bool:
    """AMX tiles are six times float32, AVX-512's dot products twice (docs/notes.md). False where
    ONEDNN_MAX_CPU_ISA keeps torch from both, which makes one machine compute as another does."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    return limit not in NO_BFLOAT16 and bool({"amx_bf16", "avx512_bf16"} & cpu_flags())


@cache
def has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def cores() -> int:
    """Processors this process may use: those it is bound to, of which OMP_NUM_THREADS at most."""
    bound = len(os.sched_getaffinity(0))
    wish = os.environ.get("OMP_NUM_THREADS", "")
    return min(bound, int(wish)) if wish.isdigit() and int(wish) else bound


@cache
def device_name() -> str:
    """The GPU where there is one that torch sees, else the processor and its cores."""
    if "torch" in sys.modules and has_cuda():
        import torch

        return str(torch.cuda.get_device_name())
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    line = next((x for x in text.splitlines() if x.startswith("model name")), "")
    return f"{line.partition(':')[2].strip() or 'processor'}, {cores()} cores"
