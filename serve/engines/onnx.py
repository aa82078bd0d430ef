"""ONNX engine: a folder that onnxruntime-genai's builder wrote, in its runtime.

The runtime computes logits and keeps the cache; tokens are drawn here, as in every other engine.
A conversation runs in onnxruntime-genai, as it will where the folder is used; a batch runs the same
graph through onnxruntime (`serve/engines/onnx_rows.py`), on a CPU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as runtime

from serve.engines.base import LogitsTV
from serve.engines.blocks import BlockEngine
from serve.engines.onnx_rows import Graph, RaggedRows
from serve.engines.sampling import pick_token
from serve.engines.stepping import Rows
from serve.engines.stopping import token_ids
from serve.errors import EngineError
from serve.messages import Message, Sampling
from serve.template import ChatTemplate, template_of

CONFIG_FILE, GRAPH_FILE = "genai_config.json", "model.onnx"


def load(path: Path, slots: int = 16, context_tokens: int = 4096) -> OnnxEngine:
    """Open an ONNX folder; at most `slots` rows are decoded at a time."""
    return OnnxEngine(path, slots, context_tokens)


class _Alone:
    """One conversation in the runtime."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        logits_V = self._generator.get_logits()[0, -1]
        self._width = len(logits_V)
        return [pick_token(logits_V, samplings[0], position)]

    def append(self, tokens: Sequence[int]) -> None:
        """The runtime draws by itself, so it is left one choice."""
        only_11V = np.full((1, 1, self._width), -np.inf, dtype=np.float32)
        only_11V[0, 0, tokens[0]] = 0.0
        self._generator.set_logits(only_11V)
        self._generator.generate_next_token()

    def keep(self, rows: Sequence[int]) -> bool:
        return False


class OnnxEngine(BlockEngine):
    """One ONNX folder."""

    template: ChatTemplate

    def __init__(self, path: Path, slots: int, context_tokens: int) -> None:
        self._path = path
        self._graph: Graph | None = None
        try:
            whole = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
            config = whole["model"]
            self.template = template_of(path)
            self._model = runtime.Model(str(path))
            self._tokenizer = runtime.Tokenizer(self._model)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EngineError(f"{path.name} does not load: {error}") from error
        decoder = config["decoder"]
        self._cache_shape = (int(decoder["num_key_value_heads"]), int(decoder["head_size"]))
        # Elsewhere keys and values lie in the device's memory, or not in one place, or positions
        # are the caller's: then each prompt runs alone.
        ragged = (
            not decoder["session_options"].get("provider_options")
            and "position_ids" not in decoder["inputs"]
            and whole["search"]["past_present_share_buffer"]
        )
        super().__init__(
            f"onnxruntime-genai:{path.name}",
            slots if ragged else 1,
            token_ids(config["eos_token_id"]),
            min(context_tokens, int(config["context_length"])),
        )

    def close(self) -> None:
        self._model = self._tokenizer = self._graph = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self.template.render(messages))

    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        if len(prompts) > 1:
            self._graph = self._graph or Graph(self._path / GRAPH_FILE, *self._cache_shape)
            return RaggedRows(self._graph, prompts, answer_tokens)
        (prompt,) = prompts
        generator = self._generator(len(prompt) + answer_tokens)
        generator.append_tokens(np.array(prompt, dtype=np.int32))
        return _Alone(generator)

    def _generator(self, tokens: int) -> Any:
        options = runtime.GeneratorParams(self._model)
        options.set_search_options(max_length=min(tokens, self.context_tokens), do_sample=False)
        return runtime.Generator(self._model, options)

    def logits(self, ids: Sequence[int]) -> LogitsTV:
        generator = self._generator(len(ids) + 1)
        generator.append_tokens(np.array(ids, dtype=np.int32))
        logits_1TV = generator.get_output("logits")
        result: LogitsTV = np.array(logits_1TV[0], dtype=np.float32)
        return result

    def _encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(np.array(ids, dtype=np.int32))) if ids else ""
