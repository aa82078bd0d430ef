"""The unquantized reference: a safetensors checkpoint through transformers, on CPU or CUDA.

Requests are answered in fixed blocks, padded on the left; rows that ended leave the block now and
then, so that a few long answers do not cost a whole one. Each token is drawn as in every other
engine: a request's seed means the same everywhere, and no model's generation config changes it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from serve.engines.attention import GROUPED
from serve.engines.base import LogitsTV
from serve.engines.sampling import pick_token
from serve.errors import EngineError
from serve.hardware import has_cuda, has_fast_bfloat16
from serve.messages import Chunk, Completion, Message, Request, Sampling, Timing, TokenScores

# A smaller block is copied out once this share of its rows, or less, still goes on.
KEPT_ROWS_SHARE = 0.85


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

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[str, Completion]]:
        for start in range(0, len(requests), self.block):
            yield from self._generate_block(requests[start : start + self.block])

    @torch.inference_mode()
    def _generate_block(self, requests: Sequence[Request]) -> list[tuple[str, Completion]]:
        started_s = time.monotonic()
        prompts = [self.prompt_ids(r.messages) for r in requests]
        width = max(map(len, prompts))
        limit = min(max(r.sampling.max_tokens for r in requests), self._context_tokens - width)
        if limit <= 0:
            raise EngineError(f"prompt of {width} tokens, context {self._context_tokens} tokens")
        device = self.model.device
        ids_BT = torch.tensor([[self._pad] * (width - len(p)) + p for p in prompts], device=device)
        mask_BT = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
        )
        cache = DynamicCache(config=self.model.config)
        written: list[list[int]] = [[] for _ in requests]
        rows, over, first_s = list(range(len(requests))), set[int](), 0.0
        for position in range(limit):
            logits_BV = self.model(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                position_ids=(mask_BT.cumsum(dim=1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :],
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = draw_tokens(logits_BV, [requests[row].sampling for row in rows], position)
            first_s = first_s or time.monotonic() - started_s
            for row, token in zip(rows, tokens, strict=True):
                if row not in over:
                    written[row].append(token)
                    if self._over(requests[row], written[row]):
                        over.add(row)
            going = [i for i, row in enumerate(rows) if row not in over]
            if not going:
                break
            ids_BT = torch.tensor(tokens, device=device)[:, None]
            if len(going) <= KEPT_ROWS_SHARE * len(rows):
                kept_K = torch.tensor(going, device=device)
                cache.reorder_cache(kept_K)  # every kind of layer has it, and takes fewer rows
                ids_BT, mask_BT = ids_BT[kept_K], mask_BT[kept_K]
                rows = [rows[i] for i in going]
            mask_BT = functional.pad(mask_BT, (0, 1), value=1)
        total_s = time.monotonic() - started_s
        return [
            (request.key, self._completion(request, len(prompt), ids, total_s, first_s))
            for request, prompt, ids in zip(requests, prompts, written, strict=True)
        ]

    def _over(self, request: Request, ids: Sequence[int]) -> bool:
        """True once an answer has its end token, a stop string, or all of its tokens."""
        if ids[-1] in self._ends or len(ids) >= request.sampling.max_tokens:
            return True
        if not request.sampling.stop:
            return False
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return any(stop in text for stop in request.sampling.stop)

    def _completion(
        self, request: Request, prompt_tokens: int, ids: list[int], total_s: float, first_s: float
    ) -> Completion:
        ids = ids[: request.sampling.max_tokens]
        end = next((i for i, token in enumerate(ids) if token in self._ends), None)
        ids = ids if end is None else ids[:end]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        found = [i for i in (text.find(s) for s in request.sampling.stop) if i >= 0]
        return Completion(
            text=text[: min(found)] if found else text,
            ids=tuple(ids),
            finish="stop" if end is not None or found else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(ids),
            timing=Timing(first_token_s=first_s, total_s=total_s),
        )

    def stream(self, messages: Sequence[Message], sampling: Sampling) -> Iterator[Chunk]:
        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        prompt = self.prompt_ids(messages)
        count = _Draw([sampling], len(prompt))
        left = _Leaves()
        options: dict[str, Any] = {
            "max_new_tokens": sampling.max_tokens,
            "do_sample": False,
            "streamer": streamer,
            "logits_processor": LogitsProcessorList([count]),
            "stopping_criteria": StoppingCriteriaList([left]),
        }
        ids_BT = torch.tensor([prompt], device=self.model.device)
        worker = Thread(
            target=self.model.generate,
            args=(ids_BT,),
            kwargs={"attention_mask": torch.ones_like(ids_BT), **options},
            daemon=True,
        )
        worker.start()
        seen = 0
        try:
            for text in streamer:
                if text:
                    yield Chunk(text=text, tokens=count.drawn - seen)
                    seen = count.drawn
            worker.join()
            yield Chunk(finish="stop" if count.last in self._ends else "length")
        finally:
            left.asked = True
            worker.join()

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


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token per row possible: the one its own sampling draws at this position."""

    def __init__(self, samplings: Sequence[Sampling], width: int) -> None:
        self._samplings = samplings
        self._width = width
        self.drawn = 0
        self.last = -1

    def __call__(self, ids_BT: torch.Tensor, scores_BV: torch.Tensor) -> torch.Tensor:
        self.drawn += 1
        chosen = draw_tokens(scores_BV, self._samplings, ids_BT.shape[1] - self._width)
        self.last = chosen[-1]
        only_BV = torch.full_like(scores_BV, -torch.inf)
        only_BV[torch.arange(len(chosen)), torch.tensor(chosen)] = 0.0
        return only_BV


def draw_tokens(logits_BV: torch.Tensor, samplings: Sequence[Sampling], position: int) -> list[int]:
    """One token id a row, by that row's own sampling."""
    if all(s.temperature == 0.0 for s in samplings):
        ids: list[int] = logits_BV.argmax(dim=-1).tolist()
        return ids
    rows = logits_BV.float().cpu().numpy()
    return [pick_token(row, s, position) for row, s in zip(rows, samplings, strict=True)]


class _Leaves(StoppingCriteria):  # type: ignore[misc]
    """Ends a stream whose reader is gone."""

    asked = False

    def __call__(self, ids_BT: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((ids_BT.shape[0],), self.asked, device=ids_BT.device)
