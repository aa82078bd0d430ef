"""What users of llama-cpp-python do: `Llama.create_chat_completion`, one request at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from serve.hardware import cores
from serve.messages import Request


def one_at_a_time(path: Path, requests: Sequence[Request]) -> tuple[float, int]:
    """Seconds and completion tokens; loading not counted. The library keeps its prefix cache.

    In a process of its own: llama.cpp and torch must not share one.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_answer, path, list(requests)).result()


def _answer(path: Path, requests: list[Request]) -> tuple[float, int]:
    from llama_cpp import Llama

    model = Llama(
        str(path),
        n_ctx=1024,
        n_threads=cores(),
        n_threads_batch=cores(),
        use_mmap=False,
        verbose=False,
    )
    tokens = 0
    started_s = time.monotonic()
    for request in requests:
        reply = model.create_chat_completion(
            [message.model_dump() for message in request.messages],
            temperature=request.sampling.temperature,
            top_p=request.sampling.top_p,
            max_tokens=request.sampling.max_tokens,
            seed=request.sampling.seed,
        )
        tokens += reply["usage"]["completion_tokens"]
    took_s = time.monotonic() - started_s
    model.close()
    return took_s, tokens
