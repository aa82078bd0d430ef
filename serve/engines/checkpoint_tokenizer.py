"""The tokenizer of a checkpoint folder, with what engines ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from serve.engines.token_bytes import token_bytes
from serve.messages import Message


class CheckpointTokenizer:
    """Conversations and texts to ids, and ids back; `raw` is transformers' own."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The ids an answer comes after, by the checkpoint's own chat template."""
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = self.raw.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.raw(text, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self.raw.decode(list(ids), skip_special_tokens=True)
        return text

    def byte_ends(self, ids: Sequence[int]) -> list[int]:
        """Bytes of the text up to each id; marks of turns have none."""
        return list(accumulate(len(self.vocabulary[i] or b"") for i in ids))

    @cached_property
    def vocabulary(self) -> list[bytes | None]:
        return token_bytes(self.raw)
