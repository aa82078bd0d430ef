"""ONNX engine: a folder that onnxruntime-genai's builder wrote, in its runtime.

The runtime computes logits and keeps the cache; tokens are drawn here, as in every other engine.
A batch cannot lose a row there, so a row that ended writes on unread until its batch is over; and
its padding is attended to, whatever id it has, so only prompts of one length share a batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as runtime

from serve.engines.answer import Answer, check_length, chunks
from serve.engines.base import LogitsTV
from serve.engines.sampling import pick_token
from serve.engines.stepping import steps
from serve.errors import EngineError
from serve.messages import Chunk, Completion, Message, Request, Sampling, TokenScores
from serve.template import ChatTemplate

CONFIG_FILE, TEMPLATE_FILE = "genai_config.json", "chat_template.jinja"
# The runtime refuses larger batches on a CPU.
MOST_ROWS = 32
# A block holds prompts of many lengths: the more it has, the fuller are its batches.
BLOCK_BATCHES = 16


def load(path: Path, slots: int = 16, context_tokens: int = 4096) -> OnnxEngine:
    """Open an ONNX folder; at most `slots` rows are decoded at a time."""
    return OnnxEngine(path, slots, context_tokens)


class _Rows:
    """A batch in the runtime. Rows cannot leave it."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def draw(self, samplings: Sequence[Sampling], position: int) -> list[int]:
        logits_BV = self._generator.get_logits()[:, -1]
        self._width = logits_BV.shape[1]
        return [
            pick_token(logits_V, sampling, position)
            for sampling, logits_V in zip(samplings, logits_BV, strict=True)
        ]

    def append(self, tokens: Sequence[int]) -> None:
        """The runtime draws by itself, so it is left one choice."""
        only_B1V = np.full((len(tokens), 1, self._width), -np.inf, dtype=np.float32)
        only_B1V[np.arange(len(tokens)), 0, tokens] = 0.0
        self._generator.set_logits(only_B1V)
        self._generator.generate_next_token()

    def keep(self, rows: Sequence[int]) -> bool:
        return False


class OnnxEngine:
    """One ONNX folder. Answers in a batch depend on their company by rounding."""

    batch_invariant = False

    def __init__(self, path: Path, slots: int, context_tokens: int) -> None:
        self.name = f"onnxruntime-genai:{path.name}"
        self._rows = min(slots, MOST_ROWS)
        self.block = BLOCK_BATCHES * self._rows
        try:
            config = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))["model"]
            template = (path / TEMPLATE_FILE).read_text(encoding="utf-8")
            names = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
            self._model = runtime.Model(str(path))
            self._tokenizer = runtime.Tokenizer(self._model)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EngineError(f"{path.name} does not load: {error}") from error
        ends = config["eos_token_id"]
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])
        self._context_tokens = min(context_tokens, int(config["context_length"]))
        self._template = ChatTemplate(
            template, _text(names.get("bos_token")), _text(names.get("eos_token")), path.name
        )

    def close(self) -> None:
        self._model = self._tokenizer = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._encode(self._template.render(messages))

    def end_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._ends))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        prompts = {r.key: self._prompt(r) for r in requests}
        ordered = sorted(requests, key=lambda r: len(prompts[r.key]))
        for _, group in groupby(ordered, key=lambda r: len(prompts[r.key])):
            alike = list(group)
            for start in range(0, len(alike), self._rows):
                batch = alike[start : start + self._rows]
                *_, answers = self._steps(batch, [prompts[r.key] for r in batch])
                yield from [(answer.request.key, answer.completion()) for answer in answers]

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        request = Request(key="stream", messages=tuple(messages), sampling=sampling)
        steps = self._steps([request], [self._prompt(request)])
        yield from chunks(answer for (answer,) in steps)

    def _steps(
        self, requests: Sequence[Request], prompts: Sequence[list[int]]
    ) -> Iterator[list[Answer]]:
        """All answers after each step, until the last one has its end."""
        answers = [
            Answer(request, len(prompt), self._decode)
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        longest = max(request.sampling.max_tokens for request in requests)
        generator = self._generator(len(prompts[0]) + longest, len(prompts))
        generator.append_tokens(np.array(prompts, dtype=np.int32))
        yield from steps(_Rows(generator), answers, self._ends, self._context_tokens)

    def _generator(self, tokens: int, rows: int = 1) -> Any:
        options = runtime.GeneratorParams(self._model)
        options.set_search_options(
            max_length=min(tokens, self._context_tokens), batch_size=rows, do_sample=False
        )
        return runtime.Generator(self._model, options)

    def _prompt(self, request: Request) -> list[int]:
        prompt = self.prompt_ids(request.messages)
        check_length(len(prompt), self._context_tokens, self.name, request)
        return prompt

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        prompt, ids = self.prompt_ids(messages), self._encode(completion)
        logits_TV = self.logits([*prompt, *ids])[len(prompt) - 1 : -1].astype(np.float64)
        best_T1 = logits_TV.max(axis=1, keepdims=True)
        normalizer_T = best_T1[:, 0] + np.log(np.exp(logits_TV - best_T1).sum(axis=1))
        logprobs_T = logits_TV[np.arange(len(ids)), ids] - normalizer_T
        lengths = [len(self._decode(ids[: i + 1]).encode()) for i in range(len(ids))]
        return TokenScores(
            ids=tuple(ids),
            byte_offsets=(0, *lengths[:-1]) if ids else (),
            logprobs_nats=tuple(float(x) for x in logprobs_T),
        )

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


def _text(token: Any) -> str:
    """tokenizer_config.json gives a special token as text, as a record, or not at all."""
    return str(token["content"] if isinstance(token, dict) else token or "")
