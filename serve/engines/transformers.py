"""The unquantized reference: a safetensors checkpoint through transformers, on CPU or CUDA.

Requests are answered in fixed blocks, padded on the left; rows that ended leave the block now and
then, so that a few long answers do not cost a whole one. Each token is drawn as in every other
engine: a request's seed means the same everywhere, and no model's generation config changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from serve.engines.attention import GROUPED, attends_plainly, attends_to_everything
from serve.engines.base import LogitsTV
from serve.engines.blocks import CACHE_SHARE, BlockEngine
from serve.engines.checkpoint_tokenizer import CheckpointTokenizer
from serve.engines.decoding import Block
from serve.engines.packed_linear import pack
from serve.engines.prefixes import Prompts
from serve.engines.shared_prefix import SharedPrefix, beginning_of
from serve.engines.stepping import Rows
from serve.engines.stopping import token_ids
from serve.errors import EngineError
from serve.hardware import has_cuda, has_fast_bfloat16
from serve.messages import Grade, Message, Request, TokenScores

# Logits of that many answers exist at a time.
GRADED_TOGETHER = 8
# The ids a prompt adds to what is shared, and those of its begun answer.
Begun = tuple[tuple[int, ...], list[int]]


def load(
    path: Path,
    slots: int = 32,
    context_tokens: int = 4096,
    dtype: str = "auto",
    prefixes: int = 1,
) -> TransformersEngine:
    """Open a checkpoint folder; `dtype` auto is bfloat16 where the hardware has it.

    `prefixes`: how many beginnings of graded prompts are kept.
    """
    wanted = ("bfloat16" if has_fast_bfloat16() else "float32") if dtype == "auto" else dtype
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, wanted), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise EngineError(f"checkpoint {path} does not load: {error}") from error
    model.to("cuda" if has_cuda() else "cpu")
    pack(model, exact=True)
    return TransformersEngine(model, tokenizer, path.name, slots, context_tokens, prefixes)


def rows_that_fit(cache_bytes: float, config: Any, tokens: int) -> int | None:
    """Sequences of so many tokens whose keys and values, of 16 bits, fit, at least one; None for a
    model whose config names no attention.

    Layers that keep a window or a state only are counted as if they kept all.
    """
    config = config.get_text_config(decoder=True)
    if not getattr(config, "num_attention_heads", None):
        return None
    heads = int(config.num_attention_heads)
    groups = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    token_bytes = 4 * int(config.num_hidden_layers) * groups * head_size
    return max(1, int(cache_bytes / (token_bytes * tokens)))


class TransformersEngine(BlockEngine):
    """One model, `slots` requests in a block. Whoever trains it meanwhile changes the answers."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        slots: int,
        context_tokens: int,
        prefixes: int = 1,
    ) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self._text = CheckpointTokenizer(tokenizer)
        self._prefix, self._prompts = SharedPrefix(model, prefixes), Prompts(self.prompt_ids)
        if not has_cuda() and model._supports_attention_backend and attends_plainly(model):
            model.set_attn_implementation(GROUPED)
        self._pad = self.tokenizer.pad_token_id
        if self._pad is None:
            self._pad = self.tokenizer.eos_token_id
        ends = self.model.generation_config.eos_token_id
        own = () if ends is None else token_ids(ends)
        super().__init__(
            f"transformers:{name}", slots, {self.tokenizer.eos_token_id, *own}, context_tokens
        )
        self.model.generation_config = GenerationConfig(
            eos_token_id=sorted(self._ends), pad_token_id=self._pad
        )

    def close(self) -> None:
        self.model = None

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return self._text.prompt_ids(messages)

    def vocabulary(self) -> list[bytes | None]:
        return self._text.vocabulary

    def _rows(self, prompts: Sequence[list[int]], answer_tokens: int) -> Rows:
        """What they begin with is read once for all: the system turn, worked examples. Not where
        layers look back a number of places, of which the padding after it would take some."""
        shared = beginning_of(prompts) if attends_to_everything(self.model) else ()
        if not shared:
            return Block(self.model, prompts, self._pad)
        cache = self._prefix.copies(shared, len(prompts))
        return Block(self.model, prompts, self._pad, cache, len(shared))

    def _room(self, tokens: int) -> int:
        """By the GPU's size, not by what is free: a resumed run answers in the same blocks."""
        if self.model.device.type != "cuda":
            return self.block
        whole_bytes = torch.cuda.get_device_properties(self.model.device).total_memory
        room = rows_that_fit(CACHE_SHARE * whole_bytes, self.model.config, tokens)
        return self.block if room is None else room

    def _encode(self, text: str) -> list[int]:
        return self._text.encode(text)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._text.decode(ids)

    def grade(self, requests: Sequence[Request], top: int) -> list[Grade]:
        cut = [self._prompts.cut(r.messages, r.opening) for r in requests]
        grades: list[Grade] = []
        for shared, together in groupby(zip(cut, requests, strict=True), lambda p: p[0].shared):
            pairs = list(together)
            for start in range(0, len(pairs), GRADED_TOGETHER):
                part = pairs[start : start + GRADED_TOGETHER]
                rows = [(prompt.own, self._encode(r.begun)) for prompt, r in part]
                grades += self._grade_together(shared, rows, top)
        return grades

    @torch.inference_mode()
    def _grade_together(
        self,
        shared: tuple[int, ...],
        answers: Sequence[Begun],
        top: int,
    ) -> list[Grade]:
        """Answers to prompts that all begin with `shared`, which is read once for many calls."""
        rows = [[*own, *ids] for own, ids in answers]
        width, first = max(map(len, rows)), min(len(own) for own, _ in answers) - 1
        ids_BT = self._row([row + [self._pad] * (width - len(row)) for row in rows])
        lengths_B1 = self._row([[len(shared) + len(row)] for row in rows])
        mask_BT = torch.arange(len(shared) + width, device=ids_BT.device) < lengths_B1
        logits_BTV = self.model(
            ids_BT,
            attention_mask=mask_BT.long(),
            past_key_values=self._prefix.copies(shared, len(rows)),
            logits_to_keep=torch.arange(first, width, device=ids_BT.device),
        ).logits
        starts = [len(own) - 1 - first for own, _ in answers]
        return [
            self._grade_of(ids, logits_TV[start : start + len(ids) + 1].float(), top, len(row))
            for (_, ids), row, start, logits_TV in zip(
                answers, rows, starts, logits_BTV, strict=True
            )
        ]

    def _grade_of(
        self, ids: list[int], logits_TV: torch.Tensor, top: int, read_tokens: int
    ) -> Grade:
        """`logits_TV`: before each of the answer's ids, and after the last one."""
        normalizer_T1 = logits_TV.logsumexp(dim=-1, keepdim=True)
        best_TK = logits_TV.topk(min(top, logits_TV.shape[1]))
        nats_T1 = logits_TV[:-1].gather(1, self._row(ids)[:, None]) - normalizer_T1[:-1]
        end_V = logits_TV[-1] - normalizer_T1[-1]
        ends = self._byte_ends(ids)
        return Grade(
            scores=TokenScores(
                ids=tuple(ids),
                byte_offsets=(0, *ends[:-1]) if ids else (),
                logprobs_nats=tuple(nats_T1[:, 0].tolist()),
            ),
            top_ids=tuple(tuple(row) for row in best_TK.indices.tolist()),
            top_logprobs_nats=tuple(map(tuple, (best_TK.values - normalizer_T1).tolist())),
            end_nats=float(end_V[list(self.end_ids())].logsumexp(0)),
            read_tokens=read_tokens,
            text_bytes=ends[-1] if ends else 0,
        )

    def _byte_ends(self, ids: Sequence[int]) -> list[int]:
        return self._text.byte_ends(ids)

    def _row(self, values: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.model.device)

    @torch.inference_mode()
    def logits(self, ids: Sequence[int]) -> LogitsTV:
        logits_BTV = self.model(self._row([list(ids)])).logits
        result: LogitsTV = logits_BTV[0].float().cpu().numpy()
        return result
