"""The unquantized reference: a safetensors checkpoint through transformers, on CPU or CUDA.

Requests are answered in fixed blocks, padded on the left; rows that ended leave the block now and
then, so that a few long answers do not cost a whole one. Each token is drawn as in every other
engine: a request's seed means the same everywhere, and no model's generation config changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from serve.engines.attention import GROUPED
from serve.engines.base import LogitsTV
from serve.engines.blocks import BlockEngine
from serve.engines.decoding import Block
from serve.engines.scoring import scores_of
from serve.engines.stepping import Rows
from serve.engines.stopping import token_ids
from serve.errors import EngineError
from serve.hardware import has_cuda, has_fast_bfloat16
from serve.messages import Message, TokenScores


def load(
    path: Path, slots: int = 32, context_tokens: int = 4096, dtype: str = "auto"
) -> TransformersEngine:
    """Open a checkpoint folder; `dtype` auto is bfloat16 where the hardware has it."""
    return TransformersEngine(path, slots, context_tokens, dtype)


class TransformersEngine(BlockEngine):
    """One checkpoint, `slots` requests in a block."""

    def __init__(self, path: Path, slots: int, context_tokens: int, dtype: str) -> None:
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
        own = () if ends is None else token_ids(ends)
        super().__init__(
            f"transformers:{path.name}",
            slots,
            {self.tokenizer.eos_token_id, *own},
            context_tokens,
        )
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self._pad
        )

    def close(self) -> None:
        self.model = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self._encode(text)

    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        return Block(self.model, prompts, self._pad)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _decode(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def score(self, messages: Sequence[Message], completion: str) -> TokenScores:
        prompt = self.prompt_ids(messages)
        encoded = self.tokenizer(completion, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoded["input_ids"]
        ends = [len(completion[:end].encode()) for _, end in encoded["offset_mapping"]]
        return scores_of(ids, ends, self.logits([*prompt, *ids])[len(prompt) - 1 : -1])

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> LogitsTV:
        ids_BT = torch.tensor([list(ids)], device=self.model.device)
        logits_BTV = self.model(ids_BT).logits
        result: LogitsTV = logits_BTV[0].float().cpu().numpy()
        return result
