"""ONNX engine for graphs that only onnxruntime itself reads, as optimum exports them.

The graph takes ids, mask, positions and every layer's keys and values, and gives logits and the
longer keys and values back; this file carries them from step to step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serve.engines.base import LogitsTV
from serve.engines.blocks import BlockEngine
from serve.engines.onnx_rows import (
    IDS,
    LOGITS,
    MASK,
    PAST,
    PRESENT,
    READ_TOKENS,
    open_session,
)
from serve.engines.sampling import pick_tokens
from serve.engines.stepping import Rows, left_padded
from serve.engines.stopping import token_ids
from serve.errors import EngineError
from serve.messages import Message, Sampling
from serve.template import ChatTemplate, template_of

Array = npt.NDArray[Any]


def load(path: Path, slots: int = 16, context_tokens: int = 4096) -> PlainOnnxEngine:
    """Open a folder with `model.onnx`, config, tokenizer and template."""
    return PlainOnnxEngine(path, slots, context_tokens)


class PlainGraph:
    """One exported graph: ids, mask and what was read before, to logits and what is read now."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._inputs = {entry.name: entry for entry in session.get_inputs()}
        self._outputs = [entry.name for entry in session.get_outputs()]

    def nothing(self, rows: int) -> dict[str, Array]:
        """Keys and values of no token."""
        return {
            name: np.zeros((rows, entry.shape[1], 0, entry.shape[3]), np.float32)
            for name, entry in self._inputs.items()
            if name.startswith(PAST)
        }

    def run(
        self, ids_BT: Array, mask_BT: Array, past: dict[str, Array]
    ) -> tuple[LogitsTV, dict[str, Array]]:
        """Logits (B, T, V) of the ids, and the longer keys and values."""
        positions_BT = np.maximum(mask_BT.cumsum(axis=1) - 1, 0)[:, -ids_BT.shape[1] :]
        given = {IDS: ids_BT, MASK: mask_BT, "position_ids": positions_BT, **past}
        wanted = {name: value for name, value in given.items() if name in self._inputs}
        named = dict(zip(self._outputs, self._session.run(self._outputs, wanted), strict=True))
        longer = {
            PAST + name.removeprefix(PRESENT): value
            for name, value in named.items()
            if name.startswith(PRESENT)
        }
        return named[LOGITS], longer


class PlainRows:
    """Prompts padded on the left, with the keys and values of what was read."""

    def __init__(self, graph: PlainGraph, prompts: Sequence[Sequence[int]]) -> None:
        self._graph = graph
        ids_BT, self._mask_BT = (np.array(rows, np.int64) for rows in left_padded(prompts, pad=0))
        at_once = max(1, READ_TOKENS // ids_BT.shape[1])
        parts = []
        for start in range(0, len(prompts), at_once):
            rows = slice(start, start + at_once)
            past = graph.nothing(len(ids_BT[rows]))
            logits_BTV, past = graph.run(ids_BT[rows], self._mask_BT[rows], past)
            parts.append((logits_BTV[:, -1], past))
        self.logits_BV = np.concatenate([logits_BV for logits_BV, _ in parts])
        self._past = {
            name: np.concatenate([past[name] for _, past in parts]) for name in parts[0][1]
        }

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        return pick_tokens(self.logits_BV, samplings, position)

    def append(self, tokens: Sequence[int]) -> None:
        ids_B1 = np.array(tokens, np.int64)[:, None]
        self._mask_BT = np.pad(self._mask_BT, ((0, 0), (0, 1)), constant_values=1)
        logits_BTV, self._past = self._graph.run(ids_B1, self._mask_BT, self._past)
        self.logits_BV = logits_BTV[:, 0]

    def keep(self, rows: Sequence[int]) -> bool:
        kept_K = np.array(rows)
        self._mask_BT = self._mask_BT[kept_K]
        self._past = {name: value[kept_K] for name, value in self._past.items()}
        return True


class PlainOnnxEngine(BlockEngine):
    """One exported graph, `slots` rows a block."""

    template: ChatTemplate

    def __init__(self, path: Path, slots: int, context_tokens: int) -> None:
        try:
            self.template = template_of(path)
            config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            ends = token_ids(config["eos_token_id"])
            self._graph: PlainGraph | None = PlainGraph(open_session(path / "model.onnx"))
        except Exception as error:  # onnxruntime and tokenizers raise classes of their own
            raise EngineError(f"{path.name} does not load: {error}") from error
        own = self._tokenizer.token_to_id(self.template.end_text)
        super().__init__(
            f"onnxruntime:{path.name}",
            slots,
            ends if own is None else {*ends, own},
            context_tokens,
        )

    def close(self) -> None:
        self._graph = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self.template.render(messages))

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        ids_1T = np.array([ids], np.int64)
        assert self._graph is not None
        logits_1TV, _ = self._graph.run(ids_1T, np.ones_like(ids_1T), self._graph.nothing(1))
        result: LogitsTV = logits_1TV[0]
        return result

    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        assert self._graph is not None
        return PlainRows(self._graph, prompts)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
