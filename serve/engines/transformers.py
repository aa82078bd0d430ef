"""The unquantized reference: a safetensors checkpoint through transformers, on CPU or CUDA.

Requests are answered in fixed blocks, padded on the left; rows that ended leave the block now and
then, so that a few long answers do not cost a whole one. Each token is drawn as in every other
engine: a request's seed means the same everywhere, and no model's generation config changes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from serve.engines.answer import Answer, check_length, chunks
from serve.engines.attention import GROUPED
from serve.engines.base import LogitsTV
from serve.engines.decoding import Block
from serve.engines.stepping import steps
from serve.errors import EngineError
from serve.hardware import has_cuda, has_fast_bfloat16
from serve.messages import Chunk, Completion, Message, Request, Sampling, TokenScores


def load(
    path: Path, slots: int = 32, context_tokens: int = 4096, dtype: str = "auto"
) -> TransformersEngine:
    """Open a checkpoint folder; `dtype` auto is bfloat16 where the hardware has it."""
    return TransformersEngine(path, slots, context_tokens, dtype)


class TransformersEngine:
    """One checkpoint, `slots` requests in a block."""

    batch_invariant = False

    def __init__(self, path: Path, slots: int, context_tokens: int, dtype: str) -> None:
        self.name = f"transformers:{path.name}"
        self.block = slots
        self._context_tokens = context_tokens
        wanted = ("bfloat16" if has_fast_bfloat16() else "float32") if dtype == "auto" else dtype
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self.model = AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, wanted), local_files_only=True, use_safetensors=True
            )
            if not has_cuda() and self.model._supports_attention_backend:
                self.model.set_attn_implementation(GROUPED)
        except (OSError, ValueError, KeyError) as error:
            raise EngineError(f"checkpoint {path} does not load: {error}") from error
        self.model.to("cuda" if has_cuda() else "cpu").eval()
        self._pad = self.tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self.tokenizer.eos_token_id
        ends = self.model.generation_config.eos_token_id
        self._ends = {
            self.tokenizer.eos_token_id,
            *([ends] if isinstance(ends, int) else ends or []),
        }
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self._pad
        )

    def close(self) -> None:
        self.model = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def end_ids(self) -> tuple[int, ...]:
        return tuple(sorted(self._ends))

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        for start in range(0, len(requests), self.block):
            *_, answers = self._steps(requests[start : start + self.block])
            yield from [(answer.request.key, answer.completion()) for answer in answers]

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        request = Request(key="stream", messages=tuple(messages), sampling=sampling)
        yield from chunks(answer for (answer,) in self._steps([request]))

    @torch.inference_mode()
    def _steps(self, requests: Sequence[Request]) -> Iterator[list[Answer]]:
        """All answers after each step, until the last one has its end."""
        prompts = [self._prompt(request) for request in requests]
        answers = [
            Answer(request, len(prompt), self._decode)
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        block = Block(self.model, prompts, self._pad)
        yield from steps(block, answers, self._ends, self._context_tokens)

    def _prompt(self, request: Request) -> list[int]:
        prompt = self.prompt_ids(request.messages)
        check_length(len(prompt), self._context_tokens, self.name, request)
        return prompt

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        prompt = self.prompt_ids(messages)
        encoded = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        logits_TV = torch.from_numpy(self.logits([*prompt, *ids]))[len(prompt) - 1 : -1]
        logprobs_TV = logits_TV.double().log_softmax(dim=-1)
        logprobs_T = logprobs_TV.gather(1, torch.tensor(ids)[:, None])[:, 0]
        return TokenScores(
            ids=tuple(ids),
            byte_offsets=tuple(
                len(completion[:start].encode()) for start, _ in encoded["offset_mapping"]
            ),
            logprobs_nats=tuple(logprobs_T.tolist()),
        )

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> LogitsTV:
        ids_BT = torch.tensor([list(ids)], device=self.model.device)
        logits_BTV = self.model(ids_BT).logits
        result: LogitsTV = logits_BTV[0].float().cpu().numpy()
        return result
