"""llama.cpp with nothing around it: the rate that a server's one stream is compared with."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from serve.hardware import cores


def bare_rate(path: Path, prompts: Sequence[str], context_tokens: int, answer_tokens: int) -> float:
    """Median tokens a second after the first, in a process of its own with all cores."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        rates = pool.submit(_rates, path, list(prompts), context_tokens, answer_tokens).result()
    return statistics.median(rates)


def _rates(
    path: Path, prompts: Sequence[str], context_tokens: int, answer_tokens: int
) -> list[float]:
    import llama_cpp as native

    from serve.engines.llama_native import LlamaModel

    model = LlamaModel(path, 1, context_tokens, cores())
    sampler = native.llama_sampler_init_greedy()
    rates = [
        _rate(native, model, sampler, model.tokenize(prompt, special=False), answer_tokens)
        for prompt in prompts
    ]
    model.close()
    return rates


def _rate(native: Any, model: Any, sampler: Any, prompt: list[int], answer_tokens: int) -> float:
    context, vocabulary = model._context, model.vocabulary
    model.clear_sequence(0)
    ids = (native.llama_token * len(prompt))(*prompt)
    native.llama_decode(context, native.llama_batch_get_one(ids, len(prompt)))
    token = native.llama_sampler_sample(sampler, context, -1)
    written, started_s = 1, time.monotonic()
    one = (native.llama_token * 1)()
    while written < answer_tokens and not native.llama_vocab_is_eog(vocabulary, token):
        one[0] = token
        native.llama_decode(context, native.llama_batch_get_one(one, 1))
        token = native.llama_sampler_sample(sampler, context, -1)
        written += 1
    return (written - 1) / (time.monotonic() - started_s)
