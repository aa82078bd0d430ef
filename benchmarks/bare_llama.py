"""llama.cpp with nothing around it: the rate that a server's one stream is compared with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from serve.hardware import cores


@dataclass(frozen=True)
class _Opened:
    native: Any
    model: Any
    sampler: Any
    answer_tokens: int


_opened: list[_Opened] = []


@contextmanager
def bare_llama(
    path: Path, context_tokens: int, answer_tokens: int
) -> Iterator[Callable[[str], float]]:
    """Of a prompt the tokens a second after the first, in a process of its own with all cores.

    The process sleeps between two prompts, so that something else can be timed in turn with it.
    """
    given = (path, context_tokens, answer_tokens)
    with ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=_open, initargs=given
    ) as pool:
        yield lambda prompt: pool.submit(_rate, prompt).result()


def _open(path: Path, context_tokens: int, answer_tokens: int) -> None:
    import llama_cpp as native

    from serve.engines.llama_native import LlamaModel

    model = LlamaModel(path, 1, context_tokens, cores())
    _opened.append(_Opened(native, model, native.llama_sampler_init_greedy(), answer_tokens))


def _rate(text: str) -> float:
    opened = _opened[0]
    native, model, sampler = opened.native, opened.model, opened.sampler
    context, vocabulary = model._context, model.vocabulary
    prompt = model.tokenize(text, special=False)
    model.clear_sequence(0)
    ids = (native.llama_token * len(prompt))(*prompt)
    native.llama_decode(context, native.llama_batch_get_one(ids, len(prompt)))
    token = native.llama_sampler_sample(sampler, context, -1)
    written, started_s = 1, time.monotonic()
    one = (native.llama_token * 1)()
    while written < opened.answer_tokens and not native.llama_vocab_is_eog(vocabulary, token):
        one[0] = token
        native.llama_decode(context, native.llama_batch_get_one(one, 1))
        token = native.llama_sampler_sample(sampler, context, -1)
        written += 1
    return float((written - 1) / (time.monotonic() - started_s))
