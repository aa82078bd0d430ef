"""Prompts of many lengths side by side in a graph that onnxruntime-genai's builder wrote.

That runtime's own batches attend to padding and keep a row until the last one has ended. The graph
can do better through onnxruntime itself: its attention (`GroupQueryAttention`) takes each row's
length from the mask and writes keys and values where they are, so padding goes to the right, is
never read, and rows can leave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from serve.engines.base import LogitsTV
from serve.engines.sampling import pick_tokens
from serve.hardware import cores
from serve.messages import Sampling

Array = npt.NDArray[Any]
IDS, MASK, LOGITS = "input_ids", "attention_mask", "logits"
PAST, PRESENT = "past_key_values.", "present."
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# Positions read at once: each costs a row of logits.
READ_TOKENS = 512


def open_session(path: Path) -> Any:
    """An ONNX file on the CPU, on the cores this process may use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Graph:
    """`model.onnx` on the CPU, keys and values in the caller's buffers."""

    def __init__(self, path: Path, heads: int, head_size: int) -> None:
        """`heads`: of keys and values."""
        self._session = open_session(path)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._past = {e.name: TYPES[e.type] for e in inputs if e.name.startswith(PAST)}
        self._heads, self._head_size = heads, head_size
        (logits,) = (entry for entry in outputs if entry.name == LOGITS)
        self._vocabulary, self._type = logits.shape[-1], TYPES[logits.type]

    def cache(self, rows: int, tokens: int) -> dict[str, Array]:
        """Room for `tokens` of each row, a page of memory only where it is written."""
        return {
            name: np.zeros((rows, self._heads, tokens, self._head_size), dtype)
            for name, dtype in self._past.items()
        }

    def run(self, ids_BT: Array, lengths_B: Array, cache: dict[str, Array], start: int) -> LogitsTV:
        """Logits (B, T, V) after `ids_BT`, which end rows `start` and on at `lengths_B` tokens."""
        rows = slice(start, start + len(ids_BT))
        mask_BT = (np.arange(lengths_B.max()) < lengths_B[:, None]).astype(np.int64)
        logits_BTV = np.empty((*ids_BT.shape, self._vocabulary), self._type)
        binding = self._session.io_binding()
        binding.bind_cpu_input(IDS, np.ascontiguousarray(ids_BT))
        binding.bind_cpu_input(MASK, mask_BT)
        for name, kept in cache.items():
            place = _place(kept[rows])
            binding.bind_input(name, *place)
            binding.bind_output(PRESENT + name.removeprefix(PAST), *place)
        binding.bind_output(LOGITS, *_place(logits_BTV))
        self._session.run_with_iobinding(binding)
        return logits_BTV.astype(np.float32, copy=False)


def _place(array: Array) -> tuple[Any, ...]:
    """How onnxruntime is told of memory that is not its own."""
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data


class RaggedRows:
    """A block of prompts and what is written after them."""

    def __init__(self, graph: Graph, prompts: Sequence[Sequence[int]], answer_tokens: int) -> None:
        self._graph = graph
        self._lengths_B = np.array([len(prompt) for prompt in prompts])
        self._cache = graph.cache(len(prompts), int(self._lengths_B.max()) + answer_tokens)
        self.logits_BV = np.concatenate(list(self._read(prompts)))

    def _read(self, prompts: Sequence[Sequence[int]]) -> Iterator[Array]:
        start = 0
        while start < len(prompts):
            rows = max(1, READ_TOKENS // int(self._lengths_B[start:].max()))
            lengths_B = self._lengths_B[start : start + rows]
            ids_BT = np.zeros((len(lengths_B), lengths_B.max()), np.int64)
            for row, prompt in zip(ids_BT, prompts[start : start + rows], strict=True):
                row[: len(prompt)] = prompt
            logits_BTV = self._graph.run(ids_BT, lengths_B, self._cache, start)
            yield logits_BTV[np.arange(len(lengths_B)), lengths_B - 1]
            start += rows

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        return pick_tokens(self.logits_BV, samplings, position)

    def append(self, tokens: Sequence[int]) -> None:
        self._lengths_B = self._lengths_B + 1
        ids_B1 = np.array(tokens, np.int64)[:, None]
        self.logits_BV = self._graph.run(ids_B1, self._lengths_B, self._cache, 0)[:, 0]

    def keep(self, rows: Sequence[int]) -> bool:
        """Rows move up into the places of those that left."""
        for kept in self._cache.values():
            for place, row in enumerate(rows):
                if place != row:
                    kept[place] = kept[row]
        self._lengths_B = self._lengths_B[list(rows)]
        return True
