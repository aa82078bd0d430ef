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
import onnxruntime
from tokenizers import Tokenizer

from serve.engines.base import LogitsTV
from serve.engines.blocks import BlockEngine
from serve.engines.onnx_rows import PAST, PRESENT
from serve.engines.sampling import pick_token
from serve.engines.stepping import Rows
from serve.errors import EngineError
from serve.hardware import cores
from serve.messages import Message, Sampling
from serve.template import template_of

Array = npt.NDArray[Any]


def load(path: Path, slots: int = 16, context_tokens: int = 4096) -> PlainOnnxEngine:
    """Open a folder with `model.onnx`, config, tokenizer and template."""
    return PlainOnnxEngine(path, slots, context_tokens)


class _Rows:
    """Prompts padded on the left, with the keys and values of what was read."""

    def __init__(self, session: Any, prompts: Sequence[Sequence[int]]) -> None:
        self._session, width = session, max(map(len, prompts))
        missing = [width - len(prompt) for prompt in prompts]
        self._ids_BT = np.array(
            [[0] * m + [*prompt] for m, prompt in zip(missing, prompts, strict=True)], np.int64
        )
        self._mask_BT = np.array([[0] * m + [1] * (width - m) for m in missing], np.int64)
        self._wanted = {entry.name: entry for entry in session.get_inputs()}
        self._outputs = [entry.name for entry in session.get_outputs()]
        self._past: dict[str, Array] = {
            name: np.zeros((len(prompts), entry.shape[1], 0, entry.shape[3]), np.float32)
            for name, entry in self._wanted.items()
            if name.startswith(PAST)
        }

    def logits(self) -> LogitsTV:
        """(B, T, V) of what was appended last."""
        positions_BT = np.maximum(self._mask_BT.cumsum(axis=1) - 1, 0)
        given = {
            "input_ids": self._ids_BT,
            "attention_mask": self._mask_BT,
            "position_ids": positions_BT[:, -self._ids_BT.shape[1] :],
            **self._past,
        }
        found = self._session.run(
            self._outputs, {name: value for name, value in given.items() if name in self._wanted}
        )
        named = dict(zip(self._outputs, found, strict=True))
        self._past = {
            PAST + name.removeprefix(PRESENT): value
            for name, value in named.items()
            if name.startswith(PRESENT)
        }
        result: LogitsTV = named["logits"]
        return result

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        return [
            pick_token(logits_V, sampling, position)
            for sampling, logits_V in zip(samplings, self.logits()[:, -1], strict=True)
        ]

    def append(self, tokens: Sequence[int]) -> None:
        self._ids_BT = np.array(tokens, np.int64)[:, None]
        self._mask_BT = np.pad(self._mask_BT, ((0, 0), (0, 1)), constant_values=1)

    def keep(self, rows: Sequence[int]) -> bool:
        kept_K = np.array(rows)
        self._mask_BT = self._mask_BT[kept_K]
        self._past = {name: value[kept_K] for name, value in self._past.items()}
        return True


class PlainOnnxEngine(BlockEngine):
    """One exported graph, `slots` rows a block."""

    def __init__(self, path: Path, slots: int, context_tokens: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        try:
            self._template = template_of(path)
            config = json.loads((path / "generation_config.json").read_text(encoding="utf-8"))
            self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
            self._session: Any = onnxruntime.InferenceSession(
                str(path / "model.onnx"), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime and tokenizers raise classes of their own
            raise EngineError(f"{path.name} does not load: {error}") from error
        ends = config["eos_token_id"]
        own = self._tokenizer.token_to_id(self._template.end_text)
        super().__init__(
            f"onnxruntime:{path.name}",
            slots,
            {*(ends if isinstance(ends, list) else [ends]), own} - {None},
            context_tokens,
        )

    def close(self) -> None:
        self._session = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self._template.render(messages))

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        result: LogitsTV = _Rows(self._session, [ids]).logits()[0]
        return result

    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        return _Rows(self._session, prompts)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
